"""Runs that are alike but for their seed: means over seeds, whose errors contain the spread of training."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scoreflow.comparison.measures import MISSING, Quantity, Value
from scoreflow.comparison.pairs import Pair
from scoreflow.comparison.read import Run
from scoreflow.metrics import mean_estimate

_OF_EVALUATION = ("eval.", "plan.", "sampling.num", "sampling.batch_size")
_DATA = ("digest", "train", "test", "shape")  # later versions describe more of the same data
_DENSITIES = ("bits_per_dim", "nats", "bound")


class Group(NamedTuple):
    """Runs that are alike but for their seed.

    Attributes:
      name: that of the run with the least seed.
      members: positions of the runs, by seed.
    """

    name: str
    members: dict[int, int]


class OverSeeds(NamedTuple):
    """What is known of groups of runs.

    Attributes:
      groups: of at least two seeds each, in the order of their first runs.
      rows: means over seeds, and differences to the first group, a value for each group.
    """

    groups: list[Group]
    rows: list[Quantity]


def groups(runs: Sequence[Run]) -> list[Group]:
    """Groups of at least two runs; those that begin with another run begin with one of a group, each of its own seed.

    Of two runs with the same seed the later is left out, and runs whose seed is not known are.
    """
    members: dict[str, dict[int, int]] = {}
    for i, run in enumerate(runs):
        if isinstance(seed := run.settings.get("seed"), int):
            members.setdefault(_kind(runs, i), {}).setdefault(seed, i)
    several = [dict(sorted(each.items())) for each in members.values() if len(each) > 1]
    return [Group(runs[next(iter(each.values()))].name, each) for each in several]


def _kind(runs: Sequence[Run], i: int, above: tuple[int, ...] = ()) -> str:
    """What is the same in runs that differ in their seed alone; `above` are those that begin with this one."""
    run, begins = runs[i], _begins(runs, i)
    kept = {k: v for k, v in run.settings.items() if k != "seed" and not k.startswith(_OF_EVALUATION)}
    if begins is not None and begins not in (*above, i):
        kept["init_from"] = _kind(runs, begins, (*above, i))
    return repr((sorted(kept.items()), [run.about["data"].get(name) for name in _DATA]))


def _begins(runs: Sequence[Run], i: int) -> int | None:
    """The position of the run that a run begins with: its folder, or the only one of this name; None for others."""
    source = runs[i].settings.get("init_from")
    if not isinstance(source, str) or not source:
        return None
    same = [j for j, run in enumerate(runs) if run.folder.resolve() == Path(source).resolve()]
    same = same or [j for j, run in enumerate(runs) if run.folder.name == Path(source).name]
    return same[0] if len(same) == 1 else None


def over_seeds(runs: Sequence[Run], rows: Sequence[Quantity], pairs: Sequence[Pair]) -> OverSeeds:
    """Means over seeds of what can be better or worse, and differences to the first group, paired by seed.

    Differences of densities are over the same test examples, those of Frechet distances are between the two values.
    """
    every = groups(runs)
    if not every:
        return OverSeeds([], [])
    paired = {(pair.quantity, pair.run, pair.other): pair.difference for pair in pairs}
    paired |= {(pair.quantity, pair.other, pair.run): -pair.difference for pair in pairs}
    first, out = every[0], [Quantity("seeds", "seeds", tuple(Value(len(each.members)) for each in every))]
    for row in rows:
        if not row.better:
            continue
        values = tuple(_mean([row.values[i].value for i in each.members.values()]) for each in every)
        out.append(Quantity(row.name, row.title, values, row.better))
        quantity = "bound" if row.name.startswith("bound") else row.name
        if len(every) == 1 or not row.name.startswith((*_DENSITIES, "frechet")):
            continue

        def apart(i: int, j: int, row: Quantity = row, quantity: str = quantity) -> float | None:
            if quantity in _DENSITIES:
                return paired.get((quantity, i, j))
            one, other = row.values[i].value, row.values[j].value
            return None if one is None or other is None else one - other

        less = [
            _mean([apart(i, first.members[seed]) for seed, i in each.members.items() if seed in first.members])
            for each in every[1:]
        ]
        title = f"{row.title}, less {first.name}"
        out.append(Quantity(f"{row.name}_less_first", title, (MISSING, *less)))
    return OverSeeds(every, [row for row in out if any(each.value is not None for each in row.values)])


def _mean(values: Sequence[float | None]) -> Value:
    """Mean and standard error over seeds; missing with fewer than two."""
    known = np.asarray([value for value in values if value is not None], np.float64)
    return MISSING if len(known) < 2 else Value(*mean_estimate(known))
