"""Derivatives of vector fields fn: [B, ...] -> [B, ...] that act on each example alone.

Divergences, and products of the Jacobian J and of its derivative with vectors.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from scoreflow.types import OneOf


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner products of examples a, b [B, ...]; [B]."""
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=1)


def hutchinson(fn: Callable, x: jax.Array, probe: jax.Array) -> tuple[jax.Array, jax.Array]:
    """fn(x) and probe^T J probe, [B]: unbiased for the divergence where E[probe probe^T] = I.

    One forward-mode product, so about two evaluations of fn; it never builds a reverse pass.
    """
    value, product = jax.jvp(fn, (x,), (probe,))
    return value, inner(probe, product)


def exact(fn: Callable, x: jax.Array, probe: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """fn(x) and its divergence [B], by one product for each of the d dimensions; for small d. The probe is ignored."""
    del probe
    size = x[0].size
    value, product = jax.linearize(fn, x)
    basis = jnp.eye(size, dtype=x.dtype).reshape(size, *x.shape[1:])

    def diagonal(index, direction):
        return product(jnp.broadcast_to(direction, x.shape)).reshape(x.shape[0], size)[:, index]

    return value, jnp.sum(jax.vmap(diagonal)(jnp.arange(size), basis), axis=0)


class Directional(NamedTuple):
    """Of a field fn: its `value` at x, J v, and grad_x(v^T J v) or None; all like x."""

    value: jax.Array
    product: jax.Array
    slope: jax.Array | None


def directional(fn: Callable, x: jax.Array, v: jax.Array, *, third: bool) -> Directional:
    """Derivatives of fn [B, ...] -> [B, ...] along v, each example by itself.

    J v is a forward-mode product. Moving J^T v along v gives grad(v^T J v), so both come out of one forward pass over
    one reverse pass.
    """
    if not third:
        return Directional(*jax.jvp(fn, (x,), (v,)), None)

    def reverse(x):
        value, pull = jax.vjp(fn, x)
        return value, pull(v)[0]

    (value, _), (product, slope) = jax.jvp(reverse, (x,), (v,))
    return Directional(value, product, slope)


# ----------------------------------------------------------------------------------------------------------------------
# How far J is from symmetric: Asym = |J - J^T|_F^2 / 2, which is 0 where the field is a gradient.


def rademacher(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Probes of independent signs."""
    return jax.random.rademacher(key, shape, dtype)


def gaussian(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Probes of independent standard normal entries."""
    return jax.random.normal(key, shape, dtype)


def sphere(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Probes uniform on the sphere of radius sqrt(d) in the d dimensions of one example, shape [B, ...]."""
    v = jax.random.normal(key, shape, dtype).reshape(shape[0], -1)
    return (v * jnp.sqrt(v.shape[1] / jnp.sum(v**2, axis=1, keepdims=True)).astype(dtype)).reshape(shape)


class Products(NamedTuple):
    """Of J at x: `push` v -> J v, `pull` v -> J^T v, the probe v and g = J^T v; all like x."""

    push: Callable
    pull: Callable
    v: jax.Array
    g: jax.Array


def a1(p: Products) -> jax.Array:
    """v^T J J^T v - v^T J J v by two reverse products: the published estimator of Asym, [B]; may be negative."""
    return inner(p.g, p.g) - inner(p.v, p.pull(p.g))


def a2(p: Products) -> jax.Array:
    """The same number as `a1` for every v, by a reverse and a forward product."""
    return inner(p.g, p.g) - inner(p.g, p.push(p.v))


def b(p: Products) -> jax.Array:
    """|(J - J^T) v|^2 / 2, [B]: the same mean, never negative, with noise of the order of Asym alone. Derived here."""
    apart = p.push(p.v) - p.g
    return 0.5 * inner(apart, apart)


class Asymmetry(NamedTuple):
    """Of the Jacobian J of a field: `value` at x, like x; `asym`, |J - J^T|_F^2 / 2, and `size`, |J|_F^2, both [B]."""

    value: jax.Array
    asym: jax.Array
    size: jax.Array


def asymmetry(fn: Callable, x: jax.Array, probes: jax.Array, *, form: Callable = b) -> Asymmetry:
    """Unbiased estimates along probes with E[v v^T] = I, averaged over them.

    Args:
      fn: [B, ...] -> [B, ...], each example by itself.
      x: [B, ...].
      probes: [K, B, ...].
      form: `a1`, `a2` or `b`.
    """
    value, push = jax.linearize(fn, x)
    transposed = jax.linear_transpose(push, x)
    pull = lambda v: transposed(v)[0]

    def one(v):
        g = pull(v)
        return form(Products(push, pull, v, g)), inner(g, g)

    found, size = jax.vmap(one)(probes)
    return Asymmetry(value, found.mean(0), size.mean(0))


def asymmetry_exact(fn: Callable, x: jax.Array) -> Asymmetry:
    """The same without error, by d forward products; for small d."""
    value, push = jax.linearize(fn, x)
    n, d = x.shape[0], x[0].size
    basis = jnp.broadcast_to(jnp.eye(d, dtype=x.dtype).reshape(d, 1, *x.shape[1:]), (d, *x.shape))
    jacobian = jnp.moveaxis(jax.vmap(push)(basis).reshape(d, n, d), 0, 2)
    apart = jacobian - jnp.swapaxes(jacobian, 1, 2)
    return Asymmetry(value, 0.5 * jnp.sum(apart**2, axis=(1, 2)), jnp.sum(jacobian**2, axis=(1, 2)))


Probe = Annotated[
    Callable | None, OneOf({"rademacher": rademacher, "gaussian": gaussian, "sphere": sphere, "exact": None})
]
Form = Annotated[Callable, OneOf({"a1": a1, "a2": a2, "b": b})]
