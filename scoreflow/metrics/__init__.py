"""Sample metrics on a named feature function. All arithmetic in float64 on the host."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Features(NamedTuple):
    """`pool` [B, D], what distances are measured on, and `probs` [B, K], class probabilities, or None; any floats."""

    pool: np.ndarray
    probs: np.ndarray | None = None


class Extractor(NamedTuple):
    """A feature function. A metric means nothing without its name.

    Attributes:
      name: printed beside every number.
      extract: data [B, ...] as a sampler's user sees them (uint8 levels, or continuous) -> Features.
      score: name of `class_score` by its class probabilities.
    """

    name: str
    extract: Callable[[np.ndarray], Features]
    score: str = "class_score"


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    stderr: float


def pixels(x: np.ndarray) -> Features:
    """The data themselves, flattened."""
    return Features(np.asarray(x, np.float64).reshape(len(x), -1))


def mean_estimate(values: np.ndarray) -> Estimate:
    """Mean of independent values and its standard error."""
    values = np.asarray(values, np.float64)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def class_score(probs: np.ndarray, splits: int = 10) -> Estimate:
    """exp of the mean divergence of probs [N, K] from their mean: 1 for one class, K for all of them, each sure.

    With Inception's probabilities this is the Inception score (Salimans et al. 2016, arXiv 1606.03498). As there it is
    the mean over equal splits of the sample, which biases it downwards where they are small.
    """
    found = []
    for part in np.array_split(np.asarray(probs, np.float64), splits):
        log_ratio = np.log(np.maximum(part, 1e-300)) - np.log(np.maximum(part.mean(0), 1e-300))
        found.append(np.exp((part * log_ratio).sum(1).mean()))
    return mean_estimate(np.array(found))


def jackknife(value: float, left_out: np.ndarray) -> Estimate:
    """Standard error of a statistic from its values with each of G equal groups of the sample left out."""
    left_out = np.asarray(left_out, np.float64)
    groups = len(left_out)
    return Estimate(value, float(np.sqrt((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum())))
