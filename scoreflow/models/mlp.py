"""A residual multilayer perceptron for vectors and small images."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoreflow.models.layers import NoiseEmbedding, at_least_float32, zeros
from scoreflow.types import Count, Dtype, Fraction


class ResidualMLP(nn.Module):
    """A residual perceptron on x [B, ...], conditioned on log-SNR and optionally a class; its output is like x.

    Each block is h + W2 dropout(silu(W1 norm(h) * (1 + scale) + shift)), with scale and shift from the noise label. W2
    and the last layer start at zero.

    Attributes:
      width: Number of hidden units.
      depth: Number of residual blocks.
      dropout: Dropout rate inside the residual blocks.
      num_classes: the number of class labels; 0 for none.
      dtype: Precision of the arithmetic inside; parameters and output stay float32.
    """

    width: Count = 256
    depth: Count = 4
    dropout: Fraction = 0.0
    num_classes: int = 0
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array, log_snr: jax.Array, cond: jax.Array | None, train: bool) -> jax.Array:
        embedding = nn.silu(NoiseEmbedding(self.width, self.num_classes, dtype=self.dtype)(log_snr, cond))
        h = nn.Dense(self.width, dtype=self.dtype)(x.reshape(x.shape[0], -1))
        for _ in range(self.depth):
            scale, shift = jnp.split(nn.Dense(2 * self.width, dtype=self.dtype)(embedding), 2, axis=-1)
            r = nn.Dense(self.width, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(h))
            r = nn.silu(r * (1 + scale) + shift)
            r = nn.Dropout(self.dropout, deterministic=not train)(r)
            h = h + nn.Dense(self.width, kernel_init=zeros, dtype=self.dtype)(r)
        h = nn.silu(nn.LayerNorm(dtype=self.dtype)(h))
        out = nn.Dense(math.prod(x.shape[1:]), kernel_init=zeros)(at_least_float32(h))
        return out.reshape(x.shape)
