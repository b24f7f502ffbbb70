"""Tables of a comparison: what is in their cells, and the same tables for a terminal and in Markdown."""

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from scoreflow.comparison.measures import Quantity, Value
from scoreflow.comparison.pairs import Pair
from scoreflow.comparison.read import Run
from scoreflow.comparison.seeds import OverSeeds
from scoreflow.runs import report

_COLUMNS = 100  # characters in a line of the terminal
_CELL = 16  # characters that a cell has at least; longer ones are wrapped
_TITLE = 28  # characters of the title of a row, at most
_AT_ONCE = 4  # runs next to each other
_PLACES = 6  # digits after the point, at most
_SHOWN = 60  # characters of a setting's value

SURE = 2.0
"""Standard errors beyond which a difference counts."""


class Cell(NamedTuple):
    """A cell: its words, the number by which it is sorted (None for none), and whether it is among the best."""

    text: str
    number: float | None = None
    best: bool = False


class Row(NamedTuple):
    """A row of a table: its title, and a cell for every column."""

    title: str
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """A table.

    Attributes:
      title: of the table.
      about: what a reader must know of it, in a sentence or two; "" for nothing.
      head: of the columns.
      rows: from the first to the last.
      by_run: whether each column is a run; the page then has a row for each, which can be sorted.
    """

    title: str
    about: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    by_run: bool = True


def words(value: Value) -> str:
    """A number with its standard error, to two digits of the error; "-" where there is none."""
    if value.value is None:
        return "-"
    if value.stderr is not None and value.stderr > 0:
        places = min(max(1 - math.floor(math.log10(value.stderr)), 0), _PLACES)
        return f"{value.value:.{places}f} ± {value.stderr:.{places}f}"
    if abs(value.value) < 1e8 and (value.value == round(value.value) or abs(value.value) >= 1000):
        return f"{value.value:,.0f}"
    return f"{value.value:.3g}".replace("e+", "e")


def best_of(row: Quantity, pairs: Sequence[Pair] = ()) -> list[bool]:
    """Which values are the best, or within two standard errors of it; none where that would be all or a single one.

    The error of a difference is that over the same test examples, where the pair is among `pairs`.
    """
    known = [(i, value.value) for i, value in enumerate(row.values) if value.value is not None]
    if not row.better or len(known) < 2:
        return [False] * len(row.values)
    winner, top = max(known, key=lambda each: row.better * each[1])
    same = lambda pair: row.name == pair.quantity or (pair.quantity == "bound" and row.name.startswith("bound"))
    errors = {frozenset((pair.run, pair.other)): pair.stderr for pair in pairs if same(pair)}

    def among(i: int, value: Value) -> bool:
        if value.value is None:
            return False
        independent = math.hypot(value.stderr or 0.0, row.values[winner].stderr or 0.0)
        error = 0.0 if i == winner else errors.get(frozenset((i, winner)), independent)
        return abs(value.value - top) <= SURE * error

    marks = [among(i, value) for i, value in enumerate(row.values)]
    return marks if sum(marks) < len(known) else [False] * len(row.values)


def of_quantities(
    title: str, about: str, runs: Sequence[Run], rows: Iterable[Quantity], pairs: Sequence[Pair] = ()
) -> Table:
    """A table with a column for each run."""
    out = []
    for row in rows:
        cells = [Cell(words(v), v.value, best) for v, best in zip(row.values, best_of(row, pairs))]
        out.append(Row(row.title, tuple(cells)))
    return Table(title, about, tuple(run.name for run in runs), tuple(out))


def of_pairs(title: str, about: str, runs: Sequence[Run], pairs: Iterable[Pair]) -> Table:
    """A row for each pair of runs."""
    head = ("difference", "error if not paired", "test examples")
    rows = []
    for pair in pairs:
        what = f"bound, {pair.unit}" if pair.quantity == "bound" else pair.unit
        value = Value(pair.difference, None if math.isnan(pair.stderr) else pair.stderr)
        unpaired = Value(None if math.isnan(pair.unpaired) else float(f"{pair.unpaired:.2g}"))
        cells = (Cell(words(value), pair.difference), Cell(words(unpaired), unpaired.value))
        name = f"{runs[pair.run].name} − {runs[pair.other].name}, {what}"
        rows.append(Row(name, (*cells, Cell(f"{pair.examples:,}", pair.examples))))
    return Table(title, about, head, tuple(rows), by_run=False)


def over_seeds(title: str, about: str, seeds: OverSeeds) -> Table:
    """A row for each group of runs."""
    said = lambda value: f"{words(value)} ({value.source})" if value.source else words(value)
    columns = [[Cell(said(v), v.value) for v in row.values] for row in seeds.rows]
    rows = [Row(group.title, cells) for group, cells in zip(seeds.groups, zip(*columns))]
    return Table(title, about, tuple(row.title for row in seeds.rows), tuple(rows), by_run=False)


def in_words(value: Any) -> str:
    """A setting's value, as in Python; long ones are cut."""
    text = repr(tuple(value) if isinstance(value, list) else value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def settings_apart(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which the runs differ, by dotted name: the value of each run, None where it has no such setting.

    A setting of the evaluation that is shown counts as it was there, not as it was in training.
    """
    every = [_used(run) for run in runs]
    order = lambda name: (name.partition(".")[0], not name.endswith(".name"), name)
    names = sorted({name for settings in every for name in settings}, key=order)
    rows = {name: [settings.get(name) for settings in every] for name in names}
    for name, title in (("versions", "(version of scoreflow)"), ("devices", "(devices)")):
        about = [run.about[name] for run in runs]
        rows[title] = [(each.get("scoreflow") if isinstance(each, dict) else each) or None for each in about]
    return {name: values for name, values in rows.items() if _differ(name, runs, values)}


def _evaluated_with(run: Run) -> dict[str, Any]:
    """The settings of a run's evaluation that is shown; empty where there is none, or it has not kept them."""
    return run.evaluations[-1].settings if run.evaluations else {}


def _used(run: Run) -> dict[str, Any]:
    """A run's settings, those of that evaluation as they were there; without plans."""
    unused = ("plan.",) if _evaluated_with(run) else ("plan.", "eval.")
    return {name: v for name, v in (run.settings | _evaluated_with(run)).items() if not name.startswith(unused)}


def _differ(name: str, runs: Sequence[Run], values: Sequence[Any]) -> bool:
    """Whether runs differ in a setting, as far as their settings are known."""
    known = lambda run: _evaluated_with(run) if name.startswith("eval.") else run.settings
    counted = [value for run, value in zip(runs, values) if known(run)]
    return any(value != counted[0] for value in counted)


def of_settings(title: str, about: str, runs: Sequence[Run], settings: dict[str, list[Any]]) -> Table:
    """A row for each setting; its own table, since there is nothing to sort runs by."""
    rows = [Row(name, tuple(Cell("-" if v is None else in_words(v)) for v in row)) for name, row in settings.items()]
    return Table(title, about, tuple(run.name for run in runs), tuple(rows), by_run=False)


# --- as text ----------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Words for Markdown, in which they mean nothing but themselves."""
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", text).replace("<", "&lt;")


def markdown(table: Table) -> str:
    """The table in Markdown."""
    bold = lambda cell: f"**{cell.text}**" if cell.best else escaped(cell.text)
    lines = [f"## {table.title}", ""] + ([table.about, ""] if table.about else [])
    lines.append(f"| | {' | '.join(map(escaped, table.head))} |")
    lines.append("|---" * (len(table.head) + 1) + "|")
    lines += [f"| {escaped(row.title)} | {' | '.join(map(bold, row.cells))} |" for row in table.rows]
    return "\n".join(lines)


def plain(table: Table) -> str:
    """The table for a terminal, at most four columns at a time, whose long names and values are wrapped."""
    blocks = []
    width = max([len(row.title) for row in table.rows] + [0])
    room = max((_COLUMNS - min(width, _TITLE)) // min(max(len(table.head), 1), _AT_ONCE) - 2, _CELL)
    for i in range(0, max(len(table.head), 1), _AT_ONCE):
        rows = [("", *table.head[i : i + _AT_ONCE])]
        rows += [(row.title, *(cell.text for cell in row.cells[i : i + _AT_ONCE])) for row in table.rows]
        lines = [line for row in rows for line in _wrapped(row, (_TITLE, *[room] * (len(row) - 1)))]
        blocks.append(report.table(lines))
    return "\n".join([report.heading(table.title), "\n\n".join(blocks)])


def _wrapped(row: Sequence[str], widths: Sequence[int]) -> list[tuple[str, ...]]:
    """A row as the lines that it takes where its cells are not longer than their columns."""
    cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths)]
    height = max(map(len, cells))
    return [tuple(cell[k] if k < len(cell) else "" for cell in cells) for k in range(height)]
