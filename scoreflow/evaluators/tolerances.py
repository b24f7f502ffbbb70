"""Cost and error of the adaptive probability-flow ODE over a grid of tolerances."""

import jax.numpy as jnp
import numpy as np

from scoreflow.draw import labels
from scoreflow.evaluators.context import Context, Results, Table, in_words
from scoreflow.experiment import EVALUATE
from scoreflow.metrics import mean_estimate
from scoreflow.runs import parallel
from scoreflow.samplers.adaptive import Adaptive
from scoreflow.types import CountOrZero, Numbers


def tolerances(
    context: Context,
    *,
    tolerances: CountOrZero = 0,
    rtols: Numbers = (1e-3, 1e-4, 1e-5),
    atols: Numbers = (1e-5, 1e-6),
) -> Results | None:
    """Evaluations of the score by the adaptive sampler.

    Args:
      context: the model and how it is evaluated.
      tolerances: Samples on which the adaptive sampler's evaluations are counted; 0 skips it.
      rtols: Relative tolerances, each with each of atols.
      atols: Absolute tolerances.
    """
    if not tolerances:
        return None
    metrics = tolerance_metrics(context, tolerances, rtols, atols)
    rows = [tuple(metrics[0]), *(tuple(in_words(value) for value in row.values()) for row in metrics)]
    return Results({"tolerances": metrics}, (Table("evaluations of the score by the adaptive sampler", rows),))


def tolerance_metrics(context: Context, samples: int, rtols: tuple[float, ...], atols: tuple[float, ...]) -> list[dict]:
    """For each pair of tolerances, from the same starts, cost and error.

    Returns:
      for each pair: rtol, atol; `nfe`, evaluations of the score for one sample; `apart`, root mean square distance per
      dimension to the sample at the tightest pair; `failed`, solves that gave up. A solver needs more evaluations where
      the field bends, so scores are compared by this at equal tolerances, and never across rows.
    """
    experiment, params, count = context.experiment, context.params, parallel.rounded_up(samples)
    model, shape = experiment.model, (count, *experiment.space.shape)
    start = parallel.shard(np.asarray(model.terminal(params).sample(experiment.key(EVALUATE), shape)))
    classes, max_steps = labels(experiment, count, 0, -1), context.options.max_steps
    cond = None if classes is None else parallel.shard(classes)
    grid = experiment.sampler.grid

    def solve(params, rtol, atol, x, cond):
        run, key = Adaptive(rtol, atol, max_steps), experiment.key(EVALUATE)
        result = run(model.process, model.score(params), key, x, grid, cond, denoise=False)
        return result.x, result.nfe

    run, rows, reference = parallel.map_devices(solve, broadcast=(0, 1, 2)), [], None
    for rtol, atol in sorted((r, a) for r in rtols for a in atols):
        x, nfe = parallel.gather(run(params, jnp.float32(rtol), jnp.float32(atol), start, cond))
        ok = np.isfinite(x.reshape(count, -1)).all(1)
        reference = x if reference is None else reference
        apart = np.sqrt(np.nanmean((x - reference).reshape(count, -1)[ok] ** 2)) if ok.any() else np.nan
        cost = {"nfe": mean_estimate(nfe[ok]), "apart": float(apart), "failed": int(np.sum(~ok))}
        rows.append({"rtol": rtol, "atol": atol, **cost})
    return rows
