"""A hierarchical VAE of images with residual cells, groups of latents and scales, after NVAE.

Vahdat, Kautz 2020 (arXiv 2007.03898) as reduced for a score prior by Vahdat et al. 2021 (arXiv 2106.05931): the groups
of a posterior are drawn one after the other, each given those before, but their prior is a flat N(0, I), so that one
score model can take its place for all groups of the coarsest scale together:

    encoder   x -> [cells, halve] -> scales, finest first; every group leaves its features for the decoder
    decoder   a learnt constant -> scales, coarsest first; for every group: draw z, mix it in, cells -> [double, cells]

Here normalization is over groups of channels where the published code has batch statistics, so that evaluation is the
same function as training and nothing but parameters has to be kept.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoreflow.models.layers import at_least_float32, group_norm
from scoreflow.models.unet import upsample
from scoreflow.models.vae import Inferred, draw

_BRANCH = 0.1  # share of a residual branch


class NormedConv(nn.Module):
    """Convolution, same-padded, whose kernel has a learnt norm e^log_norm for each output channel."""

    features: int
    size: int = 3
    stride: int = 1
    depthwise: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        groups = x.shape[-1] if self.depthwise else 1
        shape = (self.size, self.size, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        length = jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1, 2)))
        log_norm = self.param("log_norm", lambda key: jnp.log(length + 0.01))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        kernel = kernel * (jnp.exp(log_norm) / length)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        strides = (self.stride, self.stride)
        y = jax.lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=layout, feature_group_count=groups
        )
        return y + bias


class Squeeze(nn.Module):
    """Squeeze-and-excitation: every channel scaled by what all of them say on average."""

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        h = nn.relu(nn.Dense(max(channels // 16, 4), dtype=x.dtype)(x.mean((1, 2))))
        return x * nn.sigmoid(nn.Dense(channels, dtype=x.dtype)(h))[:, None, None]


class ResidualCell(nn.Module):
    """skip + 0.1 branch, to the same size, half of it (`resize` = -1) or the double (1).

    The branch is norm - SiLU - conv twice, or with `expand` above 0 an inverted bottleneck: 1x1 to `expand` times the
    width, depthwise 5x5, 1x1 back; then squeeze and excitation.
    """

    features: int
    resize: int = 0
    expand: int = 0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
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
            y, part = nn.silu(x), -(-self.features // 4)
            widths = (part, part, part, self.features - 3 * part)
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
    """Images [B, H, W, C] <-> groups of latents [B, h, w, latents] at one or more scales; see above.

    Attributes:
      outputs: numbers of the decoder for each pixel.
      side: of the images, in pixels, with `pad` counted.
      channels: width at full resolution.
      multipliers: width of each resolution relative to `channels`, the coarsest `scales` of which hold latents.
      scales: resolutions with latents.
      per_scale: groups of latents at each.
      latents: channels of a group.
      cells: residual cells of the encoder and of the decoder for each group.
      outer_cells: cells for each resolution without latents, the one that resizes among them.
      inverted: whether the decoder's cells are inverted bottlenecks.
      pad: pixels of the lowest level put around the images, and cut off again.
      dtype: of the arithmetic inside; what comes out stays float32.
    """

    outputs: int
    side: int
    channels: int = 32
    multipliers: Sequence[int] = (1, 2)
    scales: int = 1
    per_scale: int = 2
    latents: int = 8
    cells: int = 1
    outer_cells: int = 2
    inverted: bool = False
    pad: int = 0
    dtype: jnp.dtype | None = None

    @property
    def groups(self) -> int:
        """Groups of the coarsest scale."""
        return self.per_scale

    @property
    def sizes(self) -> tuple[float, ...]:
        """4^s / groups for every group of the s-th scale from the coarsest."""
        return tuple(4.0**s / self.per_scale for s in range(self.scales) for _ in range(self.per_scale))

    def setup(self):
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

        top = inner[::-1]  # from here on the coarsest is first
        self.features = [[conv(w, size=1) for _ in range(self.per_scale)] for w in top]
        self.stats = [[conv(2 * self.latents) for _ in range(self.per_scale)] for _ in top]
        self.spread = [[conv(w) for _ in range(self.per_scale)] for w in top]
        self.mix = [[conv(w, size=1) for _ in range(self.per_scale)] for w in top]
        self.decoder = [[[cell(w, 0, wide[0]) for _ in range(self.cells)] for _ in range(self.per_scale)] for w in top]
        self.double = [cell(w, 1, wide[0]) for w in top[1:]]
        self.to_out = NormedConv(self.outputs)
        coarse = self.side // 2 ** (len(widths) - 1)
        self.start = self.param("start", nn.initializers.uniform(1.0), (coarse, coarse, top[0]))

    def __call__(self, x, key):
        sides = (self.pad, self.pad)
        x = jnp.pad(x, ((0, 0), sides, sides, (0, 0)), constant_values=-1.0)
        h = self.stem(x)
        for cell in self.before:
            h = cell(h)
        kept = []  # in the decoder's order when it is turned round
        for scale, groups in enumerate(self.encoder):
            h = self.halve[scale - 1](h) if scale else h
            for cells in groups:
                for cell in cells:
                    h = cell(h)
                kept.append(h)
        kept = kept[::-1]
        kept[0] = self.last(nn.elu(kept[0]))
        drawn = []

        def posterior(scale, group, state):
            i = len(drawn)
            h = kept[i] if i == 0 else kept[i] + self.features[scale][group](state)
            drawn.append(draw(jax.random.fold_in(key, i), self.stats[scale][group](nn.elu(h))))
            return drawn[-1].z

        out = self._decode(posterior, len(x))
        top = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *drawn[: self.per_scale])
        return Inferred(top, tuple(drawn[self.per_scale :]), out)

    def generate(self, z, key):
        """See `VAE.generate`."""
        groups = jnp.split(z, self.per_scale, axis=-1)

        def prior(scale, group, state):
            if scale == 0:
                return groups[group]
            index = scale * self.per_scale + group
            return jax.random.normal(jax.random.fold_in(key, index), (*state.shape[:3], self.latents), z.dtype)

        return self._decode(prior, len(z))

    def _decode(self, latents_of, batch):
        """What the decoder says, drawing each group by latents_of(scale, group, state so far)."""
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
