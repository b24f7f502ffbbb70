"""Encoders and decoders of a variational autoencoder, behind three pure functions."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.models.layers import Conv3x3, at_least_float32, group_norm
from scoreflow.models.unet import downsample, upsample

_CLAMP = 5.0  # means and logarithms of standard deviations stay between -5 and 5


class Posterior(NamedTuple):
    """A draw `z` [B, ...] of a diagonal Gaussian, and like it `log_std` and `log_q`, the log-density in nats."""

    z: jax.Array
    log_std: jax.Array
    log_q: jax.Array


class Inferred(NamedTuple):
    """What a VAE makes of data.

    Attributes:
      top: the latents that a score model is the prior of.
      lower: those of finer scales, in the decoder's order, whose prior stays N(0, I).
      out: [B, ..., outputs], what the decoder says of every pixel; see `decoders`.
    """

    top: Posterior
    lower: tuple[Posterior, ...]
    out: jax.Array


class VAE(NamedTuple):
    """A pair of encoder and decoder as functions of their arguments alone.

    Attributes:
      init: (key, x_shape [B, ...]) -> params.
      infer: (params, key, x [B, ...] in [-1, 1]) -> Inferred, differentiable in params.
      generate: (params, key, z [B, ...] like `top`) -> out; finer latents are drawn.
      groups: equal parts of the top latents' channels that are drawn one after the other.
      sizes: what each group may be expected to say, for balance: of the top scale, then of the lower ones.
    """

    init: Callable
    infer: Callable
    generate: Callable
    groups: int = 1
    sizes: tuple[float, ...] = (1.0,)


def vae(module: nn.Module) -> VAE:
    """Wraps a Linen module whose call is (x, key) -> Inferred and whose `generate` is (z, key) -> out."""

    def init(key, x_shape):
        return module.init(key, jnp.zeros((1, *x_shape[1:])), jax.random.key(0))["params"]

    def infer(params, key, x):
        return module.apply({"params": params}, x, key)

    def generate(params, key, z):
        return module.apply({"params": params}, z, key, method="generate")

    return VAE(init, infer, generate, module.groups, module.sizes)


def draw(key: jax.Array, stats: jax.Array) -> Posterior:
    """A draw from the Gaussian whose mean and log standard deviation are the halves of stats [..., 2 L], clamped."""
    mean, log_std = jnp.split(_CLAMP * jnp.tanh(at_least_float32(stats) / _CLAMP), 2, axis=-1)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return Posterior(mean + jnp.exp(log_std) * noise, log_std, normal_log_prob(noise) - log_std)


def normal_log_prob(z: jax.Array) -> jax.Array:
    """log N(z; 0, 1), like z, in nats."""
    return -0.5 * (z**2 + np.log(2 * np.pi))


class Cell(nn.Module):
    """Residual: norm - SiLU - conv - norm - SiLU - conv (starts at zero), plus a skip."""

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        h = Conv3x3(self.features, dtype=self.dtype)(nn.silu(group_norm(x.shape[-1], self.dtype)(x)))
        h = nn.silu(group_norm(self.features, self.dtype)(h))
        h = Conv3x3(self.features, init_zero=True, dtype=self.dtype)(h)
        return h + (x if x.shape[-1] == self.features else nn.Dense(self.features, dtype=self.dtype)(x))


def _walk(h, resolutions, resize):
    """Through the cells of every resolution, resized between two."""
    for i, cells in enumerate(resolutions):
        h = resize(h) if i else h
        for cell in cells:
            h = cell(h)
    return h


class ConvVAE(nn.Module):
    """A small convolutional VAE of images [B, H, W, C], with latents [B, h, w, latents].

    Attributes:
      outputs: numbers of the decoder for each pixel.
      channels: width at full resolution.
      multipliers: width of each resolution relative to `channels`; their number less one is that of halvings.
      blocks: residual cells per resolution, in the encoder and again in the decoder.
      latents: channels of the latents.
      dtype: of the arithmetic inside; what comes out stays float32.
    """

    outputs: int
    channels: int = 32
    multipliers: Sequence[int] = (1, 2)
    blocks: int = 2
    latents: int = 8
    dtype: jnp.dtype | None = None

    groups, sizes = 1, (1.0,)

    def setup(self):
        widths = [self.channels * m for m in self.multipliers]
        cells = lambda width: [Cell(width, self.dtype) for _ in range(self.blocks)]
        self.stem = Conv3x3(widths[0], dtype=self.dtype)
        self.down = [cells(width) for width in widths]
        self.to_stats, self.stats_norm = Conv3x3(2 * self.latents), group_norm(widths[-1], self.dtype)
        self.from_latents = Conv3x3(widths[-1], dtype=self.dtype)
        self.up = [cells(width) for width in reversed(widths)]
        self.to_out, self.out_norm = Conv3x3(self.outputs), group_norm(widths[0], self.dtype)

    def __call__(self, x, key):
        h = _walk(self.stem(x), self.down, downsample)
        top = draw(key, self.to_stats(at_least_float32(nn.silu(self.stats_norm(h)))))
        return Inferred(top, (), self.generate(top.z, None))

    def generate(self, z, key):
        h = _walk(self.from_latents(z), self.up, upsample)
        return self.to_out(at_least_float32(nn.silu(self.out_norm(h))))


class MLPVAE(nn.Module):
    """A VAE of vectors [B, D] or small images, with latents [B, latents].

    Attributes:
      outputs: numbers of the decoder for each pixel (of images), or for the whole vector.
      shape: of the data, without their last axis.
      width, depth: of the hidden layers, in encoder and decoder alike.
      latents: numbers in z.
      dtype: of the arithmetic inside; what comes out stays float32.
    """

    outputs: int
    shape: Sequence[int] = ()
    width: int = 256
    depth: int = 2
    latents: int = 16
    dtype: jnp.dtype | None = None

    groups, sizes = 1, (1.0,)

    def setup(self):
        hidden = lambda: [nn.Dense(self.width, dtype=self.dtype) for _ in range(self.depth)]
        self.encoder, self.decoder = hidden(), hidden()
        self.to_stats, self.to_out = nn.Dense(2 * self.latents), nn.Dense(math.prod(self.shape) * self.outputs)

    def __call__(self, x, key):
        h = x.reshape(len(x), -1)
        for layer in self.encoder:
            h = nn.silu(layer(h))
        top = draw(key, self.to_stats(at_least_float32(h)))
        return Inferred(top, (), self.generate(top.z, None))

    def generate(self, z, key):
        h = z
        for layer in self.decoder:
            h = nn.silu(layer(h))
        return self.to_out(at_least_float32(h)).reshape(len(z), *self.shape, self.outputs)
