"""The processes of the theory's table in its notation, matched with the same families as experiments set them.

Gao, Nguyen, Zhu (arXiv 2311.11003) write dx = -f x dt + g dB. With F = int f, the pairs of f and g are

    f, g                                     in the theory's notation  by the ends of beta or sigma (`sdes`)
    0, a exp(b t)                            ve_exp(a, b)              ve_geometric(sigma_min, sigma_max)
    0, a                                     ve_const(a)               ve_constant(sigma_min, sigma_max)
    0, sqrt(2 a t)                           ve_sqrt(a)                ve_linear(sigma_min, sigma_max); edm has a = 1
    0, k (b + a t)^c                         ve_poly(a, b, c, k)       ve_power(sigma_min, sigma_max, rho)
    al, si                                   ou(al, si)                vp_constant: al = beta/2, si = sqrt(beta)
    (b + a t)/2, sqrt(b + a t)               vp_linear(a, b)           vp_linear(beta_min, beta_max)
    (b + a t)^rho/2, (b + a t)^(rho/2)       vp_poly(a, b, rho)        vp_power(beta_min, beta_max, rho)
    a exp(b t)/2, sqrt(a) exp(b t/2)         vp_exp(a, b)              vp_exponential(beta_min, beta_max)
    (b + a t)/2, g^2 = 2 f (1 - exp(-4 F))   sub_vp(a, b)              sub_vp_linear(beta_min, beta_max)

The paper's table and its figures use the letters differently. This module always writes a exp(b t), never a b^t, and c
is an exponent. The prefactor k is an addition, and so is the last row, which is from Song et al. and not in the table.
Every variance-exploding process takes an offset v0 = sigma(0)^2, which is 0 in the theory; the experiments have
sigma_min^2 there.
"""

from scoreflow.processes.rates import ExponentialRate, LinearRate, PowerRate
from scoreflow.processes.sdes import VE, VP, SubVP
from scoreflow.types import NonNegative, Number, Positive


def ve_exp(a: Positive = 1.0, b: Positive = 1.0, v0: NonNegative = 0.0, horizon: Positive = 1.0) -> VE:
    """f = 0, g = a exp(b t).

    Args:
      a: Value of g at t = 0.
      b: Growth rate of g.
      v0: Variance of the noise at t = 0, sigma(0)^2, in squared units of the data.
      horizon: Time T at which the path ends.
    """
    return VE(ExponentialRate(a**2, 2.0 * b), horizon, v0)


def ve_const(a: Positive = 1.0, v0: NonNegative = 0.0, horizon: Positive = 1.0) -> VE:
    """f = 0, g = a.

    Args:
      a: Constant g.
      v0: Variance of the noise at t = 0, sigma(0)^2, in squared units of the data.
      horizon: Time T at which the path ends.
    """
    return VE(LinearRate(a**2, 0.0), horizon, v0)


def ve_sqrt(a: Positive = 1.0, v0: NonNegative = 0.0, horizon: Positive = 1.0) -> VE:
    """f = 0, g = sqrt(2 a t).

    Args:
      a: Half the slope of g^2 in t.
      v0: Variance of the noise at t = 0, sigma(0)^2, in squared units of the data.
      horizon: Time T at which the path ends.
    """
    return VE(LinearRate(0.0, 2.0 * a), horizon, v0)


def ve_poly(
    a: Positive = 1.0,
    b: NonNegative = 1.0,
    c: NonNegative = 1.0,
    k: Positive = 1.0,
    v0: NonNegative = 0.0,
    horizon: Positive = 1.0,
) -> VE:
    """f = 0, g = k (b + a t)^c.

    Args:
      a: Slope of the base b + a t.
      b: Base at t = 0.
      c: Exponent of the base in g.
      k: Prefactor of g.
      v0: Variance of the noise at t = 0, sigma(0)^2, in squared units of the data.
      horizon: Time T at which the path ends.
    """
    return VE(PowerRate(b, a, 2.0 * c, k**2), horizon, v0)


def ou(al: Positive = 1.0, si: Positive = 2.0**0.5, horizon: Positive = 1.0) -> VP:
    """f = al, g = si: the Ornstein-Uhlenbeck process, whose stationary variance is si^2 / (2 al).

    Args:
      al: Constant rate f at which the signal decays.
      si: Constant scale g of the noise.
      horizon: Time T at which the path ends.
    """
    return VP(LinearRate(2.0 * al, 0.0), horizon, stationary_variance=si**2 / (2.0 * al))


def vp_linear(a: NonNegative = 1.0, b: Positive = 1.0, horizon: Positive = 1.0) -> VP:
    """beta = b + a t.

    Args:
      a: Slope of beta.
      b: Value of beta at t = 0.
      horizon: Time T at which the path ends.
    """
    return VP(LinearRate(b, a), horizon)


def vp_poly(a: NonNegative = 1.0, b: Positive = 1.0, rho: NonNegative = 3.0, horizon: Positive = 1.0) -> VP:
    """beta = (b + a t)^rho.

    Args:
      a: Slope of the base b + a t.
      b: Base at t = 0.
      rho: Exponent of the base in beta.
      horizon: Time T at which the path ends.
    """
    return VP(PowerRate(b, a, rho), horizon)


def vp_exp(a: Positive = 1.0, b: Number = 1.0, horizon: Positive = 1.0) -> VP:
    """beta = a exp(b t).

    Args:
      a: Value of beta at t = 0.
      b: Growth rate of beta.
      horizon: Time T at which the path ends.
    """
    return VP(ExponentialRate(a, b), horizon)


def sub_vp(a: NonNegative = 1.0, b: Positive = 1.0, horizon: Positive = 1.0) -> SubVP:
    """The drift of beta = b + a t, and g^2 = beta (1 - exp(-2 int beta)).

    Args:
      a: Slope of beta.
      b: Value of beta at t = 0.
      horizon: Time T at which the path ends.
    """
    return SubVP(LinearRate(b, a), horizon)


NAMED = {
    "theory_ve_exp": ve_exp,
    "theory_ve_const": ve_const,
    "theory_ve_sqrt": ve_sqrt,
    "theory_ve_poly": ve_poly,
    "theory_ou": ou,
    "theory_vp_linear": vp_linear,
    "theory_vp_poly": vp_poly,
    "theory_vp_exp": vp_exp,
    "theory_sub_vp": sub_vp,
}
"""The processes by the names under which they are chosen."""
