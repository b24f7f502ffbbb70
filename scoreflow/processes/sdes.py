"""The named forward processes, and the classes that they are made of.

Each function sets the ends of beta or of sigma, at t = 0 and t = 1. The ends do not move with the horizon, which only
cuts the path off earlier. `theory.processes` has the same families in the notation of the theory, and `linear` has the
classes, their equations and the general form.
"""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoreflow.processes.linear import (
    VE,
    VP,
    LinearSDE,
    Perturbed,
    Process,
    ReverseIntegrals,
    Straight,
    SubVP,
    check,
    expand,
)
from scoreflow.processes.rates import (
    CosineRate,
    ExponentialRate,
    GeometricVarianceRate,
    LinearRate,
    NumericalRate,
    PowerRate,
    Scalar,
)
from scoreflow.runs.errors import UserError, first_line
from scoreflow.types import Check, Inside, Positive

__all__ = [
    "VE",
    "VP",
    "LinearSDE",
    "Perturbed",
    "Process",
    "ReverseIntegrals",
    "Straight",
    "SubVP",
    "edm",
    "expand",
    "linear_sde",
    "straight",
    "sub_vp_linear",
    "ve_constant",
    "ve_geometric",
    "ve_linear",
    "ve_power",
    "vp_constant",
    "vp_cosine",
    "vp_exponential",
    "vp_geometric",
    "vp_linear",
    "vp_power",
]

BelowOne = Annotated[float, Check(float, lambda v: 0 < v < 1, "a number between 0 and 1, where alpha reaches 0")]
"""The horizon of a process whose signal ends at t = 1."""

SigmaPower = Annotated[float, Check(float, lambda v: v >= 0.5, "a number, 0.5 or above")]
"""The power of `ve_power`: below 1/2, g^2 would be infinite at t = 0 where sigma_min is 0."""


def _log(x: Scalar) -> Scalar:
    """The logarithm, as a float where x is one, so that a process made of floats can be used in either precision."""
    return jnp.log(x) if isinstance(x, jax.Array) else float(np.log(x))


def _check_ends(name: str, low: Scalar, high: Scalar, *, equal: bool = False) -> None:
    """Refuses ends in the wrong order; traced values are not checked."""
    if isinstance(low, int | float) and isinstance(high, int | float) and not (high > low or (equal and high == low)):
        words = "must not be below" if equal else "must be above"
        raise UserError(f"{name}_max = {high} {words} {name}_min = {low}")


def vp_linear(beta_min: Positive = 0.1, beta_max: Positive = 20.0, horizon: Positive = 1.0) -> VP:
    """VP whose beta is linear in t (Song et al. 2021).

    Args:
      beta_min: Value of beta at t = 0, the rate at which the variance is replaced by noise.
      beta_max: Value of beta at t = 1.
      horizon: Time T at which the path ends.

    Examples:
      >>> import scoreflow
      >>> process = scoreflow.vp_linear()
      >>> round(float(process.alpha(0.5)), 3), round(float(process.sigma(0.5)), 3)
      (0.281, 0.96)
      >>> float(scoreflow.vp_linear(horizon=0.4).log_snr(0.4)) == float(process.log_snr(0.4))  # stopped earlier
      True
    """
    _check_ends("beta", beta_min, beta_max, equal=True)
    return VP(LinearRate(beta_min, beta_max - beta_min), horizon)


def vp_constant(beta_min: Positive = 0.1, beta_max: Positive = 20.0, horizon: Positive = 1.0) -> VP:
    """VP with the constant beta (beta_min + beta_max) / 2.

    Args:
      beta_min: Number whose mean with beta_max is beta.
      beta_max: Number whose mean with beta_min is beta.
      horizon: Time T at which the path ends.
    """
    _check_ends("beta", beta_min, beta_max, equal=True)
    return VP(LinearRate(0.5 * (beta_min + beta_max), 0.0), horizon)


def vp_power(beta_min: Positive = 0.1, beta_max: Positive = 20.0, rho: Positive = 5.0, horizon: Positive = 1.0) -> VP:
    """VP whose beta^(1 / rho) is linear in t.

    Args:
      beta_min: Value of beta at t = 0, the rate at which the variance is replaced by noise.
      beta_max: Value of beta at t = 1.
      rho: Exponent of the line; 1 makes beta linear, and a larger one lets it grow later.
      horizon: Time T at which the path ends.
    """
    _check_ends("beta", beta_min, beta_max, equal=True)
    base = beta_min ** (1.0 / rho)
    return VP(PowerRate(base, beta_max ** (1.0 / rho) - base, rho), horizon)


def vp_exponential(beta_min: Positive = 0.1, beta_max: Positive = 30.0, horizon: Positive = 1.0) -> VP:
    """VP whose log beta is linear in t.

    Args:
      beta_min: Value of beta at t = 0, the rate at which the variance is replaced by noise.
      beta_max: Value of beta at t = 1.
      horizon: Time T at which the path ends.
    """
    _check_ends("beta", beta_min, beta_max, equal=True)
    return VP(ExponentialRate(beta_min, _log(beta_max) - _log(beta_min)), horizon)


def vp_cosine(offset: Positive = 0.008, horizon: BelowOne = 0.995) -> VP:
    """VP with alpha = cos(w (t + offset)) / cos(w offset), which is 0 at t = 1 (Nichol, Dhariwal 2021).

    Args:
      offset: Shift in t that keeps the noise from growing too slowly near t = 0.
      horizon: Time T at which the path ends; alpha is 0 at t = 1.

    Examples:
      >>> import scoreflow
      >>> process = scoreflow.vp_cosine()
      >>> round(float(process.alpha(0.5)), 3), round(float(process.alpha(0.995)), 3)
      (0.703, 0.008)
    """
    return VP(CosineRate(offset), horizon)


def vp_geometric(variance_min: Inside = 3e-5, variance_max: Inside = 0.999, horizon: Positive = 1.0) -> VP:
    """VP whose sigma^2 grows in geometric progression (Vahdat et al. 2021).

    Args:
      variance_min: Variance of the noise at t = 0.
      variance_max: Variance of the noise at t = 1.
      horizon: Time T at which the path ends.
    """
    _check_ends("variance", variance_min, variance_max)
    growth = _log(variance_max) - _log(variance_min)
    return VP(GeometricVarianceRate(variance_min, growth, 1.0 - variance_min), horizon, variance_min)


def sub_vp_linear(beta_min: Positive = 0.1, beta_max: Positive = 20.0, horizon: Positive = 1.0) -> SubVP:
    """Sub-VP whose beta is linear in t (Song et al. 2021).

    Args:
      beta_min: Value of beta at t = 0; alpha falls at half this rate.
      beta_max: Value of beta at t = 1.
      horizon: Time T at which the path ends.

    Examples:
      >>> import scoreflow
      >>> process = scoreflow.sub_vp_linear()
      >>> alpha, sigma = float(process.alpha(0.3)), float(process.sigma(0.3))
      >>> abs(sigma - (1 - alpha**2)) < 1e-5
      True
    """
    _check_ends("beta", beta_min, beta_max, equal=True)
    return SubVP(LinearRate(beta_min, beta_max - beta_min), horizon)


def ve_geometric(sigma_min: Positive = 0.01, sigma_max: Positive = 50.0, horizon: Positive = 1.0) -> VE:
    """VE whose sigma grows in geometric progression (Song et al. 2021).

    Args:
      sigma_min: Standard deviation of the noise at t = 0, in the units of the data.
      sigma_max: Standard deviation of the noise at t = 1, in the units of the data.
      horizon: Time T at which the path ends.

    Examples:
      >>> import scoreflow
      >>> process = scoreflow.ve_geometric(sigma_min=0.01, sigma_max=100.0)
      >>> [round(float(process.sigma(t)), 3) for t in (0.0, 0.5, 1.0)]
      [0.01, 1.0, 100.0]
    """
    _check_ends("sigma", sigma_min, sigma_max)
    growth = 2.0 * (_log(sigma_max) - _log(sigma_min))
    return VE(ExponentialRate(growth * sigma_min**2, growth), horizon, sigma_min**2)


def ve_constant(sigma_min: Positive = 0.01, sigma_max: Positive = 50.0, horizon: Positive = 1.0) -> VE:
    """VE whose sigma^2 is linear in t, so that g is constant.

    Args:
      sigma_min: Standard deviation of the noise at t = 0, in the units of the data.
      sigma_max: Standard deviation of the noise at t = 1, in the units of the data.
      horizon: Time T at which the path ends.
    """
    _check_ends("sigma", sigma_min, sigma_max)
    return VE(LinearRate(sigma_max**2 - sigma_min**2, 0.0), horizon, sigma_min**2)


def ve_linear(sigma_min: Positive = 0.01, sigma_max: Positive = 50.0, horizon: Positive = 1.0) -> VE:
    """VE whose sigma^2 is linear in t^2, so that g^2 is proportional to t.

    Args:
      sigma_min: Standard deviation of the noise at t = 0, in the units of the data.
      sigma_max: Standard deviation of the noise at t = 1, in the units of the data.
      horizon: Time T at which the path ends.
    """
    _check_ends("sigma", sigma_min, sigma_max)
    return VE(LinearRate(0.0, 2.0 * (sigma_max**2 - sigma_min**2)), horizon, sigma_min**2)


def ve_power(
    sigma_min: Positive = 0.01, sigma_max: Positive = 50.0, rho: SigmaPower = 7.0, horizon: Positive = 1.0
) -> VE:
    """VE whose sigma^(1 / rho) is linear in t.

    Args:
      sigma_min: Standard deviation of the noise at t = 0, in the units of the data.
      sigma_max: Standard deviation of the noise at t = 1, in the units of the data.
      rho: Exponent of the line; 1 makes sigma linear, and a larger one lets it grow later.
      horizon: Time T at which the path ends.
    """
    _check_ends("sigma", sigma_min, sigma_max)
    base = sigma_min ** (1.0 / rho)
    slope = sigma_max ** (1.0 / rho) - base
    return VE(PowerRate(base, slope, 2.0 * rho - 1.0, 2.0 * rho * slope), horizon, sigma_min**2)


def straight(horizon: BelowOne = 0.999) -> Straight:
    """The straight path from data to noise (Lipman et al. 2023, Liu et al. 2023; `SP` of Zheng et al. 2023).

    Args:
      horizon: Time T at which the path ends; alpha = 1 - t is 0 at t = 1.

    Examples:
      >>> import scoreflow
      >>> process = scoreflow.straight()
      >>> round(float(process.alpha(0.25)), 3), round(float(process.sigma(0.25)), 3)
      (0.75, 0.25)
    """
    return Straight(horizon)


def edm(horizon: Positive = 80.0) -> VE:
    """VE with sigma = t (Karras et al. 2022, arXiv 2206.00364).

    Args:
      horizon: Time T at which the path ends, which is also the largest sigma, in the units of the data.

    Examples:
      >>> import scoreflow
      >>> process = scoreflow.edm()
      >>> float(process.sigma(2.0)), float(process.alpha(2.0)), float(process.horizon)
      (2.0, 1.0, 80.0)
    """
    return VE(LinearRate(0.0, 2.0), horizon)


def linear_sde(
    drift: Callable[[jax.Array], jax.Array] | float,
    diffusion: Callable[[jax.Array], jax.Array] | float,
    horizon: Scalar = 1.0,
    initial_variance: Scalar = 0.0,
) -> LinearSDE:
    """dx = f(t) x dt + g(t) dw for any f and g; alpha and sigma are computed by quadrature.

    Args:
      drift: f, a number or a JAX function of t of any shape, smooth on [0, T]. Where the signal shrinks it is negative.
      diffusion: g, the same.
      horizon: time T at which the path ends.
      initial_variance: of the noise at t = 0.

    Raises:
      ValueError: if that is no process, see `linear.check`.

    Examples:
      >>> import jax.numpy as jnp, scoreflow
      >>> process = scoreflow.linear_sde(-1.0, lambda t: jnp.sqrt(2.0) * (1 + t), horizon=3.0)
      >>> t = 1.5  # sigma^2 = 2 int exp(-2 (t - u)) (1 + u)^2 du = t^2 + t + 0.5 (1 - exp(-2 t))
      >>> round(float(process.alpha(t) / jnp.exp(-t)), 4), round(float(process.variance(t)), 4)
      (1.0, 4.2251)
    """

    def rate(name: str, function: Callable | float, change: Callable) -> NumericalRate:
        def value(_: Any, t: ArrayLike) -> jax.Array:
            try:
                values = jnp.asarray(function(jnp.asarray(t)) if callable(function) else function, float)
            except (TypeError, ValueError) as error:
                if isinstance(error, jax.errors.JAXTypeError):
                    raise
                raise ValueError(f"{name}, a function of an array of times, fails: {first_line(error)}") from error
            if values.shape not in ((), jnp.shape(t)):
                shapes = f"{list(values.shape)} for t {list(jnp.shape(t))}"
                raise ValueError(f"{name} gives an array {shapes}; it must be like t")
            return change(jnp.broadcast_to(values, jnp.shape(t)))

        return NumericalRate(value, None)

    process = LinearSDE(
        rate("drift", drift, jnp.negative), rate("diffusion", diffusion, jnp.square), horizon, initial_variance
    )
    check(process)
    return process


NAMED: dict[str, Callable[..., Process]] = {
    "vp_linear": vp_linear,
    "vp_constant": vp_constant,
    "vp_power": vp_power,
    "vp_exponential": vp_exponential,
    "vp_cosine": vp_cosine,
    "vp_geometric": vp_geometric,
    "sub_vp_linear": sub_vp_linear,
    "ve_geometric": ve_geometric,
    "ve_constant": ve_constant,
    "ve_linear": ve_linear,
    "ve_power": ve_power,
    "edm": edm,
    "straight": straight,
}
"""Every process of this file, by the ends of beta or sigma at t = 0 and t = 1."""
