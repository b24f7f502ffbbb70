"""The SDE model's bound in bits/dim or nats, and its terms before the change of units."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import likelihood
from scoreflow.evaluators.context import Context, Results, table_of
from scoreflow.evaluators.density import fit_gaussian, pilot_examples
from scoreflow.gaussian import Gaussian
from scoreflow.metrics import mean_estimate
from scoreflow.objectives import times
from scoreflow.types import CountOrZero

_FLOOR = 0.05  # of the density of times, of its maximum: the pilot is small
_TINY = 1e-20  # where the Gaussian leaves nothing


def bound(context: Context, *, bound_times: CountOrZero = 0) -> Results | None:
    """The bound on the test data, in the first draw of dequantization noise.

    Args:
      context: the model and how it is evaluated.
      bound_times: Times per example for the bound of the SDE model; 0 skips it.
    """
    if not (context.options.likelihood and bound_times):
        return None
    model, data = context.model, context.examples()

    def estimate(inputs, keys, x, cond):
        params, gaussian, rate = inputs
        options = {"t_min": model.t_min, "num_times": bound_times, "gaussian": gaussian}
        sample_times = functools.partial(times.by_cells, rate=rate)
        score, terminal = model.score(params), model.terminal(params)
        return likelihood.bound(model.process, score, terminal, keys, x, cond, sample_times=sample_times, **options)

    gaussian = fit_gaussian(context)
    inputs = (context.params, gaussian, time_density(context, gaussian))
    estimates = context.in_batches(estimate)("bound", inputs, data.keys, data.x, data.cond)
    terms = {
        f"bound_{name}": float(np.mean(getattr(estimates, name)) / context.scale)
        for name in ("prior", "diffusion", "offset")
    }
    per_example = context.in_unit(-estimates.total, data.log_q)
    metrics = {"bound": mean_estimate(per_example), **terms}
    if context.experiment.space.latent is not None:
        metrics["bound_cross_entropy"] = mean_estimate(np.asarray(estimates.total, np.float64) / context.scale)
    table = table_of(f"bound of the SDE model, {context.unit}", metrics)
    return Results({"likelihood": metrics}, (table,), {"bound": per_example})


def time_density(context: Context, gaussian: Gaussian) -> jax.Array:
    """The density of times in log-SNR, by cells, that leaves the least noise on the pilot's training examples."""
    model, data = context.model, pilot_examples(context)

    def noise(inputs, keys, x, cond):
        params, gaussian = inputs
        return likelihood.bound_noise(
            model.process, model.score(params), keys, x, cond, t_min=model.t_min, gaussian=gaussian
        )

    variance = context.in_batches(noise)("bound-pilot", (context.params, gaussian), data.keys, data.x, data.cond)
    rate = np.sqrt(np.nanmean(np.asarray(variance, np.float64), axis=0))
    smooth = np.convolve(np.pad(rate, 2, mode="edge"), np.full(5, 0.2), mode="valid")
    return jnp.asarray(np.maximum(smooth, _FLOOR * smooth.max() + _TINY), jnp.float32)
