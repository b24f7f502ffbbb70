"""The processes of the theory table, by its letters, and the same families as experiments set them.

Gao, Nguyen, Zhu (arXiv 2311.11003) write dx = -f x dt + g dB. With F = int f, the pairs of f and g are here:

    f, g                                     by the theory's letters   by the ends of beta or sigma (`sdes`)
    0, a exp(b t)                            ve_exp(a, b)              ve_geometric(sigma_min, sigma_max)
    0, a                                     ve_const(a)               ve_constant(sigma_min, sigma_max)
    0, sqrt(2 a t)                           ve_sqrt(a)                ve_linear(sigma_min, sigma_max); edm has a = 1
    0, k (b + a t)^c                         ve_poly(a, b, c, k)       ve_power(sigma_min, sigma_max, rho)
    al, si                                   ou(al, si)                vp_constant: al = beta/2, si = sqrt(beta)
    (b + a t)/2, sqrt(b + a t)               vp_linear(a, b)           vp_linear(beta_min, beta_max)
    (b + a t)^rho/2, (b + a t)^(rho/2)       vp_poly(a, b, rho)        vp_power(beta_min, beta_max, rho)
    a exp(b t)/2, sqrt(a) exp(b t/2)         vp_exp(a, b)              vp_exponential(beta_min, beta_max)
    (b + a t)/2, g^2 = 2 f (1 - exp(-4 F))   sub_vp(a, b)              sub_vp_linear(beta_min, beta_max)

The letters clash between the paper's table and its figures: here a exp(b t) throughout, never a b^t; c is an exponent.
The prefactor k is an addition, and so is the last row, which is Song et al.'s and not in the table. Every
variance-exploding process takes an offset v0 = sigma(0)^2, 0 in the theory; the experiments have sigma_min^2 there.
"""

from jax.typing import ArrayLike

from scoreflow.processes.rates import ExponentialRate, LinearRate, PowerRate
from scoreflow.processes.sdes import VE, VP, SubVP


def ve_exp(a: ArrayLike = 1.0, b: ArrayLike = 1.0, v0: ArrayLike = 0.0, horizon: ArrayLike = 1.0) -> VE:
    """f = 0, g = a exp(b t)."""
    return VE(ExponentialRate(a**2, 2.0 * b), horizon, v0)


def ve_const(a: ArrayLike = 1.0, v0: ArrayLike = 0.0, horizon: ArrayLike = 1.0) -> VE:
    """f = 0, g = a."""
    return VE(LinearRate(a**2, 0.0), horizon, v0)


def ve_sqrt(a: ArrayLike = 1.0, v0: ArrayLike = 0.0, horizon: ArrayLike = 1.0) -> VE:
    """f = 0, g = sqrt(2 a t)."""
    return VE(LinearRate(0.0, 2.0 * a), horizon, v0)


def ve_poly(
    a: ArrayLike = 1.0,
    b: ArrayLike = 1.0,
    c: ArrayLike = 1.0,
    k: ArrayLike = 1.0,
    v0: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
) -> VE:
    """f = 0, g = k (b + a t)^c."""
    return VE(PowerRate(b, a, 2.0 * c, k**2), horizon, v0)


def ou(al: ArrayLike = 1.0, si: ArrayLike = 2.0**0.5, horizon: ArrayLike = 1.0) -> VP:
    """f = al, g = si: Ornstein-Uhlenbeck, with the stationary variance si^2 / (2 al)."""
    return VP(LinearRate(2.0 * al, 0.0), horizon, stationary_variance=si**2 / (2.0 * al))


def vp_linear(a: ArrayLike = 1.0, b: ArrayLike = 1.0, horizon: ArrayLike = 1.0) -> VP:
    """beta = b + a t."""
    return VP(LinearRate(b, a), horizon)


def vp_poly(a: ArrayLike = 1.0, b: ArrayLike = 1.0, rho: ArrayLike = 3.0, horizon: ArrayLike = 1.0) -> VP:
    """beta = (b + a t)^rho."""
    return VP(PowerRate(b, a, rho), horizon)


def vp_exp(a: ArrayLike = 1.0, b: ArrayLike = 1.0, horizon: ArrayLike = 1.0) -> VP:
    """beta = a exp(b t)."""
    return VP(ExponentialRate(a, b), horizon)


def sub_vp(a: ArrayLike = 1.0, b: ArrayLike = 1.0, horizon: ArrayLike = 1.0) -> SubVP:
    """The drift of beta = b + a t, and g^2 = beta (1 - exp(-2 int beta))."""
    return SubVP(LinearRate(b, a), horizon)
