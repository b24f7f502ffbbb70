"""A U-Net for images whose sides are divisible by 2 to the number of down-samplings."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoreflow.models.layers import (
    Conv,
    Conv3x3,
    NoiseEmbedding,
    SelfAttention,
    at_least_float32,
    conv3x3_direct,
    group_norm,
)
from scoreflow.types import Count, Counts, CountsOrNone, Dtype, Flag, Fraction


class ResidualBlock(nn.Module):
    """norm - SiLU - conv - norm modulated by the noise label - SiLU - dropout - conv (starts at zero), plus a skip."""

    features: int
    dropout: float = 0.0
    dtype: Dtype = None
    conv: Conv = conv3x3_direct

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        h = Conv3x3(self.features, dtype=self.dtype, conv=self.conv)(nn.silu(group_norm(x.shape[-1], self.dtype)(x)))
        modulation = nn.Dense(2 * self.features, dtype=self.dtype)(embedding)[:, None, None]
        scale, shift = jnp.split(modulation, 2, axis=-1)
        h = nn.silu(group_norm(self.features, self.dtype)(h) * (1 + scale) + shift)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Conv3x3(self.features, init_zero=True, dtype=self.dtype, conv=self.conv)(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype)(x)
        return x + h


def downsample(x: jax.Array) -> jax.Array:
    """Halves the sides of [B, H, W, C]: each pixel is the mean of a 2x2 cell."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def upsample(x: jax.Array) -> jax.Array:
    """Doubles the sides of [B, H, W, C]: each pixel is repeated in a 2x2 cell."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class UNet(nn.Module):
    """Residual U-Net on [B, H, W, C], conditioned on log-SNR and optionally a class.

    Attributes:
      channels: Width at full resolution.
      multipliers: Width of each resolution relative to `channels`; each resolution after the first halves the sides.
      blocks: Number of residual blocks at each resolution on the way down; the way up has one more.
      attention: Sides, in pixels, at which every block is followed by self-attention; the middle always has it.
      num_heads: Number of attention heads.
      dropout: Dropout rate inside the residual blocks.
      num_classes: the number of class labels; 0 for none.
      dtype: Precision of the arithmetic inside; parameters and output stay float32.
      conv: the lowering of the 3x3 convolutions, see `layers.conv3x3_in_loop`; the function computed is the same.
      remat: Whether the gradient recomputes the activations inside residual blocks instead of storing them.
    """

    channels: Count = 32
    multipliers: Counts = (1, 2)
    blocks: Count = 1
    attention: CountsOrNone = ()
    num_heads: Count = 1
    dropout: Fraction = 0.1
    num_classes: int = 0
    dtype: Dtype = None
    conv: Conv = conv3x3_direct
    remat: Flag = False

    @property
    def sides_factor(self) -> int:
        """What must divide the sides of images."""
        return 2 ** (len(self.multipliers) - 1)

    @nn.compact
    def __call__(self, x: jax.Array, log_snr: jax.Array, cond: jax.Array | None, train: bool) -> jax.Array:
        image_channels = x.shape[-1]
        embedding = nn.silu(NoiseEmbedding(4 * self.channels, self.num_classes, dtype=self.dtype)(log_snr, cond))

        block_class = nn.remat(ResidualBlock, static_argnums=(3,)) if self.remat else ResidualBlock
        names = (f"ResidualBlock_{i}" for i in itertools.count())  # the same with and without remat

        def residual(h: jax.Array, features: int) -> jax.Array:
            return block_class(features, self.dropout, self.dtype, self.conv, name=next(names))(h, embedding, train)

        def block(h: jax.Array, multiplier: int) -> jax.Array:
            h = residual(h, self.channels * multiplier)
            return SelfAttention(self.num_heads, self.dtype)(h) if h.shape[1] in self.attention else h

        h = Conv3x3(self.channels, dtype=self.dtype, conv=self.conv)(x)
        skips = [h]
        last = len(self.multipliers) - 1
        for i, multiplier in enumerate(self.multipliers):
            for _ in range(self.blocks):
                h = block(h, multiplier)
                skips.append(h)
            if i < last:
                h = downsample(h)
                skips.append(h)

        h = residual(h, h.shape[-1])
        h = SelfAttention(self.num_heads, self.dtype)(h)
        h = residual(h, h.shape[-1])

        for i, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), multiplier)
            if i:
                h = upsample(h)

        h = at_least_float32(nn.silu(group_norm(h.shape[-1], self.dtype)(h)))
        return Conv3x3(image_channels, init_zero=True, conv=self.conv)(h)
