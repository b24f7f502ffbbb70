"""Metrics of samples that were made elsewhere: no model is needed, only the data that they imitate."""

from pathlib import Path

import numpy as np

from scoreflow.data import Dataset
from scoreflow.evaluators.context import EvalOptions, Results
from scoreflow.evaluators.samples import feature_metrics, table, transport
from scoreflow.metrics import Extractor
from scoreflow.runs.partial import NONE, PartialResults


def foreign(
    x: np.ndarray,
    data: Dataset,
    extract: Extractor,
    options: EvalOptions,
    cache_dir: Path,
    partial: PartialResults = NONE,
) -> Results:
    """Distances between features of given samples and of the training data, or of the reference of the options.

    Args:
      x: samples [N, ...] as the data's examples are stored (`data.foreign.read`).
      data: what they are compared with.
      extract: the feature function.
      options: `features`, `neighbors` and `reference`.
      cache_dir: where statistics of the training data's features are kept.
      partial: where features of finished batches are kept.

    Raises:
      DataError: if the reference cannot be used.
    """
    sets = {"given": x, "test_data": data.test.x}
    metrics = feature_metrics(extract, sets, data, options, cache_dir, partial)
    transport(x, data.test.x, metrics["given"], metrics["test_data"])
    for name, examples in sets.items():
        metrics[name]["samples"] = len(examples)
    return Results({"samples": metrics}, (table(metrics, "given"),))
