"""Sample metrics on a named feature function. All arithmetic in float64 on the host."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Features(NamedTuple):
    """`pool` [B, D], what distances are measured on, and `probs` [B, K], class probabilities, or None."""

    pool: np.ndarray
    probs: np.ndarray | None = None


class Extractor(NamedTuple):
    """A feature function. A metric means nothing without its name.

    Attributes:
      name: printed beside every number.
      extract: data [B, ...] as a sampler's user sees them (uint8 levels, or continuous) -> Features.
    """

    name: str
    extract: Callable[[np.ndarray], Features]


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


def jackknife(value: float, left_out: np.ndarray) -> Estimate:
    """Standard error of a statistic from its values with each of G equal groups of the sample left out."""
    left_out = np.asarray(left_out, np.float64)
    groups = len(left_out)
    return Estimate(value, float(np.sqrt((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum())))
