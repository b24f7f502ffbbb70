"""Training objectives. A loss returns its terms by name, one number per example each; their sum is minimised."""

import jax

LossTerms = dict[str, jax.Array]
"""Name of the term -> [B]."""
