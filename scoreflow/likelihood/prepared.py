"""What makes densities of a model cheap: a Gaussian of its data, and the nodes of a rule that a pilot has chosen."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import gaussian as gaussians
from scoreflow.gaussian import Gaussian
from scoreflow.likelihood import multistep, nodes, ode
from scoreflow.likelihood import pilot as pilots
from scoreflow.likelihood.multistep import Nodes, Rule
from scoreflow.metrics import Estimate

_AT_A_TIME = 500  # rows of the Gaussian's fit
_PILOTED = 16  # examples of the pilot at a time, each with a gradient
_MEASURED = 4  # times as many examples as the pilot has are measured


class Prepared(NamedTuple):
    """The Gaussian of the data, the rule, and the error of log p in nats that was measured for it.

    Attributes:
      gaussian: of x_0.
      rule: from t_min to the horizon.
      error: on training data; NaN where no number of nodes was good enough.
      evaluations: of the score that a density takes.
      pilot: evaluations that looking for the nodes took, for all examples together.
    """

    gaussian: Gaussian
    rule: Rule
    error: Estimate
    evaluations: int
    pilot: int


def prepare(
    model: Any,
    x: np.ndarray,
    cond: np.ndarray | None = None,
    *,
    error: float = 0.1,
    num: int = 1000,
    pilot: int = 32,
    batch_size: int = 100,
) -> Prepared:
    """Fits the Gaussian to continuous x [N, ...] with labels [N], and chooses nodes; see `Model.with_data`.

    A warning says so where no number of nodes reaches the error.
    """
    if cond is not None and len(missing := set(range(model.num_classes)) - set(cond.tolist())):
        raise ValueError(f"the data have no example of the classes {sorted(missing)}; densities need all of them")
    process, t_min, d = model.process, model.t_min, int(np.prod(model.shape))

    def rows():
        for i in range(0, len(x), _AT_A_TIME):
            part = slice(i, i + _AT_A_TIME)
            yield x[part].reshape(-1, d), None if cond is None else cond[part]

    fitted = gaussians.fit(rows, d, classes=model.num_classes if cond is not None else 1)
    fitted = gaussians.undiffused(fitted, process.alpha(t_min), process.sigma(t_min))
    gaussian = Gaussian(*map(jnp.asarray, fitted))

    def chosen(count: int) -> tuple:
        at = np.linspace(0, len(x) - 1, min(count, len(x))).astype(int)
        return jax.random.split(jax.random.key(2**20 - 1), len(at)), x[at], None if cond is None else cond[at]

    def along(given, keys, x, cond):
        params, gaussian, rule = given
        score, probe = model.score_of(params), ode.probes(keys, x)
        path = multistep.follow(process, score, gaussian, rule, x, cond, probe=probe, keep=True)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), path.nodes)

    def follow(rule: Rule) -> Nodes:
        given = model.params, gaussian, rule
        met = model._batched("pilot", along, _PILOTED, *chosen(pilot), given=given)
        return jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 1), met)

    def solve(name: str, rule: Rule) -> np.ndarray:
        held = Prepared(gaussian, rule, Estimate(0.0, 0.0), 0, 0)
        return model._by_nodes(held, *chosen(_MEASURED * pilot), whole=False, batch_size=batch_size)

    asked = lambda logp: error * float(np.nanstd(logp)) / np.sqrt(num)
    choice = pilots.choose(process, nodes.even(process, t_min, float(process.horizon)), follow, solve, asked)
    if np.isnan(choice.error.value):
        words = "no number of nodes reached the error that was asked for; use log_prob with a tolerance, or raise error"
        warnings.warn(words, stacklevel=3)
    rule = multistep.padded(multistep.rule_at(process, choice.t, choice.order))
    return Prepared(gaussian, rule, choice.error, len(choice.t), choice.evaluations)
