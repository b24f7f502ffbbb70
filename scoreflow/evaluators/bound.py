"""The SDE model's bound in bits/dim or nats, and its terms before the change of units."""

import numpy as np

from scoreflow import likelihood
from scoreflow.evaluators.context import Context, Results, table_of
from scoreflow.metrics import mean_estimate
from scoreflow.types import CountOrZero


def bound(context: Context, *, bound_times: CountOrZero = 0) -> Results | None:
    """The bound on the test data, in the first draw of dequantization noise.

    Args:
      context: the model and how it is evaluated.
      bound_times: Times per example for the bound of the SDE model; 0 skips it.
    """
    if not (context.options.likelihood and bound_times):
        return None
    model, data = context.experiment.model, context.examples()

    def estimate(params, keys, x, cond):
        score, terminal = model.score(params), model.terminal(params)
        return likelihood.bound(model.process, score, terminal, keys, x, cond, t_min=model.t_min, num_times=bound_times)

    estimates = context.in_batches(estimate)("bound", context.params, data.keys, data.x, data.cond)
    terms = {
        f"bound_{name}": float(np.mean(getattr(estimates, name)) / context.scale)
        for name in ("prior", "diffusion", "offset")
    }
    metrics = {"bound": mean_estimate(context.in_unit(-estimates.total, data.log_q)), **terms}
    if context.experiment.space.latent is not None:
        metrics["bound_cross_entropy"] = mean_estimate(np.asarray(estimates.total, np.float64) / context.scale)
    return Results({"likelihood": metrics}, (table_of(f"bound of the SDE model, {context.unit}", metrics),))
