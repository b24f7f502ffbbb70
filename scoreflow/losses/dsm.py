"""Denoising score matching.

    order1 = weight(t) |sigma(t) score(x_t, t) + noise|^2 / d                                                      (1)

weight 1 is the unweighted (noise-prediction) loss, g^2 / sigma^2 the likelihood weight: half its integral over time
bounds the KL divergence of the SDE model, in nats per dimension (Song et al. 2021, arXiv 2101.09258, theorem 1).
For data N(m, c^2 I) the minimum of (1) over all scores is weight(t) rho, rho = alpha^2 c^2 / (alpha^2 c^2 + sigma^2).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scoreflow.losses import Also, LossTerms
from scoreflow.score import ScoreFn
from scoreflow.sdes import Process, expand

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


def edm_weight(data_rms: float) -> Weight:
    """Karras et al. 2022: weight on the x_0 error (r^2 + s^2) / (r s)^2, r = sigma / alpha, written for (1).

    The x_0 error is r times the noise error, so r cancels: (r^2 + s^2) / s^2.
    """
    return snr_weight(lambda log_snr: jnp.exp(-log_snr) / data_rms**2 + 1.0)


def dsm(
    process: Process,
    score: ScoreFn,
    key: jax.Array,
    x0: jax.Array,
    t: jax.Array,
    cond: jax.Array | None = None,
    *,
    weight: Weight = noise_weight,
    also: Also | None = None,
) -> LossTerms:
    """First-order denoising score matching (1).

    Args:
      process: the forward SDE.
      score: the score function being trained.
      key: PRNG key of the noise.
      x0: data [B, ...].
      t: times [B].
      cond: labels [B] int32 or None.
      weight: weight on the squared noise error.
      also: further terms at the same noised data, see `losses.conservative`.

    Returns:
      {"order1": [B]} and those of `also`, not divided by the density of t.
    """
    xt, noise, sigma = process.perturb(key, x0, t)
    error = expand(sigma, xt) * score(xt, t, cond) + noise
    terms = {"order1": weight(process, t) * jnp.mean(error.reshape(error.shape[0], -1) ** 2, axis=1)}
    return terms if also is None else terms | also(process, score, jax.random.fold_in(key, 1), xt, t, cond)
