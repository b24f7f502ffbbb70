"""What training minimizes, as callables."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from scoreflow.processes.sdes import Process
from scoreflow.score import Score
from scoreflow.types import Key, Params


class Objective(Protocol):
    """A scalar to be minimized, and its terms for the log."""

    def __call__(
        self, params: Params, key: Key, batch: Mapping[str, Any], *, train: bool, step: Any = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(total, {name: scalar}), of which `loss` is the total.

        Args:
          params: every trainable group of parameters.
          key: PRNG key of times, noise, latents and dropout.
          batch: `x` [B, ...] as stored and, where there are labels, `label` [B] int32.
          train: whether dropout and what else belongs to training alone is on.
          step: training step, for terms that are switched on gradually; None where all of them count in full.
        """
        ...


class Penalty(Protocol):
    """Further terms at the noised data of a loss, with their settings bound; see `conservative`."""

    def __call__(
        self,
        process: Process,
        score: Score,
        key: Key,
        xt: jax.Array,
        t: jax.Array,
        cond: jax.Array | None = None,
        *,
        step: Any = None,
    ) -> dict[str, jax.Array]: ...
