"""Conversion between integer gray levels and the continuous x of a model in data space; for VAEs see `latent`."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.types import Key


class Bins(NamedTuple):
    """The bins of the levels: level k of `num_levels` is [low + k w, low + (k + 1) w) with w = width / num_levels.

    By default the data are in [-1, 1]; Bins(num_levels, 0.0, 1.0) puts them in [0, 1].
    """

    num_levels: int
    low: float = -1.0
    width: float = 2.0

    @property
    def size(self) -> float:
        """Width of one bin."""
        return self.width / self.num_levels

    def place(self, image: jax.Array, fraction: jax.Array | float) -> jax.Array:
        """x [B, ...] at a fraction, 0 to 1, of the bin of each level; float32."""
        return self.low + self.size * (image.astype(jnp.float32) + fraction)


class Dequantised(NamedTuple):
    """Continuous data `x` [B, ...], and `log_q` [B], the log-density of the noise in nats, in units of a bin."""

    x: jax.Array
    log_q: jax.Array


class Dequantiser(Protocol):
    """The interface of a dequantization rule whose options, if it has any, are bound."""

    def __call__(self, key: Key, image: jax.Array, bins: Bins, /) -> Dequantised:
        """Continuous data for an image [B, ...] of levels 0 ... num_levels - 1, uint8."""
        ...


def uniform(key: Key, image: jax.Array, bins: Bins) -> Dequantised:
    """x uniform in the bin of each level, so log_q = 0. The image [B, ...] uint8 has levels 0 ... num_levels - 1."""
    return Dequantised(bins.place(image, jax.random.uniform(key, image.shape)), jnp.zeros(image.shape[0]))


def truncated_normal(
    key: Key, image: jax.Array, bins: Bins, *, alpha: jax.Array | float, sigma: jax.Array | float
) -> Dequantised:
    """x = alpha center + sigma z, z standard normal cut off at the bin's ends: a point of x_t at alpha(t), sigma(t).

    It is for a likelihood that begins at that t, whose noise is then the model's own, so that nothing has to be learned
    about the noise (Zheng et al. 2023, arXiv 2305.03935). It is accurate where the cut is far out, at
    alpha size / (2 sigma) near 3. With a farther cut, neighboring bins overlap in p but not in q; with a nearer one, q
    is close to uniform.

    Args:
      key: PRNG key.
      image: levels [B, ...] uint8.
      bins: the bins of the levels.
      alpha, sigma: the scales of the signal and of the noise at t.
    """
    cut = 0.5 * alpha * bins.size / sigma
    z = jax.random.truncated_normal(key, -cut, cut, image.shape)
    log_mass = jnp.log(jax.scipy.special.erf(cut / np.sqrt(2.0)))
    # the density of x, times a bin's width
    log_q = jax.scipy.stats.norm.logpdf(z) - jnp.log(sigma) - log_mass + np.log(bins.size)
    return Dequantised(alpha * bins.place(image, 0.5) + sigma * z, log_q.reshape(image.shape[0], -1).sum(1))


def variational(
    key: Key, image: jax.Array, bins: Bins, *, flow: Callable[..., tuple[jax.Array, jax.Array]]
) -> Dequantised:
    """x in the bin of each level, with noise whose distribution given the image is learned.

    Ho et al. 2019, arXiv 1902.00275. With any flow, the bits/dim are an upper bound of those of the discrete model; a
    better flow makes the bound tighter.

    Args:
      key: PRNG key.
      image: levels [B, ...] uint8.
      bins: the bins of the levels.
      flow: (key, image centered in [-1, 1]) -> noise in [0, 1] like the image, and its log-density [B]; see
        `models.dequantiser`.
    """
    noise, log_q = flow(key, Bins(bins.num_levels).place(image, 0.5))
    return Dequantised(bins.place(image, noise), log_q)


def center(key: Key, image: jax.Array, bins: Bins) -> Dequantised:
    """x at the middle of each bin, without noise. It is for training alone; a density at such points bounds nothing."""
    del key
    return Dequantised(bins.place(image, 0.5), jnp.full(image.shape[0], jnp.nan))


def quantise(x: jax.Array, bins: Bins) -> jax.Array:
    """The level whose bin contains x, uint8; values outside are clipped to the nearest level."""
    return jnp.clip(jnp.floor((x - bins.low) / bins.size), 0, bins.num_levels - 1).astype(jnp.uint8)


def bits_per_dim(log_p: jax.Array, log_q: jax.Array | float, event_size: int, bins: Bins) -> jax.Array:
    """Bits per dimension of integer data from the density at their dequantised x.

        -(log_p - log_q) / (d log 2) - log2(size of a bin)

    The last term changes the units from x to bins. For 256 levels it is 7 where the data are in [-1, 1] and 8 where
    they are in [0, 1]. A density uniform on all bins scores log2(num_levels).

    Args:
      log_p: log-density of x in nats, [B].
      log_q: log-density of the dequantization noise in nats, in units of a bin, [B].
      event_size: d, the number of dimensions of one example.
      bins: the bins of the levels.

    Returns:
      Bits per dimension [B]; their mean is an upper bound of that of the discrete model.
    """
    return -(log_p - log_q) / (event_size * np.log(2.0)) - np.log2(bins.size)


RULES: Mapping[str, Callable[..., Dequantised]] = {
    "uniform": uniform,
    "truncated_normal": truncated_normal,  # for evaluation alone; alpha and sigma are those of its first time
    "variational": variational,  # for evaluation alone; the flow is a trained one
    "none": center,  # for training alone
}
"""The dequantization rules by their names in a config. Each is a `Dequantiser` once its options are bound."""
