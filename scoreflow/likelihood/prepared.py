"""What makes densities of a model cheap: a Gaussian of its data, and the nodes of a rule that a pilot has chosen."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from scoreflow import gaussian as gaussians
from scoreflow.gaussian import Gaussian
from scoreflow.likelihood import multistep, nodes, pilot
from scoreflow.likelihood.multistep import Nodes, Rule
from scoreflow.metrics import Estimate
from scoreflow.processes.sdes import Process

_AT_A_TIME = 500  # rows of the Gaussian's fit


class Prepared(NamedTuple):
    """The Gaussian of the data, the rule, and the error of log p in nats that was measured for it.

    Attributes:
      gaussian: of x_0.
      rule: from t_min to the horizon.
      error: on training data; NaN where no number of nodes was good enough.
      evaluations: of the score that a density takes.
      pilot: evaluations that looking for the nodes took, for all examples together.
      t: the nodes, as `encode` and `decode` take them.
      order: of the rule, likewise.
    """

    gaussian: Gaussian
    rule: Rule
    error: Estimate
    evaluations: int
    pilot: int
    t: np.ndarray
    order: int


def fit_gaussian(
    process: Process, t_min: float, x: np.ndarray, cond: np.ndarray | None = None, *, num_classes: int = 0
) -> Gaussian:
    """The Gaussian of x_0 from continuous data x [N, ...] at t_min, one for each class where there are labels [N].

    Raises:
      ValueError: if a class has no example.
    """
    if cond is not None and (missing := set(range(num_classes)) - set(cond.tolist())):
        raise ValueError(f"the data have no example of the classes {sorted(missing)}; densities need all of them")

    def rows():
        for i in range(0, len(x), _AT_A_TIME):
            rows = slice(i, i + _AT_A_TIME)
            yield x[rows].reshape(len(x[rows]), -1), None if cond is None else cond[rows]

    fitted = gaussians.fit(rows, int(np.prod(x.shape[1:])), classes=num_classes if cond is not None else 1)
    fitted = gaussians.undiffused(fitted, process.alpha(t_min), process.sigma(t_min))
    return Gaussian(*map(jnp.asarray, fitted))


def prepare(
    process: Process,
    t_min: float,
    gaussian: Gaussian,
    follow: Callable[[Rule], Nodes],
    solve: Callable[[Rule], np.ndarray],
    *,
    error: float,
    num: int,
) -> Prepared:
    """Chooses nodes, see `pilot.choose`; a warning says so where no number of them reaches the error.

    Args:
      process: the forward SDE.
      t_min: the time at which the data are.
      gaussian: of x_0.
      follow: what examples meet at the nodes of a rule, the nodes first.
      solve: log p of other examples by a rule, [N].
      error: of the mean of log p over `num` examples, in its standard errors.
      num: examples whose mean should be as exact as that.
    """
    asked = lambda logp: error * float(np.nanstd(logp)) / np.sqrt(num)
    t = nodes.even(process, t_min, float(process.horizon))
    choice = pilot.choose(process, t, follow, lambda name, rule: solve(rule), asked)
    if np.isnan(choice.error.value):
        words = "no number of nodes reached the error that was asked for; use log_prob with a tolerance, or raise error"
        warnings.warn(words, stacklevel=3)
    rule = multistep.padded(multistep.rule_at(process, choice.t, choice.order))
    return Prepared(gaussian, rule, choice.error, len(choice.t), choice.evaluations, choice.t, choice.order)
