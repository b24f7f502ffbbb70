"""Guidance: score functions made of score functions. Samplers and likelihoods never know."""

import jax
import jax.numpy as jnp

from scoreflow.processes.sdes import Process, expand
from scoreflow.score import Score, denoised
from scoreflow.types import Cond


def classifier_free(score: Score, scale: float) -> Score:
    """(1 - scale) score(x, t) + scale score(x, t, cond) (Ho, Salimans 2022, with scale = 1 + their w).

    scale 0 is the unconditional score, 1 the conditional one, above 1 guides. Two evaluations for one.
    """

    def guided(x: jax.Array, t: jax.Array, cond: Cond = None) -> jax.Array:
        free = score(x, t, None)
        return free + scale * (score(x, t, cond) - free)

    return guided


def posterior_variance(process: Process, t: jax.Array, sigma_data: float) -> jax.Array:
    """Var(x_0 | x_t) of independent Gaussian pixels of the given root mean square, [B] (Song et al. 2023, PiGDM)."""
    alpha_sq, variance = process.alpha(t) ** 2, process.variance(t)
    return variance * sigma_data**2 / (alpha_sq * sigma_data**2 + variance)


def inpaint(
    process: Process,
    score: Score,
    known: jax.Array,
    mask: jax.Array,
    *,
    sigma_data: float = 1.0,
    strength: float = 1.0,
) -> Score:
    """The score of x_t given that x_0 = known where mask is 1.

    Known pixels follow the exact score of q(x_t | x_0 = known), so they end at their values. Unknown pixels follow
    score + strength grad log N(known; E[x_0 | x_t], r^2) with the gradient through the network and r^2 from
    `posterior_variance`. With strength 1 that is exact where the data are Gaussian and r^2 is the known pixels'
    posterior variance; otherwise it is an approximation (Song et al. 2023, "Pseudoinverse-guided diffusion models").

    Args:
      process: the forward SDE.
      score: (x [B, ...], t [B], cond) -> [B, ...].
      known: [B, ...], read only where mask is 1.
      mask: 0 or 1, broadcastable to `known`.
      sigma_data: root mean square of the data.
      strength: of the gradient term; 0 leaves it out, and with it the reverse pass.
    """

    def conditional(x: jax.Array, t: jax.Array, cond: Cond = None) -> jax.Array:
        alpha, variance = expand(process.alpha(t), x), expand(process.variance(t), x)
        pinned = (alpha * known - x) / variance
        if strength == 0.0:
            return jnp.where(mask == 1, pinned, score(x, t, cond))
        x0, pull_back = jax.vjp(lambda x: denoised(process, score, x, t, cond), x)
        r2 = expand(posterior_variance(process, t, sigma_data), x)
        (gradient,) = pull_back(mask * (known - x0) / r2)
        free = (alpha * x0 - x) / variance
        return jnp.where(mask == 1, pinned, free + strength * gradient)

    return conditional
