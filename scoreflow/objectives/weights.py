"""Weights on the squared noise error, as functions of time. See `dsm` for what they weigh.

Every weight is (process, t, *, settings) -> [B].
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from scoreflow.processes.sdes import Process
from scoreflow.types import Number, Positive, PositiveOrAuto


class Weight(Protocol):
    """A weight with its settings bound."""

    def __call__(self, process: Process, t: jax.Array) -> jax.Array:
        """The weight at times t [B], [B]."""
        ...


def noise_weight(process: Process, t: jax.Array) -> jax.Array:
    """1: every noise level counts alike."""
    return jnp.ones_like(t)


def likelihood_weight(process: Process, t: jax.Array) -> jax.Array:
    """g^2 / sigma^2: the weight under which the loss bounds the likelihood."""
    return process.diffusion_sq(t) / process.variance(t)


def diffusion_weight(process: Process, t: jax.Array) -> jax.Array:
    """g^2: between the two, and bounded where sigma goes to 0 (Vahdat et al. 2021's reweighted loss)."""
    return process.diffusion_sq(t)


def snr_weight(function: Callable[[jax.Array], jax.Array]) -> Weight:
    """Any function of log-SNR, [B] -> [B]."""
    return lambda process, t: function(process.log_snr(t))


def edm_weight(process: Process, t: jax.Array, *, sigma_data: PositiveOrAuto = 0.5) -> jax.Array:
    """Karras et al. 2022: on the x_0 error (r^2 + s^2) / (r s)^2, r = sigma / alpha, written for the noise error.

    The x_0 error is r times the noise error, so r cancels: (r^2 + s^2) / s^2.

    Args:
      process: the forward SDE.
      t: times [B].
      sigma_data: root mean square s of the data, in the units of x; `auto` measures it.
    """
    return jnp.exp(-process.log_snr(t)) / sigma_data**2 + 1.0


def min_snr_weight(process: Process, t: jax.Array, *, gamma: Positive = 5.0) -> jax.Array:
    """min(SNR, gamma) / SNR (Hang et al. 2023, arXiv 2303.09556).

    Args:
      process: the forward SDE.
      t: times [B].
      gamma: signal-to-noise ratio below which every noise level counts alike.
    """
    return jnp.minimum(1.0, gamma * jnp.exp(-process.log_snr(t)))


def sigmoid_weight(process: Process, t: jax.Array, *, bias: Number = 0.0) -> jax.Array:
    """sigmoid(bias - log-SNR) (Kingma, Gao 2023, arXiv 2303.00848).

    Args:
      process: the forward SDE.
      t: times [B].
      bias: log-SNR at which the weight is one half.
    """
    return jax.nn.sigmoid(bias - process.log_snr(t))
