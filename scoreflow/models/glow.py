"""A multiscale flow of invertible 1x1 convolutions: Glow (Kingma, Dhariwal 2018, arXiv 1807.03039), as released.

    x -> squeeze -> [steps] -> split -> squeeze -> [steps] -> ... -> noise,    step = actnorm, 1x1 convolution, coupling

Every number of the noise is standard normal under the model. The channels that are split off, and those left at the
end, are standardized by a mean and a scale that the flow learns, so log p(x) = log N(noise; 0, I) +
log |det d noise / d x|. All maps have the form (x, reverse) -> (y, log-determinant [B] or a scalar).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoreflow.models.layers import Conv, conv3x3_direct, zeros

_STRETCH = 3.0  # factor of the learned logarithms of scales


def squeeze(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / 2, W / 2, 4 C]; the channel varies slowest."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(b, h // 2, w // 2, 4 * c)


def unsqueeze(x: jax.Array) -> jax.Array:
    """The inverse of `squeeze`."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(b, 2 * h, 2 * w, c // 4)


class ActNorm(nn.Module):
    """An affine map of each channel whose initial parameters standardize the first batch."""

    @nn.compact
    def __call__(self, x: jax.Array, reverse: bool = False) -> tuple[jax.Array, jax.Array]:
        bias = self.param("bias", lambda key: -x.mean((0, 1, 2)))
        log_scale = self.param("log_scale", lambda key: -jnp.log(x.std((0, 1, 2)) + 1e-6) / _STRETCH)
        bias, log_scale = bias[None, None, None], _STRETCH * log_scale[None, None, None]
        log_det = x.shape[1] * x.shape[2] * log_scale.sum()
        if reverse:
            return x * jnp.exp(-log_scale) - bias, -log_det
        return (x + bias) * jnp.exp(log_scale), log_det


class InvertibleConv(nn.Module):
    """x W with W = P L (U + diag(sign e^log_scale)), which starts as a rotation; P and sign are not trained."""

    @nn.compact
    def __call__(self, x: jax.Array, reverse: bool = False) -> tuple[jax.Array, jax.Array]:
        c = x.shape[-1]
        if self.is_initializing():
            permutation, lower, upper = jax.scipy.linalg.lu(jax.random.orthogonal(self.make_rng("params"), c))
        else:
            permutation = lower = upper = jnp.eye(c)
        diagonal = jnp.diag(upper)
        lower = self.param("lower", lambda key: lower)
        log_scale = self.param("log_scale", lambda key: jnp.log(jnp.abs(diagonal)))
        upper = self.param("upper", lambda key: upper)
        permutation = jax.lax.stop_gradient(self.variable("fixed", "permutation", lambda: permutation).value)
        sign = jax.lax.stop_gradient(self.variable("fixed", "sign", lambda: jnp.sign(diagonal)).value)
        lower = jnp.tril(lower, -1) + jnp.eye(c)
        upper = jnp.triu(upper, 1) + jnp.diag(sign * jnp.exp(log_scale))
        log_det = x.shape[1] * x.shape[2] * log_scale.sum()
        if not reverse:
            return x @ (permutation @ lower @ upper), log_det
        flat = x.reshape(-1, c).T
        flat = jax.scipy.linalg.solve_triangular(upper.T, flat, lower=True)
        flat = jax.scipy.linalg.solve_triangular(lower.T, flat, lower=False, unit_diagonal=True)
        return (permutation @ flat).T.reshape(x.shape), -log_det


class EdgeConv(nn.Module):
    """3x3 convolution with one more input channel, which is 1 on the padding and 0 inside, so that edges are visible.

    With `zero` it starts at 0 and has a bias and learned scales. Without, it has neither and an `ActNorm` follows.
    """

    features: int
    zero: bool = False
    conv: Conv = conv3x3_direct

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, height, width, c = x.shape
        init = zeros if self.zero else nn.initializers.normal(0.05)
        kernel = self.param("kernel", init, (3, 3, c + 1, self.features))
        edge = jnp.pad(jnp.zeros((height, width)), 1, constant_values=1.0)
        shifts = [edge[i : i + height, j : j + width, None] * kernel[i, j, c] for i in range(3) for j in range(3)]
        y = self.conv(x, kernel[:, :, :c]) + jnp.asarray(sum(shifts))[None]
        if not self.zero:
            return y
        bias = self.param("bias", zeros, (self.features,))
        log_scale = self.param("log_scale", zeros, (self.features,))
        return (y + bias[None, None, None]) * jnp.exp(_STRETCH * log_scale)[None, None, None]


class Coupling(nn.Module):
    """Moves half of the channels by an affine map that a network computes from the other half."""

    width: int
    conv: Conv = conv3x3_direct

    @nn.compact
    def __call__(self, x: jax.Array, reverse: bool = False) -> tuple[jax.Array, jax.Array]:
        kept, moved = jnp.split(x, 2, axis=-1)
        h = nn.relu(ActNorm()(EdgeConv(self.width, conv=self.conv)(kept))[0])
        kernel = self.param("kernel", nn.initializers.normal(0.05), (self.width, self.width))
        h = nn.relu(ActNorm()(h @ kernel)[0])
        h = EdgeConv(2 * moved.shape[-1], zero=True, conv=self.conv)(h)
        shift, log_scale = h[..., 0::2], jax.nn.log_sigmoid(h[..., 1::2] + 2.0)
        log_det = log_scale.reshape(len(x), -1).sum(1)
        if reverse:
            return jnp.concatenate([kept, moved * jnp.exp(-log_scale) - shift], axis=-1), -log_det
        return jnp.concatenate([kept, (moved + shift) * jnp.exp(log_scale)], axis=-1), log_det


class Step(nn.Module):
    """One flow step: actnorm, 1x1 convolution, coupling."""

    width: int
    conv: Conv = conv3x3_direct

    @nn.compact
    def __call__(self, x: jax.Array, reverse: bool = False) -> tuple[jax.Array, jax.Array]:
        maps, total = [ActNorm(), InvertibleConv(), Coupling(self.width, self.conv)], jnp.zeros(len(x))
        for layer in reversed(maps) if reverse else maps:
            x, log_det = layer(x, reverse)
            total = total + log_det
        return x, total


class Split(nn.Module):
    """Standardizes one half of the channels, `split`, given the other half, `kept`."""

    conv: Conv = conv3x3_direct

    @nn.compact
    def __call__(self, kept: jax.Array, split: jax.Array, reverse: bool = False) -> tuple[jax.Array, jax.Array]:
        h = EdgeConv(2 * split.shape[-1], zero=True, conv=self.conv)(kept)
        return _standardize(split, h[..., 0::2], h[..., 1::2], reverse)


class Top(nn.Module):
    """Standardizes the channels left at the end, by a mean and scale that depend on the distance to the edges alone."""

    conv: Conv = conv3x3_direct

    @nn.compact
    def __call__(self, x: jax.Array, reverse: bool = False) -> tuple[jax.Array, jax.Array]:
        blank = jnp.zeros((1, *x.shape[1:3], 2 * x.shape[3]), x.dtype)
        mean, log_std = jnp.split(EdgeConv(2 * x.shape[3], zero=True, conv=self.conv)(blank), 2, axis=-1)
        return _standardize(x, jnp.broadcast_to(mean, x.shape), jnp.broadcast_to(log_std, x.shape), reverse)


def _standardize(x: jax.Array, mean: jax.Array, log_std: jax.Array, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """(x - mean) / std and its log-determinant [B], or the inverse of the map."""
    log_det = -log_std.reshape(len(x), -1).sum(1)
    if reverse:
        return mean + jnp.exp(log_std) * x, -log_det
    return (x - mean) * jnp.exp(-log_std), log_det


class Glow(nn.Module):
    """x [B, H, W, C] -> (noise, a list of arrays with as many numbers as x, log-determinant [B]), and back.

    Attributes:
      resolutions: number of resolutions, from half that of x downwards; 2^resolutions must divide the sides of x.
      steps: number of flow steps at each resolution.
      width: number of channels inside the couplings.
      conv: lowering of the 3x3 convolutions, see `layers`.
    """

    resolutions: int = 3
    steps: int = 32
    width: int = 512
    conv: Conv = conv3x3_direct

    def setup(self) -> None:
        self.flows = [[Step(self.width, self.conv) for _ in range(self.steps)] for _ in range(self.resolutions)]
        self.splits = [Split(self.conv) for _ in range(self.resolutions - 1)]
        self.top = Top(self.conv)

    def __call__(self, x: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        noise, total = [], jnp.zeros(len(x))
        for i, flow in enumerate(self.flows):
            x = squeeze(x)
            for step in flow:
                x, log_det = step(x)
                total = total + log_det
            if i < self.resolutions - 1:
                x, split = jnp.split(x, 2, axis=-1)
                split, log_det = self.splits[i](x, split)
                noise.append(split)
                total = total + log_det
        x, log_det = self.top(x)
        return [*noise, x], total + log_det

    def invert(self, noise: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """noise -> (x, log-determinant [B] of the inverse map)."""
        *splits, x = noise
        x, total = self.top(x, reverse=True)
        for i in reversed(range(self.resolutions)):
            if i < self.resolutions - 1:
                split, log_det = self.splits[i](x, splits[i], reverse=True)
                x, total = jnp.concatenate([x, split], axis=-1), total + log_det
            for step in reversed(self.flows[i]):
                x, log_det = step(x, reverse=True)
                total = total + log_det
            x = unsqueeze(x)
        return x, total

    def shapes(self, x_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Shapes of the noise for x of a shape [B, H, W, C]."""
        b, h, w, c = x_shape
        splits = []
        for _ in range(self.resolutions - 1):
            h, w, c = h // 2, w // 2, 2 * c
            splits.append((b, h, w, c))
        return [*splits, (b, h // 2, w // 2, 4 * c)]
