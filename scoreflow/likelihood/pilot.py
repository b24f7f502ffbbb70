"""Nodes for a model, chosen by a pilot: a few examples that follow many nodes, with gradients; see `nodes`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.likelihood import multistep, nodes, ode
from scoreflow.likelihood.multistep import Nodes, Rule
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.processes.sdes import Process
from scoreflow.score import Score
from scoreflow.types import Params

GRADIENT = 3
"""Evaluations in whose time one is done with its gradient: a reverse pass is twice the forward one."""


class Piloted(NamedTuple):
    """What a pilot has chosen.

    Attributes:
      t: nodes, [K + 1].
      order: of the rule.
      error: of log p in nats, as it was measured; NaN where no number of nodes was good enough.
      evaluations: that the pilot took, for all its examples together.
    """

    t: np.ndarray
    order: int
    error: Estimate
    evaluations: int


def follower(process: Process, score_of: Callable[[Params], Score]) -> Callable[..., Nodes]:
    """((params, gaussian, rule), keys, x, cond) -> what x meets at the rule's nodes, with the examples first.

    So it can run in batches; `choose` wants the nodes first, see `nodes_first`.
    """

    def follow(given, keys, x, cond):
        params, gaussian, rule = given
        options = {"probe": ode.probes(keys, x), "keep": True}
        path = multistep.follow(process, score_of(params), gaussian, rule, x, cond, **options)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), path.nodes)

    return follow


def nodes_first(met: Nodes) -> Nodes:
    """Arrays of `follower` with the nodes first, on the host."""
    return jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 1), met)


def choose(
    process: Process,
    t: np.ndarray,
    follow: Callable[[Rule], Nodes],
    solve: Callable[[str, Rule], np.ndarray],
    asked: Callable[[np.ndarray], float],
) -> Piloted:
    """The fewest nodes whose error is below the one that is asked for.

    Args:
      process: the forward SDE.
      t: the pilot's nodes, from t_min to the horizon.
      follow: what the pilot's examples meet at the nodes of a rule; arrays on the host.
      solve: (name, rule) -> log p of other examples by a rule, [N].
      asked: log p of these examples -> the error that is asked for.
    """
    met = follow(multistep.rule_at(process, t, multistep.ORDER))
    count, finite = met.rate.shape[1], np.isfinite(met.rate).all(0)
    if not finite.any():  # what the densities then say is that they failed
        return Piloted(t, multistep.ORDER, Estimate(float("nan"), float("nan")), GRADIENT * len(t) * count)
    met = jax.tree.map(lambda leaf: leaf[:, finite], met)

    def by(name: str, q: np.ndarray, order: int) -> np.ndarray:
        rule = multistep.rule_at(process, nodes.between(process, q, t[0], t[-1]), order)
        return np.asarray(solve(name, multistep.padded(rule)), np.float64)

    q = multistep.q_at(process, t)
    reference = by("reference", nodes.halved(q), multistep.ORDER)

    def measure(q: np.ndarray, order: int) -> Estimate:
        difference = by(f"{len(q)}-{order}", q, order) - reference
        return mean_estimate(difference[np.isfinite(difference)])

    choice = nodes.choose(q, met, measure, asked(reference))
    evaluations = GRADIENT * len(q) * count + (len(nodes.halved(q)) + sum(choice.tried)) * len(reference)
    return Piloted(nodes.between(process, choice.q, t[0], t[-1]), choice.order, choice.error, evaluations)
