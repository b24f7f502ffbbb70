"""What training minimizes, as callables: a loss with its penalty, and the objective made of them."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from scoreflow.objectives.weights import Weight
from scoreflow.processes.sdes import Process
from scoreflow.score import Score
from scoreflow.types import Cond, Key, Params

LossTerms = dict[str, jax.Array]
"""Name of the term -> [B]."""


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
    """Further terms at the noised data of a loss, such as `conservative.quasi_conservative` with its settings bound."""

    def __call__(
        self,
        process: Process,
        score: Score,
        key: Key,
        xt: jax.Array,
        t: jax.Array,
        cond: Cond = None,
        *,
        step: Any = None,
    ) -> LossTerms:
        """Terms at xt [B, ...], t [B] and cond; the key is independent of the noise in xt.

        Args:
          step: training step; None where the terms count in full.
        """
        ...


class Loss(Protocol):
    """A loss on the score, such as `dsm.dsm` and `high_order.high_order` with their settings bound."""

    def __call__(
        self,
        process: Process,
        score: Score,
        key: Key,
        x0: jax.Array,
        t: jax.Array,
        cond: Cond = None,
        *,
        weight: Weight,
        extra_terms: Penalty | None = None,
        step: Any = None,
    ) -> LossTerms:
        """Terms for data x0 [B, ...] at times t [B], not divided by the density of t.

        Args:
          weight: weight on the squared noise error.
          extra_terms: a penalty, whose terms are taken at the same noised data; its `step` is bound.
          step: training step, for terms whose share changes during training; None where all of them count in full.
        """
        ...
