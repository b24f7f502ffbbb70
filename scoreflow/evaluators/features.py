"""Features of samples and of data: collected in batches, compared by distances, kept in a cache."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from scoreflow import draw, metrics
from scoreflow.data import UNREADABLE, Dataset, digest
from scoreflow.experiment import EVALUATE, Experiment
from scoreflow.metrics import (
    Estimate,
    Extractor,
    class_score,
    frechet,
    inception,
    jackknife,
    mean_estimate,
    reference_file,
)
from scoreflow.metrics import classifier as classifiers
from scoreflow.metrics.kernel import MIN_SAMPLES, kernel_distance
from scoreflow.metrics.neighbors import covered
from scoreflow.runs import files, parallel
from scoreflow.runs.partial import NONE, PartialResults
from scoreflow.types import Params

FeatureName = Literal["pixels", "digits", "classifier", "inception"]

_ADDED = ("n", "total", "outer")
_GROUPS = 10  # of samples, each left out once for the standard error of the Frechet distance
_VERSION = 2  # of what is kept
_KEPT = 10_000  # features kept for the metrics that compare pairs


def extractor(name: FeatureName, data: Dataset, cache_dir: Path, data_dir: Path) -> Extractor:
    """The feature function of a name: the data themselves, a classifier fitted to them, or the network of the FID.

    Raises:
      DataError: where the weights of the Inception network are missing; it names the file and where to put it.
    """
    if name == "digits" or name == "classifier":
        return classifiers.classifier(data.train, data.num_levels, cache_dir, name)
    if name == "inception":
        return inception.extractor(data_dir / "downloads", data.num_levels)
    if not data.num_levels:
        return Extractor("pixels", metrics.pixels)
    top = data.num_levels - 1
    return Extractor("pixels", functools.partial(metrics.pixels, top=top), key=f"levels to {top}")


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


def merged(moments: list[frechet.Moments]) -> frechet.Moments:
    """Those of all parts of a sample together."""
    total = moments[0]
    for part in moments[1:]:
        total = frechet.merge(total, part)
    return total


class Statistics(NamedTuple):
    """What is kept of the training data's features: the first `pool` [N, D], and the `moments` of all."""

    pool: np.ndarray
    moments: frechet.Moments


def _read_statistics(path: Path) -> Statistics | None:
    """What is in a file; None where there is none, or none that can be read."""
    try:
        with np.load(path) as kept:
            sums = {k: kept[k] for k in ("total", "outer", "origin")}
            return Statistics(kept["pool"], frechet.Moments(int(kept["n"]), **sums))
    except (KeyError, *UNREADABLE):
        return None


def statistics(extractor: Extractor, x: np.ndarray, cache_dir: Path, partial: PartialResults = NONE) -> Statistics:
    """Features of the training data, from `cache_dir` where they have been taken before.

    The file's name carries a digest of the data, their shape and type, and of all that the features depend on.
    """
    key = digest(x, begin=f"{_VERSION} {extractor.name} {extractor.key} ")[:32]
    path = cache_dir / "statistics" / f"{key}.npz"
    stored = _read_statistics(path)
    if parallel.agree(stored is not None) and stored is not None:
        return stored
    sampled = collect(extractor, x, partial=partial, name="training_data")
    fresh = Statistics(sampled.pool, merged(sampled.moments))
    if parallel.is_main():
        with files.replacing(path) as scratch:
            np.savez(scratch, pool=fresh.pool, **fresh.moments._asdict())
    return fresh


class Target(NamedTuple):
    """What features of samples are compared with.

    Attributes:
      gaussian: fitted to them, for the Frechet distance.
      pool: features [N, D] for the metrics that compare pairs; None where only mean and covariance are known.
    """

    gaussian: frechet.Reference
    pool: np.ndarray | None


def target(
    name: FeatureName,
    extractor: Extractor,
    data: Dataset,
    cache_dir: Path,
    reference: str = "",
    partial: PartialResults = NONE,
) -> Target:
    """The training data's features, or the mean and covariance in the file `reference`.

    Raises:
      DataError: if the file cannot be used.
    """
    if reference:
        return Target(frechet.reference(*read_reference(reference, name, data)), None)
    kept = statistics(extractor, data.train.x, cache_dir, partial)
    return Target(frechet.reference(*frechet.mean_and_covariance(kept.moments)), kept.pool)


def read_reference(path: str, name: FeatureName, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] of features in a file that another program may have written.

    Raises:
      DataError: if the file cannot be used.
    """
    return reference_file.read(files.local(path, "eval.reference"), _size(name, data))


def _size(name: FeatureName, data: Dataset) -> int:
    """Length of a feature vector."""
    sizes = {"digits": classifiers.SIZE, "classifier": classifiers.SIZE, "inception": inception.SIZE}
    return sizes.get(name) or int(np.prod(data.shape))


def quality(sampled: Sampled, target: Target, k: int, score: str) -> dict[str, Estimate | float | int | None]:
    """Distances between a sample's features and a target's, and the classifier's view of the sample.

    What needs more examples than there are is None.
    """
    others = [merged(sampled.moments[:g] + sampled.moments[g + 1 :]) for g in range(_GROUPS)]
    out: dict[str, Estimate | float | int | None] = {"frechet": None}
    if min(other.n for other in others) >= 2:
        value = frechet.frechet_distance(merged(sampled.moments), target.gaussian)
        left_out = [frechet.frechet_distance(other, target.gaussian) for other in others]
        out["frechet"] = jackknife(value, np.array(left_out))
    if (pool := target.pool) is not None:
        fewest = min(len(sampled.pool), len(pool))
        out["kernel"] = kernel_distance(sampled.pool, pool) if fewest >= MIN_SAMPLES else None
        out["precision"] = mean_estimate(covered(sampled.pool, pool, k)) if fewest > k else None
        out["recall"] = mean_estimate(covered(pool, sampled.pool, k)) if fewest > k else None
    if sampled.probs is not None:
        out[score] = class_score(sampled.probs)
        share = np.bincount(sampled.probs.argmax(1), minlength=sampled.probs.shape[1]) / len(sampled.probs)
        out["confidence"] = mean_estimate(sampled.probs.max(1))
        out["classes_found"] = int((share > 0).sum())
        out["smallest_class_share"] = float(share.min())
    return out


class Distance(NamedTuple):
    """params -> Frechet distance of their samples, with plain values that say what else it depends on."""

    measure: Callable[[Params], float]
    depends_on: dict[str, Any]

    def __call__(self, params: Params) -> float:
        return self.measure(params)


def distance(
    features: FeatureName, num: int, batch: int, cache_dir: Path, data_dir: Path, reference: str = ""
) -> Callable[[Experiment], Distance]:
    """Experiment -> params -> Frechet distance of `num` samples to the target, from the same noise every time.

    For `measures` of `train.TrainOptions`; samples are drawn `batch` at a time. See `target` for `reference`.
    """

    def make(experiment: Experiment) -> Distance:
        draw_samples, data = draw.make_draw(experiment, batch), experiment.data
        extract = extractor(features, data, cache_dir, data_dir)
        gaussian = target(features, extract, data, cache_dir, reference).gaussian

        def measure(params: Params) -> float:
            x = draw_samples(params, experiment.key(EVALUATE), num).x
            if len(x) < 2:  # the others were not finite: no distance, which is never the best
                return float("nan")
            return frechet.frechet_distance(merged(collect(extract, x, gaussian.mean).moments), gaussian)

        depends_on: dict[str, Any] = {"features": extract.name, "samples": num}
        if reference:
            depends_on["reference"] = digest(*read_reference(reference, features, data))[:16]
        drawn_by = draw.drawn_by(experiment)
        drawn_by.pop("sampling.pilot")  # the times are tuned to no checkpoint of a training
        return Distance(measure, depends_on | drawn_by)

    return make
