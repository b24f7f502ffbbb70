"""From noise to data. Every fixed-grid sampler is

    sample(process, score, key, x_init, grid, cond=None, *, denoise=True, trajectory=False, ...) -> SampleResult

with `x_init` [B, ...] drawn from the terminal law, and `grid` [N + 1] decreasing from T to the last time (see `grids`).
With `denoise` the result is E[x_0 | x] at the last time, so that no noise is left; that time must be above 0 unless
sigma(0) > 0. Without it the result has the law of x at the last time. The key is one for the whole batch, or one for
each sample [B]: then a sample does not depend on its batch mates. Deterministic samplers ignore it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scoreflow.processes.sdes import Process
from scoreflow.score import ScoreFn, denoised


class SampleResult(NamedTuple):
    """What a sampler returns.

    Attributes:
      x: samples [B, ...].
      nfe: evaluations of the score behind each sample, [B] int32.
      trajectory: x at every time of the grid, [N + 1, B, ...], where asked for, else None.
    """

    x: jax.Array
    nfe: jax.Array
    trajectory: jax.Array | None = None


def fold(key: jax.Array, data: int) -> jax.Array:
    """`jax.random.fold_in` for one key, or for each of keys [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, data) if key.ndim else jax.random.fold_in(key, data)


def normal(key: jax.Array, like: jax.Array) -> jax.Array:
    """Standard normal numbers like `like` [B, ...], from one key, or for each example from its own of keys [B]."""
    if not key.ndim:
        return jax.random.normal(key, like.shape, like.dtype)
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(key)


def run_steps(
    process: Process,
    score: ScoreFn,
    step: Callable,
    carry,
    inputs,
    *,
    x_init: jax.Array,
    t_last: jax.Array,
    nfe: int,
    cond: jax.Array | None,
    denoise: bool,
    trajectory: bool,
) -> SampleResult:
    """Scans `step(carry, input) -> carry`, whose carry begins with x, and finishes with the denoising step."""

    def body(carry, inputs):
        carry = step(carry, inputs)
        return carry, (carry[0] if trajectory else None)

    carry, path = jax.lax.scan(body, carry, inputs)
    x = carry[0]
    if trajectory:
        path = jnp.concatenate([x_init[None], path])
    if denoise:
        x = denoised(process, score, x, jnp.broadcast_to(t_last, x.shape[:1]), cond)
    return SampleResult(x, jnp.full(x.shape[:1], nfe + denoise, jnp.int32), path)
