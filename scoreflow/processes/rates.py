"""Rates: a positive function of time, its integral, and the inverse of its integral from 0.

A process combines a rate (beta or g^2) with the rule that turns the rate's integral into alpha and sigma. Every rate
provides

    rate(t)               r(t)
    rate.integral(s, t)   int_s^t r, to full relative accuracy however short the interval
    rate.inverse(area)    the t with int_0^t r = area

and is a pytree whose numbers are leaves. The integral over a short interval never subtracts two values at its ends; it
is written with expm1 and log1p of the difference. All rates have closed forms except `NumericalRate`, which uses
quadrature.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast, dataclass_transform, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_FARTHEST = 2.0**20
_BISECTIONS = 60  # halves [0, T] below the float32 spacing of any t in it

Scalar = float | jax.Array
"""A parameter of a rate or a process: a float, or a scalar array where it is traced or differentiated."""

T = TypeVar("T")


@overload
def pytree(cls: type[T]) -> type[T]:
    """Used as `@pytree`."""


@overload
def pytree(*, static: tuple[str, ...]) -> Callable[[type[T]], type[T]]:
    """Used as `@pytree(static=...)`."""


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T] | None = None, *, static: tuple[str, ...] = ()) -> type[T] | Callable[[type[T]], type[T]]:
    """Makes a class a frozen dataclass and registers it as a pytree.

    Args:
      cls: the class. Its annotated fields become the fields of the dataclass.
      static: names of the fields that belong to the tree's structure; all other fields are leaves.
    """

    def register(cls: type[T]) -> type[T]:
        frozen = dataclasses.dataclass(frozen=True)(cls)
        leaves = [f.name for f in dataclasses.fields(cast(Any, frozen)) if f.name not in static]
        return jax.tree_util.register_dataclass(frozen, leaves, list(static))

    return register if cls is None else register(cls)


def bisect(too_large: Callable[[jax.Array], jax.Array], low: ArrayLike, high: ArrayLike) -> jax.Array:
    """The t between low and high below which `too_large(t)` is False and above which it is True; their shape."""

    def halve(_, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        over = too_large(middle)
        return jnp.where(over, low, middle), jnp.where(over, middle, high)

    start, end = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.asarray(low), jnp.asarray(high)))
    return 0.5 * (start + end)


def quadrature(
    function: Callable[[jax.Array], jax.Array], low: ArrayLike, high: ArrayLike, *, nodes: int = 32
) -> jax.Array:
    """int_low^high function by Gauss-Legendre quadrature, which is exact for polynomials up to degree 2 nodes - 1.

    Args:
      function: takes an array of times with one axis more than low and high, and acts on each time by itself.
      low, high: the ends, of any shapes that broadcast.
      nodes: the number of nodes.

    Returns:
      The integrals, of the broadcast shape of low and high.
    """
    start, end = jnp.broadcast_arrays(jnp.asarray(low, float), jnp.asarray(high, float))
    abscissae, weights = (jnp.asarray(a, start.dtype) for a in np.polynomial.legendre.leggauss(nodes))
    half = 0.5 * (end - start)
    times = jnp.expand_dims(start, -1) + jnp.expand_dims(half, -1) * jnp.reshape(
        1.0 + abscissae, (1,) * start.ndim + (nodes,)
    )
    return half * jnp.tensordot(function(times), weights, axes=1)


def _nonzero(x: jax.Array) -> jax.Array:
    """x with 1 in place of 0, so that a branch which is not taken has no infinite gradient."""
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
    """The interface of every rate; see the module docstring."""

    def __call__(self, t: ArrayLike) -> jax.Array:
        """r(t)."""
        ...

    def integral(self, t0: ArrayLike, t1: ArrayLike) -> jax.Array:
        """int_t0^t1 r."""
        ...

    def inverse(self, area: ArrayLike) -> jax.Array:
        """The t with int_0^t r = area."""
        ...


@pytree
class LinearRate:
    """r(t) = start + slope t, with start, slope >= 0 and not both 0."""

    start: Scalar
    slope: Scalar

    def __call__(self, t: ArrayLike) -> jax.Array:
        return self.start + self.slope * jnp.asarray(t)

    def integral(self, t0: ArrayLike, t1: ArrayLike) -> jax.Array:
        return (jnp.asarray(t1) - t0) * (self.start + 0.5 * self.slope * (jnp.asarray(t0) + t1))

    def inverse(self, area: ArrayLike) -> jax.Array:
        area = jnp.asarray(area)
        return 2.0 * area / (self.start + jnp.sqrt(self.start**2 + 2.0 * self.slope * area))


@pytree
class ExponentialRate:
    """r(t) = start exp(growth t), with start > 0."""

    start: Scalar
    growth: Scalar

    def __call__(self, t: ArrayLike) -> jax.Array:
        return self.start * jnp.exp(self.growth * jnp.asarray(t))

    def integral(self, t0: ArrayLike, t1: ArrayLike) -> jax.Array:
        h = jnp.asarray(t1) - t0
        return self(t0) * h * _expm1_over(self.growth * h)

    def inverse(self, area: ArrayLike) -> jax.Array:
        ratio = jnp.asarray(area) / self.start
        return ratio * _log1p_over(self.growth * ratio)


@pytree
class PowerRate:
    """r(t) = scale (base + slope t)^power, with scale > 0, base, slope, power >= 0, and base, slope not both 0."""

    base: Scalar
    slope: Scalar
    power: Scalar
    scale: Scalar = 1.0

    def __call__(self, t: ArrayLike) -> jax.Array:
        return self.scale * (self.base + self.slope * jnp.asarray(t)) ** self.power

    def integral(self, t0: ArrayLike, t1: ArrayLike) -> jax.Array:
        p, start, rise = self.power + 1.0, self.base + self.slope * jnp.asarray(t0), self.slope * (jnp.asarray(t1) - t0)
        # Where the rise is below the start, the two ends would cancel, so the logarithm is used. A larger rise uses the
        # ends, since the start may be 0 and its power may vanish in float32.
        small = jnp.abs(rise) < start
        x = jnp.where(small, rise / jnp.where(small, start, 1.0), 0.0)
        by_log = (jnp.asarray(t1) - t0) * start**self.power * _expm1_over(p * jnp.log1p(x)) * _log1p_over(x)
        by_ends = ((start + rise) ** p - start**p) / (_nonzero(jnp.asarray(self.slope)) * p)
        return self.scale * jnp.where(small, by_log, by_ends)

    def inverse(self, area: ArrayLike) -> jax.Array:
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

    Nichol, Dhariwal 2021 (arXiv 2102.09672), equation 17, whose offset is 0.008. The rate is infinite at t = 1, so it
    needs a horizon below 1.
    """

    offset: Scalar = 0.008

    def _angle(self, t: ArrayLike) -> tuple[Scalar, jax.Array]:
        frequency = 0.5 * np.pi / (1.0 + self.offset)
        return frequency, frequency * (jnp.asarray(t) + self.offset)

    def __call__(self, t: ArrayLike) -> jax.Array:
        frequency, angle = self._angle(t)
        return 2.0 * frequency * jnp.tan(angle)

    def integral(self, t0: ArrayLike, t1: ArrayLike) -> jax.Array:
        # cos(angle + d) / cos(angle) = 1 - (2 sin(d/2)^2 + tan(angle) sin(d))
        frequency, angle = self._angle(t0)
        d = frequency * (jnp.asarray(t1) - t0)
        return -2.0 * jnp.log1p(-(2.0 * jnp.sin(0.5 * d) ** 2 + jnp.tan(angle) * jnp.sin(d)))

    def inverse(self, area: ArrayLike) -> jax.Array:
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

    start: Scalar
    growth: Scalar
    room: Scalar

    def __call__(self, t: ArrayLike) -> jax.Array:
        grown = self.growth * jnp.asarray(t)
        return self.start * self.growth * jnp.exp(grown) / (self.room - self.start * jnp.expm1(grown))

    def integral(self, t0: ArrayLike, t1: ArrayLike) -> jax.Array:
        grown = self.growth * jnp.asarray(t0)
        rise = self.start * jnp.exp(grown) * jnp.expm1(self.growth * (jnp.asarray(t1) - t0))
        return -jnp.log1p(-rise / (self.room - self.start * jnp.expm1(grown)))

    def inverse(self, area: ArrayLike) -> jax.Array:
        return jnp.log1p(-self.room * jnp.expm1(-jnp.asarray(area)) / self.start) / self.growth


@pytree(static=("function",))
class NumericalRate:
    """Any positive rate: r(t) = function(parameters, t), integrated by quadrature and inverted by bisection.

    Attributes:
      function: (parameters, t of any shape) -> the same shape. It must be smooth, since 32 nodes serve any interval.
      parameters: the pytree that the rate depends on; gradients reach it.
      upto: the largest t that `inverse` looks for, where the function has no meaning beyond; None looks as far as it
        takes, up to t = 2^20.
    """

    function: Callable[[Any, jax.Array], jax.Array]
    parameters: Any
    upto: Scalar | None = None

    def __call__(self, t: ArrayLike) -> jax.Array:
        return self.function(self.parameters, jnp.asarray(t))

    def integral(self, t0: ArrayLike, t1: ArrayLike) -> jax.Array:
        return quadrature(self, t0, t1)

    def inverse(self, area: ArrayLike) -> jax.Array:
        area = jnp.asarray(area, float)
        high = self._beyond(area) if self.upto is None else self.upto
        return bisect(lambda t: self.integral(0.0, t) > area, jnp.zeros_like(area), jnp.full_like(area, high))

    def _beyond(self, area: jax.Array) -> jax.Array:
        """A power of two up to which the integral exceeds all areas, as far as it grows; 1 at least."""
        most, held = jax.lax.stop_gradient((jnp.max(area, initial=0.0), self))
        goes_on = lambda t: (held.integral(0.0, t) < most) & (t < _FARTHEST)
        return jax.lax.while_loop(goes_on, lambda t: 2.0 * t, jnp.ones((), area.dtype))
