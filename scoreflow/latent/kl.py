"""The KL divergence of an encoder from N(0, I): its sums, its coefficient in training, and its balance over groups.

Vahdat, Kautz 2020 (arXiv 2007.03898); Vahdat et al. 2021 (arXiv 2106.05931), appendix.
"""

import jax
import jax.numpy as jnp
import numpy as np


def log_q_of(log_q: jax.Array, log_std: jax.Array, *, closed: bool) -> jax.Array:
    """A Gaussian's log-density at a draw or, if `closed`, its mean over draws, -log std - log(2 pi e) / 2; like log_q.

    Both are in nats. Their gradients are the same: 0 in the mean and -1 in each log std.
    """
    return -log_std - 0.5 * jnp.log(2 * np.pi * np.e) if closed else log_q


def example_sums(each: jax.Array) -> jax.Array:
    """[B]: sums of [B, ...]."""
    return each.reshape(len(each), -1).sum(1)


def group_sums(each: jax.Array, groups: int) -> jax.Array:
    """[B, groups]: sums of [B, ..., C] over all positions and the channels of each of `groups` equal groups."""
    return each.reshape(len(each), -1, groups, each.shape[-1] // groups).sum((1, 3))


def channel_sums(each: jax.Array) -> jax.Array:
    """[B, C]: sums of [B, ..., C] over pixels."""
    return each.reshape(len(each), -1, each.shape[-1]).sum(1)


def kl_coefficient(step: jax.Array, *, low: float, high: float, constant: float, ramp: float) -> jax.Array:
    """`low` for the first `constant` steps, then along a line of `ramp` steps to `high`."""
    return jnp.clip(low + (high - low) * (step - constant) / ramp, min(low, high), max(low, high))


def balance(kl: jax.Array, sizes: jax.Array) -> jax.Array:
    """Factors [G], mean 1, without gradient, by which the groups' divergences kl [B, G] are multiplied.

    Groups with a large divergence are penalized more, so that none becomes inactive while the coefficient is below 1.

    Args:
      kl: divergences of the groups, [B, G].
      sizes: [G], 4^s / (groups in the scale) for a group in scale s, 0 being the coarsest: the divergence that may be
        expected of a group, up to a common factor.
    """
    factors = (jnp.mean(jnp.abs(kl), axis=0) + 0.01) / (sizes / jnp.min(sizes))
    return jax.lax.stop_gradient(factors / jnp.mean(factors))


def active(kl: jax.Array, least: float = 0.1) -> jax.Array:
    """Which channels carry information, [C] bool: the mean of their kl [B, C] (nats, over pixels) is above `least`."""
    return jnp.mean(kl, axis=0) > least
