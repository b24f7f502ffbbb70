"""A penalty on what keeps a score from being a gradient: quasi-conservative scores.

Chao et al. 2023, arXiv 2209.12753. The exact score is a gradient field, so its Jacobian J is symmetric; a network's
need not be. Added to any score-matching loss, per dimension,

    asym = (2 coefficient / d) weight(t) sigma(t)^2 |J - J^T|_F^2 / 2                                                (1)

pulls it there without a reverse pass in sampling. sigma^2 |J - J^T|^2 is the asymmetry of the noise predictor in units
of the data. The factor 2 / d makes `coefficient` the published lambda of the image code, whose first-order term is
|sigma s + noise|^2 / 2 summed over dimensions; in the code of the plane, without that 1/2, lambda is 2 coefficient.
"""

import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from scoreflow import divergence
from scoreflow.divergence import Form, Probe
from scoreflow.objectives import combine
from scoreflow.objectives.protocols import LossTerms
from scoreflow.objectives.weights import Weight, likelihood_weight, noise_weight
from scoreflow.processes.sdes import Process
from scoreflow.score import Score
from scoreflow.types import Cond, Count, Key, NonNegative, OneOf, Share

PenaltyWeight = Annotated[Weight, OneOf({"noise": noise_weight, "likelihood": likelihood_weight})]


def quasi_conservative(
    process: Process,
    score: Score,
    key: Key,
    xt: jax.Array,
    t: jax.Array,
    cond: Cond = None,
    *,
    coefficient: NonNegative = 1e-4,
    form: Form = divergence.b,
    probe: Probe = divergence.rademacher,
    num: Count = 1,
    weight: PenaltyWeight = noise_weight,
    every: Count = 1,
    fraction: Share = 1.0,
    step: jax.Array | int | None = None,
) -> LossTerms:
    """Penalty (1) on the antisymmetric part of the score's Jacobian, at noised data.

    Where a loss evaluates `score` at the same xt, XLA shares the forward pass.

    Args:
      process: the forward SDE.
      score: the score function being trained; with dropout, one whose mask does not change between calls.
      key: PRNG key of the probes.
      xt: noised data [B, ...].
      t: times [B].
      cond: what the network is told, see `types.Cond`.
      coefficient: lambda, the weight of the penalty.
      form: estimator of |J - J^T|^2; `b` has the least noise.
      probe: distribution of the random directions, or exact for all d of them, in few dimensions.
      num: number of probes for each example; not used by exact.
      weight: weight over time, as on the noise error, so that noise is the published sigma^2.
      every: interval in steps at which the penalty is computed, that many times as large.
      fraction: share of the batch on which the penalty is taken, scaled up so that its mean stays the same.
      step: training step; None to take the penalty whatever `every` is.

    Returns:
      {"asym": [B]}.
    """

    def penalty(scale: int) -> jax.Array:
        n, d = xt.shape[0], xt[0].size
        count = max(1, math.ceil(fraction * n))
        x, times, told = jax.tree.map(lambda leaf: leaf[:count], (xt, t, cond))
        estimate = _asymmetry(lambda x: score(x, times, told), key, x, form, probe, num)
        factor = 2.0 * (scale * coefficient) / d * n / count
        values = factor * weight(process, times) * process.variance(times) * estimate.asym
        return jnp.concatenate([values, jnp.zeros(n - count, values.dtype)])

    return {"asym": combine.every(step, every, penalty, lambda: jnp.zeros_like(t))}


def _asymmetry(field: Callable, key: Key, x: jax.Array, form: Form, probe: Probe, num: int) -> divergence.Asymmetry:
    """Of `field` at x [B, ...], along `num` probes or, without them, all directions."""
    if probe is None:
        return divergence.asymmetry_exact(field, x)
    v = jnp.stack([probe(k, x.shape, x.dtype) for k in jax.random.split(key, num)])
    return divergence.asymmetry(field, x, v, form=form)
