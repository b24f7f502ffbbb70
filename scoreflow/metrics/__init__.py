"""Sample metrics on a named feature function. All arithmetic in float64 on the host."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Features(NamedTuple):
    """`pool` [B, D], what distances are measured on, and `probs` [B, K], class probabilities, or None; any floats."""

    pool: np.ndarray
    probs: np.ndarray | None = None


class Extractor(NamedTuple):
    """A feature function. Distances on different features cannot be compared, so every number comes with its name.

    Attributes:
      name: printed with every number.
      extract: data [B, ...] as they are stored (uint8 levels, or continuous) -> Features.
      score: name under which `class_score` of its class probabilities is reported.
      key: with the name, all that the features depend on besides the data, such as a digest of weights.
      classes: whether its class probabilities are those of the data's own classes.
    """

    name: str
    extract: Callable[[np.ndarray], Features]
    score: str = "class_score"
    key: str = ""
    classes: bool = False


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    stderr: float


def pixels(x: np.ndarray, top: float = 1.0) -> Features:
    """The data themselves, flattened; levels from 0 to `top` become numbers from 0 to 1."""
    return Features(np.asarray(x, np.float64).reshape(len(x), -1) / top)


def mean_estimate(values: np.ndarray) -> Estimate:
    """Mean of independent values and its standard error; NaN where there are too few for either."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return Estimate(float(values[0]) if len(values) else float("nan"), float("nan"))
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def class_score(probs: np.ndarray, splits: int = 10) -> Estimate:
    """exp of the mean divergence of probs [N, K] from their mean: 1 for one class, K for all K with certainty.

    With Inception's probabilities this is the Inception score (Salimans et al. 2016, arXiv 1606.03498). As there it is
    the mean over equal splits of the sample, which biases it downwards where they are small.
    """
    scores = []
    for split in np.array_split(np.asarray(probs, np.float64), min(splits, len(probs))):
        log_ratio = np.log(np.maximum(split, 1e-300)) - np.log(np.maximum(split.mean(0), 1e-300))
        scores.append(np.exp((split * log_ratio).sum(1).mean()))
    return mean_estimate(np.array(scores))


def jackknife(value: float, left_out: np.ndarray) -> Estimate:
    """Standard error of a statistic from its values with each of G equal groups of the sample left out."""
    left_out = np.asarray(left_out, np.float64)
    groups = len(left_out)
    return Estimate(value, float(np.sqrt((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum())))
