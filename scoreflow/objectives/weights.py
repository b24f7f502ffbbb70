"""Weights on the squared noise error, as functions of time. See `dsm` for what they weigh."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scoreflow.processes.sdes import Process

Weight = Callable[[Process, jax.Array], jax.Array]
"""(process, t [B]) -> [B]."""


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


def edm_weight(sigma_data: float) -> Weight:
    """Karras et al. 2022: weight on the x_0 error (r^2 + s^2) / (r s)^2, r = sigma / alpha, written for (1).

    The x_0 error is r times the noise error, so r cancels: (r^2 + s^2) / s^2.
    """
    return snr_weight(lambda log_snr: jnp.exp(-log_snr) / sigma_data**2 + 1.0)
