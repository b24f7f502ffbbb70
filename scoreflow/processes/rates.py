"""Rates: a positive function of time, its integral, and the inverse of its integral from 0.

A process of `sdes` is a rate (beta or g^2) and the rule that turns the rate's integral into alpha and sigma. Every rate
has

    rate(t)               r(t)
    rate.integral(s, t)   int_s^t r, to full relative accuracy however short the interval
    rate.inverse(area)    the t with int_0^t r = area

and is a pytree whose numbers are leaves. Integrals over a short interval never subtract their values at its two ends:
they are written with expm1 and log1p of the difference. All have closed forms, but for `NumericalRate`, which goes by
quadrature.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_BISECTIONS = 60  # halves [0, T] below the float32 spacing of any t in it


def pytree(cls=None, *, static: tuple[str, ...] = ()):
    """Freezes a dataclass and registers it with every field as a leaf, but for those named `static`."""
    if cls is None:
        return lambda cls: pytree(cls, static=static)
    cls = dataclasses.dataclass(frozen=True)(cls)
    leaves = [f.name for f in dataclasses.fields(cls) if f.name not in static]
    return jax.tree_util.register_dataclass(cls, leaves, list(static))


def bisect(too_large: Callable[[jax.Array], jax.Array], low: ArrayLike, high: ArrayLike) -> jax.Array:
    """The t between low and high below which `too_large(t)` is False and above which it is True; their shape."""

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        over = too_large(middle)
        return jnp.where(over, low, middle), jnp.where(over, middle, high)

    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    return 0.5 * (low + high)


def quadrature(
    function: Callable[[jax.Array], jax.Array], low: ArrayLike, high: ArrayLike, *, nodes: int = 32
) -> jax.Array:
    """int_low^high function, by Gauss-Legendre: exact for polynomials up to degree 2 nodes - 1.

    Args:
      function: takes arrays of times with one axis more than low and high, and acts on each by itself.
      low, high: the ends, of any shapes that broadcast.
      nodes: how many.

    Returns:
      Of the broadcast shape of low and high.
    """
    low, high = jnp.broadcast_arrays(jnp.asarray(low, float), jnp.asarray(high, float))
    abscissae, weights = (jnp.asarray(a, low.dtype) for a in np.polynomial.legendre.leggauss(nodes))
    half = 0.5 * (high - low)
    times = jnp.expand_dims(low, -1) + jnp.expand_dims(half, -1) * jnp.reshape(
        1.0 + abscissae, (1,) * low.ndim + (nodes,)
    )
    return half * jnp.tensordot(function(times), weights, axes=1)


def _nonzero(x: jax.Array) -> jax.Array:
    """x, with 1 in the place of 0, so that a branch which is not taken has no infinite gradient."""
    return jnp.where(x == 0, jnp.ones_like(x), x)


def _expm1_over(x: ArrayLike) -> jax.Array:
    """expm1(x) / x, which is 1 at 0."""
    x = jnp.asarray(x)
    return jnp.where(x == 0, 1.0, jnp.expm1(_nonzero(x)) / _nonzero(x))


def _log1p_over(x: ArrayLike) -> jax.Array:
    """log1p(x) / x, which is 1 at 0."""
    x = jnp.asarray(x)
    return jnp.where(x == 0, 1.0, jnp.log1p(_nonzero(x)) / _nonzero(x))


class Rate(Protocol):
    """What every rate is; see the module."""

    def __call__(self, t: ArrayLike) -> jax.Array: ...

    def integral(self, t0: ArrayLike, t1: ArrayLike) -> jax.Array: ...

    def inverse(self, area: ArrayLike) -> jax.Array: ...


@pytree
class LinearRate:
    """r(t) = start + slope t, with start, slope >= 0 and not both 0."""

    start: ArrayLike
    slope: ArrayLike

    def __call__(self, t):
        return self.start + self.slope * jnp.asarray(t)

    def integral(self, t0, t1):
        return (jnp.asarray(t1) - t0) * (self.start + 0.5 * self.slope * (jnp.asarray(t0) + t1))

    def inverse(self, area):
        return 2.0 * area / (self.start + jnp.sqrt(self.start**2 + 2.0 * self.slope * jnp.asarray(area)))


@pytree
class ExponentialRate:
    """r(t) = start exp(growth t), with start > 0."""

    start: ArrayLike
    growth: ArrayLike

    def __call__(self, t):
        return self.start * jnp.exp(self.growth * jnp.asarray(t))

    def integral(self, t0, t1):
        h = jnp.asarray(t1) - t0
        return self(t0) * h * _expm1_over(self.growth * h)

    def inverse(self, area):
        ratio = jnp.asarray(area) / self.start
        return ratio * _log1p_over(self.growth * ratio)


@pytree
class PowerRate:
    """r(t) = scale (base + slope t)^power, with scale > 0, base, slope, power >= 0, and base, slope not both 0."""

    base: ArrayLike
    slope: ArrayLike
    power: ArrayLike
    scale: ArrayLike = 1.0

    def __call__(self, t):
        return self.scale * (self.base + self.slope * jnp.asarray(t)) ** self.power

    def integral(self, t0, t1):
        p, start, rise = self.power + 1.0, self.base + self.slope * jnp.asarray(t0), self.slope * (jnp.asarray(t1) - t0)
        # A rise by less than the start goes by its logarithm, since the ends would cancel; a larger one by the ends,
        # since the start may be 0 and its power may vanish in float32.
        small = jnp.abs(rise) < start
        x = jnp.where(small, rise / jnp.where(small, start, 1.0), 0.0)
        by_log = (jnp.asarray(t1) - t0) * start**self.power * _expm1_over(p * jnp.log1p(x)) * _log1p_over(x)
        by_ends = ((start + rise) ** p - start**p) / (_nonzero(jnp.asarray(self.slope)) * p)
        return self.scale * jnp.where(small, by_log, by_ends)

    def inverse(self, area):
        p, area = self.power + 1.0, jnp.asarray(area) / self.scale
        rise = self.slope * p * area
        small = rise < self.base**p
        # area / base^power is the answer for a constant rate
        ratio = jnp.where(small, area / jnp.where(small, self.base**self.power, 1.0), 0.0)
        x = self.slope * p * jnp.where(small, ratio / jnp.where(small, self.base, 1.0), 0.0)
        by_log = ratio * _expm1_over(jnp.log1p(x) / p) * _log1p_over(x)
        by_ends = ((self.base**p + rise) ** (1.0 / p) - self.base) / _nonzero(jnp.asarray(self.slope))
        return jnp.where(small, by_log, by_ends)


@pytree
class CosineRate:
    """r(t) = 2 w tan(w (t + offset)), w = pi / (2 + 2 offset): as VP's beta, alpha is a cosine that is 0 at t = 1.

    Nichol, Dhariwal 2021 (arXiv 2102.09672), equation 17, whose offset is 0.008. Infinite at t = 1: use a horizon < 1.
    """

    offset: ArrayLike = 0.008

    def _angle(self, t):
        frequency = 0.5 * np.pi / (1.0 + self.offset)
        return frequency, frequency * (jnp.asarray(t) + self.offset)

    def __call__(self, t):
        frequency, angle = self._angle(t)
        return 2.0 * frequency * jnp.tan(angle)

    def integral(self, t0, t1):
        # cos(angle + d) / cos(angle) = 1 - (2 sin(d/2)^2 + tan(angle) sin(d))
        frequency, angle = self._angle(t0)
        d = frequency * (jnp.asarray(t1) - t0)
        return -2.0 * jnp.log1p(-(2.0 * jnp.sin(0.5 * d) ** 2 + jnp.tan(angle) * jnp.sin(d)))

    def inverse(self, area):
        # the same equation, solved for tan(d/2)
        frequency, angle = self._angle(0.0)
        q, slope = -jnp.expm1(-0.5 * jnp.asarray(area)), jnp.tan(angle)
        return 2.0 * jnp.arctan(q / (slope + jnp.sqrt(slope**2 + q * (2.0 - q)))) / frequency


@pytree
class GeometricVarianceRate:
    """The beta with which VP's variance grows geometrically: sigma(t)^2 = 1 - room + start expm1(growth t).

    r = start growth exp(growth t) / (room - start expm1(growth t)), where room = 1 - sigma(0)^2 must not be used up
    before the horizon. With start = sigma(0)^2, d log sigma^2 / dt is constant (Vahdat et al. 2021, arXiv 2106.05931).
    """

    start: ArrayLike
    growth: ArrayLike
    room: ArrayLike

    def __call__(self, t):
        grown = self.growth * jnp.asarray(t)
        return self.start * self.growth * jnp.exp(grown) / (self.room - self.start * jnp.expm1(grown))

    def integral(self, t0, t1):
        grown = self.growth * jnp.asarray(t0)
        rise = self.start * jnp.exp(grown) * jnp.expm1(self.growth * (jnp.asarray(t1) - t0))
        return -jnp.log1p(-rise / (self.room - self.start * jnp.expm1(grown)))

    def inverse(self, area):
        return jnp.log1p(-self.room * jnp.expm1(-jnp.asarray(area)) / self.start) / self.growth


@pytree(static=("function",))
class NumericalRate:
    """Any positive rate: r(t) = function(parameters, t). No closed forms: quadrature, and bisection for the inverse.

    Attributes:
      function: (parameters, t of any shape) -> the same shape; smooth, since 32 nodes serve any interval.
      parameters: pytree that it depends on; gradients reach it.
      upto: the largest t that `inverse` looks for.
    """

    function: Callable[[Any, jax.Array], jax.Array]
    parameters: Any
    upto: ArrayLike = 1.0

    def __call__(self, t):
        return self.function(self.parameters, jnp.asarray(t))

    def integral(self, t0, t1):
        return quadrature(self, t0, t1)

    def inverse(self, area):
        area = jnp.asarray(area, float)
        return bisect(lambda t: self.integral(0.0, t) > area, jnp.zeros_like(area), jnp.full_like(area, self.upto))
