"""How many steps each process needs for a given accuracy, in orders: the complexity table.

Up to constants, with the accuracy eps in W2 and d dimensions, for smooth and strongly log-concave data. The columns
`steps`, `score_error` and `step` are the published ones (Gao, Nguyen, Zhu, arXiv 2311.11003, as shown with its code).
`horizon` and `steps_orthogonal` were derived here, the latter from `wasserstein.bound`; steps = horizon / step in every
row. Asymptotic: at a fixed accuracy the order of two processes may be the other way round.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Order(NamedTuple):
    """d^d (1/eps)^inverse_eps log(d/eps)^log log(1/eps)^log_eps loglog(d/eps)^loglog, by its exponents."""

    d: float = 0.0
    inverse_eps: float = 0.0
    log: float = 0.0
    log_eps: float = 0.0
    loglog: float = 0.0

    def __str__(self) -> str:
        """In words, such as d^1.5 log(d/eps) / eps^3."""

        def power(base, exponent):
            exponent = Fraction(exponent).limit_denominator(100)
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
        """Its value, without the constant; eps < 1 / e and d >= 1, so that every logarithm is above 0."""
        values = (d, 1 / eps, np.log(d / eps), np.log(1 / eps), np.log(np.log(d / eps)))
        return float(np.prod([value**exponent for value, exponent in zip(values, self)]))

    def times(self, other: "Order") -> "Order":
        """The product."""
        return Order(*(a + b for a, b in zip(self, other)))


class Complexity(NamedTuple):
    """A row: `steps` K, `score_error` M and `step` size as published; `horizon` T and `steps_orthogonal` derived."""

    steps: Order
    score_error: Order
    step: Order
    horizon: Order
    steps_orthogonal: Order


_EPS, _STEP = Order(inverse_eps=-1), Order(d=-1, inverse_eps=-2)
_RATE = Order(d=0.5, inverse_eps=1)


def _row(horizon: Order, score_error: Order = _EPS) -> Complexity:
    """Where the step is eps^2 / d: K = T d / eps^2, and T sqrt(d) / eps with orthogonal errors."""
    return Complexity(horizon.times(Order(1, 2)), score_error, _STEP, horizon, horizon.times(_RATE))


def ve_exp() -> Complexity:
    """f = 0, g = a exp(b t)."""
    return _row(Order(log=1), Order(inverse_eps=-1, log_eps=-1))


def ve_const() -> Complexity:
    """f = 0, g = a: the one row whose step is smaller by a logarithm."""
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
    """f = al, g = si: also VP with a constant beta."""
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
"""By the names of `theory.processes`; `ve_poly` takes c, `vp_poly` takes rho."""
