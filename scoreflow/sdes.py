"""Forward processes: linear SDEs that carry data to noise.

    dx = f(t) x dt + g(t) dw,  0 <= t <= T                                        (1)
    x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I),  alpha(t) = exp(int_0^t f)           (2)
    log_snr(t) = log(alpha^2 / sigma^2),  d log_snr / dt = -g^2 / sigma^2           (3)

(3) holds for every process of the form (1), and is why importance sampling for the likelihood weight needs nothing but
`inverse_log_snr` (see `times`).

A process is a *rate* (beta for the variance-preserving families, g^2 for the variance-exploding one) and a rule that
turns its integral into alpha and sigma. Both are frozen dataclasses registered as pytrees whose numbers are leaves, so
two values of beta share one trace, and gradients and `vmap` over schedule parameters need no extra code. The horizon T
truncates: `replace(process, horizon=0.4)` is the same process, stopped earlier.

Everything is written with expm1 and log1p, so that float32 keeps full relative accuracy at t = 1e-6, where
`sqrt(1 - alpha^2)` is off by several per cent.

Times t may have any shape; every method returns that shape. Values are not checked here (the constructors run on
tracers): `build` checks them.

Reference: Song et al., "Score-based generative modeling through stochastic differential equations", arXiv 2011.13456,
section 3 and appendix B. Note the sign of f: alpha falls where f < 0.
"""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

_BISECTIONS = 60  # halves [0, T] below the float32 spacing of any t in it


def _pytree(cls):
    """Freezes a dataclass and registers it with every field as a leaf."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    return jax.tree_util.register_dataclass(cls, [f.name for f in dataclasses.fields(cls)], [])


def expand(coefficient: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes a per-example coefficient [B] (or a scalar) so that it broadcasts against x [B, ...]."""
    return jnp.reshape(coefficient, jnp.shape(coefficient) + (1,) * (x.ndim - jnp.ndim(coefficient)))


# ----------------------------------------------------------------------------------------------------------------------
# Rates: a positive function of time, its integral and the inverse of its integral from 0.


@_pytree
class LinearRate:
    """r(t) = start + slope t, with start, slope >= 0 and not both 0."""

    start: ArrayLike
    slope: ArrayLike

    def __call__(self, t: ArrayLike) -> jax.Array:
        return self.start + self.slope * jnp.asarray(t)

    def integral(self, t0: ArrayLike, t1: ArrayLike) -> jax.Array:
        """int_{t0}^{t1} r, as a product with t1 - t0, so that short intervals lose no digits."""
        return (jnp.asarray(t1) - t0) * (self.start + 0.5 * self.slope * (jnp.asarray(t0) + t1))

    def inverse(self, area: ArrayLike) -> jax.Array:
        """The t with int_0^t r = area."""
        return 2.0 * area / (self.start + jnp.sqrt(self.start**2 + 2.0 * self.slope * jnp.asarray(area)))


@_pytree
class ExponentialRate:
    """r(t) = start exp(growth t), with start > 0 and growth not 0."""

    start: ArrayLike
    growth: ArrayLike

    def __call__(self, t: ArrayLike) -> jax.Array:
        return self.start * jnp.exp(self.growth * jnp.asarray(t))

    def integral(self, t0: ArrayLike, t1: ArrayLike) -> jax.Array:
        """int_{t0}^{t1} r, by expm1 of the difference."""
        return self(t0) * jnp.expm1(self.growth * (jnp.asarray(t1) - t0)) / self.growth

    def inverse(self, area: ArrayLike) -> jax.Array:
        """The t with int_0^t r = area."""
        return jnp.log1p(self.growth * jnp.asarray(area) / self.start) / self.growth


# ----------------------------------------------------------------------------------------------------------------------
# Processes.


class Perturbed(NamedTuple):
    """A draw from q(x_t | x_0): `xt` = alpha x0 + sigma `noise`, all [B, ...], and `sigma` [B]."""

    xt: jax.Array
    noise: jax.Array
    sigma: jax.Array


class ReverseIntegrals(NamedTuple):
    """What an exact step from t back to s < t is made of (each of the broadcast shape of s and t).

    a = alpha(s) / alpha(t),  b = int_s^t (alpha(s) / alpha(u)) g(u)^2 du,
    c = int_s^t (alpha(s) / alpha(u))^2 g(u)^2 du = a^2 sigma(t)^2 - sigma(s)^2, without that subtraction.
    """

    a: jax.Array
    b: jax.Array
    c: jax.Array


class Process(abc.ABC):
    """A forward SDE of the form (1). Subclasses are final and supply the abstract methods; the rest follows."""

    horizon: ArrayLike

    @abc.abstractmethod
    def log_alpha(self, t: ArrayLike) -> jax.Array:
        """int_0^t f."""

    @abc.abstractmethod
    def variance(self, t: ArrayLike) -> jax.Array:
        """sigma(t)^2."""

    @abc.abstractmethod
    def drift_coeff(self, t: ArrayLike) -> jax.Array:
        """f(t), the rate in (1) (negative where the signal shrinks)."""

    @abc.abstractmethod
    def diffusion_sq(self, t: ArrayLike) -> jax.Array:
        """g(t)^2."""

    @abc.abstractmethod
    def reverse_integrals(self, s: ArrayLike, t: ArrayLike) -> ReverseIntegrals:
        """a, b, c of a step from t back to s <= t."""

    @abc.abstractmethod
    def prior_std(self) -> jax.Array:
        """Standard deviation of the Gaussian that is assumed at time T; a scalar."""

    def alpha(self, t: ArrayLike) -> jax.Array:
        """Signal scale, in (0, 1]."""
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """Noise scale."""
        return jnp.sqrt(self.variance(t))

    def log_snr(self, t: ArrayLike) -> jax.Array:
        """log(alpha^2 / sigma^2), decreasing in t; +inf where sigma = 0."""
        return 2.0 * self.log_alpha(t) - jnp.log(self.variance(t))

    def inverse_log_snr(self, log_snr: ArrayLike) -> jax.Array:
        """The t in [0, T] with log_snr(t) = log_snr, by bisection; closed form where a subclass has one."""
        log_snr = jnp.asarray(log_snr)
        low = jnp.zeros_like(log_snr)
        high = jnp.full_like(log_snr, self.horizon)

        def halve(_, bounds):
            low, high = bounds
            middle = 0.5 * (low + high)
            too_noisy = self.log_snr(middle) < log_snr
            return jnp.where(too_noisy, low, middle), jnp.where(too_noisy, middle, high)

        low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
        return 0.5 * (low + high)

    def perturb(self, key: jax.Array, x0: jax.Array, t: jax.Array) -> Perturbed:
        """Draws x_t given x_0, exactly (2).

        Args:
          key: PRNG key.
          x0: data [B, ...].
          t: times [B].
        """
        noise = jax.random.normal(key, x0.shape, x0.dtype)
        sigma = self.sigma(t)
        return Perturbed(expand(self.alpha(t), x0) * x0 + expand(sigma, x0) * noise, noise, sigma)


@_pytree
class VP(Process):
    """Variance preserving: f = -beta/2, g^2 = beta, so alpha^2 + sigma^2 = 1. Prior N(0, I)."""

    beta: LinearRate | ExponentialRate
    horizon: ArrayLike = 1.0

    def log_alpha(self, t):
        return -0.5 * self.beta.integral(0.0, t)

    def variance(self, t):
        return -jnp.expm1(-self.beta.integral(0.0, t))

    def drift_coeff(self, t):
        return -0.5 * self.beta(t)

    def diffusion_sq(self, t):
        return self.beta(t)

    def log_snr(self, t):
        area = self.beta.integral(0.0, t)
        return -area - jnp.log(-jnp.expm1(-area))  # -log(expm1(area)), which would overflow

    def inverse_log_snr(self, log_snr):
        return self.beta.inverse(jax.nn.softplus(-jnp.asarray(log_snr)))

    def reverse_integrals(self, s, t):
        area = self.beta.integral(s, t)
        return ReverseIntegrals(jnp.exp(0.5 * area), 2.0 * jnp.expm1(0.5 * area), jnp.expm1(area))

    def prior_std(self):
        return jnp.ones(())


@_pytree
class SubVP(Process):
    """Sub-VP: the drift of VP, g^2 = beta (1 - exp(-2 int beta)), so sigma = 1 - alpha^2. Prior N(0, I)."""

    beta: LinearRate | ExponentialRate
    horizon: ArrayLike = 1.0

    def log_alpha(self, t):
        return -0.5 * self.beta.integral(0.0, t)

    def variance(self, t):
        return jnp.expm1(-self.beta.integral(0.0, t)) ** 2

    def sigma(self, t):
        return -jnp.expm1(-self.beta.integral(0.0, t))

    def drift_coeff(self, t):
        return -0.5 * self.beta(t)

    def diffusion_sq(self, t):
        return -self.beta(t) * jnp.expm1(-2.0 * self.beta.integral(0.0, t))

    def log_snr(self, t):
        area = self.beta.integral(0.0, t)
        return -area - 2.0 * jnp.log(-jnp.expm1(-area))

    def inverse_log_snr(self, log_snr):
        # sigma / alpha = 2 sinh(area / 2)
        return self.beta.inverse(2.0 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * jnp.asarray(log_snr))))

    def reverse_integrals(self, s, t):
        area, start = self.beta.integral(s, t), self.beta.integral(0.0, s)
        a, rise = jnp.exp(0.5 * area), jnp.expm1(0.5 * area)
        # 2 expm1(area/2) + (2/3) exp(-2 start) expm1(-3 area/2), factored so that no two large terms cancel near t = 0
        b = 2.0 * rise * (-jnp.expm1(-2.0 * start) + jnp.exp(-2.0 * start) * rise * (3 * a**2 + 2 * a + 1) / (3 * a**3))
        c = -jnp.expm1(area) * jnp.expm1(-2.0 * start - area)
        return ReverseIntegrals(a, b, c)

    def prior_std(self):
        return jnp.ones(())


@_pytree
class VE(Process):
    """Variance exploding: f = 0, alpha = 1, sigma^2 = initial_variance + int g^2. Prior N(0, sigma(T)^2 I).

    With initial_variance > 0 the law at t = 0 is that of data + N(0, initial_variance I).
    """

    g2: LinearRate | ExponentialRate
    initial_variance: ArrayLike = 0.0
    horizon: ArrayLike = 1.0

    def log_alpha(self, t):
        return jnp.zeros(jnp.shape(t), jnp.result_type(t, float))

    def variance(self, t):
        return self.initial_variance + self.g2.integral(0.0, t)

    def drift_coeff(self, t):
        return jnp.zeros(jnp.shape(t), jnp.result_type(t, float))

    def diffusion_sq(self, t):
        return self.g2(t)

    def inverse_log_snr(self, log_snr):
        return self.g2.inverse(jnp.exp(-jnp.asarray(log_snr)) - self.initial_variance)

    def reverse_integrals(self, s, t):
        area = self.g2.integral(s, t)
        return ReverseIntegrals(jnp.ones_like(area), area, area)

    def prior_std(self):
        return self.sigma(self.horizon)


def vp_linear(beta_min: ArrayLike = 0.1, beta_max: ArrayLike = 20.0, horizon: ArrayLike = 1.0) -> VP:
    """VP with beta(t) = beta_min + t (beta_max - beta_min); the slope does not depend on the horizon."""
    return VP(LinearRate(beta_min, beta_max - beta_min), horizon)


def sub_vp_linear(beta_min: ArrayLike = 0.1, beta_max: ArrayLike = 20.0, horizon: ArrayLike = 1.0) -> SubVP:
    """Sub-VP with beta(t) = beta_min + t (beta_max - beta_min)."""
    return SubVP(LinearRate(beta_min, beta_max - beta_min), horizon)


def ve_geometric(sigma_min: ArrayLike = 0.01, sigma_max: ArrayLike = 50.0, horizon: ArrayLike = 1.0) -> VE:
    """VE with sigma(t) = sigma_min (sigma_max / sigma_min)^t, so sigma(0) = sigma_min, not 0."""
    growth = 2.0 * (jnp.log(sigma_max) - jnp.log(sigma_min))
    return VE(ExponentialRate(growth * sigma_min**2, growth), sigma_min**2, horizon)
