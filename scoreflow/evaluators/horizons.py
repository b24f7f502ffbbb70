"""The bound of the SDE model at several horizons, with each terminal distribution."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from scoreflow import terminal
from scoreflow.evaluators.context import Context, Results, Table, in_words
from scoreflow.likelihood.horizon import elbo_profile
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.runs import report
from scoreflow.types import NumbersOrNone

_TERMINALS = {"prior": "the process's Gaussian", "fitted": "the fitted distribution"}
_TIMES = 100  # for each example


def horizons(context: Context, *, horizons: NumbersOrNone = (), horizon_times: int = 0) -> Results | None:
    """The bound over horizons, and the best horizon under each terminal distribution.

    Args:
      context: the model and how it is evaluated.
      horizons: Times T at which the path may end: the bound at each, and the best; () skips it.
      horizon_times: times for each example; 0 for 100.
    """
    if not (context.options.likelihood and horizons):
        return None
    rows = horizon_metrics(context, horizons, horizon_times or _TIMES)
    if context.folder is not None:
        _draw(context.folder / "horizons.png", rows, context.unit)
    return Results({"horizons": rows}, (_table(rows, context.unit),))


def horizon_metrics(context: Context, horizons: tuple[float, ...], num_times: int = _TIMES) -> list[dict[str, Any]]:
    """The bound at each of the horizons, in bits/dim of integer data or nats.

    Returns:
      for each: `T`, `log_snr` and `alpha_sq` there; the bound with the process's own Gaussian (`prior`) and, where it
      is another and valid there, with the run's distribution (`fitted`); `gain_nats` and `gain`, of the second over the
      first on the same draws; `slope_prior` and `slope_fitted` by T, whose sign says on which side the best T lies.
    """
    model, data = context.model, context.examples()
    process, everywhere = model.process, model.family.anywhere
    times = np.array(sorted(horizons), np.float32)

    def solve(params, keys, x, cond):
        stopped = lambda t: dataclasses.replace(cast(Any, process), horizon=t)
        terminals: dict[str, Callable] = {"prior": lambda t: terminal.prior(stopped(t))}
        if model.family.init is not None:
            terminals["fitted"] = lambda t: model.terminal(params, t if everywhere else None)
        options = {"t_min": model.t_min, "horizons": jnp.asarray(times), "num_times": num_times}
        return elbo_profile(process, model.score(params), terminals, keys[0], x, cond, **options)

    profile = context.in_batches(solve)("horizons", context.params, data.keys, data.x, data.cond)
    rows = []
    for k, t in enumerate(times):
        log_snr, alpha = float(process.log_snr(t)), float(process.alpha(t))
        row: dict[str, Any] = {"T": float(t), "log_snr": log_snr, "alpha_sq": alpha**2}
        for name in _TERMINALS:
            if name in profile.end and (name == "prior" or everywhere or t == np.float32(process.horizon)):
                total = profile.end[name][:, k] + profile.path[:, k] + profile.offset
                row[name] = mean_estimate(context.in_unit(-total, data.log_q))
                row[f"slope_{name}"] = mean_estimate(profile.slope[name][:, k] / context.scale)
        if "fitted" in row:
            gain = np.asarray(profile.end["prior"][:, k] - profile.end["fitted"][:, k], np.float64)
            row |= {"gain_nats": mean_estimate(gain), "gain": mean_estimate(gain / context.scale)}
        rows.append(row)
    return rows


def best(rows: list[dict[str, Any]], name: str) -> float | None:
    """The horizon with the least bound under a terminal distribution; None where there is none."""
    known = [row for row in rows if name in row]
    return min(known, key=lambda row: row[name].value)["T"] if known else None


def _table(rows: list[dict[str, float | Estimate]], unit: str) -> Table:
    names = list(max(rows, key=len))
    table = [tuple(name.replace("_", " ") for name in names)]
    table += [tuple(in_words(row[name]) if name in row else "" for name in names) for row in rows]
    notes = tuple(
        f"T* = {t:g} with {words}" for name, words in _TERMINALS.items() if (t := best(rows, name)) is not None
    )
    return Table(f"bound over horizons T, {unit}", table, notes)


def _draw(path: Path, rows: list[dict[str, Any]], unit: str) -> None:
    curves = {}
    for name, words in _TERMINALS.items():
        if points := [(row["T"], row[name].value, row[name].stderr) for row in rows if name in row]:
            curves[words] = np.array(points).T
    report.plot_errors(path, curves, "T", f"bound, {unit}")
