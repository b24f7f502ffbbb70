"""Metrics of the model's samples and, as a reference, of the test data, both against the training data."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np

from scoreflow import draw
from scoreflow.data import DataError, Dataset
from scoreflow.evaluators.context import Context, EvalOptions, Results, Table, in_words
from scoreflow.evaluators.features import collect, extractor, quality, target
from scoreflow.experiment import EVALUATE
from scoreflow.metrics import Extractor, mean_estimate
from scoreflow.metrics.transport import wasserstein2
from scoreflow.runs import report
from scoreflow.runs.partial import PartialResults
from scoreflow.types import Check

_ASSIGNED = 2000  # points matched for the exact Wasserstein distance, whose time grows as the cube
_TRAINING_DATA = "training data"
_NumSamples = Annotated[int, Check(int, lambda v: v == 0 or v >= 100, "0, or a whole number from 100 on")]


def samples(context: Context, *, num_samples: _NumSamples = 1500, sample_batch: int = 100) -> Results | None:
    """Distances between features of samples and of the training data, or of a reference.

    Args:
      context: the model and how it is evaluated; its options name the features and the reference.
      num_samples: Samples behind the sample metrics; 0 skips them.
      sample_batch: samples per call, over all devices.
    """
    if not num_samples:
        return None
    metrics = sample_metrics(context, num_samples, sample_batch)
    return Results({"samples": metrics}, (table(metrics, "model"),))


def table(metrics: dict[str, Any], name: str) -> Table:
    """The metrics under `name` next to those of the test data, and what they are measured against."""
    measured, real = metrics[name], metrics["test_data"]
    rows = [(f"features: {metrics['features']}", name, "test data")]
    rows += [(k.replace("_", " "), in_words(v), in_words(real[k]) if k in real else "") for k, v in measured.items()]
    note = "distances are to the training data; test data show what is attainable"
    if (reference := metrics["reference"]) != _TRAINING_DATA:
        left_out = "kernel distance, precision and recall need the examples behind it and are left out"
        note = f"the Frechet distance is to {reference}; {left_out}"
    if "classifier_accuracy" in real:
        note += f"; the classifier's accuracy on them is {in_words(real['classifier_accuracy'])}"
    few = None in [*measured.values(), *real.values()]
    return Table("", rows, (note, "- where there are too few examples") if few else (note,))


def sample_metrics(context: Context, num: int, batch: int = 100) -> dict[str, Any]:
    """Metrics by name of `model` and `test_data`, the names of the feature function and of the reference.

    Where no sample is finite, a line says so and there is nothing but the number of samples.
    """
    experiment, options = context.experiment, context.options
    extract = None
    try:  # before the samples, which take longer than to see that weights are missing
        extract = extractor(options.features, experiment.data, context.cache_dir, context.data_dir)
    except DataError as error:
        report.warn(f"{error}; metrics of features are left out")
    began, earlier = time.monotonic(), context.partial.seconds
    draw_samples = draw.make_draw(draw.tuned(experiment, context.params, context.partial), batch)
    report.say(f"drawing {num} samples to measure them")
    drawn = draw_samples(context.params, experiment.key(EVALUATE), num, context.partial)
    seconds = time.monotonic() - began + context.partial.seconds - earlier
    if context.folder is not None:
        draw.write_picture(experiment, drawn.x[:400], context.folder / "samples.png")
    test = experiment.data.test.x
    finite = np.isfinite(drawn.x.astype(np.float64)).all(tuple(range(1, drawn.x.ndim)))
    x = drawn.x[finite]

    sets = {"model": x, "test_data": test}
    metrics: dict[str, Any] = {"features": "none", "reference": _TRAINING_DATA, "model": {}, "test_data": {}}
    if not len(x):
        report.warn(f"none of {num} samples is finite; sample metrics are left out")
        return metrics | {"model": {"samples": 0, "sample_nfe": drawn.nfe, "sample_seconds": seconds}}
    if extract is not None:
        labels = {"test_data": experiment.data.test.label}
        metrics = feature_metrics(extract, sets, experiment.data, options, context.cache_dir, context.partial, labels)
    model, real = metrics["model"], metrics["test_data"]
    transport(x, test, model, real)
    model |= {"samples": len(x), "sample_nfe": drawn.nfe, "sample_seconds": seconds}
    real |= {"samples": len(test)}
    return metrics


def transport(x: np.ndarray, test: np.ndarray, model: dict[str, Any], real: dict[str, Any]) -> None:
    """Adds the exact Wasserstein distance to one half of the test data, of vectors `x` and of the other half."""
    if x.ndim == 2 and (n := min(_ASSIGNED, len(x), len(test) // 2)):
        model["wasserstein2"] = wasserstein2(x[:n], test[:n])
        real["wasserstein2"] = wasserstein2(test[n : 2 * n], test[:n])


def feature_metrics(
    extract: Extractor,
    sets: Mapping[str, np.ndarray],
    data: Dataset,
    options: EvalOptions,
    cache_dir: Path,
    partial: PartialResults,
    labels: Mapping[str, np.ndarray | None] = MappingProxyType({}),
) -> dict[str, Any]:
    """Metrics of every set of examples by its name, with the names of the feature function and of the reference.

    Where a set has labels and the features are those of a classifier, its accuracy is among them.

    Raises:
      DataError: if the reference of the options cannot be used.
    """
    goal = target(options.features, extract, data, cache_dir, options.reference, partial)
    metrics: dict[str, Any] = {"features": extract.name, "reference": options.reference or _TRAINING_DATA}
    for name, x in sets.items():
        sampled = collect(extract, x, goal.gaussian.mean, partial=partial, name=name)
        metrics[name] = quality(sampled, goal, options.neighbors, extract.score)
        if (label := labels.get(name)) is not None and extract.classes and sampled.probs is not None:
            right = sampled.probs.argmax(1) == label[: len(sampled.probs)]
            metrics[name]["classifier_accuracy"] = mean_estimate(right.astype(float))
    return metrics
