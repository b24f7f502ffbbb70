"""Between integer grey levels and the continuous x that a model in data space sees; for VAEs see `latent`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Bins(NamedTuple):
    """Where levels lie: level k of `num_levels` stands for [low + k w, low + (k + 1) w), w = width / num_levels.

    Data in [-1, 1] unless said; Bins(num_levels, 0.0, 1.0) for data in [0, 1].
    """

    num_levels: int
    low: float = -1.0
    width: float = 2.0

    @property
    def size(self) -> float:
        """Width of one bin."""
        return self.width / self.num_levels

    def place(self, image: jax.Array, within: jax.Array | float) -> jax.Array:
        """x [B, ...] at a share `within`, 0 to 1, of the bin of each level; float32."""
        return self.low + self.size * (image.astype(jnp.float32) + within)


class Dequantised(NamedTuple):
    """Continuous data `x` [B, ...] and `log_q` [B], the log-density of the noise in units of a bin, nats."""

    x: jax.Array
    log_q: jax.Array


def uniform(key: jax.Array, image: jax.Array, bins: Bins) -> Dequantised:
    """x uniform in the bin of each level, so log_q = 0. Image [B, ...] uint8 holds levels 0 ... num_levels - 1."""
    return Dequantised(bins.place(image, jax.random.uniform(key, image.shape)), jnp.zeros(image.shape[0]))


def truncated_normal(key: jax.Array, image: jax.Array, bins: Bins, *, alpha: float, sigma: float) -> Dequantised:
    """x = alpha center + sigma z, z standard normal cut off at the bin's ends: a point of x_t at alpha(t), sigma(t).

    For a likelihood that begins at that t, whose noise is then the model's own (Zheng et al. 2023, arXiv 2305.03935):
    nothing has to be learnt about the noise. It is right where the cut is far out, alpha size / (2 sigma) near 3: a
    longer cut makes neighboring bins overlap in p but not in q, a shorter one makes q close to uniform.
    """
    cut = 0.5 * alpha * bins.size / sigma
    z = jax.random.truncated_normal(key, -cut, cut, image.shape)
    log_mass = jnp.log(jax.scipy.special.erf(cut / np.sqrt(2.0)))
    # the density of x, times a bin's width
    log_q = jax.scipy.stats.norm.logpdf(z) - jnp.log(sigma) - log_mass + np.log(bins.size)
    return Dequantised(alpha * bins.place(image, 0.5) + sigma * z, log_q.reshape(image.shape[0], -1).sum(1))


def variational(
    key: jax.Array, image: jax.Array, bins: Bins, *, flow: Callable[..., tuple[jax.Array, jax.Array]]
) -> Dequantised:
    """x in the bin of each level by a learnt law of the noise given the image (Ho et al. 2019, arXiv 1902.00275).

    Args:
      flow: (key, image centered in [-1, 1]) -> noise in [0, 1] like the image, and its log-density [B]; see
        `models.dequantiser`. Bits/dim with any flow bound the discrete model's from above; the better the flow, the
        closer.
    """
    noise, log_q = flow(key, Bins(bins.num_levels).place(image, 0.5))
    return Dequantised(bins.place(image, noise), log_q)


def center(key: jax.Array, image: jax.Array, bins: Bins) -> Dequantised:
    """x at the middle of each bin: no noise. For training only; a density at such points bounds nothing."""
    del key
    return Dequantised(bins.place(image, 0.5), jnp.full(image.shape[0], jnp.nan))


def quantise(x: jax.Array, bins: Bins) -> jax.Array:
    """The level whose bin holds x, uint8; values outside go to the nearest end."""
    return jnp.clip(jnp.floor((x - bins.low) / bins.size), 0, bins.num_levels - 1).astype(jnp.uint8)


def bits_per_dim(log_p: jax.Array, log_q: jax.Array, event_size: int, bins: Bins) -> jax.Array:
    """Bits per dimension of integer data from the density at their dequantised x.

        -(log_p - log_q) / (d log 2) - log2(size of a bin)

    The last term is the change of units from x to bins, for 256 levels 7 where data are in [-1, 1] and 8 in [0, 1]: a
    density uniform on all bins scores log2(num_levels).

    Args:
      log_p: log-density of x in nats, [B].
      log_q: log-density of the dequantization noise in units of a bin, nats, [B].
      event_size: d, the number of dimensions of one example.
      bins: where the levels lie.

    Returns:
      [B]; its mean bounds the discrete model's from above.
    """
    return -(log_p - log_q) / (event_size * np.log(2.0)) - np.log2(bins.size)
