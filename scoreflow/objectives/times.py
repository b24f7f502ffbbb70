"""Distributions of the diffusion time in training.

A distribution gives draws of t in [t_min, T] together with their inverse density, so that for any loss

    E[inv_density loss(t)] = int_{t_min}^T loss(t) dt                                                              (1)

under every distribution: the weight (`objectives.dsm`) decides what is minimized, the distribution of t only with what
variance.

Importance sampling for the likelihood weight draws with density proportional to g^2 / sigma^2. That is -d log_snr / dt
for every linear SDE (`sdes`, equation 3), so it is the same as drawing log_snr uniformly:
Z = log_snr(t_min) - log_snr(T) and t = inverse_log_snr(log_snr(t_min) - u Z). For VP and sub-VP this is what
Song et al. 2021 (arXiv 2101.09258, section 5) work out by hand.

Every distribution is (process, key, n, *, t_min, settings) -> Times. `stratified` and `importance` put one draw in each
of n equal cells of the unit interval, which costs nothing and lowers the variance of the batch mean.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from scoreflow.processes.rates import LinearRate
from scoreflow.processes.sdes import VP, Process
from scoreflow.types import Count, Key, Number, Positive


class Times(NamedTuple):
    """Times `t` [n] and `inv_density` [n], 1 over the density they were drawn with."""

    t: jax.Array
    inv_density: jax.Array


class TimeSampler(Protocol):
    """A distribution of t with its settings bound."""

    def __call__(self, process: Process, key: Key, n: int, *, t_min: float) -> Times:
        """n times in [t_min, T] with their inverse density; (1) holds for their mean."""
        ...


def _unit_cells(key: Key, n: int) -> jax.Array:
    """n numbers in [0, 1), one in each cell of width 1/n, each uniform on [0, 1) by itself: (u + i / n) mod 1."""
    return jnp.mod(jax.random.uniform(key) + jnp.arange(n) / n, 1.0)


def uniform(process: Process, key: Key, n: int, *, t_min: float) -> Times:
    """Independent t ~ U[t_min, T]."""
    span = process.horizon - t_min
    return Times(t_min + span * jax.random.uniform(key, (n,)), jnp.full((n,), span))


def stratified(process: Process, key: Key, n: int, *, t_min: float) -> Times:
    """t ~ U[t_min, T], evenly spread over the batch by one shared shift (Kingma et al. 2021)."""
    span = process.horizon - t_min
    return Times(t_min + span * _unit_cells(key, n), jnp.full((n,), span))


def importance(process: Process, key: Key, n: int, *, t_min: float) -> Times:
    """Density proportional to g^2 / sigma^2, evenly spread over the batch; for any process."""
    top, bottom = process.log_snr(t_min), process.log_snr(process.horizon)
    t = process.inverse_log_snr(top - (top - bottom) * _unit_cells(key, n))
    t = jnp.clip(t, t_min, process.horizon)
    return Times(t, (top - bottom) * process.variance(t) / process.diffusion_sq(t))


def log_normal(process: Process, key: Key, n: int, *, t_min: float, mean: Number = -1.2, std: Positive = 1.2) -> Times:
    """log(sigma / alpha) ~ N(mean, std^2) truncated to what [t_min, T] covers (Karras et al. 2022, table 1).

    Args:
      process: the forward SDE.
      key: PRNG key.
      n: number of draws.
      t_min: the least time.
      mean: mean of log(sigma / alpha) before truncation.
      std: standard deviation of log(sigma / alpha) before truncation.
    """
    low, high = -0.5 * process.log_snr(jnp.asarray([t_min, process.horizon]))
    z = jax.random.truncated_normal(key, (low - mean) / std, (high - mean) / std, (n,))
    t = jnp.clip(process.inverse_log_snr(-2.0 * (mean + std * z)), t_min, process.horizon)
    mass = jax.scipy.stats.norm.cdf(high, mean, std) - jax.scipy.stats.norm.cdf(low, mean, std)
    # density of t = density of log(sigma / alpha) times its derivative, which is g^2 / (2 sigma^2)
    density = jax.scipy.stats.norm.pdf(z) / std * 0.5 * process.diffusion_sq(t) / process.variance(t) / mass
    return Times(t, 1.0 / density)


def velocity(process: Process, key: Key, n: int, *, t_min: float, cells: Count = 1024) -> Times:
    """Density proportional to alpha^2 in log-SNR, evenly spread over the batch (Zheng et al. 2023, arXiv 2305.03935).

    A velocity network's error is the noise error over alpha (`score.V` under VP) or sqrt(2) alpha (`score.FLOW` on the
    straight path), so that with this distribution the likelihood weight is a plain mean of squared velocity errors.
    alpha^2 is taken constant in each of `cells` equal cells of log-SNR, which leaves (1) exact. For any process; under
    VE, where alpha = 1, this is `importance`.

    Args:
      process: the forward SDE.
      key: PRNG key.
      n: number of times.
      t_min: the time at which training begins.
      cells: Number of cells of log-SNR.
    """
    top, bottom = process.log_snr(t_min), process.log_snr(process.horizon)
    middles = top - (top - bottom) / cells * (jnp.arange(cells) + 0.5)
    return by_cells(process, key, n, t_min=t_min, rate=process.alpha(process.inverse_log_snr(middles)) ** 2)


def by_cells(process: Process, key: Key, n: int, *, t_min: float, rate: jax.Array) -> Times:
    """Density in log-SNR proportional to `rate` [cells] in equal cells from t_min on, evenly spread over the batch."""
    cells = rate.shape[0]
    top, bottom = process.log_snr(t_min), process.log_snr(process.horizon)
    step = (top - bottom) / cells
    mass = jnp.concatenate([jnp.zeros(1), step * jnp.cumsum(rate)])
    drawn = _unit_cells(key, n) * mass[-1]
    cell = jnp.clip(jnp.searchsorted(mass, drawn, side="right") - 1, 0, cells - 1)
    log_snr = top - step * cell - (drawn - mass[cell]) / rate[cell]
    t = jnp.clip(process.inverse_log_snr(log_snr), t_min, process.horizon)
    return Times(t, mass[-1] / rate[cell] * process.variance(t) / process.diffusion_sq(t))


# ----------------------------------------------------------------------------------------------------------------------
# Where what is diffused is close to N(0, I) itself, as in the latent space of a VAE (Vahdat et al. 2021, arXiv
# 2106.05931, section 3.4). With v the variance of x_t for such data, the best noise prediction errs by 1 - sigma^2 / v
# in every dimension, and a density proportional to weight (1 - sigma^2 / v) leaves no variance over t.


def _excess(process: Process, t: ArrayLike) -> jax.Array:
    """log(sigma^2 / v), from 0 down; written in log-SNR, which keeps its digits at both ends."""
    return -jax.nn.softplus(process.log_snr(t) + jnp.log1p(-process.variance(0.0)))


def _at_excess(process: Process, excess: jax.Array) -> jax.Array:
    """t with that log(sigma^2 / v)."""
    return process.inverse_log_snr(jnp.log(jnp.expm1(-excess)) - jnp.log1p(-process.variance(0.0)))


def normal_likelihood(process: Process, key: Key, n: int, *, t_min: float) -> Times:
    """Density g^2 / sigma^2 (1 - sigma^2 / v) = d log(sigma^2 / v) / dt up to a factor, evenly spread; for any process.

    The best distribution for the likelihood weight. One rule for every linear SDE, derived here: log(sigma^2 / v) is
    uniform.
    """
    low, high = _excess(process, t_min), _excess(process, process.horizon)
    excess = low + (high - low) * _unit_cells(key, n)
    t = jnp.clip(_at_excess(process, excess), t_min, process.horizon)
    rate = process.diffusion_sq(t) / process.variance(t) * -jnp.expm1(excess)
    return Times(t, (high - low) / rate)


def variance_uniform(process: Process, key: Key, n: int, *, t_min: float) -> Times:
    """sigma^2 uniform, evenly spread: the best distribution for the weight g^2 under VP, which keeps the variance.

    For any process whose sigma^2 grows; the time is found by bisection.
    """
    low, high = process.variance(t_min), process.variance(process.horizon)
    variance = low + (high - low) * _unit_cells(key, n)

    def halve(_, ends):
        left, right = ends
        middle = 0.5 * (left + right)
        below = process.variance(middle) < variance
        return jnp.where(below, middle, left), jnp.where(below, right, middle)

    ends = (jnp.full_like(variance, t_min), jnp.full_like(variance, process.horizon))
    left, right = jax.lax.fori_loop(0, jnp.finfo(variance.dtype).nmant + 3, halve, ends)
    t = 0.5 * (left + right)
    rate = 2.0 * process.drift_coeff(t) * process.variance(t) + process.diffusion_sq(t)
    return Times(t, (high - low) / rate)


def normal_unweighted(process: Process, key: Key, n: int, *, t_min: float) -> Times:
    """Density proportional to 1 - sigma^2 of a linear VP process, evenly spread: the best distribution for weight 1.

    With beta = b0 + 2 c t and b = b0 / (2 c), int beta = c (t + b)^2 - c b^2, so the density is a piece of a Gaussian.
    The published code has exp(b / 2) for exp(b0 b / 2) in its normalizer; here the difference of the ends is enough.

    Raises:
      TypeError: for any other process.
    """
    if not (isinstance(process, VP) and isinstance(process.beta, LinearRate)):
        raise TypeError("times.normal_unweighted has a closed form for a VP process with a linear beta alone")
    c, b = 0.5 * process.beta.slope, process.beta.start / process.beta.slope
    root = jnp.sqrt(c)
    low, high = (jax.scipy.special.erf(root * (end + b)) for end in (jnp.asarray(t_min), jnp.asarray(process.horizon)))
    t = jax.scipy.special.erfinv(low + (high - low) * _unit_cells(key, n)) / root - b
    t = jnp.clip(t, t_min, process.horizon)
    mass = jnp.exp(c * b**2) * jnp.sqrt(jnp.pi / (4.0 * c)) * (high - low)  # int exp(-int beta)
    return Times(t, mass * jnp.exp(process.beta.integral(0.0, t)))
