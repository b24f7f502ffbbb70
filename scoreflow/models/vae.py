"""The encoder and decoder of a variational autoencoder, as three pure functions."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.models import Init
from scoreflow.models.layers import Conv3x3, at_least_float32, group_norm
from scoreflow.models.unet import downsample, upsample
from scoreflow.types import Count, Counts, Dtype, Key, Params

_CLAMP = 5.0  # means and logarithms of standard deviations stay between -5 and 5


class Posterior(NamedTuple):
    """A draw from a diagonal Gaussian; all fields have its shape [B, ...].

    Attributes:
      z: the draw.
      log_std: the logarithm of the standard deviation.
      log_q: the log-density at the draw, in nats.
    """

    z: jax.Array
    log_std: jax.Array
    log_q: jax.Array


class Inferred(NamedTuple):
    """Data after the encoder and the decoder of a VAE.

    Attributes:
      top: the latents whose prior is a score model.
      lower: the latents of finer scales, in the decoder's order, whose prior stays N(0, I).
      out: the decoder's outputs for every pixel, [B, ..., outputs]; see `latent.decoders`.
    """

    top: Posterior
    lower: tuple[Posterior, ...]
    out: jax.Array


class VAE(NamedTuple):
    """An encoder and a decoder as functions of their arguments alone.

    Attributes:
      init: (key, x_shape [B, ...]) -> params.
      infer: (params, key, x [B, ...] in [-1, 1]) -> Inferred, differentiable in params.
      generate: (params, key, z [B, ...] like `top`) -> out; finer latents are drawn.
      groups: number of equal groups of the top latents' channels, which are drawn one after the other.
      sizes: relative size that the divergence of each group is expected to have, first for the groups of the top scale
        and then for those of the lower ones; see `latent.kl.balance`.
    """

    init: Init
    infer: Callable[[Params, Key, jax.Array], Inferred]
    generate: Callable[[Params, Key, jax.Array], jax.Array]
    groups: int = 1
    sizes: tuple[float, ...] = (1.0,)


def vae(module: nn.Module) -> VAE:
    """Wraps a Linen module with the call (x, key) -> Inferred, `generate`: (z, key) -> out, `groups` and `sizes`."""

    def init(key: Key, x_shape: tuple[int, ...]) -> Params:
        return module.init(key, jnp.zeros((1, *x_shape[1:])), jax.random.key(0))["params"]

    def infer(params: Params, key: Key, x: jax.Array) -> Inferred:
        return cast(Inferred, module.apply({"params": params}, x, key))

    def generate(params: Params, key: Key, z: jax.Array) -> jax.Array:
        return cast(jax.Array, module.apply({"params": params}, z, key, method="generate"))

    return VAE(init, infer, generate, module.groups, module.sizes)


def draw(key: Key, stats: jax.Array) -> Posterior:
    """A draw from the Gaussian whose mean and log standard deviation are the clamped halves of stats [..., 2 L]."""
    mean, log_std = jnp.split(_CLAMP * jnp.tanh(at_least_float32(stats) / _CLAMP), 2, axis=-1)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return Posterior(mean + jnp.exp(log_std) * noise, log_std, normal_log_prob(noise) - log_std)


def normal_log_prob(z: jax.Array) -> jax.Array:
    """log N(z; 0, 1) of each number, in nats; like z."""
    return -0.5 * (z**2 + np.log(2 * np.pi))


class Cell(nn.Module):
    """A residual cell: norm - SiLU - conv - norm - SiLU - conv (starts at zero), plus a skip."""

    features: int
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = Conv3x3(self.features, dtype=self.dtype)(nn.silu(group_norm(x.shape[-1], self.dtype)(x)))
        h = nn.silu(group_norm(self.features, self.dtype)(h))
        h = Conv3x3(self.features, init_zero=True, dtype=self.dtype)(h)
        return h + (x if x.shape[-1] == self.features else nn.Dense(self.features, dtype=self.dtype)(x))


def _walk(
    h: jax.Array, resolutions: Sequence[Sequence[nn.Module]], resize: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Applies the cells of every resolution to h, which is resized between two resolutions."""
    for i, cells in enumerate(resolutions):
        h = resize(h) if i else h
        for cell in cells:
            h = cell(h)
    return h


class ConvVAE(nn.Module):
    """A small convolutional VAE of images [B, H, W, C], with latents [B, h, w, latents].

    Attributes:
      outputs: the number of outputs of the decoder for each pixel.
      channels: Width at full resolution.
      multipliers: Width of each resolution relative to `channels`; each resolution after the first halves the sides.
      blocks: Number of residual cells at each resolution, in the encoder and again in the decoder.
      latents: Number of channels of the latents.
      dtype: Precision of the arithmetic inside; parameters and outputs stay float32.
    """

    outputs: int
    channels: Count = 32
    multipliers: Counts = (1, 2)
    blocks: Count = 2
    latents: Count = 8
    dtype: Dtype = None

    groups, sizes = 1, (1.0,)

    def setup(self) -> None:
        widths = [self.channels * m for m in self.multipliers]
        cells = lambda width: [Cell(width, self.dtype) for _ in range(self.blocks)]
        self.stem = Conv3x3(widths[0], dtype=self.dtype)
        self.down = [cells(width) for width in widths]
        self.to_stats, self.stats_norm = Conv3x3(2 * self.latents), group_norm(widths[-1], self.dtype)
        self.from_latents = Conv3x3(widths[-1], dtype=self.dtype)
        self.up = [cells(width) for width in reversed(widths)]
        self.to_out, self.out_norm = Conv3x3(self.outputs), group_norm(widths[0], self.dtype)

    def __call__(self, x: jax.Array, key: Key) -> Inferred:
        h = _walk(self.stem(x), self.down, downsample)
        top = draw(key, self.to_stats(at_least_float32(nn.silu(self.stats_norm(h)))))
        return Inferred(top, (), self.generate(top.z, key))

    def generate(self, z: jax.Array, key: Key) -> jax.Array:
        """The decoder's outputs for the latents z; nothing is drawn."""
        del key
        h = _walk(self.from_latents(z), self.up, upsample)
        return self.to_out(at_least_float32(nn.silu(self.out_norm(h))))


class MLPVAE(nn.Module):
    """A VAE of small images [B, H, W, C] or vectors [B, D], with latents [B, latents].

    Attributes:
      outputs: the number of outputs of the decoder for each pixel of an image, or for a whole vector.
      shape: the shape of one example, (H, W, C) or (D,).
      width: Number of units of each hidden layer.
      depth: Number of hidden layers, in the encoder and again in the decoder.
      latents: Number of latents.
      dtype: Precision of the arithmetic inside; parameters and outputs stay float32.
    """

    outputs: int
    shape: tuple[int, ...]
    width: Count = 256
    depth: Count = 2
    latents: Count = 16
    dtype: Dtype = None

    groups, sizes = 1, (1.0,)

    def setup(self) -> None:
        hidden = lambda: [nn.Dense(self.width, dtype=self.dtype) for _ in range(self.depth)]
        self.encoder, self.decoder = hidden(), hidden()
        self.to_stats, self.to_out = nn.Dense(2 * self.latents), nn.Dense(math.prod(self.shape[:-1]) * self.outputs)

    def __call__(self, x: jax.Array, key: Key) -> Inferred:
        h = x.reshape(len(x), -1)
        for layer in self.encoder:
            h = nn.silu(layer(h))
        top = draw(key, self.to_stats(at_least_float32(h)))
        return Inferred(top, (), self.generate(top.z, key))

    def generate(self, z: jax.Array, key: Key) -> jax.Array:
        """The decoder's outputs for the latents z; nothing is drawn."""
        del key
        h = z
        for layer in self.decoder:
            h = nn.silu(layer(h))
        return self.to_out(at_least_float32(h)).reshape(len(z), *self.shape[:-1], self.outputs)
