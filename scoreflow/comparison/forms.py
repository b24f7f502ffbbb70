"""A comparison for a terminal, in Markdown, in JSON and as one HTML page."""

import importlib.metadata
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from scoreflow.comparison import notes, page, pictures, tables
from scoreflow.comparison.budgets import SLACK
from scoreflow.comparison.contents import Comparison
from scoreflow.comparison.grids import Grids
from scoreflow.comparison.measures import Quantity, Value
from scoreflow.comparison.tables import Table

_COLUMNS = 100  # characters in a line of the terminal
_MOST = 4  # runs of which all pairs are shown; of more, those with the first
_MAIN = (
    "Mean ± standard error. In color, or bold in Markdown, is the best value, with all that are within two standard "
    "errors of it. The cost of training is that up to the step that is shown."
)
_PAIRED = (
    "All runs score the same test examples, so the mean of the differences is much sharper than the difference of the "
    "means. Negative: the first run of the pair is better."
)
_SEEDS = (
    "Runs that differ in their seed alone are one row: mean ± standard error over seeds, which contains the spread of "
    "training, and not what other test examples would change. Differences are paired by seed."
)
_SETTINGS = "Only settings that differ; - where a run has no such setting. Those of evaluation are as they were used."
_SAME_SETTINGS = "The runs have the same settings."


def main_table(comparison: Comparison) -> Table:
    """All numbers of all runs."""
    return tables.of_quantities("Numbers", _MAIN, comparison.runs, comparison.rows, comparison.pairs)


def pair_table(comparison: Comparison) -> Table:
    """Every pair, or those with the first run where there are many."""
    several = len(comparison.runs) > _MOST
    shown = [pair for pair in comparison.pairs if not several or pair.other == 0]
    about = f"{_PAIRED} Pairs with the first run are shown; compare.json has all." if several else _PAIRED
    return tables.of_pairs("Paired differences", about, comparison.runs, shown)


def seed_table(comparison: Comparison) -> Table:
    """Means over seeds; no rows where no two runs differ in their seed alone."""
    return tables.over_seeds("Over seeds", _SEEDS, comparison.seeds)


def budget_tables(comparison: Comparison) -> list[Table]:
    """A table for each kind of cost."""
    out = []
    for budget in comparison.budgets:
        amount = tables.words(Value(budget.budget))
        about = f"Each run by its newest evaluation within {amount} {budget.axis} of training"
        about += ", " if budget.axis == "steps" else f" (and {SLACK:.0%} more), "
        about += "which is what the least trained of them has spent; - where there is none. Nothing is interpolated."
        out.append(tables.of_quantities(f"At equal {budget.axis}", about, comparison.runs, budget.rows))
    return out


def setting_table(comparison: Comparison) -> Table:
    """The settings that differ."""
    about = _SETTINGS if comparison.settings else _SAME_SETTINGS
    return tables.of_settings("Settings that differ", about, comparison.runs, comparison.settings)


def _findings(comparison: Comparison) -> list[str]:
    return notes.findings(comparison.runs, comparison.pairs, comparison.seeds.groups)


def in_terminal(comparison: Comparison) -> str:
    """The main table and the differences, in lines of at most 100 characters, with what is to be kept in mind."""
    shown = [each(comparison) for each in (main_table, seed_table, pair_table, setting_table)]
    blocks = [tables.plain(table) for table in shown if table.rows]
    for remarks in (_findings(comparison), comparison.notes):
        blocks.append("\n".join(textwrap.fill(remark, _COLUMNS, break_long_words=False) for remark in remarks))
    for sentence, command in comparison.gaps:
        blocks.append(f"{textwrap.fill(sentence, _COLUMNS - 1, break_long_words=False)}:\n  {command}")
    return "\n\n".join(filter(None, blocks))


def in_markdown(comparison: Comparison) -> str:
    """All tables and words; the pictures are in the page."""
    first = [each(comparison) for each in (main_table, seed_table, pair_table)]
    shown = [*first, *budget_tables(comparison), setting_table(comparison)]
    blocks = [f"# {title_of(comparison)}", *_findings(comparison)]
    blocks += [tables.markdown(table) for table in shown if table.rows]
    if comparison.notes:
        blocks.append(
            "\n".join(["## To keep in mind", "", *(f"- {tables.escaped(note)}" for note in comparison.notes)])
        )
    if comparison.gaps:
        rows = (f"- {tables.escaped(sentence)}: `{command}`" for sentence, command in comparison.gaps)
        blocks.append("\n".join(["## What would fill the gaps", "", *rows]))
    return "\n\n".join([*blocks, "Samples and plots are in compare.html."]) + "\n"


def title_of(comparison: Comparison) -> str:
    """The head of the page."""
    count = len(comparison.runs)
    return f"Comparison of {count} runs" if count > 1 else f"The run {comparison.runs[0].name}"


def in_json(comparison: Comparison) -> dict[str, Any]:
    """The same numbers for other programs, without rounding; null where there is none."""
    names = [run.name for run in comparison.runs]

    def of_run(i: int, rows: Sequence[Quantity]) -> dict[str, Any]:
        return {row.name: plain(row.values[i]._asdict()) for row in rows if row.values[i].value is not None}

    runs = [
        {
            "name": run.name,
            "folder": str(run.folder),
            "training": run.training,
            "step": run.step,
            "config": run.about["name"],
            **{name: plain(run.about[name]) for name in ("data", "versions", "devices")},
            "values": of_run(i, comparison.rows),
        }
        for i, run in enumerate(comparison.runs)
    ]
    return {
        "runs": runs,
        "titles": {row.name: row.title for row in (*comparison.rows, *comparison.seeds.rows)},
        "pairs": [
            plain(pair._asdict() | {"run": names[pair.run], "other": names[pair.other]}) for pair in comparison.pairs
        ],
        "seeds": [
            {
                "name": group.name,
                "runs": {str(seed): names[i] for seed, i in group.members.items()},
                "values": of_run(k, comparison.seeds.rows),
            }
            for k, group in enumerate(comparison.seeds.groups)
        ],
        "budgets": [
            {
                "axis": each.axis,
                "budget": each.budget,
                "runs": {name: of_run(i, each.rows) for i, name in enumerate(names)},
            }
            for each in comparison.budgets
        ],
        "settings": {name: dict(zip(names, plain(values))) for name, values in comparison.settings.items()},
        "notes": comparison.notes,
        "gaps": [{"what": sentence, "command": command} for sentence, command in comparison.gaps],
    }


def plain(value: Any) -> Any:
    """Plain values for JSON, in which there is no NaN and no infinity."""
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_html(comparison: Comparison, shown: Grids) -> str:
    """The page."""
    runs = comparison.runs
    cards = [
        {
            "name": run.name,
            "state": notes.state(run),
            "config": run.about["name"],
            "folder": str(run.folder),
            "devices": run.about["devices"],
        }
        for run in runs
    ]
    figures = [*pictures.loss_by_log_snr(runs), *pictures.against_compute(runs), *pictures.against_evaluations(runs)]
    return page.html(
        {
            "title": title_of(comparison),
            "colors": pictures.COLORS,
            "runs": cards,
            "findings": _findings(comparison),
            "main": main_table(comparison),
            "pairs": pair_table(comparison),
            "seeds": seed_table(comparison),
            "grids": shown,
            "plots": [*figures, pictures.losses(runs)],
            "budgets": budget_tables(comparison),
            "settings": setting_table(comparison),
            "notes": comparison.notes,
            "gaps": comparison.gaps,
            "made_by": "--mode=compare",
            "version": importlib.metadata.version("scoreflow"),
        }
    )
