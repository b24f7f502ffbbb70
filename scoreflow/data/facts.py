"""What is known of data when they are loaded, in one line each, with what should be set or looked at."""

from typing import NamedTuple

import numpy as np

from scoreflow.data import Dataset

_LOOKED_AT = 50_000  # examples
_AT_A_TIME = 1000
_FEW = 0.25  # fraction of the levels
_FIT = 1.5  # ratio of two root mean squares that are near enough
_RARE = 10  # examples of a class
_NAMES = 3  # names of classes in a line
_NUMBERED = 10  # classes that a message numbers


class Moments(NamedTuple):
    """Mean and root mean square of x, over all examples and dimensions."""

    mean: float
    rms: float


def level_counts(dataset: Dataset) -> np.ndarray:
    """How often each level occurs, [num_levels], in up to 50,000 training examples or in all decoded images."""
    if dataset.summary is not None:
        return dataset.summary.counts
    x, counts = _some(dataset), np.zeros(dataset.num_levels)
    for i in range(0, len(x), _AT_A_TIME):  # counting takes eight bytes for each
        counts += np.bincount(x[i : i + _AT_A_TIME].ravel(), minlength=dataset.num_levels)
    return counts


def _some(dataset: Dataset) -> np.ndarray:
    """Training examples from everywhere, since they may be in the order of their classes."""
    return dataset.train.x[:: -(-len(dataset.train.x) // _LOOKED_AT)]


def moments(dataset: Dataset, low: float = -1.0, high: float = 1.0) -> Moments:
    """Those of data as a model sees them: levels at the centers of bins in [low, high], other data as they are."""
    if dataset.num_levels:
        counts = level_counts(dataset)
        values, weights = low + (high - low) * (np.arange(len(counts)) + 0.5) / dataset.num_levels, counts
    else:
        values, weights = _some(dataset).astype(np.float64), None
    mean, square = (float(np.average(power, weights=weights)) for power in (values, values**2))
    return Moments(mean, square**0.5)


def facts(dataset: Dataset, low: float = -1.0, high: float = 1.0, sigma_data: float | None = None) -> list[str]:
    """Counts, shape, classes, levels and moments of data.

    Args:
      dataset: the data.
      low, high: the interval in which levels are put.
      sigma_data: root mean square that the model expects; None where x are not the data.
    """
    counts = f"{len(dataset.train.x)} training and {len(dataset.test.x)} test examples of shape {dataset.shape}"
    lines = [f"{counts}{_classes(dataset)}", *_rare(dataset)]
    measured = moments(dataset, low, high)
    where = f" in [{low:g}, {high:g}]" if dataset.num_levels else ""
    known = f"mean {measured.mean:.3g}, root mean square {measured.rms:.3g}{where}"
    if dataset.num_levels:
        used = int(np.count_nonzero(level_counts(dataset)))
        few = ": is data.num_levels right?" if used <= _FEW * dataset.num_levels else ""
        lines.append(f"{used} of {dataset.num_levels} levels are used{few}")
    elif (spread := (max(measured.rms**2 - measured.mean**2, 0.0)) ** 0.5) <= 1e-6 * measured.rms:
        return [*lines, f"all values are {measured.mean:.4g}"]
    elif abs(measured.mean) > spread:
        known += ": bring data to mean 0, and to a deviation near 1"
    if sigma_data is not None and not 1 / _FIT < measured.rms / sigma_data < _FIT:
        known += f"; score.sigma_data is {sigma_data:g}, and {measured.rms:.3g}, or auto, would fit"
    return [*lines, known]


def numbered(dataset: Dataset) -> str:
    """Its classes with their numbers: `2 classes: 0 cats, 1 dogs`."""
    words = [f"{i} {name}" for i, name in enumerate(dataset.class_names[:_NUMBERED])]
    words += ["..."] * (len(dataset.class_names) > _NUMBERED)
    return f"{dataset.num_classes} classes" + (f": {', '.join(words)}" if words else "")


def _rare(dataset: Dataset) -> list[str]:
    """The class of fewest examples, where it has so few that a file may lie in a wrong folder."""
    if dataset.train.label is None or dataset.num_classes < 2:
        return []
    each = np.bincount(dataset.train.label, minlength=dataset.num_classes)
    least = int(each.argmin())
    if each[least] >= _RARE or len(dataset.train.label) < _RARE * dataset.num_classes:
        return []
    name = dataset.class_names[least] if dataset.class_names else least
    return [f"class {name} has {each[least]} of {len(dataset.train.label)} training examples"]


def _classes(dataset: Dataset) -> str:
    if not dataset.num_classes:
        return ""
    names = list(dataset.class_names)
    if len(names) > 2 * _NAMES:
        names = [*names[:_NAMES], "...", names[-1]]
    return f", {dataset.num_classes} classes" + (f" ({', '.join(names)})" if names else "")
