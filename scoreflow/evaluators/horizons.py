"""What is asked of the time at which a path ends: the bound at several horizons, with each terminal law."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from scoreflow import terminal
from scoreflow.evaluators.density import dequantised, in_batches, scale_of, units
from scoreflow.evaluators.settings import EvalPlan
from scoreflow.experiment import Experiment
from scoreflow.likelihood.horizon import elbo_profile
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.models import TERMINAL


def horizon_metrics(experiment: Experiment, plan: EvalPlan, params) -> list[dict[str, float | Estimate]]:
    """The bound of the SDE model at each of `plan.horizons`, in bits/dim of integer data or nats.

    Returns:
      for each: `T`, `log_snr` and `alpha_sq` there; the bound with the process's own Gaussian (`prior`) and, where it
      is another and valid there, with the run's law (`fitted`); `gain_nats` and `gain`, of the second over the first
      on the same draws; `slope_prior` and `slope_fitted` by T, whose sign says on which side the best T lies.
    """
    process = experiment.process
    data = dequantised(experiment, plan, params, 0)
    horizons = np.array(sorted(plan.horizons), np.float32)
    everywhere = experiment.terminal_at is not None

    def solve(params, keys, x, cond):
        laws = {"prior": lambda t: terminal.prior(dataclasses.replace(process, horizon=t))}
        if TERMINAL in experiment.fits:
            laws["fitted"] = lambda t: experiment.terminal_at(params, t) if everywhere else experiment.terminal(params)
        options = {"t_min": experiment.t_min, "horizons": jnp.asarray(horizons), "num_times": plan.bound_times or 100}
        return elbo_profile(process, experiment.score(params), laws, keys[0], x, cond, **options)

    found = in_batches(solve, plan)("horizons", params, data.keys, data.x, data.cond)
    rows = []
    for k, t in enumerate(horizons):
        here = {"T": float(t), "log_snr": float(process.log_snr(t)), "alpha_sq": float(process.alpha(t)) ** 2}
        for name in ("prior", "fitted"):
            if name in found.end and (name == "prior" or everywhere or t == np.float32(process.horizon)):
                total = found.end[name][:, k] + found.path[:, k] + found.offset
                here[name] = mean_estimate(units(experiment, -total, data.log_q))
                here[f"slope_{name}"] = mean_estimate(found.slope[name][:, k] / scale_of(experiment))
        if "fitted" in here:
            gain = np.asarray(found.end["prior"][:, k] - found.end["fitted"][:, k], np.float64)
            here |= {"gain_nats": mean_estimate(gain), "gain": mean_estimate(gain / scale_of(experiment))}
        rows.append(here)
    return rows


def best(rows: list[dict], name: str) -> float | None:
    """The horizon with the least bound under a law; None where there is none."""
    known = [row for row in rows if name in row]
    return min(known, key=lambda row: row[name].value)["T"] if known else None
