"""What is asked of a model's samples: distances of their features to the data's, beside those of held-out data."""

import hashlib
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scoreflow import sample
from scoreflow.data import DataError, Source
from scoreflow.evaluators.settings import EvalPlan
from scoreflow.experiment import EVALUATE, Experiment
from scoreflow.metrics import Estimate, Extractor, class_score, frechet, jackknife, mean_estimate
from scoreflow.metrics.kernel import MIN_SAMPLES, kernel_distance
from scoreflow.metrics.neighbors import covered
from scoreflow.metrics.transport import wasserstein2
from scoreflow.runs import parallel, report
from scoreflow.runs.partial import NONE, PartialResults

_ADDED = ("n", "total", "outer")
_GROUPS = 10  # of samples, each left out once for the standard error of the Frechet distance
_KEPT = 10_000  # features kept for the metrics that compare pairs
_ASSIGNED = 2000  # points matched for the exact Wasserstein distance, whose time grows as the cube


class Sampled(NamedTuple):
    """Features of a sample: the first `pool` and `probs` for pairwise metrics, `moments` of all in groups."""

    pool: np.ndarray
    probs: np.ndarray | None
    moments: list[frechet.Moments]


def collect(
    extractor: Extractor,
    x: np.ndarray,
    origin: np.ndarray | None = None,
    *,
    batch: int = 500,
    pieces: PartialResults = NONE,
    name: str = "",
) -> Sampled:
    """Runs the feature function over a sample in batches, keeping what the metrics need.

    Features of the batches that `pieces` has under `name` are not taken again. Every process adds up its share of the
    rows; the sums are merged at the end.
    """

    def take(i):
        found = extractor.extract(x[i : i + batch])
        return found.pool, np.zeros((len(found.pool), 0)) if found.probs is None else found.probs

    moments, kept = None, []
    for i in range(0, len(x), batch):
        features = pieces.get(f"{name}-{i}", lambda: (0, 0), lambda i=i: take(i))
        pool = features[0]
        if moments is None:
            moments = [frechet.init(pool[0] if origin is None else origin)] * _GROUPS
        groups, mine = np.arange(i, i + len(pool)) % _GROUPS, parallel.share(len(pool))
        moments = [frechet.update(stats, pool[(groups == g) & mine]) for g, stats in enumerate(moments)]
        if i < _KEPT:
            kept.append(features)
    moments = [stats._replace(**parallel.total({k: getattr(stats, k) for k in _ADDED})) for stats in moments]
    pool, probs = (np.concatenate(leaves)[:_KEPT] for leaves in zip(*kept))
    return Sampled(pool, probs if probs.shape[1] else None, moments)


def _merge(moments: list[frechet.Moments]) -> frechet.Moments:
    total = moments[0]
    for part in moments[1:]:
        total = frechet.merge(total, part)
    return total


class Statistics(NamedTuple):
    """What is kept of the training data's features: the first `pool` [N, D], and the `moments` of all."""

    pool: np.ndarray
    moments: frechet.Moments


def statistics(extractor: Extractor, x: np.ndarray, cache_dir: Path, pieces: PartialResults = NONE) -> Statistics:
    """Features of the training data, from `cache_dir` where they have been taken before.

    The file's name carries a digest of the data and of the feature function's name.
    """
    content = hashlib.sha256(extractor.name.encode())
    for i in range(0, len(x), 1000):
        content.update(np.ascontiguousarray(x[i : i + 1000]))
    path = cache_dir / "statistics" / f"{content.hexdigest()[:32]}.npz"
    try:
        with np.load(path) as kept:
            sums = {k: kept[k] for k in ("total", "outer", "origin")}
            return Statistics(kept["pool"], frechet.Moments(int(kept["n"]), **sums))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # none, or none that can be read
    found = collect(extractor, x, pieces=pieces, name="training_data")
    made = Statistics(found.pool, _merge(found.moments))
    if parallel.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name("scratch.npz")
        np.savez(scratch, pool=made.pool, **made.moments._asdict())
        scratch.replace(path)
    return made


def quality(
    found: Sampled, reference: Statistics, target: frechet.Reference, k: int, score: str
) -> dict[str, Estimate | float | int]:
    """Distances between a sample's features and a reference's, and what the classifier says of the sample."""
    others = [_merge(found.moments[:g] + found.moments[g + 1 :]) for g in range(_GROUPS)]
    metrics = {
        "frechet": jackknife(
            frechet.frechet_distance(_merge(found.moments), target),
            np.array([frechet.frechet_distance(other, target) for other in others]),
        ),
        "kernel": kernel_distance(found.pool, reference.pool) if len(found.pool) >= MIN_SAMPLES else None,
        "precision": mean_estimate(covered(found.pool, reference.pool, k)),
        "recall": mean_estimate(covered(reference.pool, found.pool, k)),
    }
    if found.probs is not None:
        metrics[score] = class_score(found.probs)
        share = np.bincount(found.probs.argmax(1), minlength=found.probs.shape[1]) / len(found.probs)
        metrics["confidence"] = mean_estimate(found.probs.max(1))
        metrics["classes_found"] = int((share > 0).sum())
        metrics["smallest_class_share"] = float(share.min())
    return metrics


def distance(experiment: Experiment, extractor: Callable, num: int, batch: int, cache_dir: Path) -> Callable:
    """params -> Frechet distance of `num` samples to the training data, with the same noise at every call.

    Args:
      extractor: () -> the feature function; called once.
    """
    draw, extract = sample.make_draw(experiment, batch), extractor()
    reference = statistics(extract, experiment.data.train.x, cache_dir)
    target = frechet.reference(*frechet.mean_and_covariance(reference.moments))

    def measure(params):
        x = draw(params, experiment.key(EVALUATE), num).x
        return frechet.frechet_distance(_merge(collect(extract, x, reference.moments.origin).moments), target)

    return measure


def _feature_metrics(plan: EvalPlan, x: np.ndarray, source: Source) -> tuple[str, dict, dict]:
    """(name of the feature function, metrics of samples, of test data); none of them where its weights are missing."""
    try:
        extractor = plan.extractor()
    except DataError as error:
        report.warn(f"{error}; metrics of features are left out")
        return "none", {}, {}
    reference = statistics(extractor, source.train.x, plan.cache_dir, plan.pieces)
    target = frechet.reference(*frechet.mean_and_covariance(reference.moments))

    def metrics(name, data):
        found = collect(extractor, data, reference.moments.origin, pieces=plan.pieces, name=name)
        return quality(found, reference, target, plan.neighbors, extractor.score)

    return extractor.name, metrics("model", x), metrics("test_data", source.test.x)


def sample_metrics(experiment: Experiment, plan: EvalPlan, params, folder: Path) -> dict[str, dict]:
    """Metrics of the model's samples and, for scale, of the test data, both against the training data."""
    draw = sample.make_draw(experiment, plan.sample_batch)
    began = time.monotonic()
    drawn = draw(params, experiment.key(EVALUATE), plan.num_samples, plan.pieces)
    seconds = time.monotonic() - began
    sample.write_picture(experiment, drawn.x[:400], folder / "samples.png")
    source = experiment.data
    finite = np.isfinite(drawn.x.astype(np.float64)).reshape(len(drawn.x), -1).all(1)
    x = drawn.x[finite]

    name, model, real = _feature_metrics(plan, x, source)
    if x.ndim == 2:
        n = min(_ASSIGNED, len(x), len(source.test.x) // 2)
        model["wasserstein2"] = wasserstein2(x[:n], source.test.x[:n])
        real["wasserstein2"] = wasserstein2(source.test.x[n : 2 * n], source.test.x[:n])
    model |= {"samples": len(x), "sample_nfe": drawn.nfe, "sample_seconds": seconds}
    real |= {"samples": len(source.test.x)}
    return {"features": name, "model": model, "test_data": real}
