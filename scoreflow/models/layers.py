"""Layers that the networks share. Every activation is smooth, so that third derivatives exist."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from scoreflow.types import Dtype

Conv = Callable[[jax.Array, jax.Array], jax.Array]
"""A lowering of the same-padded 3x3 convolution: (x [B, H, W, C], kernel [3, 3, C, D]) -> [B, H, W, D]."""

zeros = nn.initializers.zeros_init()


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts lower precisions to float32, for the last layer of a network."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def conv3x3_direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Same-padded 3x3 convolution [B, H, W, C] x [3, 3, C, D] -> [B, H, W, D], lowered to XLA's convolution."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv3x3_shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same convolution, lowered to nine shifted slices times one matrix."""
    _, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    slices = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(slices, axis=-1) @ kernel.reshape(9 * channels, -1)


def conv3x3_in_loop(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same convolution, lowered for a network whose gradient is computed inside a compiled loop.

    In a loop on a CPU, the gradient of XLA's convolution is tens of times slower than outside, and that of the matrix
    product is not. Outside a loop the convolution is about three times as fast as the product. Other platforms use the
    convolution everywhere. Forward passes and forward-mode derivatives are the same in a loop and outside.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=conv3x3_shifted, default=conv3x3_direct)


def fusion_barrier(x: jax.Array, number: jax.Array) -> jax.Array:
    """x unchanged; on a CPU, XLA then writes it to memory, since it fuses nothing through a branch.

    Without the barrier, XLA on a CPU fuses a chain of cheap operations into each of its consumers, which all compute it
    again. In the gradient of residual sums such chains run through all blocks of a resolution, and a training step of
    DDPM++ takes 1.7 times as long. On other platforms this is the identity.

    Args:
      x: array.
      number: a scalar that is unknown to the compiler, such as a parameter. Where it is NaN, so is the result.
    """

    def branch(x: jax.Array, number: jax.Array) -> jax.Array:
        return jax.lax.cond(number == number, lambda x: x, lambda x: x * jnp.nan, x)

    return jax.lax.platform_dependent(x, number, cpu=branch, default=lambda x, number: x)


def convolution(in_loop: bool) -> Conv:
    """The lowering that is fast where gradients are taken: inside a compiled loop, or outside one."""
    return conv3x3_in_loop if in_loop else conv3x3_direct


class Conv3x3(nn.Module):
    """3x3 convolution with bias; `init_zero` starts it at zero, and `conv` is the lowering."""

    features: int
    init_zero: bool = False
    dtype: Dtype = None
    conv: Conv = conv3x3_direct

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = zeros if self.init_zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return self.conv(x, kernel) + bias


class NoiseEmbedding(nn.Module):
    """Features [B, features] of the noise label log_snr [B] and, where num_classes > 0, of a class label.

    The features are sinusoids of log_snr, with wavelengths from about 1 to 200, which covers the range of any schedule,
    followed by two dense layers. The class index num_classes means "no class".
    """

    features: int
    num_classes: int = 0
    n_frequencies: int = 32
    dtype: Dtype = None

    @nn.compact
    def __call__(self, log_snr: jax.Array, cond: jax.Array | None) -> jax.Array:
        frequencies = 2 * np.pi / np.geomspace(1.0, 200.0, self.n_frequencies)
        angles = log_snr[:, None] * jnp.asarray(frequencies, log_snr.dtype)
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        h = nn.Dense(self.features, dtype=self.dtype)(waves)
        if self.num_classes:
            table = nn.Embed(self.num_classes + 1, self.features, dtype=self.dtype)
            h = h + table(jnp.full(log_snr.shape, self.num_classes) if cond is None else cond)
        return nn.Dense(self.features, dtype=self.dtype)(nn.silu(h))


def group_norm(features: int, dtype: Dtype = None, name: str | None = None) -> nn.GroupNorm:
    """Group normalization with as many groups as leave at least four channels in each, and at most 32."""
    groups = math.gcd(features, min(32, max(1, features // 4)))
    return nn.GroupNorm(num_groups=groups, dtype=dtype, name=name)


class SelfAttention(nn.Module):
    """Residual multi-head self-attention over the pixels of [B, H, W, C]; starts as the identity."""

    num_heads: int = 1
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = group_norm(channels, self.dtype)(x).reshape(batch, height * width, channels)
        qkv = nn.DenseGeneral((3, self.num_heads, channels // self.num_heads), dtype=self.dtype)(h)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        # written out, since jax.nn.dot_product_attention rounds to float32 even in double precision, and may choose a
        # kernel that has no higher derivatives
        logits = at_least_float32(jnp.einsum("bqhd,bkhd->bhqk", q, k)) / math.sqrt(channels // self.num_heads)
        h = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(logits).astype(v.dtype), v)
        h = nn.DenseGeneral(channels, axis=(-2, -1), kernel_init=zeros, dtype=self.dtype)(h)
        return x + h.reshape(x.shape)
