"""Everything that is known of several runs, computed from what they have written."""

from typing import Any, NamedTuple

from scoreflow.comparison import notes, tables
from scoreflow.comparison.budgets import Budget, budgets
from scoreflow.comparison.measures import Quantity, quantities
from scoreflow.comparison.pairs import Pair, pairs
from scoreflow.comparison.read import Run
from scoreflow.comparison.seeds import OverSeeds, over_seeds


class Comparison(NamedTuple):
    """What is known of several runs.

    Attributes:
      runs: in the order in which they were given.
      rows: numbers of all runs.
      pairs: differences over the same test examples.
      seeds: means over runs that differ in their seed alone.
      budgets: the runs at the same cost of training.
      settings: those that differ, by name, a value for each run.
      notes: what to keep in mind, one sentence each.
      gaps: which runs lack which number, and the command that records it.
    """

    runs: list[Run]
    rows: list[Quantity]
    pairs: list[Pair]
    seeds: OverSeeds
    budgets: list[Budget]
    settings: dict[str, list[Any]]
    notes: list[str]
    gaps: list[tuple[str, str]]


def compared(runs: list[Run]) -> Comparison:
    """Everything that is computed from what the runs have written."""
    rows, (paired, apart) = quantities(runs), pairs(runs)
    seeds = over_seeds(runs, rows, paired)
    remarks = [*(f"{words}." for words in apart), *seeds.notes, *notes.caveats(runs)]
    return Comparison(
        runs=runs,
        rows=rows,
        pairs=paired,
        seeds=seeds,
        budgets=budgets(runs),
        settings=tables.settings_apart(runs),
        notes=remarks,
        gaps=notes.gaps(runs, rows),
    )
