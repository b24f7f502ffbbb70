"""Denoising score matching.

    order1 = weight(t) |sigma(t) score(x_t, t) + noise|^2 / d                                                      (1)

weight 1 is the unweighted (noise-prediction) loss, g^2 / sigma^2 the likelihood weight: half its integral over time
bounds the KL divergence of the SDE model, in nats per dimension (Song et al. 2021, arXiv 2101.09258, theorem 1).
For data N(m, c^2 I) the minimum of (1) over all scores is weight(t) rho, rho = alpha^2 c^2 / (alpha^2 c^2 + sigma^2).
"""

import jax
import jax.numpy as jnp

from scoreflow.objectives.protocols import LossTerms, Penalty
from scoreflow.objectives.weights import Weight, noise_weight
from scoreflow.processes.sdes import Process, expand
from scoreflow.score import Score
from scoreflow.types import Cond, Key


def dsm(
    process: Process,
    score: Score,
    key: Key,
    x0: jax.Array,
    t: jax.Array,
    cond: Cond = None,
    *,
    weight: Weight = noise_weight,
    extra_terms: Penalty | None = None,
    step: jax.Array | int | None = None,
) -> LossTerms:
    """First-order denoising score matching (1).

    Args:
      process: the forward SDE.
      score: the score function being trained.
      key: PRNG key of the noise.
      x0: data [B, ...].
      t: times [B].
      cond: what the network is told, see `types.Cond`.
      weight: weight on the squared noise error.
      extra_terms: further terms at the same noised data, see `objectives.conservative`.
      step: ignored; other losses change during training.

    Returns:
      {"order1": [B]} and those of `extra_terms`, not divided by the density of t.
    """
    del step
    xt, noise, sigma = process.perturb(key, x0, t)
    error = expand(sigma, xt) * score(xt, t, cond) + noise
    terms = {"order1": weight(process, t) * jnp.mean(error.reshape(error.shape[0], -1) ** 2, axis=1)}
    if extra_terms is not None:
        terms |= extra_terms(process, score, jax.random.fold_in(key, 1), xt, t, cond)
    return terms
