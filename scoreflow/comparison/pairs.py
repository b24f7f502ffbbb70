"""Differences of two runs over the same test examples, whose errors are far below those of the two means."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scoreflow.comparison.measures import UNITS, newest, unit_of
from scoreflow.comparison.read import Evaluated, Run
from scoreflow.metrics import mean_estimate


class Pair(NamedTuple):
    """One run less another, by their densities of the same test examples.

    Attributes:
      run, other: positions of the runs; the difference is that of `run` less that of `other`.
      quantity: `bits_per_dim`, `nats` or `bound`.
      unit: of the difference.
      difference, stderr: mean over the examples, and its standard error; NaN with fewer than two examples.
      unpaired: the standard error that two independent samples of as many examples would have.
      examples: that both runs have scored.
    """

    run: int
    other: int
    quantity: str
    unit: str
    difference: float
    stderr: float
    unpaired: float
    examples: int


def paired(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Mean of a - b over examples [N], its standard error, and that of the difference of two independent means.

    The variance of the mean difference is (var a + var b - 2 cov) / N: the covariance over examples is what is gained.
    """
    difference, first, second = mean_estimate(a - b), mean_estimate(a), mean_estimate(b)
    return difference.value, difference.stderr, float(np.hypot(first.stderr, second.stderr))


def rows_in_common(a: Evaluated, b: Evaluated) -> tuple[np.ndarray, np.ndarray, str]:
    """Positions in both of the same test examples, and in words why there are none.

    Test examples are the same if their row of the test split and their content are.
    """
    digests = [each.data.get("digest") for each in (a, b)]
    if all(digests) and digests[0] != digests[1]:
        return _none(f"their data differ (digests {digests[0]} and {digests[1]})")
    _, first, second = np.intersect1d(a.examples["index"], b.examples["index"], return_indices=True)
    if not len(first):
        return _none("they have scored no test example in common")
    if (a.examples["fingerprint"][first] != b.examples["fingerprint"][second]).any():
        return _none("their test examples differ")
    return first, second, ""


def _none(words: str) -> tuple[np.ndarray, np.ndarray, str]:
    return np.array([], int), np.array([], int), words


def with_examples(run: Run) -> Evaluated | None:
    """The most thorough evaluation of the newest step that kept its examples; None where there is none."""
    return next((each for each in newest(run) if each.examples), None) if run.evaluations else None


def pairs(runs: Sequence[Run]) -> tuple[list[Pair], list[str]]:
    """Every pair of runs, later less earlier, for every density that both have; and why others are not paired."""
    out: list[Pair] = []
    notes: list[str] = []
    chosen = [with_examples(run) for run in runs]
    for i, j in itertools.combinations(range(len(runs)), 2):
        (a, b), names = (chosen[i], chosen[j]), f"{runs[i].name} and {runs[j].name}"
        if a is None or b is None:
            continue
        first, second, words = rows_in_common(a, b)
        if not words and unit_of(a) != unit_of(b):
            words = f"one has {UNITS.get(unit_of(a), 'no density')}, the other {UNITS.get(unit_of(b), 'no density')}"
        if words:
            notes.append(f"{names} are not paired: {words}")
            continue
        for name in (unit_of(a), "bound"):
            if name in a.examples and name in b.examples:
                x, y = b.examples[name][second], a.examples[name][first]
                finite = np.isfinite(x) & np.isfinite(y)
                numbers = paired(x[finite], y[finite])
                out.append(Pair(j, i, name, UNITS[unit_of(a)], *numbers, int(finite.sum())))
    return out, notes
