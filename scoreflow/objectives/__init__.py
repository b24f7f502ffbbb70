"""Training objectives. A loss returns its terms by name, one number per example each; their sum is minimized."""

from collections.abc import Callable

import jax

LossTerms = dict[str, jax.Array]
"""Name of the term -> [B]."""

ExtraTerms = Callable[..., LossTerms]
"""Further terms at the same noised data: (process, score, key, xt [B, ...], t [B], cond) -> LossTerms."""
