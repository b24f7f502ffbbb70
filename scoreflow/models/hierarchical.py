"""A hierarchical VAE of images with residual cells, groups of latents and scales, after NVAE.

This is the VAE of Vahdat, Kautz 2020 (arXiv 2007.03898), as simplified for a score prior by Vahdat et al. 2021 (arXiv
2106.05931). The groups of a posterior are drawn one after the other, each given those before, but their prior is
N(0, I), so that one score model can replace it for all groups of the coarsest scale together:

    encoder   x -> [cells, halve] -> scales, finest first; every group leaves its features for the decoder
    decoder   a learned constant -> scales, coarsest first; for every group: draw z, mix it in, cells -> [double, cells]

The normalization is over groups of channels, where the published code has batch statistics. Evaluation is therefore the
same function as training, and only parameters have to be stored.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from scoreflow.models.layers import at_least_float32, group_norm
from scoreflow.models.unet import upsample
from scoreflow.models.vae import Inferred, Posterior, draw
from scoreflow.types import Count, CountOrZero, Counts, Dtype, Flag, Key

_BRANCH = 0.1  # factor of a residual branch


class NormedConv(nn.Module):
    """Same-padded convolution whose kernel has a learned norm e^log_norm for each output channel."""

    features: int
    size: int = 3
    stride: int = 1
    depthwise: bool = False
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups = x.shape[-1] if self.depthwise else 1
        shape = (self.size, self.size, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        length = jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1, 2)))
        log_norm = self.param("log_norm", lambda key: jnp.log(length + 0.01))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        kernel = kernel * (jnp.exp(log_norm) / length)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        strides = (self.stride, self.stride)
        y = jax.lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=layout, feature_group_count=groups
        )
        return y + bias


class Squeeze(nn.Module):
    """Squeeze-and-excitation: scales every channel by a function of the means of all channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        h = nn.relu(nn.Dense(max(channels // 16, 4), dtype=x.dtype)(x.mean((1, 2))))
        return x * nn.sigmoid(nn.Dense(channels, dtype=x.dtype)(h))[:, None, None]


class ResidualCell(nn.Module):
    """skip + 0.1 branch; it keeps the sides, halves them (`resize` = -1) or doubles them (1).

    The branch is norm - SiLU - conv twice. With `expand` above 0 it is an inverted bottleneck: 1x1 to `expand` times
    the width, depthwise 5x5, 1x1 back. Both end with squeeze-and-excitation.
    """

    features: int
    resize: int = 0
    expand: int = 0
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = lambda features, **options: NormedConv(features, dtype=self.dtype, **options)
        norm = lambda h: group_norm(h.shape[-1], self.dtype)(h)
        h, stride = upsample(x) if self.resize > 0 else x, 2 if self.resize < 0 else 1
        if self.expand:
            wide = self.expand * x.shape[-1]
            h = nn.silu(norm(conv(wide, size=1)(norm(h))))
            h = nn.silu(norm(conv(wide, size=5, depthwise=True, stride=stride)(h)))
            h = norm(conv(self.features, size=1)(h))
        else:
            h = conv(self.features, stride=stride)(nn.silu(norm(h)))
            h = conv(self.features)(nn.silu(norm(h)))
        h = Squeeze()(h)
        if self.resize < 0:  # four 1x1 convolutions, each of every other pixel
            y, quarter = nn.silu(x), -(-self.features // 4)
            widths = (quarter, quarter, quarter, self.features - 3 * quarter)
            corners = ((0, 0), (1, 1), (0, 1), (1, 0))
            x = jnp.concatenate(
                [conv(w, size=1)(y[:, i::2, j::2]) for w, (i, j) in zip(widths, corners, strict=True)], axis=-1
            )
        elif self.resize > 0:
            b, height, width, c = x.shape
            x = conv(self.features, size=1)(jax.image.resize(x, (b, 2 * height, 2 * width, c), "bilinear"))
        elif x.shape[-1] != self.features:
            x = conv(self.features, size=1)(x)
        return x + _BRANCH * h


class HierarchicalVAE(nn.Module):
    """A VAE of square images [B, H, W, C] with groups of latents [B, h, w, latents] at one or more scales.

    Attributes:
      outputs: the number of outputs of the decoder for each pixel.
      shape: the shape of one example, (H, W, C).
      channels: Width at full resolution.
      multipliers: Width of each resolution relative to `channels`; the coarsest `scales` of them have latents.
      scales: Number of resolutions with latents.
      per_scale: Number of groups of latents at each of these resolutions.
      latents: Number of channels of a group.
      cells: Number of residual cells for each group, in the encoder and again in the decoder.
      outer_cells: Number of cells for each resolution without latents, including the one that resizes.
      inverted: Whether the decoder's cells are inverted bottlenecks.
      pad: Number of pixels with the lowest level that the VAE adds on every side of the images.
      dtype: Precision of the arithmetic inside; parameters and outputs stay float32.
    """

    outputs: int
    shape: tuple[int, ...]
    channels: Count = 32
    multipliers: Counts = (1, 2)
    scales: Count = 1
    per_scale: Count = 2
    latents: Count = 8
    cells: Count = 1
    outer_cells: Count = 2
    inverted: Flag = False
    pad: CountOrZero = 0
    dtype: Dtype = None

    @property
    def groups(self) -> int:
        """The number of groups at the coarsest scale."""
        return self.per_scale

    @property
    def sizes(self) -> tuple[float, ...]:
        """4^s / groups for every group of the s-th scale from the coarsest."""
        return tuple(4.0**s / self.per_scale for s in range(self.scales) for _ in range(self.per_scale))

    def setup(self) -> None:
        widths = [self.channels * m for m in self.multipliers]
        outer = len(widths) - self.scales  # resolutions without latents
        inner, wide = widths[outer:], (6, 3) if self.inverted else (0, 0)
        cell = lambda *args: ResidualCell(*args, dtype=self.dtype)
        conv = lambda features, **options: NormedConv(features, dtype=self.dtype, **options)

        self.stem, before, after = conv(widths[0]), [], []
        for i in range(outer):
            before += [*(cell(widths[i]) for _ in range(self.outer_cells - 1)), cell(widths[i + 1], -1)]
        for i in reversed(range(outer)):
            after += [cell(widths[i], 1, wide[1]), *(cell(widths[i], 0, wide[1]) for _ in range(self.outer_cells - 1))]
        self.before, self.after = before, after
        self.encoder = [[[cell(w) for _ in range(self.cells)] for _ in range(self.per_scale)] for w in inner]
        self.halve = [cell(w, -1) for w in inner[1:]]
        self.last = conv(inner[-1], size=1)

        top = inner[::-1]  # the decoder starts with the coarsest
        self.features = [[conv(w, size=1) for _ in range(self.per_scale)] for w in top]
        self.stats = [[conv(2 * self.latents) for _ in range(self.per_scale)] for _ in top]
        self.spread = [[conv(w) for _ in range(self.per_scale)] for w in top]
        self.mix = [[conv(w, size=1) for _ in range(self.per_scale)] for w in top]
        self.decoder = [[[cell(w, 0, wide[0]) for _ in range(self.cells)] for _ in range(self.per_scale)] for w in top]
        self.double = [cell(w, 1, wide[0]) for w in top[1:]]
        self.to_out = NormedConv(self.outputs)
        coarse = (self.shape[0] + 2 * self.pad) // 2 ** (len(widths) - 1)
        self.start = self.param("start", nn.initializers.uniform(1.0), (coarse, coarse, top[0]))

    def __call__(self, x: jax.Array, key: Key) -> Inferred:
        sides = (self.pad, self.pad)
        x = jnp.pad(x, ((0, 0), sides, sides, (0, 0)), constant_values=-1.0)
        h = self.stem(x)
        for cell in self.before:
            h = cell(h)
        encoded = []  # for each group; the decoder uses them in reverse
        for scale, groups in enumerate(self.encoder):
            h = self.halve[scale - 1](h) if scale else h
            for cells in groups:
                for cell in cells:
                    h = cell(h)
                encoded.append(h)
        encoded = encoded[::-1]
        encoded[0] = self.last(nn.elu(encoded[0]))
        drawn: list[Posterior] = []

        def posterior(scale: int, group: int, state: jax.Array) -> jax.Array:
            i = len(drawn)
            h = encoded[i] if i == 0 else encoded[i] + self.features[scale][group](state)
            drawn.append(draw(jax.random.fold_in(key, i), self.stats[scale][group](nn.elu(h))))
            return drawn[-1].z

        out = self._decode(posterior, len(x))
        top = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *drawn[: self.per_scale])
        return Inferred(top, tuple(drawn[self.per_scale :]), out)

    def generate(self, z: jax.Array, key: Key) -> jax.Array:
        """The decoder's outputs for the latents z of the coarsest scale; finer latents are drawn."""
        groups = jnp.split(z, self.per_scale, axis=-1)

        def prior(scale: int, group: int, state: jax.Array) -> jax.Array:
            if scale == 0:
                return groups[group]
            index = scale * self.per_scale + group
            return jax.random.normal(jax.random.fold_in(key, index), (*state.shape[:3], self.latents), z.dtype)

        return self._decode(prior, len(z))

    def _decode(self, latents_of: Callable[[int, int, jax.Array], jax.Array], batch: int) -> jax.Array:
        """The decoder's outputs, where latents_of(scale, group, state so far) draws each group."""
        h = jnp.broadcast_to(self.start, (batch, *self.start.shape))
        for scale, groups in enumerate(self.decoder):
            h = self.double[scale - 1](h) if scale else h
            for group, cells in enumerate(groups):
                z = self.spread[scale][group](latents_of(scale, group, h))
                h = self.mix[scale][group](jnp.concatenate([h, z], axis=-1))
                for cell in cells:
                    h = cell(h)
        for cell in self.after:
            h = cell(h)
        out = self.to_out(nn.elu(at_least_float32(h)))
        end = out.shape[1] - self.pad, out.shape[2] - self.pad
        return out[:, self.pad : end[0], self.pad : end[1]]
