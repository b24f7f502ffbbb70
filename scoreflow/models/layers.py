"""Layers that the networks share. Every activation is smooth, so that third derivatives exist and mean something."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

zeros = nn.initializers.zeros_init()


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts lower precisions up, for the last layer of a network."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def conv3x3_direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Same-padded 3x3 convolution [B, H, W, C] x [3, 3, C, D] -> [B, H, W, D] as XLA's convolution."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv3x3_shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same convolution as nine shifted slices times one matrix."""
    _, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    slices = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(slices, axis=-1) @ kernel.reshape(9 * channels, -1)


def conv3x3_in_loop(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same convolution for a network whose gradient is taken inside a compiled loop.

    There the gradient of XLA's convolution is tens of times slower on a CPU than outside a loop, and the matrix product
    is not; outside a loop the convolution is about three times as fast as the product. Other platforms take
    the convolution everywhere. Forward passes and forward-mode derivatives are the same in a loop and outside.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=conv3x3_shifted, default=conv3x3_direct)


def fusion_barrier(x: jax.Array, number: jax.Array) -> jax.Array:
    """x, which on a CPU is written to memory here: XLA fuses nothing through a branch.

    There it fuses a chain of cheap operations into each of its consumers, which all compute it anew. In the gradient of
    residual sums such chains run through all blocks of a resolution, and made a training step of DDPM++ 1.7 times
    as long. Other platforms see x alone.

    Args:
      x: array.
      number: a scalar that the compiler does not know, such as a parameter; where it is NaN, so is the result.
    """

    def branch(x, number):
        return jax.lax.cond(number == number, lambda x: x, lambda x: x * jnp.nan, x)

    return jax.lax.platform_dependent(x, number, cpu=branch, default=lambda x, number: x)


class Conv3x3(nn.Module):
    """3x3 convolution with bias; `init_zero` starts it at zero, `conv` is the lowering."""

    features: int
    init_zero: bool = False
    dtype: jnp.dtype | None = None
    conv: Callable[[jax.Array, jax.Array], jax.Array] = conv3x3_direct

    @nn.compact
    def __call__(self, x):
        init = zeros if self.init_zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return self.conv(x, kernel) + bias


class NoiseEmbedding(nn.Module):
    """Features [B, features] of the noise label log_snr [B] and, where num_classes > 0, of a class label.

    Sinusoids of log_snr with wavelengths from about 1 to 200, which is the range that any schedule covers, then two
    dense layers. Class index num_classes stands for "no class".
    """

    features: int
    num_classes: int = 0
    n_frequencies: int = 32
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, log_snr, cond):
        frequencies = 2 * np.pi / np.geomspace(1.0, 200.0, self.n_frequencies)
        angles = log_snr[:, None] * jnp.asarray(frequencies, log_snr.dtype)
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        h = nn.Dense(self.features, dtype=self.dtype)(waves)
        if self.num_classes:
            table = nn.Embed(self.num_classes + 1, self.features, dtype=self.dtype)
            h = h + table(jnp.full(log_snr.shape, self.num_classes) if cond is None else cond)
        return nn.Dense(self.features, dtype=self.dtype)(nn.silu(h))


def group_norm(features: int, dtype=None, name: str | None = None) -> nn.GroupNorm:
    """Group normalization with the most groups, at most 32, that leave four channels or more in each."""
    groups = math.gcd(features, min(32, max(1, features // 4)))
    return nn.GroupNorm(num_groups=groups, dtype=dtype, name=name)


class SelfAttention(nn.Module):
    """Residual multi-head self-attention over the pixels of [B, H, W, C]; starts as the identity."""

    num_heads: int = 1
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        h = group_norm(channels, self.dtype)(x).reshape(batch, height * width, channels)
        qkv = nn.DenseGeneral((3, self.num_heads, channels // self.num_heads), dtype=self.dtype)(h)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        # by hand: jax.nn.dot_product_attention rounds to float32 also in double precision, and may pick a kernel that
        # has no higher derivatives
        logits = at_least_float32(jnp.einsum("bqhd,bkhd->bhqk", q, k)) / math.sqrt(channels // self.num_heads)
        h = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(logits).astype(v.dtype), v)
        h = nn.DenseGeneral(channels, axis=(-2, -1), kernel_init=zeros, dtype=self.dtype)(h)
        return x + h.reshape(x.shape)
