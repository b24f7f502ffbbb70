"""DDPM++, NCSN++ and ADM: the U-Nets of the literature on images, as option sets of one network.

    DDPM++   positional embedding, box filter                             Song et al. 2021, arXiv 2011.13456
    NCSN++   Fourier embedding, filter [1, 3, 3, 1],                      Song et al. 2021, arXiv 2011.13456
             the image fed in again at every resolution
    ADM      modulation of scale and shift, attention after every block,  Dhariwal, Nichol 2021, arXiv 2105.05233
             heads of 64 channels

All three have residual blocks that resample (BigGAN), in the arrangement of Karras et al. 2022 (arXiv 2206.00364). In
the first two, sums are divided by sqrt(2); they are the networks of Song et al. with other multipliers. As in Karras et
al., the noise label is -log_snr / 8 = log(sigma / alpha) / 4, for every process. What a network is told of augmentation
(`augment`) is added to the features of the noise label by a linear map without bias, as there.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.models.layers import Conv, Conv3x3, at_least_float32, conv3x3_direct, fusion_barrier, zeros
from scoreflow.types import Cond, Conditioning, Count, Counts, CountsOrNone, Dtype, Flag, Fraction


def resample(x: jax.Array, taps: Sequence[float], up: bool) -> jax.Array:
    """Doubles or halves the sides of [B, H, W, C] by a separable filter with an even number of taps; it keeps the mean.

    The filter is computed by shifted slices, since a depthwise convolution, and above all its gradient, is slow on a
    CPU.
    """
    weights = np.asarray(taps, np.float64) / np.sum(taps)
    return _along(_along(x, weights, up, 1), weights, up, 2)


def _along(x: jax.Array, weights: np.ndarray, up: bool, axis: int) -> jax.Array:
    """`resample` along one axis, by normalized weights."""
    size, half = x.shape[axis], len(weights) // 2
    edge = half if up else half - 1
    padded = jnp.pad(x, [(edge, edge) if i == axis else (0, 0) for i in range(x.ndim)])

    def weighted(pairs: Iterable[tuple[int, float]], length: int, stride: int = 1) -> jax.Array:
        slices = [
            float(w) * jax.lax.slice_in_dim(padded, at, at + stride * (length - 1) + 1, stride, axis) for at, w in pairs
        ]
        return sum(slices[1:], slices[0])

    if not up:
        return weighted(enumerate(weights), size // 2, 2)
    # each of the numbers 2 i and 2 i + 1 of the result uses every second tap
    phases = []
    for phase in (0, 1):
        taps = [(k, float(w)) for k, w in enumerate(weights) if (phase + k - half) % 2 == 0]
        phases.append(weighted([(edge + (phase + k - half) // 2, 2.0 * w) for k, w in taps], size))
    return jnp.stack(phases, axis + 1).reshape(x.shape[:axis] + (2 * size,) + x.shape[axis + 1 :])


def positional(label: jax.Array, features: int) -> jax.Array:
    """Cosines and sines of label [B] at frequencies from 1 down to 1e-4; [B, features]."""
    half = max(features // 2, 1)
    frequencies = jnp.asarray(1e-4 ** (np.arange(half) / max(half - 1, 1)), label.dtype)
    angles = label[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def fourier(label: jax.Array, features: int, scale: float = 16.0) -> jax.Array:
    """Cosines and sines of label [B] at normally distributed frequencies with deviation `scale`; [B, features].

    The frequencies are the same in all runs. They are not learned, so they are not parameters, and weight decay does
    not reach them.
    """
    frequencies = scale * np.random.default_rng(0).standard_normal(features // 2)
    angles = 2 * np.pi * label[:, None] * jnp.asarray(frequencies, label.dtype)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _norm(features: int, dtype: Dtype, epsilon: float) -> nn.GroupNorm:
    groups = math.gcd(features, min(32, max(1, features // 4)))
    return nn.GroupNorm(num_groups=groups, epsilon=epsilon, dtype=dtype)


class Attention(nn.Module):
    """Residual self-attention over pixels with a number of `heads`; the sum is multiplied by `skip_scale`."""

    heads: int
    skip_scale: float
    epsilon: float
    kernel_init: Callable
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
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
      features: number of output channels.
      resize: 1 doubles the sides, -1 halves them, 0 keeps them.
      heads: number of heads of the attention at the end; 0 for none.
      scale_too: whether the noise label scales as well as shifts.
      project: whether a resampled skip is also projected where its width stays the same.
      skip_scale: factor of every sum.
      epsilon: small constant of the group normalization.
      taps: weights of the resampling filter.
      dropout: dropout rate.
      kernel_init: initializer of the kernels; those before a sum start at zero.
      dtype: precision of the arithmetic inside.
      conv: lowering of the 3x3 convolutions.
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
    dtype: Dtype
    conv: Conv

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
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
    """The network whose option sets are `DDPMpp`, `NCSNpp` and `ADM`; see the module docstring.

    Attributes:
      channels: Width at full resolution.
      multipliers: Width of each resolution relative to `channels`; each resolution after the first halves the sides.
      blocks: Number of residual blocks at each resolution on the way down; the way up has one more.
      attention: Sides, in pixels, at which blocks are followed by self-attention; the middle always has it.
      dropout: Dropout rate inside the residual blocks.
      remat: Whether the gradient recomputes the activations inside residual blocks instead of storing them.
      dtype: Precision of the arithmetic inside; parameters and output stay float32.
      num_classes: the number of class labels; 0 for none.
      augment_labels: how many numbers tell of augmentation; 0 for none.
      conv: the lowering of the 3x3 convolutions, see `layers.conv3x3_in_loop`.
      fourier: whether the noise label is embedded by random frequencies.
      taps: weights of the resampling filter.
      residual_input: whether the image is fed in again at every resolution.
      scale_too, project, skip_scale, epsilon: options of the blocks, see `Block`.
      head_width: number of channels of an attention head; 0 for one head.
      attend_always: whether on the way up every block has attention, or only the last at its resolution.
      kernel_init: initializer of the kernels.
    """

    channels: Count = 128
    multipliers: Counts = (2, 2, 2)
    blocks: Count = 4
    attention: CountsOrNone = (16,)
    dropout: Fraction = 0.13
    remat: Flag = False
    dtype: Dtype = None
    num_classes: int = 0
    augment_labels: int = 0
    conv: Conv = conv3x3_direct
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

    @property
    def sides_factor(self) -> int:
        """What must divide the sides of images."""
        return 2 ** (len(self.multipliers) - 1)

    @nn.compact
    def __call__(self, x: jax.Array, log_snr: jax.Array, cond: Cond, train: bool) -> jax.Array:
        image_channels = x.shape[-1]
        embedding = self._embed(-log_snr / 8.0, cond)
        block_class = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        names = (f"Block_{i}" for i in itertools.count())  # the same with and without remat

        def block(h: jax.Array, features: int, resize: int = 0, attends: bool = False) -> jax.Array:
            heads = (features // self.head_width if self.head_width else 1) if attends else 0
            options = {"scale_too": self.scale_too, "project": self.project, "skip_scale": self.skip_scale}
            options |= {"epsilon": self.epsilon, "taps": tuple(self.taps), "dropout": self.dropout}
            options |= {"kernel_init": self.kernel_init, "dtype": self.dtype, "conv": self.conv, "name": next(names)}
            return block_class(features, resize, heads, **options)(h, embedding, train)

        image = x
        h = Conv3x3(self.channels, dtype=self.dtype, conv=self.conv)(x)
        skips = [h]
        for i, multiplier in enumerate(self.multipliers):
            if i:
                h = block(h, h.shape[-1], resize=-1)
                if self.residual_input:
                    image = Conv3x3(h.shape[-1], dtype=self.dtype, conv=self.conv)(image)
                    h = image = (h + resample(image, self.taps, up=False)) * self.skip_scale
                skips.append(h)
            for _ in range(self.blocks):
                h = block(h, self.channels * multiplier, attends=h.shape[1] in self.attention)
                skips.append(h)

        h = block(block(h, h.shape[-1], attends=True), h.shape[-1])
        for i, multiplier in reversed(list(enumerate(self.multipliers))):
            for j in range(self.blocks + 1):
                attends = h.shape[1] in self.attention and (self.attend_always or j == self.blocks)
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.channels * multiplier, attends=attends)
            if i:
                h = block(h, h.shape[-1], resize=1)

        h = at_least_float32(nn.silu(_norm(h.shape[-1], self.dtype, self.epsilon)(h)))
        return Conv3x3(image_channels, init_zero=True, conv=self.conv)(h)

    def _embed(self, label: jax.Array, cond: Cond) -> jax.Array:
        """The features of noise label, class and augmentation after two dense layers and SiLU; [B, 4 channels]."""
        cond, augment = cond if isinstance(cond, Conditioning) else (cond, None)
        dense = lambda features, **options: nn.Dense(
            features, dtype=self.dtype, kernel_init=self.kernel_init, **options
        )
        h = fourier(label, 2 * self.channels) if self.fourier else positional(label, self.channels)
        classes = None
        if self.num_classes:  # the features of no class are zeros
            index = jnp.full(label.shape, self.num_classes) if cond is None else cond
            classes = jax.nn.one_hot(index, self.num_classes, dtype=label.dtype) * math.sqrt(self.num_classes)
        if classes is not None and not self.scale_too:
            h = h + dense(h.shape[-1])(classes)
        if self.augment_labels:  # without a label, the features of the label zero
            augment = jnp.zeros((len(label), self.augment_labels), label.dtype) if augment is None else augment
            kernel_init = zeros if self.scale_too else self.kernel_init
            options = {"use_bias": False, "kernel_init": kernel_init, "dtype": self.dtype, "name": "augment"}
            h = h + nn.Dense(h.shape[-1], **options)(augment)
        h = dense(4 * self.channels)(nn.silu(dense(4 * self.channels)(h)))
        if classes is not None and self.scale_too:
            h = h + dense(4 * self.channels, use_bias=False)(classes)
        return nn.silu(h)


class DDPMpp(PlusUNet):
    """DDPM++ as in Karras et al. 2022; with the multipliers (1, 2, 2, 2) it is that of Song et al. 2021."""


class NCSNpp(PlusUNet):
    """NCSN++ as in Karras et al. 2022; with the multipliers (1, 2, 2, 2) it is that of Song et al. 2021."""

    fourier: bool = True
    taps: Sequence[float] = (1, 3, 3, 1)
    residual_input: bool = True


class ADM(PlusUNet):
    """ADM (Dhariwal, Nichol 2021) in the arrangement of Karras et al. 2022."""

    scale_too: bool = True
    project: bool = False
    skip_scale: float = 1.0
    epsilon: float = 1e-5
    head_width: int = 64
    attend_always: bool = True
    kernel_init: Callable = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
