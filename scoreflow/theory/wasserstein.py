"""Bounds on the 2-Wasserstein distance between a sampler's law and the data, and the steps that they ask for.

Assumed: -log p_0 is m0-strongly convex and L0-smooth; the score is wrong by at most M in L2 at the sampler's own
iterates (over all of R^d, not per coordinate); x0_l2 = sqrt(E |x_0|^2). With m(t) = 1 / (alpha^2 / m0 + sigma^2),
L(t) = 1 / (alpha^2 / L0 + sigma^2), a, b, c the exact integrals of the step from t to s and (A, B, C) the sampler's
triple,

    gamma = max |A - B m(t)|, |A - B L(t)|                                                                         (1)
    q^2   = d int_s^t (c[s,u] / a[s,u])^2 g(u)^2 L(u)^2 du,   q += sqrt(d) |sqrt c - sqrt C|                        (2)
    rho   = |a - A| sqrt(alpha^2 x0_l2^2 + d sigma^2) + |c/a - B| sqrt(d L)                                        (3)
    e_s   = sqrt((gamma e_t + B M + rho)^2 + q^2)                                                                  (4)

bounds W2(law of the sampler, p_s) from e_T = alpha(T) x0_l2. It holds since the score along the exact reverse process,
times exp(log alpha), is a martingale: what freezing it adds in a step has mean zero given the past, so that it is
orthogonal to the error so far. Adding the norms instead, e_s = gamma e_t + B M + rho + q, is the weaker bound that
gives the published orders of the number of steps.

Status. That W2 is bounded by three such terms for any linear forward SDE, and the orders in `complexity.TABLE`, are
published (Gao, Nguyen, Zhu, arXiv 2311.11003). The theorems computed here, (1) to (4) and `ode_bound`, were derived for
this library and checked against exact laws; they have the paper's shape and are not the paper's. Their constants, and
whether its theorem is for the exponential integrator, could not be compared.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoreflow.processes import transitions
from scoreflow.processes.rates import quadrature
from scoreflow.processes.sdes import Process
from scoreflow.theory.exact import Rule

_NODES = 8  # of Gauss-Legendre quadrature in each step
_LENGTHS = tuple(64 * 8**i for i in range(6))  # to which `fewest_steps` pads a grid: few programs to compile


class Target(NamedTuple):
    """What is assumed of the data.

    Attributes:
      d: dimensions.
      m0, L0: strong convexity and smoothness of -log p_0; L0 may be infinite where the grid ends above t = 0.
      x0_l2: sqrt(E |x_0|^2).
    """

    d: ArrayLike
    m0: ArrayLike
    L0: ArrayLike
    x0_l2: ArrayLike


class Bound(NamedTuple):
    """A bound on W2 and the same with two of its three causes left out; scalars.

    The parts do not add up to `total` where errors are added as orthogonal.

    Attributes:
      total: of everything.
      start: of starting from N(0, sigma(T)^2) instead of p_T.
      score: of the wrong score.
      steps: of the finite step size.
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
    """min(1 / sigma^2, L0 / alpha^2): a larger L(t), often quoted."""
    return jnp.minimum(1.0 / process.variance(t), target.L0 / process.alpha(t) ** 2)


def _start(process: Process, target: Target, t: jax.Array, prior_std: ArrayLike | None) -> jax.Array:
    """Distance of p_T to the law that is started from: N(0, sigma(T)^2) or N(0, prior_std^2)."""
    drift = (process.alpha(t) * target.x0_l2) ** 2
    spread = 0.0 if prior_std is None else target.d * (process.sigma(t) - prior_std) ** 2
    return jnp.sqrt(drift + spread)


@jax.jit
def _run(e: jax.Array, gamma: jax.Array, drift: jax.Array, noise: jax.Array, orthogonal: ArrayLike) -> jax.Array:
    """Iterates (4); `drift` is what is predictable in a step, `noise` what has mean 0. One program serves all."""

    def step(e, inputs):
        gamma, drift, noise = inputs
        moved = gamma * e + drift
        return jnp.where(orthogonal, jnp.sqrt(moved**2 + noise**2), moved + noise), None

    return jax.lax.scan(step, e, (gamma, drift, noise))[0]


def _parts(
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
    score_error: ArrayLike = 0.0,
    rule: Rule = transitions.exponential_sde,
    orthogonal: ArrayLike = True,
    smoothness: Callable = smoothness,
    prior_std: ArrayLike | None = None,
) -> Bound:
    """W2(law of a stochastic sampler, p at grid[-1]) is at most `total`, by (4).

    True for deterministic rules too, but vacuous: use `ode_bound`. With sigma(0) > 0, p at t = 0 is that of
    data + N(0, sigma(0)^2 I). For the distance to the data themselves add `early_stopping`.

    Args:
      process: the forward SDE.
      grid: times [K + 1], decreasing.
      target: what is assumed of the data.
      score_error: M, a scalar or one for each step [K].
      rule: the sampler's step.
      orthogonal: (4); False for the sum of norms.
      smoothness: L(t), this module's `smoothness` or `smoothness_min`.
      prior_std: of the Gaussian that sampling starts from, sigma(T) where it is not given.
    """
    t, s = grid[:-1], grid[1:]
    d = target.d
    a, _, c = process.reverse_integrals(s, t)
    scale, weight, noise_var = rule(process, s, t)
    low, high = convexity(process, target, t), smoothness(process, target, t)
    gamma = jnp.maximum(jnp.abs(scale - weight * low), jnp.abs(scale - weight * high))

    def added(u):
        part = process.reverse_integrals(s[:, None], u)
        return (part.c / part.a * smoothness(process, target, u)) ** 2 * process.diffusion_sq(u)

    frozen = jnp.sqrt(d * quadrature(added, s, t, nodes=_NODES))
    q = frozen + jnp.sqrt(d) * jnp.abs(jnp.sqrt(c) - jnp.sqrt(noise_var))
    size = jnp.sqrt((process.alpha(t) * target.x0_l2) ** 2 + d * process.variance(t))
    rho = jnp.abs(a - scale) * size + jnp.abs(c / a - weight) * jnp.sqrt(d * high)
    start = _start(process, target, grid[0], prior_std)
    return _parts(start, gamma, weight * score_error, rho, q, orthogonal)


def ode_bound(
    process: Process,
    grid: jax.Array,
    target: Target,
    *,
    time_lipschitz: ArrayLike,
    score_error: ArrayLike = 0.0,
    prior_std: ArrayLike | None = None,
) -> Bound:
    """The same for `transitions.exponential_ode`, the probability flow with the score frozen in each step.

    Needs |score_t(x) - score_s(x)| <= L1 |t - s| (1 + |x|), which `bound` does not:

        gamma = max |a - b m / 2|, |a - b L / 2|,   e_s = gamma e_t + b M / 2 + r
        r = int_s^t exp(F(u) - F(s)) g^2/2 (L(u) int_u^t (f theta + g^2/2 sqrt(d L)) dw + L1 (t - u) (1 + theta(t))) du

    with theta = sqrt(alpha^2 x0_l2^2 + d sigma^2), f > 0 where the signal shrinks, F = int f. The published companion
    (Gao, Zhu, arXiv 2401.17958) has a theorem of this kind; this one was derived here.

    Args:
      time_lipschitz: L1; of N(0, lam I) it is max_t |S'| / S^2.
    """
    t, s = grid[:-1], grid[1:]
    d = target.d
    a, b, _ = process.reverse_integrals(s, t)
    low, high = convexity(process, target, t), smoothness(process, target, t)
    gamma = jnp.maximum(jnp.abs(a - 0.5 * b * low), jnp.abs(a - 0.5 * b * high))

    def size(u):
        return jnp.sqrt((process.alpha(u) * target.x0_l2) ** 2 + d * process.variance(u))

    def speed(w):  # of the flow, at most
        pull = 0.5 * process.diffusion_sq(w) * jnp.sqrt(d * smoothness(process, target, w))
        return -process.drift_coeff(w) * size(w) + pull

    def grown(u):
        moved = quadrature(speed, u, t[:, None], nodes=_NODES)
        waited = time_lipschitz * (t[:, None] - u) * (1.0 + size(t)[:, None])
        ratio = jnp.exp(process.log_alpha(s)[:, None] - process.log_alpha(u))
        return ratio * 0.5 * process.diffusion_sq(u) * (smoothness(process, target, u) * moved + waited)

    r = quadrature(grown, s, t, nodes=_NODES)
    start = _start(process, target, grid[0], prior_std)
    return _parts(start, gamma, 0.5 * b * score_error, r, jnp.zeros_like(r), False)


def early_stopping(process: Process, target: Target, t: ArrayLike) -> jax.Array:
    """W2(p_t, data) is at most sqrt((1 - alpha)^2 x0_l2^2 + d sigma^2)."""
    return jnp.sqrt(((1.0 - process.alpha(t)) * target.x0_l2) ** 2 + target.d * process.variance(t))


# ----------------------------------------------------------------------------------------------------------------------
# Many steps, and how many are enough.


def start_limit(process: Process, target: Target) -> jax.Array:
    """`Bound.start` as the steps become short: x0_l2 (1 + m0 v(0)) / (1 + m0 v(T) / alpha(T)^2), v = sigma^2."""
    ratio = jnp.exp(-process.log_snr(process.horizon))
    return target.x0_l2 * (1.0 + target.m0 * process.initial_variance) / (1.0 + target.m0 * ratio)


def score_limit(process: Process, target: Target, score_error: ArrayLike) -> jax.Array:
    """`Bound.score` as the steps become short: M int_0^T g^2 exp(F) (1 + m0 v(0)) / (1 + m0 v / alpha^2) dt."""
    boundary_terms = jnp.linspace(0.0, process.horizon, 65)

    def grown(t):
        ratio = process.variance(t) / process.alpha(t) ** 2
        return process.diffusion_sq(t) / process.alpha(t) / (1.0 + target.m0 * ratio)

    total = quadrature(grown, boundary_terms[:-1], boundary_terms[1:]).sum()
    return score_error * (1.0 + target.m0 * process.initial_variance) * total


def horizon_for(process: Process, target: Target, accuracy: float) -> jax.Array:
    """The horizon T at which `start_limit` is `accuracy`: the shortest that leaves the start that close.

    0 where the start is closer than that at once. Beyond the process's own horizon only where `inverse_log_snr` has a
    closed form, as all but `LinearSDE` have.
    """
    head = target.x0_l2 * (1.0 + target.m0 * process.initial_variance) / accuracy
    ratio = jnp.maximum((head - 1.0) / target.m0, process.initial_variance)
    return process.inverse_log_snr(-jnp.log(ratio))


class Plan(NamedTuple):
    """A `horizon`, the fewest `steps` (None where none are enough) and the `distance` (or bound) that they give."""

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

    Found by doubling and bisection, which is right where the distance falls with K. A bound does; an exact distance
    need not, since two errors may cancel at some K: `lasting` asks that it stays below over so many doublings more.

    Args:
      distance: (times [N + 1]) -> scalar. It gets grids whose first time is repeated, so that few lengths N occur: a
        step of length 0 there must change nothing.
      grid: (progress [N + 1], from 0 at T to 1 at the end) -> times [N + 1], decreasing.
      accuracy: what is asked for.
      most: the largest K that is tried, two million at most.
      lasting: how many doublings of K are looked at beyond the first that is enough.

    Returns:
      (K, the distance there); (None, the last distance found) where there is none up to `most`.
    """

    def at(k):
        length = next(length for length in _LENGTHS if length >= k)
        progress = np.maximum(np.arange(length + 1) - (length - k), 0) / k
        return float(distance(grid(jnp.asarray(progress))))

    low, high = 0, 1  # the one too few, the other enough
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
        if (found := at(middle)) <= accuracy:
            high, value = middle, found
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
    """Horizon and number of uniform steps after which `bound` promises W2 <= accuracy.

    Half of the accuracy is given to the start, which sets the horizon; then come the fewest steps that keep the whole.
    """
    horizon = float(horizon_for(process, target, 0.5 * accuracy))

    def total(times):
        return bound(process, times, target, score_error=score_error, rule=rule, orthogonal=orthogonal).total

    return Plan(horizon, *fewest_steps(total, lambda progress: horizon * (1.0 - progress), accuracy))
