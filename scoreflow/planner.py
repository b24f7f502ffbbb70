"""Planning: which process, which horizon, how many steps, before anything is trained.

The data are replaced by the Gaussian with their mean and covariance, for which the sampler's distribution is known
exactly (`theory.exact`); a bound holds for all data that are as smooth and log-concave (`theory.wasserstein`).
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.experiment import EVALUATE, Experiment, load_params
from scoreflow.processes import sdes, transitions
from scoreflow.processes.sdes import VE, Process
from scoreflow.runs import report, workdir
from scoreflow.runs.errors import UserError
from scoreflow.samplers import grids
from scoreflow.samplers.grids import TimeGrid
from scoreflow.theory import exact, wasserstein
from scoreflow.types import Check, Counts, NonNegative, Params, Positive

_MOST_STEPS = 2**16  # beyond which a process counts as hopeless
_OTHER_SAMPLER = "the configured sampler, {}, has no such theory: these are the steps of {}, for which there is one"
_LASTING = 4  # doublings over which the exact distance must stay below the accuracy


class PlannerOptions(NamedTuple):
    """How to plan.

    Attributes:
      accuracy: The 2-Wasserstein distance to reach, as a fraction of the data's own spread.
      score_error: Error of the network in L2 over all dimensions, for the bound.
      steps: Numbers of steps for the table and the plot.
      num: Training examples that the Gaussian is fitted to.
      configured: the name of the experiment's process.
      others: processes to compare it with, by name; None for every one of `sdes.NAMED` at its defaults.
      grids: by name, those to compare; the experiment's own is the last.
      rule: the sampler's step, a function of `transitions`.
      sampler: the name of the experiment's sampler, for the words beside the table.
      t_min: the time of the configured process at whose log-SNR all grids end.
    """

    accuracy: Positive = 0.1
    score_error: NonNegative = 0.0
    steps: Counts = (10, 20, 50, 100, 200, 500, 1000)
    num: Annotated[int, Check(int, lambda v: v >= 2, "a whole number, 2 or above")] = 10_000
    configured: str = "the model's own"
    others: Mapping[str, Process] | None = None
    grids: Mapping[str, TimeGrid] = MappingProxyType({"uniform": grids.uniform, "log_snr": grids.log_snr})
    rule: exact.Rule = transitions.exponential_sde
    sampler: str = ""
    t_min: float = 1e-3


class Needed(NamedTuple):
    """What one process needs on one grid.

    Attributes:
      steps: the fewest that reach the accuracy on the Gaussian, by its exact distribution; None if there are none.
      promised: the fewest for which the bound does; None if there are none.
      distances, bounds: exact and bounded distance at each number of steps of the plan.
    """

    steps: int | None
    promised: int | None
    distances: list[float]
    bounds: list[float]


class Row(NamedTuple):
    """One process: its `name`, the `horizon` that leaves half of the accuracy to the steps, the `log_snr` there, and
    what it needs by grid."""

    name: str
    horizon: float
    log_snr: float
    grids: dict[str, Needed]


def fit_gaussian(experiment: Experiment, params: Params, num: int) -> exact.Gaussian:
    """Mean and variance of encoded training data in the principal axes of their covariance, float64, [d] each.

    Raises:
      UserError: where the data are a constant.
    """
    rows = jnp.asarray(experiment.data.train.x[:num])
    return gaussian_of(np.asarray(experiment.space.encode(params, experiment.key(EVALUATE), rows)))


def gaussian_of(x: np.ndarray) -> exact.Gaussian:
    """Mean and variance of continuous x [N, ...] in the principal axes of their covariance, float64, [d] each.

    Raises:
      UserError: where the data are a constant.
    """
    x = x.reshape(len(x), -1).astype(np.float64)
    if not x.std(0).any():
        raise UserError(f"planning: all {len(x)} training examples are the same: there is nothing to plan for")
    values, axes = np.linalg.eigh(np.cov(x.T).reshape(x.shape[1], -1))
    moments: Any = axes.T @ x.mean(0), np.maximum(values, 0.0)
    return exact.Gaussian(*moments)


def target_of(data: exact.Gaussian) -> wasserstein.Target:
    """What the bound assumes, for the Gaussian itself; L0 is infinite where the covariance is singular."""
    low, high = float(data.variance.min()), float(data.variance.max())
    smooth = 1.0 / low if low > 1e-12 * high else math.inf
    second = float((data.mean**2 + data.variance).sum())
    return wasserstein.Target(float(len(data.mean)), 1.0 / high, smooth, math.sqrt(second))


def examine(
    name: str,
    process: Process,
    options: PlannerOptions,
    data: exact.Gaussian,
    target: wasserstein.Target,
    accuracy: float,
    log_snr_end: float,
) -> Row:
    """Plans one process: its horizon, then its steps, exact and promised. Call in double precision.

    Args:
      data: the Gaussian; `target` is what the bound assumes of it.
      accuracy: the distance to reach.
      log_snr_end: where grids end. A process that begins with more noise than that ends its grid just after its start.
    """
    t_min = float(process.inverse_log_snr(min(log_snr_end, float(process.log_snr(0.0)) - 1e-3)))
    horizon = max(float(wasserstein.horizon_for(process, target, 0.5 * accuracy)), 2.0 * t_min)
    stopped = dataclasses.replace(cast(Any, process), horizon=horizon)
    end, prior_std = float(wasserstein.early_stopping(stopped, target, t_min)), stopped.prior_std()
    start = exact.Gaussian(jnp.zeros_like(data.mean), jnp.full_like(data.variance, prior_std**2))

    def distance(times):
        return exact.w2(exact.gaussian_law(stopped, times, options.rule, data, start=start), data)

    def promise(times):
        assumed = {"score_error": options.score_error, "rule": options.rule, "prior_std": prior_std}
        return end + wasserstein.bound(stopped, times, target, **assumed).total

    def needed(grid):
        def fewest(measure, lasting):
            times = lambda progress: grid(stopped, progress, t_min=t_min)
            return wasserstein.fewest_steps(measure, times, accuracy, most=_MOST_STEPS, lasting=lasting)[0]

        at = [[float(measure(grid(stopped, k, t_min=t_min))) for k in options.steps] for measure in (distance, promise)]
        return Needed(fewest(distance, _LASTING), fewest(promise, 0), *at)

    grids = {name: needed(grid) for name, grid in options.grids.items()}
    return Row(name, horizon, float(process.log_snr(horizon)), grids)


def others_of(options: PlannerOptions) -> dict[str, Process]:
    """The processes with which the experiment's own is compared."""
    named = {name: make() for name, make in sdes.NAMED.items()}
    return named if options.others is None else dict(options.others)


def compared_with(process: Process, options: PlannerOptions) -> dict[str, Process]:
    """The others, and the configured process last."""
    return {**others_of(options), options.configured: process}


class Plan(NamedTuple):
    """What a process and others need for some data; in print, the table and the recommendation.

    Attributes:
      name: of the data.
      options: how it was planned.
      target: what the bound assumes of the data.
      accuracy: the distance that is reached, in the units of x.
      rows: one for each process.
    """

    name: str
    options: PlannerOptions
    target: wasserstein.Target
    accuracy: float
    rows: list[Row]

    def __str__(self) -> str:
        return _table(self)


def compare(name: str, data: exact.Gaussian, process: Process, options: PlannerOptions) -> Plan:
    """Plans a process and those that it is compared with.

    Args:
      name: of the data.
      data: their Gaussian, float64.
      process: the configured one.
      options: how.
    """
    compared = compared_with(process, options)
    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, data)
        accuracy = options.accuracy * math.sqrt(float(data.variance.sum()))
        end, target = float(process.log_snr(options.t_min)), target_of(data)
        names = report.progress(compared, total=len(compared), unit="row")
        rows = [examine(each, compared[each], options, data, target, accuracy, end) for each in names]
    return Plan(name, options, target, accuracy, rows)


def plan(experiment: Experiment, options: PlannerOptions, folder: Path) -> list[Row]:
    """`--mode=plan`: prints a table and a recommendation; writes `plan/plan.json` and `plan/plan.png`.

    Where that folder has another plan, `plan-2` and so on are made; `made.json` there says how.
    """
    options, process = options._replace(steps=tuple(sorted(options.steps))), experiment.model.process
    params = None if experiment.space.latent is None else load_params(experiment, folder, workdir.newest(folder))
    with jax.enable_x64(True):
        data = fit_gaussian(experiment, params, options.num)
    report.say(f"planning for {len(compared_with(process, options))} processes")
    made = compare(experiment.data.name, data, process, options)
    content = {
        "data": made.name,
        "dimensions": int(made.target.d),
        "accuracy": made.accuracy,
        "m0": made.target.m0,
        "L0": made.target.L0 if math.isfinite(made.target.L0) else None,
        "x0_l2": made.target.x0_l2,
        "rule": options.rule.__name__,
        "steps": options.steps,
        "processes": [
            row._asdict() | {"grids": {name: grid._asdict() for name, grid in row.grids.items()}} for row in made.rows
        ],
    }
    key = {"settings": workdir.usage(experiment.config, ("plan.",)), "result": workdir.digest_of(content)}
    out = workdir.numbered(key, folder, "plan", "made.json")
    report.write_json(out / "plan.json", content)
    panels = {}
    for grid in options.grids:
        panels[f"exact W2 of the Gaussian, {grid} grid"] = {row.name: row.grids[grid].distances for row in made.rows}
        panels[f"bound on W2, {grid} grid"] = {row.name: row.grids[grid].bounds for row in made.rows}
    exploding = {name for name, each in compared_with(process, options).items() if isinstance(each, VE)}
    ylabel = "2-Wasserstein distance, in the units of x"
    report.plot_steps(out / "plan.png", options.steps, panels, made.accuracy, ylabel=ylabel, dashed=exploding)
    report.say(str(made))
    report.say(f"wrote {out / 'plan.json'} and {out / 'plan.png'}")
    return made.rows


def _steps(value: int | None) -> str:
    return f"> {_MOST_STEPS:,}" if value is None else f"{value:,}"


def planned(options: PlannerOptions) -> tuple[str, ...]:
    """Names of samplers whose step is the one that is planned; "" where none is named."""
    return ("", *(name for name, rule in transitions.TRANSITIONS.items() if rule is options.rule))


def _table(plan: Plan) -> str:
    name, options, target, accuracy, rows = plan
    head = ["process", "horizon", "log-SNR"]
    for grid in options.grids:
        head += [f"{grid}: exact", "bound"]
    body = []
    for row in rows:
        words = [
            row.name + (" *" if row.name == options.configured else ""),
            f"{row.horizon:.4g}",
            f"{row.log_snr:.2f}",
        ]
        for needed in row.grids.values():
            words += [_steps(needed.steps), _steps(needed.promised)]
        body.append(tuple(words))
    words = _OTHER_SAMPLER.format(options.sampler, options.rule.__name__)
    other = [] if options.sampler in planned(options) else [words]
    lines = [
        f"{name} as a Gaussian in {target.d:.0f} dimensions, standard deviations "
        f"{target.L0**-0.5:.3g} to {target.m0**-0.5:.3g}",
        f"steps of {options.rule.__name__} to W2 = {accuracy:.3g}, {options.accuracy:.3g} of the data's spread "
        "(* configured)",
        *other,
        "",
        report.table([tuple(head), *body]),
        "",
    ]
    return "\n".join(lines + _recommendation(options, rows))


def _recommendation(options: PlannerOptions, rows: list[Row]) -> list[str]:
    """The fewest steps by the exact distribution, the configured process first; what is proved and what is not."""
    reached = [(row, grid, needed) for row in rows for grid, needed in row.grids.items() if needed.steps is not None]
    if not reached:
        return ["no process reaches it: ask for less, end the grid later, or choose another grid"]
    row, grid, best = min(reached, key=lambda entry: (entry[2].steps, entry[0].name != options.configured))
    equals = [other.name for other, g, n in reached if g == grid and n.steps == best.steps and other is not row]
    lines = [f"recommended: {row.name}, horizon {row.horizon:.4g}, {best.steps:,} steps on the {grid} grid"]
    if equals:
        lines.append(f"as good there: {', '.join(equals)} (a process and its re-timings are one sampler in log-SNR)")
    lines.append(f"proved: with the exact score of the Gaussian, {best.steps:,} steps reach it;")
    if best.promised is None:
        lines.append("    for other data no number of steps tried is proved to be enough")
    else:
        score = f"a score wrong by at most {options.score_error:g}" if options.score_error else "the exact score"
        lines.append(
            f"    {best.promised:,} steps are enough for any data as smooth, log-concave and small in mean square, "
            f"with {score}"
        )
    lines.append("heuristic: that your data behave like their Gaussian, and your network like the exact score")
    return lines
