"""The same number for a uniform density and for a Gaussian mixture, where such a fit is cheap."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import dequantise
from scoreflow.evaluators.context import Context, Results, table_of
from scoreflow.experiment import EVALUATE
from scoreflow.metrics import baseline as classical
from scoreflow.types import Flag


def baseline(context: Context, *, baseline: Flag = True) -> Results | None:
    """What classical densities reach on the same data.

    Args:
      context: the model and how it is evaluated.
      baseline: Compare the likelihood with that of a Gaussian mixture, in up to 256 dimensions.
    """
    if not context.options.likelihood:
        return None
    metrics = baseline_metrics(context, mixture=baseline)
    return Results({"likelihood": metrics}, (table_of("classical densities", metrics),) if metrics else ())


def baseline_metrics(context: Context, *, mixture: bool = True) -> dict[str, Any]:
    """Bits/dim or nats of a uniform density and of a mixture, and the mixture's number of components."""
    data, bins = context.experiment.data, context.experiment.space.bins
    size = int(np.prod(data.shape))
    if data.num_levels and bins is None:
        return {"uniform_nats": size * float(np.log(2.0))}
    metrics: dict[str, Any] = {"uniform_bits_per_dim": float(np.log2(bins.num_levels))} if bins else {}
    if not mixture or size > classical.MAX_DIMENSIONS or (bins and bins.num_levels != data.num_levels):
        return metrics
    rows = []
    for i, split in enumerate((data.train, data.test)):
        x = np.asarray(split.x[:20_000])
        if bins:
            key = jax.random.fold_in(context.experiment.key(EVALUATE), 1000 + i)
            x = np.asarray(dequantise.uniform(key, jnp.asarray(x), bins).x)
        rows.append(np.asarray(x, np.float64).reshape(len(x), -1))
    fitted = classical.gaussian_mixture(*rows)
    if bins:
        value = float(dequantise.bits_per_dim(jnp.asarray(fitted.log_prob), jnp.zeros(()), size, bins))
        return {**metrics, "mixture_bits_per_dim": value, "mixture_components": fitted.components}
    return {"mixture_nats": -fitted.log_prob, "mixture_components": fitted.components}
