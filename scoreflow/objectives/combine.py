"""Terms that change during training: those that are switched on gradually, and those computed at some steps only."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def ramp(step: jax.Array | int | None, begin: int, length: int) -> jax.Array | float:
    """The share of a term that is switched on gradually: 0 before `begin`, then along a line to 1.

    Args:
      step: training step, counted from 0; None where the term counts in full, as in validation.
      begin: number of steps before the term is switched on.
      length: number of steps over which its share then rises to 1; with 0 or 1 it is 1 at once.

    Returns:
      A scalar in [0, 1].
    """
    return 1.0 if step is None else jnp.clip((step + 1.0 - begin) / max(length, 1), 0.0, 1.0)


def every(step: jax.Array | int | None, interval: int, compute: Callable[[int], T], nothing: Callable[[], T]) -> T:
    """Computes a term at every `interval`-th step alone, `interval` times as large, so that its mean stays the same.

    Args:
      step: training step, counted from 0; None where the term is always computed, as in validation.
      interval: the term is computed where it divides the step.
      compute: scale -> the term, multiplied by that number; a pytree of arrays.
      nothing: () -> the same tree for the steps in between.
    """
    if step is None or interval == 1:
        return compute(1)
    return jax.lax.cond(step % interval == 0, lambda: compute(interval), nothing)
