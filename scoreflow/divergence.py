"""Divergences of vector fields fn: [B, ...] -> [B, ...] that act on each example alone, by forward-mode products."""

from collections.abc import Callable

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
