"""Derivatives of vector fields fn: [B, ...] -> [B, ...] that act on each example alone.

Divergences, and products of the Jacobian J and of its derivative with vectors.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def hutchinson(fn: Callable, x: jax.Array, probe: jax.Array) -> tuple[jax.Array, jax.Array]:
    """fn(x) and probe^T J probe, [B]: unbiased for the divergence where E[probe probe^T] = I.

    One forward-mode product, so about two evaluations of fn; it never builds a reverse pass.
    """
    value, product = jax.jvp(fn, (x,), (probe,))
    return value, jnp.sum((probe * product).reshape(x.shape[0], -1), axis=1)


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
