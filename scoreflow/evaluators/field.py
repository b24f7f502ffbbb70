"""What is asked of a score as a vector field: asymmetry over time, error where the truth is known, and stiffness."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from scoreflow.evaluators.density import dequantised, in_batches
from scoreflow.evaluators.settings import EvalPlan
from scoreflow.experiment import EVALUATE, Experiment
from scoreflow.likelihood.diagnostics import rotation, score_error, symmetry
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.runs import parallel
from scoreflow.sample import labels
from scoreflow.samplers.adaptive import adaptive_ode


class Curves(NamedTuple):
    """Means over examples at times `t` [T], by name [T]."""

    t: np.ndarray
    values: dict[str, np.ndarray]


def symmetry_metrics(experiment: Experiment, plan: EvalPlan, params) -> tuple[dict[str, Estimate], Curves]:
    """Means over examples and `plan.symmetry_times` even times from t_min on of `diagnostics.symmetry`, and curves."""
    process, size = experiment.process, plan.symmetry_times
    data = dequantised(experiment, plan, params, 0).first(plan.symmetry)
    t = experiment.t_min + (float(process.horizon) - experiment.t_min) * np.arange(size) / size

    def solve(params, keys, x, cond):
        score = experiment.score(params)
        return symmetry(process, score, keys[0], x, jnp.asarray(t, x.dtype), cond, num=plan.symmetry_probes)

    found = in_batches(solve, plan)("symmetry", params, data.keys, data.x, data.cond)._asdict()
    metrics = {name: mean_estimate(value.mean(1)) for name, value in found.items()}
    return metrics, Curves(t, {name: value.mean(0) for name, value in found.items()})


_MAPPED = (0.02, 0.1, 0.3, 0.6)  # shares of the horizon
_POINTS = 80  # of a map, along each axis


def rotation_maps(experiment: Experiment, params) -> tuple[dict[str, np.ndarray], float]:
    """The rotation density of a score in the plane at four times, [80, 80] by title, and the half side of the square.

    Rows run along the second axis of the plane, from below.
    """
    process = experiment.process
    extent = 1.15 * float(np.abs(experiment.data.test.x).max())
    axis = np.linspace(-extent, extent, _POINTS)
    x = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), jnp.float32)

    @parallel.jit
    def at(params, t):
        return rotation(experiment.score(params), x, jnp.full(len(x), t, x.dtype))

    times = [max(experiment.t_min, share * float(process.horizon)) for share in _MAPPED]
    found = {f"t = {t:.3g}": parallel.gather(at(params, t)).reshape(_POINTS, _POINTS) for t in times}
    return found, extent


def score_error_metrics(experiment: Experiment, plan: EvalPlan, params) -> dict[str, Estimate]:
    """Means of `diagnostics.score_error` over examples and times. The law of the data must be known."""
    process, data = experiment.process, dequantised(experiment, plan, params, 0).first(plan.score_error)

    def solve(params, keys, x, cond):
        score, options = experiment.score(params), {"t_min": experiment.t_min}
        return score_error(process, score, experiment.log_density, keys[0], x, cond, **options)

    found = in_batches(solve, plan)("score_error", params, data.keys, data.x, data.cond)._asdict()
    return {name: mean_estimate(value.mean(1)) for name, value in found.items()}


def tolerance_metrics(experiment: Experiment, plan: EvalPlan, params) -> list[dict]:
    """Cost and error of the adaptive probability-flow ODE over a grid of tolerances, from the same starts.

    Returns:
      for each pair: rtol, atol; `nfe`, evaluations of the score for one sample; `apart`, root mean square distance per
      dimension to the sample at the tightest pair; `failed`, solves that gave up. A solver asks for more evaluations
      where the field bends, so scores are compared by this at equal tolerances, and never across rows.
    """
    pairs = sorted((r, a) for r in plan.rtols for a in plan.atols)
    count = parallel.rounded_up(plan.tolerances)
    shape = (count, *experiment.shape)
    start = parallel.shard(np.asarray(experiment.terminal(params).sample(experiment.key(EVALUATE), shape)))
    cond = labels(experiment, count, 0, -1)

    def solve(params, rtol, atol, x, cond):
        options = {"t_min": plan.t_min, "max_steps": plan.max_steps, "denoise": False}
        found = adaptive_ode(experiment.process, experiment.score(params), x, cond, rtol=rtol, atol=atol, **options)
        return found.x, found.nfe

    run, rows, reference = parallel.map_devices(solve, broadcast=(0, 1, 2)), [], None
    for rtol, atol in pairs:
        x, nfe = parallel.gather(run(params, jnp.float32(rtol), jnp.float32(atol), start, cond))
        ok = np.isfinite(x.reshape(count, -1)).all(1)
        reference = x if reference is None else reference
        apart = np.sqrt(np.nanmean((x - reference).reshape(count, -1)[ok] ** 2)) if ok.any() else np.nan
        cost = {"nfe": mean_estimate(nfe[ok]), "apart": float(apart), "failed": int(np.sum(~ok))}
        rows.append({"rtol": rtol, "atol": atol, **cost})
    return rows
