"""What a run keeps of its data, and a data set without examples for a machine where the data are not."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scoreflow.data import DataError, Dataset, Split, describe, load
from scoreflow.runs import report


def record(dataset: Dataset) -> dict[str, Any]:
    """What `describe` says of a data set, with its levels and classes: all that is needed where no example is."""
    classes = {"levels": dataset.num_levels, "classes": dataset.num_classes, "class_names": list(dataset.class_names)}
    return describe(dataset) | classes


def load_or_placeholder(known: Mapping[str, Any], **settings: Any) -> Dataset:
    """The data set of `load.load`, or one without examples where it cannot be read and a run knows of it.

    Args:
      known: of `record`; empty where the examples themselves are needed.
      settings: of `load.load`.

    Raises:
      DataError: where the data cannot be read, and `known` does not say enough of them.
    """
    try:
        return load.load(**settings)
    except DataError as error:
        if not {"shape", "levels", "classes"} <= known.keys():
            raise
        report.warn(f"going on without the data, with what the run knows of them: {error}")
        return placeholder(settings["name"], known)


def placeholder(name: str, known: Mapping[str, Any]) -> Dataset:
    """A data set of no examples with the shape, levels and classes that a run knows."""
    x = np.zeros((0, *known["shape"]), np.uint8 if known["levels"] else np.float32)
    none = Split(x, np.zeros(0, np.int32) if known["classes"] else None)
    names = tuple(known.get("class_names", ()))
    return Dataset(name, none, none, known["levels"], known["classes"], class_names=names)
