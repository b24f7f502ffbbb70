"""Runs that are alike but for their seed: means over seeds, whose errors contain the spread of training.

All seeds have the same test examples, so these errors do not contain what other examples would change.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scoreflow.comparison.measures import MISSING, Quantity, Value
from scoreflow.comparison.pairs import Pair
from scoreflow.comparison.read import Run
from scoreflow.metrics import mean_estimate
from scoreflow.runs.workdir import FREE_TO_RESUME

_KEPT = ("sampler.", "grid.", "sampling.")  # samples are those of these settings, but for
_ASIDE = ("sampling.num", "sampling.batch_size", "sampling.seed")
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

    @property
    def title(self) -> str:
        """The name with the seeds."""
        return f"{self.name} (seeds {', '.join(map(str, self.members))})"


class OverSeeds(NamedTuple):
    """What is known of groups of runs.

    Attributes:
      groups: of at least two seeds each, in the order of their first runs.
      rows: means over seeds, and differences to the first group, a value for each group; the source of one that is
        over fewer seeds than the group has says so.
      notes: what to keep in mind, one sentence each.
    """

    groups: list[Group]
    rows: list[Quantity]
    notes: list[str]


def groups(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Groups of at least two runs, and in words which runs are left out of them for another of the same seed.

    A run that begins with another one belongs to a group only if that one is compared too and has the same seed: else
    the runs of the group would share what they began with, and its spread would be missing.
    """
    kinds: dict[str, dict[int, list[int]]] = {}
    for i, run in enumerate(runs):
        if (seed := _seed(run)) is not None:
            kinds.setdefault(_kind(runs, i), {}).setdefault(seed, []).append(i)
    out, notes = [], []
    for by_seed in (dict(sorted(each.items())) for each in kinds.values() if len(each) > 1):
        members = {seed: same[0] for seed, same in by_seed.items()}
        out.append(Group(runs[next(iter(members.values()))].name, members))
        for first, *others in by_seed.values():
            same = f"{runs[first].name} is the same with this seed"
            notes += [f"{runs[i].name} is not among the means over seeds: {same}." for i in others]
    return out, notes


def _seed(run: Run) -> int | None:
    seed = run.settings.get("seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def _kind(runs: Sequence[Run], i: int, above: tuple[int, ...] = ()) -> str:
    """What is the same in runs that differ in their seed alone; `above` are those that begin with this one."""
    run = runs[i]
    kept = {name: value for name, value in run.settings.items() if name != "seed" and _matters(name)}
    if run.settings.get("init_from"):
        begins, kept["init_from"] = _begins(runs, i), f"run {i}"  # like no other, unless that one is of its seed
        if begins is not None and begins not in (*above, i) and _seed(runs[begins]) == _seed(run):
            kept["init_from"] = _kind(runs, begins, (*above, i))
    return repr((sorted(kept.items()), [run.about["data"].get(name) for name in _DATA]))


def _matters(name: str) -> bool:
    """Whether a setting decides what is learned or how samples are drawn."""
    if name.startswith(_ASIDE):
        return False
    return name == "training.steps" or name.startswith(_KEPT) or not name.startswith(FREE_TO_RESUME)


def _begins(runs: Sequence[Run], i: int) -> int | None:
    """The position of the run that a run begins with: its folder, or the only one of this name; None for others."""
    source = runs[i].settings.get("init_from")
    if not isinstance(source, str):
        return None
    same = [j for j, run in enumerate(runs) if run.folder.resolve() == Path(source).resolve()]
    same = same or [j for j, run in enumerate(runs) if run.folder.name == Path(source).name]
    return same[0] if len(same) == 1 else None


def over_seeds(runs: Sequence[Run], rows: Sequence[Quantity], pairs: Sequence[Pair]) -> OverSeeds:
    """Means over seeds of what can be better or worse, and differences to the first group, paired by seed.

    Differences are those of densities, over the same test examples, and of Frechet distances.
    """
    every, notes = groups(runs)
    if not every:
        return OverSeeds([], [], [])
    paired = {(pair.quantity, pair.run, pair.other): pair.difference for pair in pairs}
    paired |= {(pair.quantity, pair.other, pair.run): -pair.difference for pair in pairs}
    first, out = every[0].members, []
    for row in rows:
        if not row.better:
            continue
        values = [_mean([row.values[i].value for i in each.members.values()], each) for each in every]
        out.append(Quantity(row.name, row.title, tuple(values), row.better))
        if row.name.startswith((*_DENSITIES, "frechet")):
            less = [
                _mean([_apart(row, i, first.get(s), paired) for s, i in each.members.items()], each) for each in every
            ]
            title = f"{row.title}, less {every[0].name}"
            out.append(Quantity(f"{row.name}_less_first", title, (MISSING, *less[1:])))
    shown = [row for row in out if any(each.value is not None for each in row.values)]
    return OverSeeds(every, shown, [*notes, *_evaluated_otherwise(runs, every)])


def _apart(row: Quantity, i: int, j: int | None, paired: Mapping[tuple[str, int, int], float]) -> float | None:
    """A number of run i less that of run j; that of densities is paired. None where one of them is not known."""
    one, other = row.values[i].value, None if j is None else row.values[j].value
    if one is None or j is None or other is None:
        return None
    if row.name.startswith(_DENSITIES):
        return paired.get(("bound" if row.name.startswith("bound") else row.name, i, j))
    return one - other


def _mean(values: Sequence[float | None], group: Group) -> Value:
    """Mean and standard error over seeds; missing with fewer than two."""
    known = np.asarray([value for value in values if value is not None and np.isfinite(value)], np.float64)
    if len(known) < 2:
        return MISSING
    source = f"{len(known)} seeds" if len(known) < len(group.members) else ""
    return Value(*mean_estimate(known), source)


def _evaluated_otherwise(runs: Sequence[Run], every: Sequence[Group]) -> list[str]:
    """Which groups have runs whose evaluations that are shown had other settings, and which settings."""
    out = []
    for group in every:
        settings = [runs[i].evaluations[-1].settings for i in group.members.values() if runs[i].evaluations]
        names = sorted({name for each in settings for name in each if each[name] != settings[0].get(name, each[name])})
        if names:
            out.append(f"The seeds of {group.name} were evaluated with other settings: {', '.join(names)}.")
    return out
