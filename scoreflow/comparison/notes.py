"""What a comparison says in words: what was learned from it, what to keep in mind, and what would fill its gaps."""

import math
import shlex
from collections.abc import Sequence
from typing import Any

from scoreflow.comparison.measures import MISSING, Quantity, Value, newest
from scoreflow.comparison.pairs import Pair, with_examples
from scoreflow.comparison.read import Run, number
from scoreflow.comparison.seeds import Group
from scoreflow.comparison.tables import SURE, words
from scoreflow.finish import command
from scoreflow.runs.cost import UNKNOWN

_SENTENCES = 2  # about pairs


def state(run: Run) -> str:
    """How far a run is."""
    if run.step is None:
        return "in training, no step yet" if run.training else "nothing recorded yet"
    if run.settings.get("training.steps") == 0:
        return "fitted, without training steps"
    return f"in training, at step {run.step:,}" if run.training else f"trained to step {run.step:,}"


def findings(runs: Sequence[Run], pairs: Sequence[Pair], groups: Sequence[Group] = ()) -> list[str]:
    """The best run by density against those that are nearest to it, over the same test examples.

    Runs that differ in their seed alone are told against each other only where there are no others.
    """
    out, alike = [], {i: group.name for group in groups for i in group.members.values()}
    pairs = [pair for pair in pairs if pair.quantity != "bound" and math.isfinite(pair.stderr)]
    for unit in dict.fromkeys(pair.unit for pair in pairs):
        each = [pair for pair in pairs if pair.unit == unit]
        beaten = {pair.run if pair.difference > 0 else pair.other for pair in each}
        best = next((i for i in range(len(runs)) if i not in beaten and any(i in pair[:2] for pair in each)), None)
        others = [pair for pair in each if alike.get(pair.run, pair.run) != alike.get(pair.other, pair.other)]
        nearest = sorted((pair for pair in others or each if best in pair[:2]), key=lambda pair: abs(pair.difference))
        for pair in nearest[:_SENTENCES]:
            first, second = (pair.run, pair.other) if pair.difference <= 0 else (pair.other, pair.run)
            size = words(Value(abs(pair.difference), pair.stderr))
            if abs(pair.difference) > SURE * pair.stderr:
                said = f"{runs[first].name} has {size} {unit} less than {runs[second].name}"
            else:
                said = f"{runs[first].name} and {runs[second].name} cannot be told apart: they differ by {size} {unit}"
            unpaired = f"not paired, the error would be {pair.unpaired:.2g}"
            out.append(f"{said}, over the same {pair.examples:,} test examples ({unpaired}).")
    return out


def _names(runs: Sequence[Run]) -> str:
    every = [run.name for run in runs]
    return every[0] if len(every) == 1 else f"{', '.join(every[:-1])} and {every[-1]}"


def _verb(runs: Sequence[Run], one: str, several: str) -> str:
    return f"{_names(runs)} {one if len(runs) == 1 else several}"


def caveats(runs: Sequence[Run]) -> list[str]:
    """What makes numbers of these runs less comparable than they look."""
    out = []
    if training := [run for run in runs if run.training]:
        out.append(f"{_verb(training, 'is', 'are')} still training: numbers are those of now.")
    for run in runs:
        if run.evaluations and run.step is not None and run.evaluations[-1].step < run.step:
            out.append(f"{run.name} was evaluated at step {run.evaluations[-1].step:,} of {run.step:,}.")
    for source in dict.fromkeys(filter(None, (str(run.settings.get("init_from") or "") for run in runs))):
        later = [run for run in runs if str(run.settings.get("init_from") or "") == source]
        cost = "its cost" if len(later) == 1 else "their cost"
        out.append(f"{_names(later)} began with the parameters of {source}, whose training is not in {cost}.")
    if unknown := [run for run in runs if not run.settings]:
        out.append(f"The settings of {_names(unknown)} are not known.")
    kinds = {run.about["devices"] for run in runs if run.about["devices"]}
    if len(kinds) > 1:
        out.append(f"The seconds are those of different devices: {', '.join(sorted(kinds))}.")
    for names, text in (
        (("likelihood", "likelihood_examples"), "Densities are means over different numbers of test examples"),
        (("samples", "model", "samples"), "Frechet distances are of different numbers of samples, which biases them"),
    ):
        counts = {run.name: count for run in runs if (count := _count(run, *names)) is not None}
        if len(set(counts.values())) > 1:
            out.append(f"{text}: {', '.join(f'{name} {count:,.0f}' for name, count in counts.items())}.")
    shown = [each for run in runs for each in newest_with_settings(run)]
    kinds = {str(each.settings.get("eval.dequantization") or "none") for each in shown}
    if len(kinds) > 1:
        out.append(
            f"Test data were dequantized in different ways ({', '.join(sorted(kinds))}), each a bound of its own."
        )
    return out


def _count(run: Run, *names: str) -> float | None:
    """A number in the most thorough evaluation of the newest step that has it."""
    for each in newest(run) if run.evaluations else ():
        value: Any = each.metrics
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if (count := number(value)[0]) is not None:
            return count
    return None


def newest_with_settings(run: Run) -> list:
    """The most thorough evaluation of the newest step, where it has kept its settings."""
    return [each for each in newest(run)[:1] if each.settings] if run.evaluations else []


def gaps(runs: Sequence[Run], rows: Sequence[Quantity]) -> list[tuple[str, str]]:
    """Which runs lack which number, and the command that records it for the first of them."""

    def lacks(*stems: str) -> list[Run]:
        """Evaluated runs without a number that another run has."""
        rows_of = [row for row in rows if row.name.startswith(stems)]
        bare = [all(row.values[i] == MISSING for row in rows_of) for i in range(len(runs))]
        return [run for run, none in zip(runs, bare) if rows_of and none and run.evaluations]

    unpaired = [run for run in runs if run.evaluations and with_examples(run) is None]
    rows_of_gaps = (
        ([run for run in runs if not run.evaluations], "been evaluated", "--mode=eval"),
        (lacks("bits", "nats"), "measured densities", "--mode=eval --config.eval.likelihood=True"),
        (lacks("bound"), "measured the bound of the SDE", "--mode=eval --config.eval.bound_times=100"),
        (lacks("frechet"), "measured samples", "--mode=eval --config.eval.num_samples=1500"),
        (unpaired, "kept densities by example, by which runs are paired", "--mode=eval"),
        ([run for run in runs if run.cost == UNKNOWN], "recorded what a step costs", "--mode=train"),
        (
            [run for run in runs if not (run.curves or run.training)],
            "recorded the loss by log-SNR, as the end of training does",
            "--mode=train",
        ),
    )
    out = []
    for lacking, what, options in rows_of_gaps:
        if lacking:
            said = f"{_verb(lacking, 'has', 'have')} not {what}"
            out.append((said, f"{command()} --workdir={shlex.quote(str(lacking[0].folder))} {options}"))
    return out
