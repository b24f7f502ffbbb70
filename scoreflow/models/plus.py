"""DDPM++, NCSN++ and ADM: the U-Nets of images in the literature, as option sets of one.

    DDPM++   positional embedding, box filter                      Song et al. 2021, arXiv 2011.13456
    NCSN++   Fourier embedding, filter [1, 3, 3, 1], the image fed in again at every resolution    same
    ADM      modulation of scale and shift, attention after every block,            Dhariwal, Nichol
             heads of 64 channels                                             2021, arXiv 2105.05233

with residual blocks that resample (BigGAN) and sums divided by sqrt(2) in the first two, in the arrangement of Karras
et al. 2022 (arXiv 2206.00364), in which the two earlier ones are the same networks with other multipliers. The noise
label is -log_snr / 8 = log(sigma / alpha) / 4, as there, whatever the process.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.models.layers import Conv3x3, at_least_float32, conv3x3_direct, fusion_barrier


def resample(x: jax.Array, taps: Sequence[float], up: bool) -> jax.Array:
    """Doubles or halves the sides of [B, H, W, C] by a separable filter of an even number of taps, mean kept.

    By shifted slices: a convolution of one channel at a time, and above all its gradient, is slow on a CPU.
    """
    weights = np.asarray(taps, np.float64) / np.sum(taps)
    return _along(_along(x, weights, up, 1), weights, up, 2)


def _along(x: jax.Array, weights: np.ndarray, up: bool, axis: int) -> jax.Array:
    """The same along one axis."""
    size, half = x.shape[axis], len(weights) // 2
    edge = half if up else half - 1
    padded = jnp.pad(x, [(edge, edge) if i == axis else (0, 0) for i in range(x.ndim)])

    def weighted(pairs, length, stride=1):
        parts = [
            float(w) * jax.lax.slice_in_dim(padded, at, at + stride * (length - 1) + 1, stride, axis) for at, w in pairs
        ]
        return sum(parts[1:], parts[0])

    if not up:
        return weighted(enumerate(weights), size // 2, 2)
    # numbers 2 i and 2 i + 1 of the result see every second tap each
    phases = []
    for phase in (0, 1):
        taps = [(k, w) for k, w in enumerate(weights) if (phase + k - half) % 2 == 0]
        phases.append(weighted([(edge + (phase + k - half) // 2, 2.0 * w) for k, w in taps], size))
    return jnp.stack(phases, axis + 1).reshape(x.shape[:axis] + (2 * size,) + x.shape[axis + 1 :])


def positional(label: jax.Array, features: int) -> jax.Array:
    """[B, features]: cosines and sines of label [B] at frequencies from 1 down to 1e-4."""
    half = features // 2
    frequencies = jnp.asarray(1e-4 ** (np.arange(half) / max(half - 1, 1)), label.dtype)
    angles = label[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def fourier(label: jax.Array, features: int, scale: float = 16.0) -> jax.Array:
    """[B, features]: cosines and sines of label [B] at normal frequencies of deviation `scale`, the same in all runs.

    They are not learnt, so they are no parameters, and no decay of weights can reach them.
    """
    frequencies = scale * np.random.default_rng(0).standard_normal(features // 2)
    angles = 2 * np.pi * label[:, None] * jnp.asarray(frequencies, label.dtype)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _norm(features: int, dtype, epsilon: float) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=min(32, features // 4), epsilon=epsilon, dtype=dtype)


class Attention(nn.Module):
    """Residual self-attention over pixels, `heads` of them, the sum times `skip_scale`."""

    heads: int
    skip_scale: float
    epsilon: float
    kernel_init: Callable
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        h = _norm(channels, self.dtype, self.epsilon)(x).reshape(batch, height * width, channels)
        qkv = nn.DenseGeneral((3, self.heads, channels // self.heads), dtype=self.dtype, kernel_init=self.kernel_init)(
            h
        )
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        logits = at_least_float32(jnp.einsum("bqhd,bkhd->bhqk", q, k)) / math.sqrt(channels // self.heads)
        h = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(logits).astype(v.dtype), v)
        h = nn.DenseGeneral(channels, axis=(-2, -1), kernel_init=nn.initializers.zeros_init(), dtype=self.dtype)(h)
        return (x + h.reshape(x.shape)) * self.skip_scale


class Block(nn.Module):
    """norm - SiLU - [resample] - conv - norm, moved by the noise label - SiLU - dropout - conv, plus a skip; attention.

    Attributes:
      features: channels that come out.
      resize: 1 to double the sides, -1 to halve them.
      heads: of attention afterwards; 0 for none.
      scale_too: whether the noise label scales as well as shifts.
      project: whether a skip that is resampled is also projected where its width stays.
      skip_scale: factor of sums.
      taps: of the resampling filter.
      kernel_init: of kernels; those before a sum begin at zero.
    """

    features: int
    resize: int
    heads: int
    scale_too: bool
    project: bool
    skip_scale: float
    epsilon: float
    taps: Sequence[float]
    dropout: float
    kernel_init: Callable
    dtype: jnp.dtype | None
    conv: Callable

    @nn.compact
    def __call__(self, x, embedding, train):
        resized = lambda h: resample(h, self.taps, self.resize > 0) if self.resize else h
        h = resized(nn.silu(_norm(x.shape[-1], self.dtype, self.epsilon)(x)))
        h = Conv3x3(self.features, dtype=self.dtype, conv=self.conv)(h)
        moved = nn.Dense((1 + self.scale_too) * self.features, dtype=self.dtype, kernel_init=self.kernel_init)(
            embedding
        )
        norm, moved = _norm(self.features, self.dtype, self.epsilon), moved[:, None, None]
        if self.scale_too:
            scale, shift = jnp.split(moved, 2, axis=-1)
            h = nn.silu(norm(h) * (1 + scale) + shift)
        else:
            h = nn.silu(norm(h + moved))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Conv3x3(self.features, init_zero=True, dtype=self.dtype, conv=self.conv)(h)
        skip = resized(x)
        if x.shape[-1] != self.features or (self.resize and self.project):
            skip = nn.Dense(self.features, dtype=self.dtype, kernel_init=self.kernel_init)(skip)
        h = (skip + h) * self.skip_scale
        if self.heads:
            h = Attention(self.heads, self.skip_scale, self.epsilon, self.kernel_init, self.dtype)(h)
        return fusion_barrier(h, self.variables["params"]["Conv3x3_0"]["bias"][0]) if train else h


class PlusUNet(nn.Module):
    """See the head of this file; `ddpmpp`, `ncsnpp` and `adm` give the option sets.

    Attributes:
      channels, multipliers, blocks, attention, dropout, num_classes, dtype, conv, remat: as in `unet.UNet`.
      fourier: whether the noise label is embedded by random frequencies.
      taps: of the filter that resamples.
      residual_input: whether the image is fed in again at every resolution.
      scale_too, project, skip_scale, epsilon: of the blocks.
      head_width: channels of a head; 0 for one head.
      attend_always: whether every block on the way up attends, or the last of its resolution.
      kernel_init: of kernels.
    """

    channels: int = 128
    multipliers: Sequence[int] = (2, 2, 2)
    blocks: int = 4
    attention: Sequence[int] = (16,)
    dropout: float = 0.13
    num_classes: int = 0
    dtype: jnp.dtype | None = None
    conv: Callable = conv3x3_direct
    remat: bool = False
    fourier: bool = False
    taps: Sequence[float] = (1, 1)
    residual_input: bool = False
    scale_too: bool = False
    project: bool = True
    skip_scale: float = 0.5**0.5
    epsilon: float = 1e-6
    head_width: int = 0
    attend_always: bool = False
    kernel_init: Callable = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x, log_snr, cond, train):
        image_channels = x.shape[-1]
        embedding = self._embed(-log_snr / 8.0, cond)
        make = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        names = (f"Block_{i}" for i in itertools.count())  # the same with and without remat

        def block(h, features, resize=0, attends=False):
            heads = (features // self.head_width if self.head_width else 1) if attends else 0
            options = {"scale_too": self.scale_too, "project": self.project, "skip_scale": self.skip_scale}
            options |= {"epsilon": self.epsilon, "taps": tuple(self.taps), "dropout": self.dropout}
            options |= {"kernel_init": self.kernel_init, "dtype": self.dtype, "conv": self.conv, "name": next(names)}
            return make(features, resize, heads, **options)(h, embedding, train)

        fed = x
        h = Conv3x3(self.channels, dtype=self.dtype, conv=self.conv)(x)
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level:
                h = block(h, h.shape[-1], resize=-1)
                if self.residual_input:
                    fed = resample(Conv3x3(h.shape[-1], dtype=self.dtype, conv=self.conv)(fed), self.taps, up=False)
                    h = fed = (h + fed) * self.skip_scale
                skips.append(h)
            for _ in range(self.blocks):
                h = block(h, self.channels * multiplier, attends=h.shape[1] in self.attention)
                skips.append(h)

        h = block(block(h, h.shape[-1], attends=True), h.shape[-1])
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                attends = h.shape[1] in self.attention and (self.attend_always or i == self.blocks)
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.channels * multiplier, attends=attends)
            if level:
                h = block(h, h.shape[-1], resize=1)

        h = at_least_float32(nn.silu(_norm(h.shape[-1], self.dtype, self.epsilon)(h)))
        return Conv3x3(image_channels, init_zero=True, conv=self.conv)(h)

    def _embed(self, label, cond):
        """SiLU of [B, 4 channels]: the noise label's features, with the class's, through two layers."""
        dense = lambda features, **options: nn.Dense(
            features, dtype=self.dtype, kernel_init=self.kernel_init, **options
        )
        h = fourier(label, 2 * self.channels) if self.fourier else positional(label, self.channels)
        classes = None
        if self.num_classes:  # no class: zeros
            index = jnp.full(label.shape, self.num_classes) if cond is None else cond
            classes = jax.nn.one_hot(index, self.num_classes, dtype=label.dtype) * math.sqrt(self.num_classes)
        if classes is not None and not self.scale_too:
            h = h + dense(h.shape[-1])(classes)
        h = dense(4 * self.channels)(nn.silu(dense(4 * self.channels)(h)))
        if classes is not None and self.scale_too:
            h = h + dense(4 * self.channels, use_bias=False)(classes)
        return nn.silu(h)


def ddpmpp(**options) -> PlusUNet:
    """DDPM++ as in Karras et al. 2022; with multipliers (1, 2, 2, 2) as in Song et al. 2021."""
    return PlusUNet(**options)


def ncsnpp(**options) -> PlusUNet:
    """NCSN++, likewise."""
    return PlusUNet(fourier=True, taps=(1, 3, 3, 1), residual_input=True, **options)


def adm(**options) -> PlusUNet:
    """ADM."""
    kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    chosen = {"scale_too": True, "project": False, "skip_scale": 1.0, "epsilon": 1e-5, "head_width": 64}
    return PlusUNet(attend_always=True, kernel_init=kernel_init, **chosen, **options)
