"""Bounds on the 2-Wasserstein distance between generated samples and the data, and the steps that they require.

The assumptions are: -log p_0 is m0-strongly convex and L0-smooth; the error of the score is at most M in L2 at the
sampler's own iterates (over all of R^d, not per coordinate); x0_l2 = sqrt(E |x_0|^2). With
m(t) = 1 / (alpha^2 / m0 + sigma^2), L(t) = 1 / (alpha^2 / L0 + sigma^2), a, b, c the exact integrals of the step from
t to s, and (A, B, C) the sampler's triple,

    gamma = max |A - B m(t)|, |A - B L(t)|                                                                         (1)
    q^2   = d int_s^t (c[s,u] / a[s,u])^2 g(u)^2 L(u)^2 du,   q += sqrt(d) |sqrt c - sqrt C|                        (2)
    rho   = |a - A| sqrt(alpha^2 x0_l2^2 + d sigma^2) + |c/a - B| sqrt(d L)                                        (3)
    e_s   = sqrt((gamma e_t + B M + rho)^2 + q^2)                                                                  (4)

bounds W2(distribution of the sampler at s, p_s) from e_T = alpha(T) x0_l2. It holds because the score along the exact
reverse process, times exp(log alpha), is a martingale. The error that freezing the score adds in a step therefore has
mean zero given the past, and is orthogonal to the error so far. Adding the norms instead, e_s = gamma e_t + B M + rho
+ q, is a weaker bound. It gives the published orders of the number of steps.

Status. Two facts are published (Gao, Nguyen, Zhu, arXiv 2311.11003): three such terms bound W2 for any linear forward
SDE, and the orders of the number of steps are those of `complexity.TABLE`. The theorems computed here, (1) to (4) and
`ode_bound`, were derived for this library and checked against exact distributions. They have the form of the paper's
theorem but are not that theorem: its constants, and whether it is about the exponential integrator, have not been
compared.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoreflow.processes import transitions
from scoreflow.processes.rates import Scalar, quadrature
from scoreflow.processes.sdes import Process
from scoreflow.theory.exact import Rule

_NODES = 8  # Gauss-Legendre nodes in each step
_LENGTHS = tuple(64 * 8**i for i in range(6))  # `fewest_steps` pads grids to these, so that few programs are compiled


class Target(NamedTuple):
    """The assumptions on the data.

    Attributes:
      d: number of dimensions.
      m0, L0: strong convexity and smoothness of -log p_0; L0 may be infinite where the grid ends above t = 0.
      x0_l2: sqrt(E |x_0|^2).
    """

    d: Scalar
    m0: Scalar
    L0: Scalar
    x0_l2: Scalar


class Bound(NamedTuple):
    """A bound on W2, and the same bound for each of its three causes alone; scalars.

    The three do not add up to `total` where errors are added as orthogonal.

    Attributes:
      total: the bound with all causes.
      start: the bound for sampling from N(0, sigma(T)^2) instead of p_T.
      score: the bound for the error of the score.
      steps: the bound for the finite step size.
    """

    total: jax.Array
    start: jax.Array
    score: jax.Array
    steps: jax.Array


def convexity(process: Process, target: Target, t: ArrayLike) -> jax.Array:
    """m(t): -log p_t is m(t)-strongly convex."""
    return 1.0 / (process.alpha(t) ** 2 / target.m0 + process.variance(t))


def smoothness(process: Process, target: Target, t: ArrayLike) -> jax.Array:
    """L(t): -log p_t is L(t)-smooth."""
    return 1.0 / (process.alpha(t) ** 2 / target.L0 + process.variance(t))


def smoothness_min(process: Process, target: Target, t: ArrayLike) -> jax.Array:
    """min(1 / sigma^2, L0 / alpha^2), an upper bound of L(t) that is often used."""
    return jnp.minimum(1.0 / process.variance(t), target.L0 / process.alpha(t) ** 2)


def _start(process: Process, target: Target, t: jax.Array, prior_std: Scalar | None) -> jax.Array:
    """Distance from p_T to the Gaussian that sampling starts from: N(0, sigma(T)^2) or N(0, prior_std^2)."""
    drift = (process.alpha(t) * target.x0_l2) ** 2
    spread = 0.0 if prior_std is None else target.d * (process.sigma(t) - prior_std) ** 2
    return jnp.sqrt(drift + spread)


@jax.jit
def _run(e: jax.Array, gamma: jax.Array, drift: jax.Array, noise: jax.Array, orthogonal: ArrayLike) -> jax.Array:
    """Iterates (4), where `drift` is the predictable error of a step and `noise` the one of mean 0.

    It is compiled by itself, so that one program serves every process.
    """

    def step(e: jax.Array, inputs) -> tuple[jax.Array, None]:
        gamma, drift, noise = inputs
        moved = gamma * e + drift
        return jnp.where(orthogonal, jnp.sqrt(moved**2 + noise**2), moved + noise), None

    return jax.lax.scan(step, e, (gamma, drift, noise))[0]


def _by_cause(
    e: jax.Array, gamma: jax.Array, score: jax.Array, rho: jax.Array, q: jax.Array, orthogonal: ArrayLike
) -> Bound:
    zero = jnp.zeros_like(gamma)
    return Bound(
        _run(e, gamma, score + rho, q, orthogonal),
        _run(e, gamma, zero, zero, orthogonal),
        _run(jnp.zeros_like(e), gamma, score, zero, orthogonal),
        _run(jnp.zeros_like(e), gamma, rho, q, orthogonal),
    )


def bound(
    process: Process,
    grid: jax.Array,
    target: Target,
    *,
    score_error: Scalar = 0.0,
    rule: Rule = transitions.exponential_sde,
    orthogonal: ArrayLike = True,
    smoothness: Callable[[Process, Target, ArrayLike], jax.Array] = smoothness,
    prior_std: Scalar | None = None,
) -> Bound:
    """The bound (4) on W2(distribution of a stochastic sampler, p at grid[-1]).

    It also holds for deterministic rules but is vacuous there; use `ode_bound`. With sigma(0) > 0, p at t = 0 is the
    distribution of data + N(0, sigma(0)^2 I). For the distance to the data themselves, add `early_stopping`.

    Args:
      process: the forward SDE.
      grid: times [K + 1], decreasing.
      target: the assumptions on the data.
      score_error: M, a scalar or one for each step [K].
      rule: the sampler's step.
      orthogonal: True for (4), False for the sum of norms.
      smoothness: L(t), this module's `smoothness` or `smoothness_min`.
      prior_std: standard deviation of the Gaussian that sampling starts from, by default sigma(T).
    """
    t, s = grid[:-1], grid[1:]
    d = target.d
    a, _, c = process.reverse_integrals(s, t)
    scale, weight, noise_var = rule(process, s, t)
    low, high = convexity(process, target, t), smoothness(process, target, t)
    gamma = jnp.maximum(jnp.abs(scale - weight * low), jnp.abs(scale - weight * high))

    def added(u: jax.Array) -> jax.Array:
        step = process.reverse_integrals(s[:, None], u)
        return (step.c / step.a * smoothness(process, target, u)) ** 2 * process.diffusion_sq(u)

    frozen = jnp.sqrt(d * quadrature(added, s, t, nodes=_NODES))
    q = frozen + jnp.sqrt(d) * jnp.abs(jnp.sqrt(c) - jnp.sqrt(noise_var))
    size = jnp.sqrt((process.alpha(t) * target.x0_l2) ** 2 + d * process.variance(t))
    rho = jnp.abs(a - scale) * size + jnp.abs(c / a - weight) * jnp.sqrt(d * high)
    start = _start(process, target, grid[0], prior_std)
    return _by_cause(start, gamma, weight * score_error, rho, q, orthogonal)


def ode_bound(
    process: Process,
    grid: jax.Array,
    target: Target,
    *,
    time_lipschitz: Scalar,
    score_error: Scalar = 0.0,
    prior_std: Scalar | None = None,
) -> Bound:
    """The bound for `transitions.exponential_ode`, the probability flow with the score frozen in each step.

    Unlike `bound` it assumes |score_t(x) - score_s(x)| <= L1 |t - s| (1 + |x|):

        gamma = max |a - b m / 2|, |a - b L / 2|,   e_s = gamma e_t + b M / 2 + r
        r = int_s^t exp(F(u) - F(s)) g^2/2 (L(u) int_u^t (f theta + g^2/2 sqrt(d L)) dw + L1 (t - u) (1 + theta(t))) du

    with theta = sqrt(alpha^2 x0_l2^2 + d sigma^2), f > 0 where the signal shrinks, F = int f. The published companion
    (Gao, Zhu, arXiv 2401.17958) has a theorem of this kind; this one was derived for this library.

    Args:
      process, grid, target, score_error, prior_std: as in `bound`.
      time_lipschitz: L1, which is max_t |S'| / S^2 for N(0, lam I).
    """
    t, s = grid[:-1], grid[1:]
    d = target.d
    a, b, _ = process.reverse_integrals(s, t)
    low, high = convexity(process, target, t), smoothness(process, target, t)
    gamma = jnp.maximum(jnp.abs(a - 0.5 * b * low), jnp.abs(a - 0.5 * b * high))

    def size(u: jax.Array) -> jax.Array:
        return jnp.sqrt((process.alpha(u) * target.x0_l2) ** 2 + d * process.variance(u))

    def speed(w: jax.Array) -> jax.Array:  # an upper bound of the speed of the flow
        pull = 0.5 * process.diffusion_sq(w) * jnp.sqrt(d * smoothness(process, target, w))
        return -process.drift_coeff(w) * size(w) + pull

    def grown(u: jax.Array) -> jax.Array:
        moved = quadrature(speed, u, t[:, None], nodes=_NODES)
        waited = time_lipschitz * (t[:, None] - u) * (1.0 + size(t)[:, None])
        ratio = jnp.exp(process.log_alpha(s)[:, None] - process.log_alpha(u))
        return ratio * 0.5 * process.diffusion_sq(u) * (smoothness(process, target, u) * moved + waited)

    r = quadrature(grown, s, t, nodes=_NODES)
    start = _start(process, target, grid[0], prior_std)
    return _by_cause(start, gamma, 0.5 * b * score_error, r, jnp.zeros_like(r), False)


def early_stopping(process: Process, target: Target, t: ArrayLike) -> jax.Array:
    """The bound sqrt((1 - alpha)^2 x0_l2^2 + d sigma^2) on W2(p_t, data)."""
    return jnp.sqrt(((1.0 - process.alpha(t)) * target.x0_l2) ** 2 + target.d * process.variance(t))


# ----------------------------------------------------------------------------------------------------------------------
# The limit of many steps, and the fewest that are enough.


def start_limit(process: Process, target: Target) -> jax.Array:
    """The limit of `Bound.start` for short steps: x0_l2 (1 + m0 v(0)) / (1 + m0 v(T) / alpha(T)^2), v = sigma^2."""
    ratio = jnp.exp(-process.log_snr(process.horizon))
    return target.x0_l2 * (1.0 + target.m0 * process.initial_variance) / (1.0 + target.m0 * ratio)


def score_limit(process: Process, target: Target, score_error: Scalar) -> jax.Array:
    """The limit of `Bound.score` for short steps: M int_0^T g^2 exp(F) (1 + m0 v(0)) / (1 + m0 v / alpha^2) dt."""
    edges = jnp.linspace(0.0, process.horizon, 65)

    def grown(t: jax.Array) -> jax.Array:
        ratio = process.variance(t) / process.alpha(t) ** 2
        return process.diffusion_sq(t) / process.alpha(t) / (1.0 + target.m0 * ratio)

    total = quadrature(grown, edges[:-1], edges[1:]).sum()
    return score_error * (1.0 + target.m0 * process.initial_variance) * total


def horizon_for(process: Process, target: Target, accuracy: float) -> jax.Array:
    """The horizon T at which `start_limit` equals `accuracy`, which is the shortest that brings the start that close.

    It is 0 where the start is closer than that already. It can exceed the process's own horizon only where
    `inverse_log_snr` has a closed form, which is so for all processes but `LinearSDE`.
    """
    head = target.x0_l2 * (1.0 + target.m0 * process.initial_variance) / accuracy
    ratio = jnp.maximum((head - 1.0) / target.m0, process.initial_variance)
    return process.inverse_log_snr(-jnp.log(ratio))


class Plan(NamedTuple):
    """A plan for sampling.

    Attributes:
      horizon: the time T at which the path ends.
      steps: the fewest steps that are enough, or None where no number is.
      distance: the distance, or its bound, after these steps.
    """

    horizon: float
    steps: int | None
    distance: float


def fewest_steps(
    distance: Callable[[jax.Array], jax.Array],
    grid: Callable[[jax.Array], jax.Array],
    accuracy: float,
    *,
    most: int = _LENGTHS[-1],
    lasting: int = 0,
) -> tuple[int | None, float]:
    """The smallest number of steps K whose grid has distance <= accuracy.

    The search by doubling and bisection is correct where the distance falls with K. A bound does. An exact distance may
    not, since two errors may cancel at some K; `lasting` then requires that the distance stays below the accuracy over
    that many further doublings.

    Args:
      distance: (times [N + 1]) -> scalar. It receives grids whose first time is repeated, so that few lengths N occur.
        The steps of length 0 at the start must change nothing.
      grid: (progress [N + 1], from 0 at T to 1 at the end) -> times [N + 1], decreasing.
      accuracy: the distance to reach.
      most: the largest K to try, two million at most.
      lasting: how many doublings of K to check beyond the first that is enough.

    Returns:
      (K, the distance with K steps), or (None, the last distance computed) where no K up to `most` is enough.
    """

    def at(k: int) -> float:
        length = next(length for length in _LENGTHS if length >= k)
        progress = np.maximum(np.arange(length + 1) - (length - k), 0) / k
        return float(distance(grid(jnp.asarray(progress))))

    low, high = 0, 1  # `low` steps are too few, `high` steps are to be enough
    while high <= most:
        tried = [high * 2**i for i in range(lasting + 1) if high * 2**i <= most]
        values = [at(k) for k in tried]
        failed = [k for k, value in zip(tried, values) if not value <= accuracy]
        if not failed:
            break
        low, high = failed[-1], 2 * failed[-1]
    else:
        return None, values[-1]
    value = values[0]
    while high - low > 1:
        middle = (low + high) // 2
        if (candidate := at(middle)) <= accuracy:
            high, value = middle, candidate
        else:
            low = middle
    return high, value


def plan(
    process: Process,
    accuracy: float,
    target: Target,
    *,
    score_error: float = 0.0,
    rule: Rule = transitions.exponential_sde,
    orthogonal: bool = True,
) -> Plan:
    """The horizon and the number of uniform steps for which `bound` guarantees W2 <= accuracy.

    Half of the accuracy is given to the start, which determines the horizon. The number of steps is the smallest whose
    whole bound is within the accuracy.
    """
    horizon = float(horizon_for(process, target, 0.5 * accuracy))

    def total(times: jax.Array) -> jax.Array:
        return bound(process, times, target, score_error=score_error, rule=rule, orthogonal=orthogonal).total

    return Plan(horizon, *fewest_steps(total, lambda progress: horizon * (1.0 - progress), accuracy))
