"""Features of samples and of data: collected in batches, compared by distances, kept in a cache."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from scoreflow import draw, metrics
from scoreflow.data import Dataset
from scoreflow.experiment import EVALUATE, Experiment
from scoreflow.metrics import Estimate, Extractor, class_score, frechet, inception, jackknife, mean_estimate
from scoreflow.metrics import digits as digit_metrics
from scoreflow.metrics.kernel import MIN_SAMPLES, kernel_distance
from scoreflow.metrics.neighbors import covered
from scoreflow.runs import parallel
from scoreflow.runs.partial import NONE, PartialResults
from scoreflow.types import Params

FeatureName = Literal["pixels", "digits", "inception"]

_ADDED = ("n", "total", "outer")
_GROUPS = 10  # of samples, each left out once for the standard error of the Frechet distance
_KEPT = 10_000  # features kept for the metrics that compare pairs


def extractor(name: FeatureName, data: Dataset, cache_dir: Path, data_dir: Path) -> Extractor:
    """The feature function of a name: the data themselves, a classifier fitted to them, or the network of the FID.

    Raises:
      DataError: where the weights of the Inception network are missing; it names the file and where to put it.
    """
    if name == "digits":
        return digit_metrics.classifier(data.train, data.num_levels, cache_dir)
    if name == "inception":
        return inception.extractor(data_dir / "downloads", data.num_levels)
    return Extractor("pixels", metrics.pixels)


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
    partial: PartialResults = NONE,
    name: str = "",
) -> Sampled:
    """Runs the feature function over a sample in batches, keeping what the metrics need.

    Features of the batches that are among the partial results of this `name` are not taken again. Every process adds
    up its share of the rows; the sums are merged at the end.
    """

    def take(i):
        features = extractor.extract(x[i : i + batch])
        probs = np.zeros((len(features.pool), 0)) if features.probs is None else features.probs
        return features.pool, probs

    moments: list[frechet.Moments] = []
    kept = []
    for i in range(0, len(x), batch):
        features = partial.get(f"{name}-{i}", lambda: (0, 0), lambda i=i: take(i))
        pool = features[0]
        if not moments:
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


def statistics(extractor: Extractor, x: np.ndarray, cache_dir: Path, partial: PartialResults = NONE) -> Statistics:
    """Features of the training data, from `cache_dir` where they have been taken before.

    The file's name carries a digest of the data and of the feature function's name.
    """
    content = hashlib.sha256(extractor.name.encode())
    for i in range(0, len(x), 1000):
        content.update(np.ascontiguousarray(x[i : i + 1000]).tobytes())
    path = cache_dir / "statistics" / f"{content.hexdigest()[:32]}.npz"
    try:
        with np.load(path) as kept:
            sums = {k: kept[k] for k in ("total", "outer", "origin")}
            return Statistics(kept["pool"], frechet.Moments(int(kept["n"]), **sums))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # none, or none that can be read
    sampled = collect(extractor, x, partial=partial, name="training_data")
    fresh = Statistics(sampled.pool, _merge(sampled.moments))
    if parallel.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name("scratch.npz")
        np.savez(scratch, pool=fresh.pool, **fresh.moments._asdict())
        scratch.replace(path)
    return fresh


def quality(
    sampled: Sampled, reference: Statistics, target: frechet.Reference, k: int, score: str
) -> dict[str, Estimate | float | int]:
    """Distances between a sample's features and a reference's, and the classifier's view of the sample."""
    others = [_merge(sampled.moments[:g] + sampled.moments[g + 1 :]) for g in range(_GROUPS)]
    out = {
        "frechet": jackknife(
            frechet.frechet_distance(_merge(sampled.moments), target),
            np.array([frechet.frechet_distance(other, target) for other in others]),
        ),
        "kernel": kernel_distance(sampled.pool, reference.pool) if len(sampled.pool) >= MIN_SAMPLES else None,
        "precision": mean_estimate(covered(sampled.pool, reference.pool, k)),
        "recall": mean_estimate(covered(reference.pool, sampled.pool, k)),
    }
    if sampled.probs is not None:
        out[score] = class_score(sampled.probs)
        share = np.bincount(sampled.probs.argmax(1), minlength=sampled.probs.shape[1]) / len(sampled.probs)
        out["confidence"] = mean_estimate(sampled.probs.max(1))
        out["classes_found"] = int((share > 0).sum())
        out["smallest_class_share"] = float(share.min())
    return out


def distance(
    experiment: Experiment, extract: Extractor, num: int, batch: int, cache_dir: Path
) -> Callable[[Params], float]:
    """params -> Frechet distance of `num` samples to the training data, with the same noise at every call."""
    draw_samples = draw.make_draw(experiment, batch)
    reference = statistics(extract, experiment.data.train.x, cache_dir)
    target = frechet.reference(*frechet.mean_and_covariance(reference.moments))

    def measure(params):
        x = draw_samples(params, experiment.key(EVALUATE), num).x
        return frechet.frechet_distance(_merge(collect(extract, x, reference.moments.origin).moments), target)

    return measure
