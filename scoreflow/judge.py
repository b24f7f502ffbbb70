"""Judging without a run: how close samples are to data, and how many steps a process needs for data like these."""

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from jax.typing import ArrayLike

from scoreflow import metrics, planner
from scoreflow.data.fetch import default_dir
from scoreflow.evaluators import features as collected
from scoreflow.metrics import Estimate, Extractor, Features, frechet, inception
from scoreflow.processes import linear
from scoreflow.processes.sdes import Process

Measured = dict[str, Estimate | float | int | None]


def sample_quality(
    samples: ArrayLike,
    data: ArrayLike,
    *,
    features: Callable[[np.ndarray], ArrayLike] | Literal["pixels", "inception"] = "pixels",
    neighbors: int = 3,
) -> Measured:
    """Frechet and kernel distance, precision and recall of samples, each with its standard error.

    Args:
      samples: [N, ...], at least some hundreds.
      data: [M, ...] of the same shape and kind, such as the training data.
      features: [B, ...] -> vectors [B, D]; "pixels" for the examples themselves, where uint8 are divided by 255; or
        "inception", the network of the FID, for uint8 images [N, H, W, 1 or 3]: its weights must lie in downloads/ of
        the folder $SCOREFLOW_DATA.
      neighbors: of precision and recall.

    Returns:
      "frechet", "kernel", "precision" and "recall"; None for what needs more examples. With "inception" also what that
      classifier finds, such as the Inception score.

    Raises:
      ValueError: where samples and data are of different shapes or types, or not finite.
      DataError: where the weights are missing; it names the file and where to put it.

    Examples:
      >>> import numpy as np, scoreflow
      >>> rng = np.random.default_rng(0)
      >>> data, samples = rng.normal(size=(2000, 2)), rng.normal(size=(2000, 2)) + [0.5, 0.0]
      >>> round(scoreflow.sample_quality(samples, data)["frechet"].value, 1)  # 0.5^2, up to chance
      0.3
    """
    samples, data = np.asarray(samples), np.asarray(data)
    whole = (samples.dtype == np.uint8) == (data.dtype == np.uint8)
    if samples.shape[1:] != data.shape[1:] or not whole or not len(samples) or not len(data):
        kinds = " and ".join(f"{list(x.shape)} {x.dtype}" for x in (samples, data))
        raise ValueError(f"samples and data must be of the same shape and type, and some; they are {kinds}")
    if not all(x.dtype.kind in "iub" or np.isfinite(x).all() for x in (samples, data)):
        raise ValueError("samples and data must be finite")
    extract = _extractor(features, data)
    of_data = collected.collect(extract, data)
    reference = frechet.reference(*frechet.mean_and_covariance(collected.merged(of_data.moments)))
    of_samples = collected.collect(extract, samples, reference.mean)
    target = collected.Target(reference, of_data.pool)
    return collected.quality(of_samples, target, neighbors, extract.score)


def _extractor(features: Callable | str, data: np.ndarray) -> Extractor:
    if features == "inception":
        if data.dtype != np.uint8 or data.ndim != 4 or data.shape[-1] not in (1, 3):
            held = f"{list(data.shape)} {data.dtype}"
            raise ValueError(f'features = "inception" needs uint8 images [N, H, W, 1 or 3]; these are {held}')
        return inception.extractor(default_dir() / "downloads", 256)
    if callable(features):
        own = features
        return Extractor("own", lambda x: Features(np.asarray(own(x), np.float64).reshape(len(x), -1)))
    if features != "pixels":
        raise ValueError(f'features = {features!r} must be "pixels", "inception" or a function')
    top = 255.0 if data.dtype == np.uint8 else 1.0
    return Extractor("pixels", functools.partial(metrics.pixels, top=top))


def plan(
    x: ArrayLike,
    process: Process,
    *,
    accuracy: float = 0.1,
    t_min: float = 1e-3,
    others: Mapping[str, Process] | None = None,
) -> planner.Plan:
    """How many steps a sampler with the exact score would need for data like these, before anything is trained.

    The data are replaced by the Gaussian with their mean and covariance, for which the sampler's distribution is known;
    what is proved for other data is given as well. `print` shows the table.

    Args:
      x: continuous data [N, ...], in the units that the network sees, such as from -1 to 1.
      process: the forward SDE.
      accuracy: the 2-Wasserstein distance to reach, as a fraction of the data's own spread.
      t_min: the time at which the sampler ends.
      others: by name, processes to compare it with; None for those that scoreflow knows, at their defaults.

    Raises:
      TypeError: if x is integer, or the process is none.
      ValueError: if the accuracy is not above 0.
      UserError: where all examples are the same.

    Examples:
      >>> import numpy as np, scoreflow
      >>> data = np.random.default_rng(0).normal(size=(1000, 2)) * [1.0, 0.5]
      >>> plan = scoreflow.plan(data, scoreflow.vp_linear(), others={"edm": scoreflow.edm()})
      >>> [row.name for row in plan.rows]
      ['edm', 'yours']
    """
    if not accuracy > 0:
        raise ValueError(f"accuracy = {accuracy} must be above 0")
    linear.check(process)
    options = planner.PlannerOptions(accuracy=accuracy, t_min=t_min, configured="yours", others=others)
    rows = np.asarray(x)
    if not np.issubdtype(rows.dtype, np.floating):
        raise TypeError(f"x is {rows.dtype}; it must be float, in the units that the network sees")
    return planner.compare("the data", planner.gaussian_of(rows), process, options)
