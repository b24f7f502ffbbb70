"""Metrics of the model's samples and, as a reference, of the test data, both against the training data."""

import time
from typing import Annotated, Any

import numpy as np

from scoreflow import draw
from scoreflow.data import DataError
from scoreflow.evaluators.context import Context, Results, Table, in_words
from scoreflow.evaluators.features import FeatureName, collect, extractor, quality, statistics
from scoreflow.experiment import EVALUATE
from scoreflow.metrics import frechet
from scoreflow.metrics.transport import wasserstein2
from scoreflow.runs import report
from scoreflow.types import Check, Count

_ASSIGNED = 2000  # points matched for the exact Wasserstein distance, whose time grows as the cube
_NumSamples = Annotated[int, Check(int, lambda v: v == 0 or v >= 100, "0, or a whole number from 100 on")]


def samples(
    context: Context,
    *,
    num_samples: _NumSamples = 1500,
    features: FeatureName = "pixels",
    neighbors: Count = 3,
    sample_batch: int = 100,
) -> Results | None:
    """Distances between features of samples and of the training data.

    Args:
      context: the model and how it is evaluated.
      num_samples: Samples behind the sample metrics; 0 skips them.
      features: Feature function: pixels, digits (a classifier fitted to the training split), or inception (the network
        of the FID, whose weights must lie in downloads/ of the data folder; without them these metrics are left out).
      neighbors: Number of neighbors of precision and recall.
      sample_batch: samples per call, over all devices.
    """
    if not num_samples:
        return None
    metrics = sample_metrics(context, num_samples, features, neighbors, sample_batch)
    model, real = metrics["model"], metrics["test_data"]
    rows = [(f"features: {metrics['features']}", "model", "test data")]
    rows += [(k.replace("_", " "), in_words(v), in_words(real[k]) if k in real else "") for k, v in model.items()]
    note = "distances are to the training data; test data show what is attainable"
    return Results({"samples": metrics}, (Table("", rows, (note,)),))


def sample_metrics(
    context: Context, num: int, features: FeatureName = "pixels", neighbors: int = 3, batch: int = 100
) -> dict[str, Any]:
    """Metrics by name of `model` and `test_data`, and the name of the feature function."""
    experiment = context.experiment
    draw_samples = draw.make_draw(experiment, batch)
    began = time.monotonic()
    drawn = draw_samples(context.params, experiment.key(EVALUATE), num, context.partial)
    seconds = time.monotonic() - began
    if context.folder is not None:
        draw.write_picture(experiment, drawn.x[:400], context.folder / "samples.png")
    test = experiment.data.test.x
    finite = np.isfinite(drawn.x.astype(np.float64)).reshape(len(drawn.x), -1).all(1)
    x = drawn.x[finite]

    name, model, real = _feature_metrics(context, x, features, neighbors)
    if x.ndim == 2:
        n = min(_ASSIGNED, len(x), len(test) // 2)
        model["wasserstein2"] = wasserstein2(x[:n], test[:n])
        real["wasserstein2"] = wasserstein2(test[n : 2 * n], test[:n])
    model |= {"samples": len(x), "sample_nfe": drawn.nfe, "sample_seconds": seconds}
    real |= {"samples": len(test)}
    return {"features": name, "model": model, "test_data": real}


def _feature_metrics(context: Context, x: np.ndarray, features: FeatureName, neighbors: int) -> tuple[str, dict, dict]:
    """(name of the feature function, metrics of samples, of test data); none of them where its weights are missing."""
    data, partial = context.experiment.data, context.partial
    try:
        extract = extractor(features, data, context.cache_dir, context.data_dir)
    except DataError as error:
        report.warn(f"{error}; metrics of features are left out")
        return "none", {}, {}
    reference = statistics(extract, data.train.x, context.cache_dir, partial)
    target = frechet.reference(*frechet.mean_and_covariance(reference.moments))

    def metrics(name, x):
        sampled = collect(extract, x, reference.moments.origin, partial=partial, name=name)
        return quality(sampled, reference, target, neighbors, extract.score)

    return extract.name, metrics("model", x), metrics("test_data", data.test.x)
