"""Exact distributions: what a sampler generates for Gaussian data, and scores of Gaussian mixtures to third order.

Gaussian data N(mu, diag(lam)), the exact score and a sampler that is affine in (x, score) (`transitions`) give a
Gaussian at every step. With S = alpha^2 lam + sigma^2, and scale, weight, noise the triple of the step from t to s,

    A = scale - weight / S(t)
    mean_s = A mean_t + weight (alpha(t) mu / S(t) + bias)                                                          (1)
    var_s  = A^2 var_t + noise                                                                                      (2)

coordinate by coordinate, so the 2-Wasserstein distance to the data is exact too. `bias` is a constant error of the
score. A full covariance is reduced to independent coordinates by its eigenvectors (`principal_axes`).

These results were derived for this library and checked against Monte Carlo and quadrature. The published counterpart is
a lower bound of order sqrt(d) times the step for Gaussian data (Gao, Nguyen, Zhu, arXiv 2311.11003, from its abstract).
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
from scoreflow.types import Cond

Rule = Callable[..., transitions.Step]
"""A function of `transitions`: (process, s, t) -> Step."""

LogDensity = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(x [d], alpha, sigma) -> the log-density of alpha x_0 + sigma noise at one x, in nats."""

_PANELS = 32  # an integral from 0 to T is split into so many intervals of 32 Gauss-Legendre nodes each


class Gaussian(NamedTuple):
    """A Gaussian with independent coordinates: `mean` [d] and `variance` [d]."""

    mean: jax.Array
    variance: jax.Array


# ----------------------------------------------------------------------------------------------------------------------
# Gaussian data.


def marginal(process: Process, data: Gaussian, t: ArrayLike) -> Gaussian:
    """The distribution of x_t for x_0 from `data`; t is a scalar."""
    alpha = process.alpha(t)
    return Gaussian(alpha * data.mean, alpha**2 * data.variance + process.variance(t))


@jax.jit
def _run(
    start: Gaussian, data: Gaussian, bias: ArrayLike, steps: transitions.Step, alpha: jax.Array, added: jax.Array
) -> Gaussian:
    """Iterates (1) and (2) over coefficients [K]; compiled by itself, so that one program serves every process."""

    def step(x: Gaussian, inputs) -> tuple[Gaussian, None]:
        (scale, weight, noise), alpha, added = inputs
        spread = alpha**2 * data.variance + added
        factor = scale - weight / spread
        push = weight * (alpha * data.mean / spread + bias)
        return Gaussian(factor * x.mean + push, factor**2 * x.variance + noise), None

    return jax.lax.scan(step, start, (steps, alpha, added))[0]


def gaussian_law(
    process: Process,
    grid: jax.Array,
    rule: Rule,
    data: Gaussian,
    *,
    bias: ArrayLike = 0.0,
    start: Gaussian | None = None,
) -> Gaussian:
    """The exact distribution of a sampler's last state, by (1) and (2).

    Args:
      process: the forward SDE.
      grid: times [K + 1], decreasing.
      rule: the sampler's step, a function of `transitions`.
      data: mean and variance of the data.
      bias: constant error of the score in every coordinate.
      start: the distribution at grid[0], by default N(0, sigma(T)^2). With that of `marginal`, the only error left is
        that of the discretization.

    Returns:
      The distribution at grid[-1], without the denoising step.
    """
    mean, lam = jnp.broadcast_arrays(*(jnp.asarray(a, float) for a in data))
    if start is None:
        start = Gaussian(jnp.zeros_like(mean), jnp.full_like(lam, process.variance(grid[0])))
    start = Gaussian(*(jnp.broadcast_to(jnp.asarray(a, lam.dtype), lam.shape) for a in start))
    t, s = grid[:-1], grid[1:]
    return _run(start, Gaussian(mean, lam), bias, rule(process, s, t), process.alpha(t), process.variance(t))


def w2(first: Gaussian, second: Gaussian) -> jax.Array:
    """2-Wasserstein distance of two Gaussians with independent coordinates; a scalar."""
    spread = jnp.sqrt(first.variance) - jnp.sqrt(second.variance)
    return jnp.sqrt(jnp.sum((first.mean - second.mean) ** 2 + spread**2))


def bures_w2(mean1: jax.Array, cov1: jax.Array, mean2: jax.Array, cov2: jax.Array) -> jax.Array:
    """2-Wasserstein distance of N(mean1, cov1) and N(mean2, cov2), [d] and [d, d] each; a scalar."""

    def root(matrix: jax.Array) -> jax.Array:
        values, vectors = jnp.linalg.eigh(matrix)
        return (vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None]) @ vectors.T

    half = root(cov1)
    cross = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(half @ cov2 @ half), 0.0)).sum()
    square = jnp.sum((mean1 - mean2) ** 2) + jnp.trace(cov1) + jnp.trace(cov2) - 2.0 * cross
    return jnp.sqrt(jnp.maximum(square, 0.0))


def principal_axes(mean: jax.Array, covariance: jax.Array) -> tuple[Gaussian, jax.Array]:
    """N(mean [d], covariance [d, d]) in its own axes, and the axes, the columns of an orthogonal matrix [d, d].

    The covariance of what a sampler generates commutes with that of the data, so it is
    axes @ diag(variance) @ axes.T.
    """
    values, axes = jnp.linalg.eigh(covariance)
    return Gaussian(axes.T @ mean, jnp.maximum(values, 0.0)), axes


def continuous_limit(process: Process, data: Gaussian, *, stochastic: bool) -> Gaussian:
    """The limit of (1) and (2) for short steps from N(0, sigma(T)^2), where only the error of the start is left.

    With r = alpha(T)^2 S(0) / S(T), the reverse SDE yields the mean mu (1 - r) and the variance S(0) - lam r^2, and the
    probability-flow ODE the mean mu (1 - sqrt r) and the variance S(0) sigma(T)^2 / S(T). S(0) = lam + sigma(0)^2 is
    the variance of the data with the noise at t = 0.
    """
    first, last = marginal(process, data, 0.0).variance, marginal(process, data, process.horizon).variance
    r = process.alpha(process.horizon) ** 2 * first / last
    if stochastic:
        return Gaussian(data.mean * (1.0 - r), first - data.variance * r**2)
    return Gaussian(data.mean * (1.0 - jnp.sqrt(r)), first * process.variance(process.horizon) / last)


# ----------------------------------------------------------------------------------------------------------------------
# The first order in the step: how fast (2) approaches its limit on a uniform grid.


class _Local(NamedTuple):
    """f (> 0 where the signal shrinks), g^2, S, the variance P of the exact reverse SDE, and time derivatives."""

    f: jax.Array
    g2: jax.Array
    spread: jax.Array
    var: jax.Array
    df: jax.Array
    dg2: jax.Array
    dspread: jax.Array


def _em_defect(p: _Local) -> jax.Array:
    c = p.f - p.g2 / p.spread
    dc = p.df - p.dg2 / p.spread + p.g2 * p.dspread / p.spread**2
    return -(c**2) * p.var + dc * p.var - c * p.g2 + 0.5 * p.dg2


_DEFECTS = {
    transitions.exponential_sde: lambda p: p.g2**2 / p.spread - p.f * p.g2 * p.var / p.spread,
    transitions.conditional_mean: lambda p: p.g2**2 / p.spread,
    transitions.euler_maruyama: _em_defect,
}


def _time_integral(process: Process, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """int_0^T of a function from times [...] to [...]; a scalar."""
    edges = jnp.linspace(0.0, process.horizon, _PANELS + 1)
    return quadrature(function, edges[:-1], edges[1:]).sum()


def variance_slope(process: Process, rule: Rule, lam: float) -> jax.Array:
    """The limit of (variance - its limit) / step as the step tends to 0, on a uniform grid from T to 0; a scalar.

    Args:
      process: a forward SDE whose rates are smooth on [0, T].
      rule: `exponential_sde`, `conditional_mean`, `euler_maruyama` or `exponential_ode`.
      lam: variance of the data.

    Raises:
      ValueError: for another rule.
    """
    f, g2 = lambda t: -process.drift_coeff(t), process.diffusion_sq
    slope = lambda function: lambda t: jax.vmap(jax.grad(function))(t.reshape(-1)).reshape(t.shape)
    spread = lambda t: process.alpha(t) ** 2 * lam + process.variance(t)
    end, start = process.horizon, spread(0.0)

    def local(t: jax.Array) -> _Local:
        s = spread(t)
        missing = lam * (s * process.alpha(end) ** 2 / (spread(end) * process.alpha(t))) ** 2
        return _Local(f(t), g2(t), s, s - missing, slope(f)(t), slope(g2)(t), g2(t) - 2.0 * f(t) * s)

    if rule is transitions.exponential_ode:
        limit = start * process.variance(end) / spread(end)
        relative = lambda p: 0.25 * p.g2 * p.dspread / p.spread**2
        return limit * _time_integral(process, lambda t: relative(local(t)))
    if rule not in _DEFECTS:
        names = ", ".join(known.__name__ for known in (*_DEFECTS, transitions.exponential_ode))
        raise ValueError(f"no first-order coefficient is known for {rule.__name__}; known: {names}")

    def integrand(t: jax.Array) -> jax.Array:
        p = local(t)
        return _DEFECTS[rule](p) * (start * process.alpha(t) / p.spread) ** 2

    return _time_integral(process, integrand)


def mean_slope(process: Process, lam: float) -> jax.Array:
    """The limit of ((1 - mean / mu) / r - 1) / step of `exponential_sde`, see `continuous_limit`; a scalar."""
    spread = lambda t: process.alpha(t) ** 2 * lam + process.variance(t)
    return _time_integral(process, lambda t: 0.5 * process.drift_coeff(t) * process.diffusion_sq(t) / spread(t))


# ----------------------------------------------------------------------------------------------------------------------
# Gaussian mixtures.


class Mixture(NamedTuple):
    """A Gaussian mixture: `weights` [K], `means` [K, d], `covariances` [K, d, d]."""

    weights: jax.Array
    means: jax.Array
    covariances: jax.Array


class Derivatives(NamedTuple):
    """log q at x [d], the score [d], the Hessian [d, d], and the gradient of the Hessian's trace [d]."""

    log_density: jax.Array
    score: jax.Array
    hessian: jax.Array
    trace_gradient: jax.Array


def mixture_marginal(process: Process, mixture: Mixture, t: ArrayLike) -> Mixture:
    """The distribution of x_t for x_0 from a mixture, which is a mixture too; t is a scalar."""
    alpha, identity = process.alpha(t), jnp.eye(mixture.means.shape[1])[None]
    covariances = alpha**2 * mixture.covariances + process.variance(t) * identity
    return Mixture(mixture.weights, alpha * mixture.means, covariances)


class _Components(NamedTuple):
    """At one x, the log-density and score of the mixture, and for each of its components:

    the posterior weight, the score less that of the mixture, and the Hessian.
    """

    log_density: jax.Array
    score: jax.Array
    weight: jax.Array
    offset: jax.Array
    hessian: jax.Array


def _components(mixture: Mixture, x: jax.Array) -> _Components:
    precision = jnp.linalg.inv(mixture.covariances)
    delta = x[None] - mixture.means
    pull = -jnp.einsum("kij,kj->ki", precision, delta)
    log_norm = jnp.linalg.slogdet(2.0 * np.pi * mixture.covariances)[1]
    joint = jnp.log(mixture.weights) + 0.5 * jnp.einsum("ki,ki->k", pull, delta) - 0.5 * log_norm
    total = jax.nn.logsumexp(joint)
    weight = jnp.exp(joint - total)
    score = weight @ pull
    return _Components(total, score, weight, pull - score[None], -precision)


def mixture_derivatives(mixture: Mixture, x: jax.Array) -> Derivatives:
    """Log-density, score, Hessian and gradient of the Hessian's trace at one x [d], in closed form.

    With posterior weights r_k, component scores g_k = score + c_k and component Hessians H_k:
    hessian = sum r_k (H_k + c_k c_k^T), trace_gradient = sum r_k (|c_k|^2 c_k + tr(H_k) c_k + 2 H_k c_k).
    """
    log_density, score, weight, c, h = _components(mixture, x)
    hessian = jnp.einsum("k,kij->ij", weight, h + c[:, :, None] * c[:, None, :])
    size = jnp.sum(c**2, axis=1) + jnp.trace(h, axis1=1, axis2=2)
    third = size[:, None] * c + 2.0 * jnp.einsum("kij,kj->ki", h, c)
    return Derivatives(log_density, score, hessian, weight @ third)


def mixture_third(mixture: Mixture, x: jax.Array, v: jax.Array) -> jax.Array:
    """grad_x (v^T Hessian(x) v) of log q at one x [d] along v [d]; [d]."""
    _, _, weight, c, h = _components(mixture, x)
    along, pull = c @ v, jnp.einsum("kij,j->ki", h, v)
    return weight @ ((along**2 + pull @ v)[:, None] * c + 2.0 * along[:, None] * pull)


def mixture_log_density(mixture: Mixture) -> LogDensity:
    """(x [d], alpha, sigma) -> log-density of alpha x_0 + sigma noise for x_0 from a mixture."""

    def log_density(x: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        weights, means, covariances = (jnp.asarray(leaf, x.dtype) for leaf in mixture)
        noise = sigma**2 * jnp.eye(x.shape[0], dtype=x.dtype)[None]
        return _components(Mixture(weights, alpha * means, alpha**2 * covariances + noise), x).log_density

    return log_density


def mixture_score(process: Process, mixture: Mixture) -> Callable[..., jax.Array]:
    """The exact score function of a process on mixture data: (x [B, d], t [B], cond=None) -> [B, d]."""

    def score(x: jax.Array, t: jax.Array, cond: Cond = None) -> jax.Array:
        return jax.vmap(lambda x, t: _components(mixture_marginal(process, mixture, t), x).score)(x, t)

    return score


# ----------------------------------------------------------------------------------------------------------------------
# The checkerboard of `data.toy`.


def _log_mass(low: jax.Array, high: jax.Array) -> jax.Array:
    """log(Phi(high) - Phi(low)) for low < high, computed in the tail where the difference does not cancel."""
    upper = low > 0
    low, high = jnp.where(upper, -high, low), jnp.where(upper, -low, high)
    top = jax.scipy.special.log_ndtr(high)
    return top + jnp.log1p(-jnp.exp(jax.scipy.special.log_ndtr(low) - top))


def checkerboard_log_density(x: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Log-density of alpha x_0 + sigma noise at one x [2], for x_0 uniform on 8 squares of side 2 in [-4, 4)^2."""
    edges = jnp.arange(-4.0, 5.0, 2.0, dtype=x.dtype)
    z = (x[:, None] - alpha * edges[None]) / sigma
    along = _log_mass(z[:, 1:], z[:, :-1])  # [2, 4]: of columns, of rows
    both = along[0][:, None] + along[1][None, :]
    dark = jnp.add.outer(jnp.arange(4), jnp.arange(4)) % 2 == 0
    return jax.nn.logsumexp(both, where=dark) - np.log(32.0) - 2.0 * jnp.log(alpha)


def score_of(process: Process, log_density: LogDensity) -> Callable[..., jax.Array]:
    """The score function of a process on data whose noised log-density (x [d], alpha, sigma) is known."""

    def score(x: jax.Array, t: jax.Array, cond: Cond = None) -> jax.Array:
        return jax.vmap(jax.grad(log_density))(x, process.alpha(t), process.sigma(t))

    return score
