"""Forward processes: linear SDEs that carry data to noise.

    dx = f(t) x dt + g(t) dw,  0 <= t <= T                                        (1)
    x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I),  alpha(t) = exp(int_0^t f)           (2)
    log_snr(t) = log(alpha^2 / sigma^2),  d log_snr / dt = -g^2 / sigma^2           (3)

(3) holds for every process of the form (1). This is why importance sampling for the likelihood weight needs nothing but
`inverse_log_snr` (see `objectives.times`).

A process combines a *rate* (`rates`: beta for the variance-preserving families, g^2 for the variance-exploding one)
with the rule that turns the rate's integral into alpha and sigma: `VP`, `SubVP`, `VE`. `LinearSDE` takes two rates and
so has any f and g^2. All are frozen dataclasses registered as pytrees whose numbers are leaves, so two values of beta
share one trace, and gradients and `vmap` over schedule parameters need no extra code. The horizon T only truncates:
`replace(process, horizon=0.4)` is the same process, stopped earlier.

`initial_variance` is sigma(0)^2, which is 0 by default. Where it is larger, sampling to t = 0 yields
data + N(0, initial_variance I).

Everything is written with expm1 and log1p, so that float32 keeps full relative accuracy at t = 1e-6, where
`sqrt(1 - alpha^2)` is off by several per cent.

Times t may have any shape, and every method returns that shape. The classes do not check their values, because their
constructors also run on traced values. The named processes of `sdes` say in their signatures what is allowed.

Reference: Song et al., "Score-based generative modeling through stochastic differential equations", arXiv 2011.13456,
section 3 and appendix B. Note the sign of f: alpha falls where f < 0.
"""

import abc
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoreflow.processes.rates import Rate, Scalar, bisect, pytree, quadrature
from scoreflow.types import Key

_CHECKED = 1000  # times


def expand(coefficient: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes a per-example coefficient [B] (or a scalar) so that it broadcasts against x [B, ...]."""
    return jnp.reshape(coefficient, jnp.shape(coefficient) + (1,) * (x.ndim - jnp.ndim(coefficient)))


class Perturbed(NamedTuple):
    """A draw from q(x_t | x_0): `xt` = alpha x0 + sigma `noise`, all [B, ...], and `sigma` [B]."""

    xt: jax.Array
    noise: jax.Array
    sigma: jax.Array


class ReverseIntegrals(NamedTuple):
    """The integrals of an exact step from t back to s < t, each of the broadcast shape of s and t.

    a = alpha(s) / alpha(t),  b = int_s^t (alpha(s) / alpha(u)) g(u)^2 du,
    c = int_s^t (alpha(s) / alpha(u))^2 g(u)^2 du, which equals a^2 sigma(t)^2 - sigma(s)^2 but avoids the subtraction.
    """

    a: jax.Array
    b: jax.Array
    c: jax.Array


class Process(abc.ABC):
    """A forward SDE of the form (1).

    Subclasses are final. They define the abstract methods, from which the others follow.

    Attributes:
      horizon: the time T at which the path ends.
      initial_variance: sigma(0)^2.
    """

    horizon: Scalar
    initial_variance: Scalar = 0.0

    @abc.abstractmethod
    def log_alpha(self, t: ArrayLike) -> jax.Array:
        """int_0^t f."""

    @abc.abstractmethod
    def variance(self, t: ArrayLike) -> jax.Array:
        """sigma(t)^2."""

    @abc.abstractmethod
    def drift_coeff(self, t: ArrayLike) -> jax.Array:
        """f(t) in (1), negative where the signal shrinks."""

    @abc.abstractmethod
    def diffusion_sq(self, t: ArrayLike) -> jax.Array:
        """g(t)^2."""

    @abc.abstractmethod
    def reverse_integrals(self, s: ArrayLike, t: ArrayLike) -> ReverseIntegrals:
        """The integrals a, b, c of a step from t back to s <= t."""

    def prior_std(self) -> jax.Array:
        """Standard deviation of the Gaussian prior at time T; a scalar."""
        return self.sigma(self.horizon)

    def alpha(self, t: ArrayLike) -> jax.Array:
        """The scale of the signal, in (0, 1]."""
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """The scale of the noise."""
        return jnp.sqrt(self.variance(t))

    def log_snr(self, t: ArrayLike) -> jax.Array:
        """log(alpha^2 / sigma^2), decreasing in t; +inf where sigma = 0."""
        return 2.0 * self.log_alpha(t) - jnp.log(self.variance(t))

    def inverse_log_snr(self, log_snr: ArrayLike) -> jax.Array:
        """The t with log_snr(t) = log_snr, in closed form where a subclass has one and else by bisection of [0, T]."""
        target = jnp.asarray(log_snr, float)
        start, end = jnp.zeros_like(target), jnp.full_like(target, self.horizon)
        return bisect(lambda t: self.log_snr(t) < target, start, end)

    def normal_variance(self, t: ArrayLike) -> jax.Array:
        """The variance of x_t for data whose variance is 1, the noise at t = 0 included."""
        return self.alpha(t) ** 2 * (1.0 - self.variance(0.0)) + self.variance(t)

    def perturb(self, key: Key, x0: jax.Array, t: jax.Array) -> Perturbed:
        """Draws x_t given x_0 from the exact Gaussian (2).

        Args:
          key: PRNG key.
          x0: data [B, ...].
          t: times [B].
        """
        noise = jax.random.normal(key, x0.shape, x0.dtype)
        sigma = self.sigma(t)
        return Perturbed(expand(self.alpha(t), x0) * x0 + expand(sigma, x0) * noise, noise, sigma)


def check(process: Process) -> None:
    """Refuses a process that is none, by its values at a thousand times; one that is traced passes.

    Raises:
      TypeError: if it is none at all, such as a name.
      ValueError: if g^2 is negative somewhere, alpha or sigma is not finite, log-SNR does not fall or its inverse is
        wrong, or f or g^2 is not what the derivatives of log alpha and log-SNR are by (2) and (3), as with rates that
        are too rough for the quadrature; it names the first such time and the value there.
    """
    if not callable(getattr(process, "alpha", None)):
        raise TypeError(f"process is {process!r}; it must be a process, such as scoreflow.vp_linear()")
    try:
        with np.errstate(all="ignore"):  # what is wrong is said in words
            _check(process)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return  # traced


def _check(process: Process) -> None:
    name, horizon = type(process).__name__, float(process.horizon)
    if not 0.0 < horizon < float("inf"):
        raise ValueError(f"{name} has the horizon {horizon}; it must be above 0 and finite")
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        t = np.linspace(0.0, horizon, _CHECKED + 1)[1:]
        g2, alpha, variance = (np.asarray(f(t)) for f in (process.diffusion_sq, process.alpha, process.variance))
        log_snr = np.asarray(process.log_snr(t))
        again = np.asarray(process.inverse_log_snr(log_snr))
        slope = lambda f: np.nan_to_num(jax.jvp(f, (jnp.asarray(t),), (jnp.ones_like(t),))[1])
        drift, f, g2_again = (
            np.asarray(process.drift_coeff(t)),
            slope(process.log_alpha),
            -variance * slope(process.log_snr),
        )
    differs = lambda a, b: ~np.isclose(a, b, rtol=0.03, atol=3e-3 * np.max(np.abs(b), initial=1e-30))
    for values, wrong, words in (
        (g2, ~(g2 >= 0), "g^2(t) = {}: it must not be negative, so the rate must be positive"),
        (alpha, ~((alpha > 0) & np.isfinite(alpha)), "alpha(t) = {}: it must be above 0 and finite; end earlier"),
        (variance, ~((variance > 0) & np.isfinite(variance)), "sigma(t)^2 = {}: it must be above 0 and finite"),
        (log_snr, np.diff(log_snr, prepend=np.inf) >= 0, "log_snr(t) = {}: it must fall, from data to noise"),
        (
            again,
            ~np.isclose(again, t, rtol=1e-2, atol=1e-3 * horizon),
            "inverse_log_snr(log_snr(t)) = {}: it must be t",
        ),
        (drift, differs(drift, f), "f(t) = {}, which is not d log alpha / dt; is it too rough for the quadrature?"),
        (g2, differs(g2, g2_again), "g^2(t) = {}, which is not -sigma^2 d log_snr / dt; is it too rough?"),
    ):
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(f"{name} at t = {t[i]:.4g}: {words.format(f'{values[i]:.4g}')}")


def _added(log_snr: ArrayLike, initial_variance: Scalar) -> jax.Array:
    """sigma^2 / alpha^2 at a log-SNR less its value at t = 0, and never below 0, where rounding might put it."""
    return jnp.maximum(jnp.exp(-jnp.asarray(log_snr)) - initial_variance, 0.0)


@pytree
class VP(Process):
    """f = -beta/2, g^2 = s beta, with the stationary variance s: 1 preserves the variance (alpha^2 + sigma^2 = 1).

    The prior is the stationary distribution N(0, s I). A constant beta with any s is the Ornstein-Uhlenbeck process.
    """

    beta: Rate
    horizon: Scalar = 1.0
    initial_variance: Scalar = 0.0
    stationary_variance: Scalar = 1.0

    def log_alpha(self, t: ArrayLike) -> jax.Array:
        return -0.5 * self.beta.integral(0.0, t)

    def variance(self, t: ArrayLike) -> jax.Array:
        area = self.beta.integral(0.0, t)
        return self.initial_variance * jnp.exp(-area) - self.stationary_variance * jnp.expm1(-area)

    def drift_coeff(self, t: ArrayLike) -> jax.Array:
        return -0.5 * self.beta(t)

    def diffusion_sq(self, t: ArrayLike) -> jax.Array:
        return self.stationary_variance * self.beta(t)

    def inverse_log_snr(self, log_snr: ArrayLike) -> jax.Array:
        # sigma^2 / alpha^2 = initial + stationary expm1(area)
        return self.beta.inverse(jnp.log1p(_added(log_snr, self.initial_variance) / self.stationary_variance))

    def reverse_integrals(self, s: ArrayLike, t: ArrayLike) -> ReverseIntegrals:
        area = self.beta.integral(s, t)
        b, c = 2.0 * jnp.expm1(0.5 * area), jnp.expm1(area)
        return ReverseIntegrals(jnp.exp(0.5 * area), self.stationary_variance * b, self.stationary_variance * c)

    def prior_std(self) -> jax.Array:
        return jnp.sqrt(jnp.asarray(self.stationary_variance, float))


@pytree
class SubVP(Process):
    """The drift of VP, g^2 = beta (1 - exp(-2 int beta)), so sigma = 1 - alpha^2 from sigma(0) = 0. Prior N(0, I)."""

    beta: Rate
    horizon: Scalar = 1.0
    initial_variance: Scalar = 0.0

    def log_alpha(self, t: ArrayLike) -> jax.Array:
        return -0.5 * self.beta.integral(0.0, t)

    def variance(self, t: ArrayLike) -> jax.Array:
        area = self.beta.integral(0.0, t)
        return jnp.expm1(-area) ** 2 + self.initial_variance * jnp.exp(-area)

    def drift_coeff(self, t: ArrayLike) -> jax.Array:
        return -0.5 * self.beta(t)

    def diffusion_sq(self, t: ArrayLike) -> jax.Array:
        return -self.beta(t) * jnp.expm1(-2.0 * self.beta.integral(0.0, t))

    def inverse_log_snr(self, log_snr: ArrayLike) -> jax.Array:
        # sigma^2 / alpha^2 = initial + (2 sinh(area / 2))^2
        return self.beta.inverse(2.0 * jnp.arcsinh(0.5 * jnp.sqrt(_added(log_snr, self.initial_variance))))

    def reverse_integrals(self, s: ArrayLike, t: ArrayLike) -> ReverseIntegrals:
        area, start = self.beta.integral(s, t), self.beta.integral(0.0, s)
        a, rise = jnp.exp(0.5 * area), jnp.expm1(0.5 * area)
        # 2 expm1(area/2) + (2/3) exp(-2 start) expm1(-3 area/2), factored so that no two large terms cancel near t = 0
        b = 2.0 * rise * (-jnp.expm1(-2.0 * start) + jnp.exp(-2.0 * start) * rise * (3 * a**2 + 2 * a + 1) / (3 * a**3))
        c = -jnp.expm1(area) * jnp.expm1(-2.0 * start - area)
        return ReverseIntegrals(a, b, c)

    def prior_std(self) -> jax.Array:
        return jnp.ones(())


@pytree
class VE(Process):
    """Variance exploding: f = 0, alpha = 1, sigma^2 = initial_variance + int g^2. Prior N(0, sigma(T)^2 I)."""

    g2: Rate
    horizon: Scalar = 1.0
    initial_variance: Scalar = 0.0

    def log_alpha(self, t: ArrayLike) -> jax.Array:
        return jnp.zeros(jnp.shape(t), jnp.result_type(t, float))

    def variance(self, t: ArrayLike) -> jax.Array:
        return self.initial_variance + self.g2.integral(0.0, t)

    def drift_coeff(self, t: ArrayLike) -> jax.Array:
        return jnp.zeros(jnp.shape(t), jnp.result_type(t, float))

    def diffusion_sq(self, t: ArrayLike) -> jax.Array:
        return self.g2(t)

    def inverse_log_snr(self, log_snr: ArrayLike) -> jax.Array:
        return self.g2.inverse(_added(log_snr, self.initial_variance))

    def reverse_integrals(self, s: ArrayLike, t: ArrayLike) -> ReverseIntegrals:
        area = self.g2.integral(s, t)
        return ReverseIntegrals(jnp.ones_like(area), area, area)


@pytree
class Straight(Process):
    """alpha = 1 - t, sigma = t, f = -1 / (1 - t): the path of flow matching; horizon T < 1. Prior N(0, T^2 I)."""

    horizon: Scalar = 0.999

    initial_variance = 0.0

    def log_alpha(self, t: ArrayLike) -> jax.Array:
        return jnp.log1p(-jnp.asarray(t, float))

    def variance(self, t: ArrayLike) -> jax.Array:
        return jnp.asarray(t, float) ** 2

    def drift_coeff(self, t: ArrayLike) -> jax.Array:
        return -1.0 / (1.0 - jnp.asarray(t, float))

    def diffusion_sq(self, t: ArrayLike) -> jax.Array:
        t = jnp.asarray(t, float)
        return 2.0 * t / (1.0 - t)

    def inverse_log_snr(self, log_snr: ArrayLike) -> jax.Array:
        return jax.nn.sigmoid(-0.5 * jnp.asarray(log_snr, float))

    def reverse_integrals(self, s: ArrayLike, t: ArrayLike) -> ReverseIntegrals:
        s, t = jnp.asarray(s, float), jnp.asarray(t, float)
        rise = (t - s) / (1.0 - t)  # alpha(s) / alpha(t) - 1
        # rise - log1p(rise), computed as an integral where the two cancel
        left = jnp.where(
            rise < 0.5,
            quadrature(lambda u: u / (1.0 + u), 0.0, jnp.minimum(rise, 0.5), nodes=16),
            rise - jnp.log1p(rise),
        )
        return ReverseIntegrals(1.0 + rise, 2.0 * (left + s * jnp.log1p(rise)), rise * ((1.0 + rise) * t + s))


@pytree
class LinearSDE(Process):
    """The general form (1) with any two rates: f = -decay, and g^2. Prior N(0, sigma(T)^2 I).

    alpha is as exact as the integral of `decay`. sigma^2 and the reverse integrals have no closed form in general and
    are computed by Gauss-Legendre quadrature with 64 and 32 nodes, which is accurate to rounding where both rates are
    smooth on [0, T].
    """

    decay: Rate
    g2: Rate
    horizon: Scalar = 1.0
    initial_variance: Scalar = 0.0

    def log_alpha(self, t: ArrayLike) -> jax.Array:
        return -self.decay.integral(0.0, t)

    def variance(self, t: ArrayLike) -> jax.Array:
        def remaining(u: jax.Array) -> jax.Array:  # at time t, of the noise that enters at time u
            return jnp.exp(-2.0 * self.decay.integral(u, jnp.expand_dims(t, -1))) * self.g2(u)

        t = jnp.asarray(t, float)
        return self.initial_variance * jnp.exp(2.0 * self.log_alpha(t)) + quadrature(remaining, 0.0, t, nodes=64)

    def drift_coeff(self, t: ArrayLike) -> jax.Array:
        return -self.decay(t)

    def diffusion_sq(self, t: ArrayLike) -> jax.Array:
        return self.g2(t)

    def reverse_integrals(self, s: ArrayLike, t: ArrayLike) -> ReverseIntegrals:
        s, t = jnp.broadcast_arrays(jnp.asarray(s, float), jnp.asarray(t, float))

        def grown(power: float) -> Callable[[jax.Array], jax.Array]:  # alpha(s) / alpha(u) to a power, times g^2
            return lambda u: jnp.exp(power * self.decay.integral(jnp.expand_dims(s, -1), u)) * self.g2(u)

        a = jnp.exp(self.decay.integral(s, t))
        return ReverseIntegrals(a, quadrature(grown(1.0), s, t), quadrature(grown(2.0), s, t))
