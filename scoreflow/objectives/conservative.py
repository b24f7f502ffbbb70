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
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scoreflow import divergence
from scoreflow.objectives import LossTerms
from scoreflow.objectives.weights import Weight, noise_weight
from scoreflow.processes.sdes import Process
from scoreflow.score import ScoreFn


class Probes(NamedTuple):
    """How (1) is estimated: `num` probes of a `law` of `divergence` in a `form` of it; no law for all d directions."""

    law: Callable | None = divergence.rademacher
    num: int = 1
    form: Callable = divergence.b


ONE_PROBE = Probes()


def quasi_conservative(
    process: Process,
    score: ScoreFn,
    key: jax.Array,
    xt: jax.Array,
    t: jax.Array,
    cond: jax.Array | None = None,
    *,
    coefficient: float = 1e-4,
    probes: Probes = ONE_PROBE,
    weight: Weight = noise_weight,
    part: float = 1.0,
) -> LossTerms:
    """(1) at noised data. Where `score` is evaluated at the same xt beside it, XLA shares the forward pass.

    Args:
      process: the forward SDE.
      score: the score function being trained; with dropout, one whose mask does not change between calls.
      key: PRNG key of the probes.
      xt: noised data [B, ...].
      t: times [B].
      cond: labels [B] int32 or None.
      coefficient: lambda.
      probes: how |J - J^T|^2 is estimated.
      weight: as for the noise error, so that `noise_weight` is the published sigma^2.
      part: share of the batch on which it is taken, from its beginning; scaled up, so that the mean stays the same.

    Returns:
      {"asym": [B]}.
    """
    n, d = xt.shape[0], xt[0].size
    count = max(1, math.ceil(part * n))
    x, when, labels = xt[:count], t[:count], None if cond is None else cond[:count]
    field = lambda x: score(x, when, labels)
    if probes.law is None:
        found = divergence.asymmetry_exact(field, x)
    else:
        keys = jax.random.split(key, probes.num)
        v = jnp.stack([probes.law(k, x.shape, x.dtype) for k in keys])
        found = divergence.asymmetry(field, x, v, form=probes.form)
    scale = 2.0 * coefficient / d * n / count
    values = scale * weight(process, when) * process.variance(when) * found.asym
    return {"asym": jnp.concatenate([values, jnp.zeros(n - count, values.dtype)])}
