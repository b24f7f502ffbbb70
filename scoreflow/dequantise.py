"""Between integer grey levels and the continuous x in [-1, 1] that the model sees. The only file that knows of levels.

Level k of L stands for the bin [2 k / L - 1, 2 (k + 1) / L - 1) of width 2 / L.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Dequantised(NamedTuple):
    """Continuous data `x` [B, ...] and `log_q` [B], the log-density of the noise in units of a bin, nats."""

    x: jax.Array
    log_q: jax.Array


def uniform(key: jax.Array, image: jax.Array, levels: int) -> Dequantised:
    """x uniform in the bin of each level, so log_q = 0. Image [B, ...] uint8 holds levels 0 ... levels - 1."""
    x = image.astype(jnp.float32) + jax.random.uniform(key, image.shape)
    return Dequantised(2.0 * x / levels - 1.0, jnp.zeros(image.shape[0]))


def truncated_normal(key: jax.Array, image: jax.Array, levels: int, *, alpha: float, sigma: float) -> Dequantised:
    """x = alpha centre + sigma z, z standard normal cut off at the bin's ends: a point of x_t at alpha(t), sigma(t).

    For a likelihood that begins at that t, whose noise is then the model's own (Zheng et al. 2023, arXiv 2305.03935):
    nothing has to be learnt about the noise. It is right where the cut is far out, alpha / (levels sigma) near 3: a
    longer cut makes neighbouring bins overlap in p but not in q, a shorter one makes q close to uniform.
    """
    cut = alpha / (levels * sigma)
    z = jax.random.truncated_normal(key, -cut, cut, image.shape)
    x = alpha * (2.0 * (image.astype(jnp.float32) + 0.5) / levels - 1.0) + sigma * z
    log_mass = jnp.log(jax.scipy.special.erf(cut / np.sqrt(2.0)))
    # the density of x, times 2 / levels: a bin's width
    log_q = jax.scipy.stats.norm.logpdf(z) - jnp.log(sigma) - log_mass + np.log(2.0 / levels)
    return Dequantised(x, log_q.reshape(image.shape[0], -1).sum(1))


def centre(key: jax.Array, image: jax.Array, levels: int) -> Dequantised:
    """x at the middle of each bin: no noise. For training only; a density at such points bounds nothing."""
    del key
    return Dequantised(2.0 * (image.astype(jnp.float32) + 0.5) / levels - 1.0, jnp.full(image.shape[0], jnp.nan))


def quantise(x: jax.Array, levels: int) -> jax.Array:
    """The level whose bin holds x, uint8; values outside [-1, 1] go to the nearest end."""
    return jnp.clip(jnp.floor(0.5 * levels * (x + 1.0)), 0, levels - 1).astype(jnp.uint8)


def bits_per_dim(log_p: jax.Array, log_q: jax.Array, event_size: int, levels: int) -> jax.Array:
    """Bits per dimension of integer data from the density at their dequantised x.

        -(log_p - log_q) / (d log 2) + log2(levels / 2)

    The last term is the change of units from x to bins: a density uniform on [-1, 1]^d scores log2(levels).

    Args:
      log_p: log-density of x in nats, [B].
      log_q: log-density of the dequantisation noise in units of a bin, nats, [B].
      event_size: d, the number of dimensions of one example.
      levels: number of grey levels.

    Returns:
      [B]; its mean bounds the discrete model's from above.
    """
    return -(log_p - log_q) / (event_size * np.log(2.0)) + np.log2(levels / 2.0)
