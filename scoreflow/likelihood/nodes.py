"""Where the nodes of a multistep rule lie, chosen by what a few examples meet at many nodes.

An error delta of w at a node changes log p(x) by the inner product of delta with the gradient of log p_t there, which
is known from the score. With it, what the corrector of a step leaves in (2) and (3) of `multistep` is the error of a
quadrature of one function,

    e_n(s) = sigma tr(dr / dx)(s) + (grad_w log p at the end of step n)^T dw/dq(s)                                  (1)

and so it is known for every step between nodes of the pilot, without another evaluation. Each node is evaluated at a
prediction, which is off by delta_n = sum_j predictor_nj dw/dq(q_j) - int dw/dq. To first order that changes log p(x) by

    (sum of the corrector's weights of node n over all steps) * grad_w [e_n(q_n)]^T delta_n                         (2)

where the gradient of log p is held. A path of few steps with a small sum of (1) and (2) is found by dynamic
programming, for every number of steps at once, and what is expected of it is known for each example. Derived here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from scipy.interpolate import CubicSpline

from scoreflow.likelihood.multistep import Nodes, q_at
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.processes.sdes import Process
from scoreflow.samplers.adams import ORDER, adams

PILOT = 49
"""Nodes of a pilot."""
COUNTS = (*range(8, 25), 26, 28, 30, 32, 36, 40, 48, 56, 64)
"""Numbers of nodes that are tried."""


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


def halved(q: np.ndarray) -> np.ndarray:
    """Nodes q [K + 1] with another in the middle of each step, [2 K + 1]."""
    return np.interp(np.arange(2 * len(q) - 1) / 2.0, np.arange(len(q)), q)


def refined(process: Process, t: np.ndarray) -> np.ndarray:
    """Times t [K + 1] with three more in each step, even in log-SNR, [4 K + 1]."""
    return between(process, halved(halved(q_at(process, t))), t[0], t[-1])


class Choice(NamedTuple):
    """What was chosen.

    Attributes:
      q: the nodes.
      order: of the rule.
      error: of log p in nats as it was measured; NaN where no number of nodes was good enough.
      tried: numbers of nodes of the plans that were measured.
    """

    q: np.ndarray
    order: int
    error: Estimate
    tried: tuple[int, ...]


def choose(q: np.ndarray, met: Nodes, measure: Callable[[np.ndarray, int], Estimate], asked: float) -> Choice:
    """The fewest of `COUNTS` nodes whose error is below the one that is asked for.

    Where there are none, the best of those that were measured and of the pilot's own.

    Of each number the plans of orders 2 and 3 are measured whose expected error is small enough, once it is corrected
    by what the last measurement of that order was off: mostly the square of (2), which falls with twice the order.
    Nodes lie at those of the pilot or halfway between them.

    Args:
      q: the pilot's nodes.
      met: what it met there.
      measure: (nodes, order) -> the error in nats of the rule with these nodes.
      asked: for the error's size and its standard error together, as an evaluation judges it on other examples.
    """
    grid = halved(q)
    end, place = integrands(q, met, grid)
    candidates = {order: plans(grid, end, place, order, max(COUNTS) - 1) for order in (2, 3)}
    tried, off = (), {order: (1, 0.0) for order in candidates}  # the last number, and what was off
    best = Choice(q, ORDER, Estimate(float("inf"), float("inf")), tried)
    for count in COUNTS:
        for order, by_steps in candidates.items():
            plan = by_steps[count - 1]
            last, apart = off[order]
            expected, more = mean_estimate(plan.error), apart * (last / count) ** (2 * order)
            if abs(expected.value + more) <= asked:
                error, tried = measure(grid[plan.nodes], order), (*tried, count)
                off[order] = count, error.value - expected.value
                if _bound(error) < _bound(best.error):
                    best = Choice(grid[plan.nodes], order, error, tried)
        if _bound(best.error) <= asked:
            return best._replace(tried=tried)
    own = Choice(q, ORDER, measure(q, ORDER), ())
    best = min(own, best, key=lambda choice: _bound(choice.error))
    return best._replace(error=Estimate(float("nan"), float("nan")), tried=(*tried, len(q)))


def _bound(error: Estimate) -> float:
    return abs(error.value) + error.stderr


class Plan(NamedTuple):
    """Nodes that were chosen, and the error that is expected of them.

    Attributes:
      nodes: their numbers in the grid, [K + 1], from the first to the last.
      error: of log p of each example of the pilot in nats, [B].
    """

    nodes: np.ndarray
    error: np.ndarray


class Integrand(NamedTuple):
    """A function of s that depends on the end k of the step, at all nodes of a grid.

    Attributes:
      value: [k, s, B].
      area: its integral from the first node to s, [k, s, B].
    """

    value: np.ndarray
    area: np.ndarray

    def left(self, weights: np.ndarray, at: np.ndarray, j: int, k: int) -> np.ndarray:
        """The error of a rule with weights at nodes `at` for the step from node j to k, [B]."""
        return weights[: len(at)] @ self.value[k, at] - (self.area[k, k] - self.area[k, j])


def integrands(q: np.ndarray, nodes: Nodes, grid: np.ndarray) -> tuple[Integrand, Integrand]:
    """What a corrector integrates, (1), and what a predictor does, grad_w [e_k(q_k)]^T dw/dq(s) of (2).

    Args:
      q: a pilot's nodes, increasing.
      nodes: what it met there.
      grid: nodes onto which it is interpolated.
    """
    slope, rate, pull, bend = (np.moveaxis(np.asarray(each), 1, 0) for each in nodes)

    def along(gradient: np.ndarray) -> np.ndarray:
        each = (a.astype(np.float64) @ b.astype(np.float64).T for a, b in zip(gradient, slope))  # an example at a time
        return np.stack(list(each), axis=-1)

    def onto(value: np.ndarray) -> Integrand:
        spline = CubicSpline(q, CubicSpline(q, value, axis=0)(grid), axis=1)
        return Integrand(spline(grid), spline.antiderivative()(grid))

    return onto(along(pull) + np.asarray(rate, np.float64).T), onto(along(bend))


def expected(q: np.ndarray, end: Integrand, place: Integrand, path: np.ndarray, order: int) -> np.ndarray:
    """The error of log p of each example in nats, [B], by the rule whose nodes are those of a path."""
    predictor, corrector = adams(q[path], order)
    error = np.zeros(end.value.shape[-1])
    for n in range(1, len(path)):
        j, k = path[n - 1], path[n]
        before, around = (path[max(last - ORDER + 1, 0) : last + 1][::-1] for last in (n - 1, n))
        weight = sum(corrector[n + m, m] for m in range(min(ORDER, len(path) - n)))
        error += end.left(corrector[n], around, j, k) + weight * place.left(predictor[n], before, j, k)
    return error


def local_errors(q: np.ndarray, end: Integrand, place: Integrand, order: int, k: int) -> np.ndarray:
    """What steps to node k leave of (1) and (2): [i, j, B] of a step from j to k after one from i < j to j.

    The weight of (2) is that of the step alone, and of order 3 the node before i is taken to be as far from it as j.
    """
    i, j = np.meshgrid(np.arange(k), np.arange(k), indexing="ij")
    m = np.clip(2 * i - j, 0, i)
    h, g, w = ((q[a] - q[b])[..., None] for a, b in ((k, j), (j, i), (i, m)))
    g, w = np.where(g > 0, g, 1.0), np.where(w > 0, w, np.inf)  # g is used where i < j

    value, area = end.value[k], end.area[k]
    error = 0.5 * h * (value[j] + value[k]) - (area[k] - area[j])
    if order == 3:
        error = error - h**3 / 6 * ((value[k] - value[j]) / h - (value[j] - value[i]) / g) / (h + g)

    value, area = place.value[k], place.area[k]
    slope = (value[j] - value[i]) / g
    ahead = h * value[j] + 0.5 * h**2 * slope - (area[k] - area[j])
    if order == 3:
        ahead = ahead + (h**3 / 3 + 0.5 * g * h**2) * (slope - (value[i] - value[m]) / w) / (g + w)
    return error + h * ahead


def first_errors(q: np.ndarray, end: Integrand, place: Integrand) -> np.ndarray:
    """The same of a first step, from node 0 to k, which has no node before it: [k, B]."""
    h = (q - q[0])[:, None]
    at = np.arange(len(q))
    error = 0.5 * h * (end.value[:, 0] + end.value[at, at]) - end.area[at, at]
    return error + h * (h * place.value[:, 0] - place.area[at, at])


def plans(q: np.ndarray, end: Integrand, place: Integrand, order: int, most: int) -> dict[int, Plan]:
    """Nodes for K = 2 ... `most` steps of a rule of order 2 or 3, with the least sum of the sizes of local errors.

    Args:
      q: nodes of a grid, [M], of which some are chosen.
      end, place: what is integrated there, see `integrands`.
      order: of the rule.
      most: steps at most.
    """
    count = len(q)
    size = lambda error: np.sqrt(np.mean(error**2, axis=-1))
    # best[j, k]: the least sum over paths that end with the step from j to k
    best = np.full((count, count), np.inf)
    best[0, 1:] = size(first_errors(q, end, place))[1:]
    cost = np.full((count, count, count), np.inf)  # [i, j, k]
    for k in range(2, count):
        cost[:k, :k, k] = size(local_errors(q, end, place, order, k))
    cost[np.tril_indices(count)] = np.inf  # i < j
    chosen, result = [], {}
    for steps in range(2, most + 1):
        ways = best[:, :, None] + cost
        chosen.append(ways.argmin(0))
        best = ways.min(0)
        path = [count - 1, int(best[:, -1].argmin())]
        for back in reversed(chosen):
            path.append(int(back[path[-1], path[-2]]))
        path = np.asarray(path[::-1])
        result[steps] = Plan(path, expected(q, end, place, path, order))
    return result
