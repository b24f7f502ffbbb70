"""Runs at the same cost of training: equal steps, equal operations and equal seconds are different comparisons."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from scoreflow.comparison.measures import AXES, MISSING, Quantity, Value, measured, ordered
from scoreflow.comparison.read import Run, number

SLACK = 0.05
"""By which fraction a cost other than steps may exceed the budget: checkpoints are not made at equal seconds."""

# Settings that say what is minimized: losses of runs that differ in one of these cannot be compared.
_OBJECTIVE = (
    "loss.",
    "weight.",
    "sample_times.",
    "process.",
    "penalty.",
    "latent.",
    "vae.",
    "decoder.",
    "t_min",
    "data.centered",
    "data.dequantization",
    "data.bits",
    "data.binarized",
    "training.learn",
)


class Budget(NamedTuple):
    """What the runs reach at one cost.

    Attributes:
      axis: of `measures.AXES`.
      budget: the most that every run has spent, which is what the least trained of them has spent.
      rows: the step and the cost that are within the budget, and what was measured there.
    """

    axis: str
    budget: float
    rows: list[Quantity]


def losses_differ(runs: Sequence[Run]) -> str:
    """Why losses of the runs cannot be compared, in words; "" where they can."""
    if not all(run.settings for run in runs):
        return "not all of their settings are known"
    kept = [{k: v for k, v in run.settings.items() if k.startswith(_OBJECTIVE)} for run in runs]
    names = sorted({name for rows in kept for name in rows})
    apart = [name for name in names if any(rows.get(name) != kept[0].get(name) for rows in kept)]
    if apart:
        return f"{apart[0]} differs" + (f", and {len(apart) - 1} more" if apart[1:] else "")
    if any(run.about["data"] != runs[0].about["data"] for run in runs):
        return "their data differ"
    return ""


def validations(run: Run) -> dict[int, float]:
    """Validation loss by step."""
    rows = {line["step"]: number(line.get("validation_loss"))[0] for line in run.lines}
    return {step: value for step, value in rows.items() if value is not None}


def _within(axis: str, run: Run, steps: Iterable[int], budget: float) -> int | None:
    """The last of the steps whose cost is within the budget."""
    costs = [(step, AXES[axis](run, step)) for step in steps]
    most = budget if axis == "steps" else budget * (1 + SLACK)
    return max((step for step, spent in costs if spent is not None and spent <= most), default=None)


def _least(axis: str, runs: Sequence[Run], steps: Sequence[Iterable[int]]) -> float | None:
    """The cost of the last of each run's steps, of the run where it is the least; None with fewer than two runs."""
    costs = [[AXES[axis](run, step) for step in each] for run, each in zip(runs, steps)]
    most = [max(filter(None, each), default=None) for each in costs]
    known = [value for value in most if value is not None]
    return min(known) if len(known) > 1 else None


def budgets(runs: Sequence[Run]) -> list[Budget]:
    """One for every kind of cost that at least two runs know; nothing is interpolated.

    A run is shown by its newest evaluation within the budget and, where losses can be compared, by its newest
    validation loss there. Where one of them is of a run that had spent much less, none is called the best.
    """
    evaluated = [[each.step for each in run.evaluations] for run in runs]
    validated = [validations(run) for run in runs] if not losses_differ(runs) else [{} for _ in runs]
    out = []
    for axis in AXES:
        budget = _least(axis, runs, evaluated) or _least(axis, runs, validated)
        if budget is not None:
            rows = _evaluations(axis, runs, evaluated, budget) + _losses(axis, runs, validated, budget)
            out.append(Budget(axis, budget, rows))
    return out


def _evaluations(axis: str, runs: Sequence[Run], steps: Sequence[list[int]], budget: float) -> list[Quantity]:
    last = [_within(axis, run, each, budget) for run, each in zip(runs, steps)]
    every = [measured(each for each in reversed(run.evaluations) if each.step == step) for run, step in zip(runs, last)]
    keys = [key for key in ordered(key for rows in every for key in rows) if not key[0].endswith("evaluations")]
    better = lambda key: key[2] * _fair(axis, runs, last)
    rows = [Quantity(*key[:2], tuple(rows.get(key, MISSING) for rows in every), better(key)) for key in keys]
    return _spent(axis, runs, last, "step evaluated") + rows if rows else []


def _losses(axis: str, runs: Sequence[Run], validated: Sequence[Mapping[int, float]], budget: float) -> list[Quantity]:
    last = [_within(axis, run, rows, budget) for run, rows in zip(runs, validated)]
    values = [MISSING if step is None else Value(rows[step]) for rows, step in zip(validated, last)]
    if all(step is None for step in last):
        return []
    row = Quantity("validation_loss", "validation loss", tuple(values), -_fair(axis, runs, last))
    return [*_spent(axis, runs, last, "step of the loss"), row]


def _fair(axis: str, runs: Sequence[Run], steps: Sequence[int | None]) -> int:
    """1 where these steps cost the same, seconds and operations up to twice the slack; else 0."""
    costs = [AXES[axis](run, step) for run, step in zip(runs, steps) if step is not None]
    known = [value for value in costs if value is not None]
    apart = 0.0 if axis == "steps" else 2 * SLACK
    return int(not known or min(known) >= (1 - apart) * max(known))


def _spent(axis: str, runs: Sequence[Run], steps: Sequence[int | None], title: str) -> list[Quantity]:
    """The steps, and what training had cost by then."""
    rows = [Quantity(title.replace(" ", "_"), title, tuple(map(Value, steps)))]
    if axis != "steps":
        costs = (None if step is None else AXES[axis](run, step) for run, step in zip(runs, steps))
        rows.append(Quantity(f"{axis}_{title.split()[-1]}", f"{axis} until then", tuple(map(Value, costs))))
    return rows
