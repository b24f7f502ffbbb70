"""Training objectives. A loss returns its terms by name, one number per example each; their sum is minimized."""

from typing import Protocol

import jax

from scoreflow.objectives.weights import Weight
from scoreflow.processes.sdes import Process
from scoreflow.score import ScoreFn
from scoreflow.types import Key

LossTerms = dict[str, jax.Array]
"""Name of the term -> [B]."""


class ExtraTerms(Protocol):
    """Further terms at noised data that a loss has drawn, such as `conservative.quasi_conservative`."""

    def __call__(
        self, process: Process, score: ScoreFn, key: Key, xt: jax.Array, t: jax.Array, cond: jax.Array | None = None
    ) -> LossTerms:
        """Terms at xt [B, ...], t [B] and cond [B] or None; the key is independent of the noise in xt."""
        ...


class Loss(Protocol):
    """A loss on the score, such as `dsm.dsm` and `high_order.high_order` with their settings bound."""

    def __call__(
        self,
        process: Process,
        score: ScoreFn,
        key: Key,
        x0: jax.Array,
        t: jax.Array,
        cond: jax.Array | None = None,
        *,
        weight: Weight,
        extra_terms: ExtraTerms | None = None,
        step: jax.Array | int | None = None,
    ) -> LossTerms:
        """Terms for data x0 [B, ...] at times t [B], not divided by the density of t.

        Args:
          weight: weight on the squared noise error.
          extra_terms: further terms at the same noised data.
          step: training step, for terms whose share changes during training; None where all of them count in full.
        """
        ...
