"""The complexity table: the order of the number of steps that each process needs for a given accuracy.

The orders leave out constants. eps is the accuracy in W2, d the number of dimensions, and the data are smooth and
strongly log-concave. The columns `steps`, `score_error` and `step` are the published ones (Gao, Nguyen, Zhu, arXiv
2311.11003, as shown with its code). `horizon` and `steps_orthogonal` were derived for this library, the latter from
`wasserstein.bound`; steps = horizon / step in every row. The table is asymptotic: at a fixed accuracy two processes may
come in the opposite order.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Order(NamedTuple):
    """The exponents of d^d (1/eps)^inverse_eps log(d/eps)^log log(1/eps)^log_eps loglog(d/eps)^loglog."""

    d: float = 0.0
    inverse_eps: float = 0.0
    log: float = 0.0
    log_eps: float = 0.0
    loglog: float = 0.0

    def __str__(self) -> str:
        """A formula such as d^1.5 log(d/eps) / eps^3."""

        def power(base: str, value: float) -> str:
            exponent = Fraction(value).limit_denominator(100)
            bare = exponent.denominator == 1
            return base if exponent == 1 else f"{base}^{exponent}" if bare else f"{base}^({exponent})"

        bases = ("d", "1/eps", "log(d/eps)", "log(1/eps)", "log log(d/eps)")
        above = [power(b, e) for b, e in zip(bases, self) if e > 0 and b != "1/eps"]
        below = [power(b, -e) for b, e in zip(bases, self) if e < 0 and b != "1/eps"]
        if self.inverse_eps:
            (above if self.inverse_eps < 0 else below).append(power("eps", abs(self.inverse_eps)))
        denominator = f"({' '.join(below)})" if len(below) > 1 else "".join(below)
        return (" ".join(above) or "1") + (f" / {denominator}" if below else "")

    def __call__(self, d: float, eps: float) -> float:
        """The value without its constant, for eps < 1 / e and d >= 1, so that every logarithm is above 0."""
        values = (d, 1 / eps, np.log(d / eps), np.log(1 / eps), np.log(np.log(d / eps)))
        return float(np.prod([value**exponent for value, exponent in zip(values, self)]))

    def times(self, other: "Order") -> "Order":
        """The product."""
        return Order(*(a + b for a, b in zip(self, other)))


class Complexity(NamedTuple):
    """A row of the table.

    Attributes:
      steps: the number of steps K, as published.
      score_error: the error M of the score that may remain, as published.
      step: the step size, as published.
      horizon: the horizon T, derived.
      steps_orthogonal: the number of steps where errors add up as orthogonal, derived.
    """

    steps: Order
    score_error: Order
    step: Order
    horizon: Order
    steps_orthogonal: Order


_EPS, _STEP = Order(inverse_eps=-1), Order(d=-1, inverse_eps=-2)
_RATE = Order(d=0.5, inverse_eps=1)


def _row(horizon: Order, score_error: Order = _EPS) -> Complexity:
    """A row whose step is eps^2 / d, so that K = T d / eps^2, or T sqrt(d) / eps with orthogonal errors."""
    return Complexity(horizon.times(Order(1, 2)), score_error, _STEP, horizon, horizon.times(_RATE))


def ve_exp() -> Complexity:
    """f = 0, g = a exp(b t)."""
    return _row(Order(log=1), Order(inverse_eps=-1, log_eps=-1))


def ve_const() -> Complexity:
    """f = 0, g = a. This is the one row whose step is smaller by a logarithm."""
    step = Order(d=-1, inverse_eps=-2, log=-1)
    score_error = Order(inverse_eps=-1, log=-0.5)
    return Complexity(Order(1.5, 3, 1), score_error, step, _RATE, Order(1, 2))


def ve_sqrt() -> Complexity:
    """f = 0, g = sqrt(2 a t)."""
    return _row(Order(0.25, 0.5), Order(inverse_eps=-1.5))


def ve_poly(c: float) -> Complexity:
    """f = 0, g = (b + a t)^c."""
    p = 2 * c + 1
    return _row(Order(0.5 / p, 1 / p), Order(inverse_eps=-1 - 2 * c / p))


def ou() -> Complexity:
    """f = al, g = si, which includes VP with a constant beta."""
    return _row(Order(log=1))


def vp_linear() -> Complexity:
    """beta = b + a t."""
    return _row(Order(log=0.5))


def vp_poly(rho: float) -> Complexity:
    """beta = (b + a t)^rho."""
    return _row(Order(log=1 / (rho + 1)))


def vp_exp() -> Complexity:
    """beta = a exp(b t)."""
    return _row(Order(loglog=1))


TABLE: dict[str, Callable[..., Complexity]] = {
    "ve_exp": ve_exp,
    "ve_const": ve_const,
    "ve_sqrt": ve_sqrt,
    "ve_poly": ve_poly,
    "ou": ou,
    "vp_linear": vp_linear,
    "vp_poly": vp_poly,
    "vp_exp": vp_exp,
}
"""The rows by the names of `theory.processes`; `ve_poly` takes c and `vp_poly` takes rho."""
