"""The numbers of a run that are compared: what its evaluations measured, and what its training cost."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scoreflow.comparison.read import Evaluated, Run, number

UNITS = {"bits_per_dim": "bits/dim", "nats": "nats"}
_DATA = "training data"


class Value(NamedTuple):
    """A number, its standard error and the evaluation that it is from; None where it is not known."""

    value: float | None = None
    stderr: float | None = None
    source: str = ""


MISSING = Value()


class Quantity(NamedTuple):
    """One number of every run.

    Attributes:
      name: in `compare.json`.
      title: in tables, with the unit.
      values: one for each run.
      better: -1 where the lower is the better, 1 where the higher is, 0 where neither can be said.
    """

    name: str
    title: str
    values: tuple[Value, ...]
    better: int = 0


def newest(run: Run) -> tuple[Evaluated, ...]:
    """The evaluations of the newest step that was evaluated, the most thorough first."""
    return tuple(each for each in reversed(run.evaluations) if each.step == run.evaluations[-1].step)


def shown_step(run: Run) -> int | None:
    """The step of the numbers that are shown: the newest that was evaluated, or else the newest."""
    return run.evaluations[-1].step if run.evaluations else run.step


def _section(metrics: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        metrics = metrics.get(name, {}) if isinstance(metrics, Mapping) else {}
    return metrics if isinstance(metrics, Mapping) else {}


def unit_of(evaluated: Evaluated) -> str:
    """The name of the density that an evaluation measured: `bits_per_dim` or `nats`; "" for none."""
    return next((name for name in UNITS if name in _section(evaluated.metrics, "likelihood")), "")


def _measured(evaluated: Evaluated) -> dict[tuple[str, str, int], Any]:
    """(name, title, better) -> what `metrics.json` says, of one evaluation."""
    out: dict[tuple[str, str, int], Any] = {}
    likelihood, samples = (_section(evaluated.metrics, name) for name in ("likelihood", "samples"))
    unit = unit_of(evaluated)
    if unit:
        out[unit, UNITS[unit], -1] = likelihood[unit]
        out["density_evaluations", "evaluations, density", 0] = likelihood.get("likelihood_nfe")
    if unit and "bound" in likelihood:
        out[f"bound_{unit}", f"bound, {UNITS[unit]}", -1] = likelihood["bound"]
    model, features = _section(samples, "model"), str(samples.get("features", "none"))
    reference = str(samples.get("reference", _DATA))
    own = reference == _DATA
    key = re.sub(r"\W+", "_", features if own else f"{features}_{reference}")
    words = features if own else f"{features} to {Path(reference).name}"
    for name, title, better in (("frechet", "Frechet", -1), ("precision", "precision", 1), ("recall", "recall", 1)):
        if model.get(name) is not None:
            out[f"{name}_{key}", f"{title}, {words}", better] = model[name]
    if "sample_nfe" in model:
        out["sample_evaluations", "evaluations, sample", 0] = model["sample_nfe"]
    return out


def measured(evaluations: Iterable[Evaluated]) -> dict[tuple[str, str, int], Value]:
    """(name, title, better) -> value: from the first evaluation that has it."""
    out: dict[tuple[str, str, int], Value] = {}
    for each in evaluations:
        for key, content in _measured(each).items():
            value, stderr = number(content)
            if key not in out and value is not None:
                out[key] = Value(value, stderr, each.name)
    return out


_ORDER = (
    "bits_per_dim",
    "nats",
    "bound",
    "density_evaluations",
    "frechet",
    "precision",
    "recall",
    "sample_evaluations",
)


def ordered(rows: Iterable[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """The keys of `measured`, without repetition, in the order of the table."""
    place = lambda key: next(i for i, name in enumerate(_ORDER) if key[0].startswith(name))
    return sorted(set(rows), key=lambda key: (place(key), key))


# --- cost -------------------------------------------------------------------------------------------------------------


def _speeds(run: Run) -> list[tuple[int, float]]:
    """(step, examples per second since the line before) of the lines that have a speed."""
    lines = [(line["step"], number(line.get("examples_per_second"))[0]) for line in run.lines]
    return [(step, speed) for step, speed in lines if speed]


def examples_per_second(run: Run) -> float | None:
    """The median over the log; None where there is none."""
    speeds = [speed for _, speed in _speeds(run)]
    return float(np.median(speeds)) if speeds else None


def seconds(run: Run, step: int) -> float | None:
    """Seconds of training up to a step, compilation included; None where the log does not reach it.

    The log has the examples per second since the line before, from which the time between two lines follows.
    """
    size = number(run.settings.get("training.batch_size"))[0]
    marks, total = [(0, 0.0)], 0.0
    for at, speed in _speeds(run):
        total += max(at - marks[-1][0], 0) * (size or 0) / speed
        marks.append((at, total))
    if not size or step > marks[-1][0]:
        return None
    steps, totals = np.array(marks).T
    return float(np.interp(step, steps, totals))


def operations(run: Run, step: int) -> float | None:
    """Operations of training up to a step, in XLA's count; None where they were not counted."""
    return 0.0 if step == 0 else None if run.cost.operations is None else run.cost.operations * step


AXES: dict[str, Callable[[Run, int], float | None]] = {
    "steps": lambda run, step: step,
    "operations": operations,
    "seconds": seconds,
}
"""What training costs, each up to a step."""


def quantities(runs: Sequence[Run]) -> list[Quantity]:
    """Every number that at least one run has; the cost of training is that of the step that is shown."""
    steps = [shown_step(run) for run in runs]
    every = [measured(newest(run)) if run.evaluations else {} for run in runs]
    out = [Quantity("step", "step", tuple(Value(step) for step in steps))]
    for key in ordered(key for rows in every for key in rows):
        name, title, better = key
        out.append(Quantity(name, title, tuple(rows.get(key, MISSING) for rows in every), better))
    titles = {"seconds": "training, seconds", "operations": "training, operations"}
    for name, title in titles.items():
        spent = (None if step is None else AXES[name](run, step) for run, step in zip(runs, steps))
        out.append(Quantity(f"training_{name}", title, tuple(map(Value, spent))))
    speeds = tuple(Value(examples_per_second(run)) for run in runs)
    out.append(Quantity("examples_per_second", "training, examples per second", speeds))
    out.append(Quantity("parameters", "parameters", tuple(Value(run.cost.parameters) for run in runs)))
    mebibytes = (None if run.cost.memory is None else run.cost.memory / 2**20 for run in runs)
    out.append(Quantity("memory_mib", "memory of a step, MiB", tuple(map(Value, mebibytes))))
    return out


def of(rows: Iterable[Quantity], name: str) -> Quantity | None:
    """The quantity of a name; None where no run has it."""
    return next((row for row in rows if row.name == name), None)
