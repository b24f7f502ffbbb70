"""Where the nodes of a multistep rule lie, chosen by what a few examples meet at many nodes.

An error delta of w at a node changes log p(x) by the inner product of delta with the gradient of log p_t there, which
is known from the score. With it, the local error of a step in (2) and (3) of `multistep` is that of one integral,

    int (sigma tr(dr / dx)(s) + (grad_w log p at the end of the step)^T dw/dq(s)) dq(s)                              (1)

and the error that steps of the rule leave in it is known for all steps between nodes of the pilot, without another
evaluation. The nodes of K steps with the least sum of these errors are found exactly, by dynamic programming, for every
K at once. Derived here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from scipy.interpolate import CubicSpline

from scoreflow.likelihood.multistep import ORDER, Nodes, q_at
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.processes.sdes import Process

PILOT = 97
"""Nodes of a pilot."""
COUNTS = (8, 12, 16, 20, 24, 32, 40, 48, 64)
"""Numbers of nodes that are tried."""
_LENGTHS = (16, 32, 64)  # to which trials are padded, since every length is compiled


def between(process: Process, q: np.ndarray, start: float, end: float) -> np.ndarray:
    """Times of nodes q, of which the first and the last are `start` and `end` exactly."""
    with jax.enable_x64(True):
        t = np.array(process.inverse_log_snr(-2.0 * q), np.float64)
    t[0], t[-1] = start, end
    return t


def even(process: Process, start: float, end: float, count: int = PILOT) -> np.ndarray:
    """Times of nodes that are even in log-SNR."""
    first, last = q_at(process, np.asarray([start, end]))
    return between(process, np.linspace(first, last, count), start, end)


def refined(process: Process, t: np.ndarray) -> np.ndarray:
    """Times t [K + 1] with another in the middle of each step in log-SNR, [2 K + 1]."""
    q, places = q_at(process, t), np.arange(len(t))
    return between(process, np.interp(np.arange(2 * len(t) - 1) / 2.0, places, q), t[0], t[-1])


def padded(t: np.ndarray) -> np.ndarray:
    """Nodes with the last repeated, which changes nothing, up to one of a few lengths."""
    length = next((length for length in _LENGTHS if length >= len(t)), len(t))
    return np.concatenate([t, np.full(length - len(t), t[-1])])


class Choice(NamedTuple):
    """What was chosen.

    Attributes:
      nodes: numbers of the pilot's nodes.
      order: of the rule.
      error: of log p in nats as it was measured; NaN where no number of nodes was good enough.
      evaluations: of each of the pilot's examples, by what was tried.
    """

    nodes: np.ndarray
    order: int
    error: Estimate
    evaluations: int


def choose(q: np.ndarray, met: Nodes, measure: Callable[[np.ndarray, int], Estimate], asked: float) -> Choice:
    """The fewest of `COUNTS` nodes whose error is below the one that is asked for; all nodes where there are none.

    A plan whose expected error is above twice of what is asked is not tried. The others are, since what is expected
    leaves out that every node is evaluated at a prediction.

    Args:
      q: the pilot's nodes.
      met: what it met there.
      measure: (numbers of nodes, order) -> the error in nats of the rule with these nodes.
      asked: for the error, and for its standard error.
    """
    candidates = {order: plans(q, met, order, max(COUNTS) - 1) for order in (2, 3)}
    evaluations = 0
    for count in COUNTS:
        good = []
        for order, by_steps in candidates.items():
            plan = by_steps[count - 1]
            if _bound(mean_estimate(plan.error)) > 2.0 * asked:
                continue
            error = measure(plan.nodes, order)
            evaluations += len(padded(plan.nodes))
            if _bound(error) <= asked:
                good.append((_bound(error), plan.nodes, order, error))
        if good:
            _, nodes, order, error = min(good, key=lambda each: each[0])
            return Choice(nodes, order, error, evaluations)
    return Choice(np.arange(len(q)), ORDER, Estimate(float("nan"), float("nan")), evaluations)


def _bound(error: Estimate) -> float:
    return max(abs(error.value), error.stderr)


class Plan(NamedTuple):
    """Nodes that were chosen, and the error that is expected of them.

    Attributes:
      nodes: numbers of the pilot's nodes, [K + 1], from the first to the last.
      error: of log p of each example of the pilot in nats, [B].
    """

    nodes: np.ndarray
    error: np.ndarray


def effects(nodes: Nodes) -> np.ndarray:
    """The integrand of (1) at all nodes s, for steps that end at node k: [k, s, B]."""
    slope, rate, pull = (np.asarray(each, np.float64) for each in nodes)
    return np.einsum("kbd,sbd->ksb", pull, slope, optimize=True) + rate[None]


def local_errors(q: np.ndarray, effect: np.ndarray, order: int) -> list[np.ndarray]:
    """What steps leave of (1): for every node k, [j, i, B] of a step from j < k to k that looks at i < j as well.

    Of order 2, which looks at no other node, i has one value. The first step of a rule of order 3 is of order 2, since
    there is no node before it.

    Args:
      q: the pilot's nodes, [M], increasing.
      effect: see `effects`.
      order: 2 or 3.
    """
    errors = []
    for k in range(len(q)):
        at = effect[k]
        whole = CubicSpline(q, at, axis=0).antiderivative()(q)
        j = np.arange(k)
        h = (q[k] - q[j])[:, None]
        if order == 2:
            errors.append((whole[k] - whole[j] - 0.5 * h * (at[j] + at[k]))[:, None])
            continue
        i = j[:, None]  # [i, j], used where i < j
        g = np.where(i < j, q[j] - q[i], 1.0)[..., None]
        rule = h * (2 * h + 3 * g) / (6 * (h + g)) * at[k] + h * (h + 3 * g) / (6 * g) * at[j]
        rule = rule - h**3 / (6 * g * (h + g)) * at[i]
        errors.append(np.swapaxes(whole[k] - whole[j] - rule, 0, 1))
    return errors


def plans(q: np.ndarray, nodes: Nodes, order: int, most: int) -> dict[int, Plan]:
    """The best nodes for K = 2 ... `most` steps of a rule of order 2 or 3.

    Args:
      q: the pilot's nodes, [M].
      nodes: what was met there.
      order: of the rule.
      most: steps at most.
    """
    effect, count = effects(nodes), len(q)
    first = local_errors(q, effect, 2)
    later = local_errors(q, effect, order)
    size = lambda error: np.sqrt(np.mean(error**2, axis=-1))
    begin = np.array([np.inf, *(size(each[0, 0]) for each in first[1:])])
    # best[j, k]: the least sum of errors of paths that end with the step from j to k
    best = np.full((count, count), np.inf)
    best[0] = begin
    cost = np.full((count, count, count), np.inf)  # [i, j, k]
    for k, error in enumerate(later):
        if order == 2:
            cost[:, :k, k] = size(error[:, 0])
        else:
            cost[:k, :k, k] = size(np.swapaxes(error, 0, 1))
    cost[np.tril_indices(count)] = np.inf  # i < j
    chosen, result = [], {}
    for steps in range(2, most + 1):
        ways = best[:, :, None] + cost
        chosen.append(ways.argmin(0))
        best = ways.min(0)
        path = [count - 1, int(best[:, -1].argmin())]
        for back in reversed(chosen):
            path.append(int(back[path[-1], path[-2]]))
        path = path[::-1]
        total = first[path[1]][0, 0] + sum(
            later[k][j, 0 if order == 2 else i] for i, j, k in zip(path, path[1:], path[2:])
        )
        result[steps] = Plan(np.asarray(path), total)
    return result
