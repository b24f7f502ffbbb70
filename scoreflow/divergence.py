"""Derivatives of vector fields fn: [B, ...] -> [B, ...] that act on each example by itself.

They are divergences, products of the Jacobian J and of its derivative with vectors, and the asymmetry of J.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from scoreflow.types import Key, OneOf

Field = Callable[[jax.Array], jax.Array]
"""A vector field [B, ...] -> [B, ...] that acts on each example by itself."""


class Divergence(Protocol):
    """The interface of the estimators of a divergence."""

    def __call__(self, fn: Field, x: jax.Array, probe: jax.Array, /) -> tuple[jax.Array, jax.Array]:
        """fn(x), like x [B, ...], and its divergence [B]; the probe is like x."""
        ...


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner products of the examples a, b [B, ...]; [B]."""
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=1)


def hutchinson(fn: Field, x: jax.Array, probe: jax.Array) -> tuple[jax.Array, jax.Array]:
    """fn(x) and probe^T J probe [B], which is unbiased for the divergence where E[probe probe^T] = I.

    It is one forward-mode product, which costs about two evaluations of fn, and never builds a reverse pass.
    """
    value, product = jax.jvp(fn, (x,), (probe,))
    return value, inner(probe, product)


def exact(fn: Field, x: jax.Array, probe: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """fn(x) and its exact divergence [B], by one product for each of the d dimensions; the probe is ignored."""
    del probe
    size = x[0].size
    value, product = jax.linearize(fn, x)
    basis = jnp.eye(size, dtype=x.dtype).reshape(size, *x.shape[1:])

    def diagonal(index: jax.Array, direction: jax.Array) -> jax.Array:
        return product(jnp.broadcast_to(direction, x.shape)).reshape(x.shape[0], size)[:, index]

    return value, jnp.sum(jax.vmap(diagonal)(jnp.arange(size), basis), axis=0)


class Directional(NamedTuple):
    """Derivatives of a field along a direction v; all like x.

    Attributes:
      value: the field at x.
      product: J v.
      slope: grad_x(v^T J v), or None.
    """

    value: jax.Array
    product: jax.Array
    slope: jax.Array | None


def directional(fn: Field, x: jax.Array, v: jax.Array, *, third: bool) -> Directional:
    """Derivatives of a field along v [B, ...].

    J v is a forward-mode product. The derivative of J^T v along v is grad(v^T J v), so one forward pass over one
    reverse pass yields both.

    Args:
      fn: the field.
      x: points [B, ...].
      v: directions [B, ...].
      third: whether to compute `slope`.
    """
    if not third:
        value, product = jax.jvp(fn, (x,), (v,))
        return Directional(value, product, None)

    def reverse(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, pull = jax.vjp(fn, x)
        return value, pull(v)[0]

    (value, _), (product, slope) = jax.jvp(reverse, (x,), (v,))
    return Directional(value, product, slope)


# ----------------------------------------------------------------------------------------------------------------------
# How far J is from symmetric: Asym = |J - J^T|_F^2 / 2, which is 0 where the field is a gradient.


def rademacher(key: Key, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Probes of independent signs."""
    return jax.random.rademacher(key, shape, dtype)


def gaussian(key: Key, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Probes of independent standard normal entries."""
    return jax.random.normal(key, shape, dtype)


def sphere(key: Key, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Probes uniform on the sphere of radius sqrt(d) in the d dimensions of one example, shape [B, ...]."""
    v = jax.random.normal(key, shape, dtype).reshape(shape[0], -1)
    return (v * jnp.sqrt(v.shape[1] / jnp.sum(v**2, axis=1, keepdims=True)).astype(dtype)).reshape(shape)


class Products(NamedTuple):
    """Products of J at x, all like x: `push` maps v to J v, `pull` maps v to J^T v; the probe v and g = J^T v."""

    push: Field
    pull: Field
    v: jax.Array
    g: jax.Array


def a1(p: Products) -> jax.Array:
    """The published estimator of Asym, v^T J J^T v - v^T J J v, by two reverse products; [B], possibly negative."""
    return inner(p.g, p.g) - inner(p.v, p.pull(p.g))


def a2(p: Products) -> jax.Array:
    """The same number as `a1` for every v, by one reverse and one forward product."""
    return inner(p.g, p.g) - inner(p.g, p.push(p.v))


def b(p: Products) -> jax.Array:
    """|(J - J^T) v|^2 / 2, [B], which has the same mean and is never negative; its noise is of the order of Asym.

    This estimator was derived for this library.
    """
    apart = p.push(p.v) - p.g
    return 0.5 * inner(apart, apart)


class Asymmetry(NamedTuple):
    """The asymmetry of the Jacobian J of a field.

    Attributes:
      value: the field at x, like x.
      asym: |J - J^T|_F^2 / 2, [B].
      size: |J|_F^2, [B].
    """

    value: jax.Array
    asym: jax.Array
    size: jax.Array


def asymmetry(fn: Field, x: jax.Array, probes: jax.Array, *, form: Callable[[Products], jax.Array] = b) -> Asymmetry:
    """Unbiased estimates of the asymmetry along probes with E[v v^T] = I, averaged over the probes.

    Args:
      fn: the field.
      x: points [B, ...].
      probes: [K, B, ...].
      form: the estimator `a1`, `a2` or `b`.
    """
    value, push = jax.linearize(fn, x)
    transposed = jax.linear_transpose(push, x)
    pull = lambda v: transposed(v)[0]

    def one(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        g = pull(v)
        return form(Products(push, pull, v, g)), inner(g, g)

    asym, size = jax.vmap(one)(probes)
    return Asymmetry(value, asym.mean(0), size.mean(0))


def asymmetry_exact(fn: Field, x: jax.Array) -> Asymmetry:
    """The exact asymmetry by d forward products, for small d."""
    value, push = jax.linearize(fn, x)
    n, d = x.shape[0], x[0].size
    basis = jnp.broadcast_to(jnp.eye(d, dtype=x.dtype).reshape(d, 1, *x.shape[1:]), (d, *x.shape))
    jacobian = jnp.moveaxis(jax.vmap(push)(basis).reshape(d, n, d), 0, 2)
    apart = jacobian - jnp.swapaxes(jacobian, 1, 2)
    return Asymmetry(value, 0.5 * jnp.sum(apart**2, axis=(1, 2)), jnp.sum(jacobian**2, axis=(1, 2)))


# ----------------------------------------------------------------------------------------------------------------------
# The names in a config.

Probe = Annotated[
    Callable[..., jax.Array] | None,
    OneOf({"rademacher": rademacher, "gaussian": gaussian, "sphere": sphere, "exact": None}),
]
"""(key, shape, dtype) -> probes; None for the exact asymmetry."""

Form = Annotated[Callable[[Products], jax.Array], OneOf({"a1": a1, "a2": a2, "b": b})]
"""The estimator of the asymmetry along one probe."""

Estimator = Annotated[Divergence, OneOf({"hutchinson": hutchinson, "exact": exact})]
"""The estimator of a divergence."""
