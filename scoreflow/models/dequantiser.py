"""A conditional flow of the noise inside the bins of an image, for variational dequantization.

The flow applies couplings to logistic noise z, followed by a sigmoid to (0, 1). A coupling keeps the cells of one color
of a checkerboard and moves each of the others by the increasing map (Ho et al. 2019, arXiv 1902.00275, section 3)

    z -> exp(a) logit(mixture of logistic distribution functions at z) + b                                          (1)

whose parameters a convolutional network computes from the cells that are kept and the image. All couplings start as the
identity, with which the noise is uniform. Only the direction from noise to bins is needed, so (1) is never inverted.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoreflow.models import Init
from scoreflow.models.layers import Conv3x3, SelfAttention, zeros
from scoreflow.types import Count, CountOrZero, Key, Params


class _Residual(nn.Module):
    """A residual block that keeps the shape and starts as the identity."""

    num_heads: int = 0

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        features = h.shape[-1]
        h = h + Conv3x3(features, init_zero=True)(nn.silu(Conv3x3(features)(nn.silu(h))))
        return SelfAttention(self.num_heads)(h) if self.num_heads else h


def logistic_mixture(
    z: jax.Array, logits: jax.Array, means: jax.Array, log_scales: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """logit F(z) for a mixture F of logistic distribution functions, and the log of its derivative in z; like z.

    Args:
      z: [...].
      logits, means, log_scales: parameters of the M components, [..., M].
    """
    log_weight = jax.nn.log_softmax(logits)
    standard = (z[..., None] - means) * jnp.exp(-log_scales)
    below, above = jax.nn.log_sigmoid(standard), jax.nn.log_sigmoid(-standard)
    log_cdf, log_rest, log_pdf = (
        jax.nn.logsumexp(log_weight + term, axis=-1) for term in (below, above, below + above - log_scales)
    )
    return log_cdf - log_rest, log_pdf - log_cdf - log_rest


class DequantisingFlow(nn.Module):
    """A flow of checkerboard couplings that makes the noise inside each level's bin, given the image.

    It maps (logistic noise z [B, H, W, C], image [B, H, W, C] in [-1, 1]) to (noise in (0, 1), its log-density [B]).

    Attributes:
      couplings: Number of couplings, whose colors alternate.
      channels: Width of the couplings' networks.
      blocks: Number of residual blocks in each coupling's network.
      components: Number M of logistic components in the map of a coupling.
      num_heads: Number of heads of the self-attention after each block; 0 for no attention.
      context: Width of the image's features, which all couplings share.
    """

    couplings: Count = 4
    channels: Count = 32
    blocks: Count = 2
    components: Count = 4
    num_heads: CountOrZero = 0
    context: Count = 32

    @nn.compact
    def __call__(self, z: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, height, width, features = z.shape
        color = jnp.add.outer(jnp.arange(height), jnp.arange(width))[None, :, :, None] % 2
        context = Conv3x3(self.context)(nn.silu(Conv3x3(self.context)(image)))
        log_density = jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z)
        for i in range(self.couplings):
            kept = (color == i % 2).astype(z.dtype)
            h = Conv3x3(self.channels)(jnp.concatenate([kept * z, jnp.broadcast_to(kept, z.shape), context], axis=-1))
            for _ in range(self.blocks):
                h = _Residual(self.num_heads)(h)
            h = nn.silu(h)
            shift, stretch = jnp.split(nn.Dense(2 * features, kernel_init=zeros)(h), 2, axis=-1)
            # the components start alike, so random weights are needed to make them differ
            shape = (*z.shape, self.components)
            logits = nn.Dense(features * self.components)(h).reshape(shape)
            means, log_scales = (
                nn.Dense(features * self.components, kernel_init=zeros)(h).reshape(shape) for _ in range(2)
            )
            moved, slope = logistic_mixture(z, logits, means, jnp.clip(log_scales, -7.0, 7.0))
            stretch = 2.0 * jnp.tanh(0.5 * stretch)
            z = jnp.where(kept == 1, z, jnp.exp(stretch) * moved + shift)
            log_density = log_density - jnp.where(kept == 1, 0.0, slope + stretch)
        log_density = log_density - jax.nn.log_sigmoid(z) - jax.nn.log_sigmoid(-z)
        # float32 rounds a sigmoid near 1 to 1, which is the next bin
        noise = jnp.minimum(jax.nn.sigmoid(z), 1.0 - 2.0**-24)
        return noise, log_density.reshape(len(z), -1).sum(1)


class NoiseFlow(NamedTuple):
    """The flow as functions of their arguments alone.

    Attributes:
      init: (key, image shape [B, H, W, C]) -> params.
      apply: (params, key, image [B, H, W, C] in [-1, 1]) -> (noise in (0, 1) like the image, its log-density [B]).
    """

    init: Init
    apply: Callable[[Params, Key, jax.Array], tuple[jax.Array, jax.Array]]


def dequantiser(module: DequantisingFlow) -> NoiseFlow:
    """Wraps the module of a flow; its `apply` also draws the logistic noise."""

    def init(key: Key, x_shape: tuple[int, ...]) -> Params:
        x = jnp.zeros((1, *x_shape[1:]))
        return module.init(key, x, x)["params"]

    def apply(params: Params, key: Key, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise = module.apply({"params": params}, jax.random.logistic(key, image.shape), image)
        return cast(tuple[jax.Array, jax.Array], noise)

    return NoiseFlow(init, apply)
