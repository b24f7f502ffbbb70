"""A U-Net for images whose side the down-samplings divide."""

import itertools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoreflow.models.layers import Conv3x3, NoiseEmbedding, SelfAttention, at_least_float32, conv3x3_direct, group_norm


class ResidualBlock(nn.Module):
    """norm - SiLU - conv - norm modulated by the noise label - SiLU - dropout - conv (starts at zero), plus a skip."""

    features: int
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    conv: Callable = conv3x3_direct

    @nn.compact
    def __call__(self, x, embedding, train):
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
    """Means of 2x2 cells."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def upsample(x: jax.Array) -> jax.Array:
    """Each pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class UNet(nn.Module):
    """Residual U-Net on [B, H, W, C], conditioned on log-SNR and optionally a class.

    Attributes:
      channels: width at full resolution.
      multipliers: width of each resolution relative to `channels`; their number less one is that of down-samplings.
      blocks: residual blocks per resolution on the way down; one more on the way up.
      attention: sides (in pixels) at which every block is followed by self-attention; the middle always has it.
      num_heads: attention heads.
      dropout: rate inside the residual blocks.
      num_classes: number of class labels; 0 for none.
      dtype: of the arithmetic inside; parameters and output stay float32.
      conv: lowering of the 3x3 convolutions, see `layers.conv3x3_in_loop`; the function computed is the same.
      remat: recompute the inside of residual blocks in the gradient instead of keeping it; the same function again.
    """

    channels: int = 64
    multipliers: Sequence[int] = (1, 2)
    blocks: int = 2
    attention: Sequence[int] = ()
    num_heads: int = 1
    dropout: float = 0.0
    num_classes: int = 0
    dtype: jnp.dtype | None = None
    conv: Callable = conv3x3_direct
    remat: bool = False

    @nn.compact
    def __call__(self, x, log_snr, cond, train):
        image_channels = x.shape[-1]
        embedding = nn.silu(NoiseEmbedding(4 * self.channels, self.num_classes, dtype=self.dtype)(log_snr, cond))

        make = nn.remat(ResidualBlock, static_argnums=(3,)) if self.remat else ResidualBlock
        names = (f"ResidualBlock_{i}" for i in itertools.count())  # the same with and without remat

        def residual(h, features):
            return make(features, self.dropout, self.dtype, self.conv, name=next(names))(h, embedding, train)

        def block(h, level):
            h = residual(h, self.channels * self.multipliers[level])
            return SelfAttention(self.num_heads, self.dtype)(h) if h.shape[1] in self.attention else h

        h = Conv3x3(self.channels, dtype=self.dtype, conv=self.conv)(x)
        skips = [h]
        resolutions = range(len(self.multipliers))
        for level in resolutions:
            for _ in range(self.blocks):
                h = block(h, level)
                skips.append(h)
            if level != resolutions[-1]:
                h = downsample(h)
                skips.append(h)

        h = residual(h, h.shape[-1])
        h = SelfAttention(self.num_heads, self.dtype)(h)
        h = residual(h, h.shape[-1])

        for level in reversed(resolutions):
            for _ in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), level)
            if level:
                h = upsample(h)

        h = at_least_float32(nn.silu(group_norm(h.shape[-1], self.dtype)(h)))
        return Conv3x3(image_channels, init_zero=True, conv=self.conv)(h)
