"""Noise-prediction error over log-SNR, on training and on test data: what the loss curve averages away."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.experiment import EVALUATE, Experiment
from scoreflow.objectives.dsm import dsm
from scoreflow.runs import parallel
from scoreflow.types import Params

_CHUNK = 16  # examples at a time
_POINTS = 25
LEAST = 2 * _CHUNK * _POINTS
"""Evaluations of the network for the shortest curve that there is: one chunk of each split at all points."""


class ErrorCurve(NamedTuple):
    """Noise-prediction error.

    Attributes:
      log_snr: from data to noise, [P].
      curves: error per dimension of `train` and `test` there, [P] each.
      examples: behind each of the curves. Of the same data, seed and number they have the same examples and noise.
    """

    log_snr: np.ndarray
    curves: dict[str, np.ndarray]
    examples: dict[str, int]


def error_curve(
    experiment: Experiment,
    params: Params,
    *,
    num: int = 256,
    log_snr_points: int = _POINTS,
    seconds: float = float("inf"),
) -> ErrorCurve:
    """Noise-prediction error per dimension at evenly spaced log-SNR.

    Args:
      experiment: the model and its data.
      params: averaged parameters.
      num: examples of each split.
      log_snr_points: number of log-SNR.
      seconds: after which no further examples are begun; at least 16 of each split are used.
    """
    model, process = experiment.model, experiment.model.process
    ends = process.log_snr(jnp.asarray([model.t_min, process.horizon]))
    log_snr = jnp.linspace(ends[0], ends[1], log_snr_points)

    @parallel.jit
    def curve(params, key, data, label):
        key_x, key_noise = jax.random.split(key)
        x0 = experiment.space.encode(params, key_x, data)
        cond = label if model.conditional else None

        def at(t):
            score = model.score(params)
            return dsm(process, score, key_noise, x0, jnp.full(x0.shape[0], t), cond)["order1"].mean()

        return jax.lax.map(at, process.inverse_log_snr(log_snr).clip(model.t_min, process.horizon))

    splits = {"train": experiment.data.train, "test": experiment.data.test}
    curves: dict[str, list[np.ndarray]] = {name: [] for name in splits}
    began = time.monotonic()
    for i in range(0, num, _CHUNK):
        if i and not parallel.agree(time.monotonic() - began < seconds):
            break
        for name, split in splits.items():
            rows = np.arange(i, i + _CHUNK) % len(split.x)  # of one size, so that it is compiled once
            if i >= len(split.x):
                continue
            label = None if split.label is None else split.label[rows]
            key = jax.random.fold_in(experiment.key(EVALUATE), i)
            curves[name].append(np.asarray(curve(params, key, np.asarray(split.x[rows]), label)))
    means = {name: np.mean(rows, axis=0) for name, rows in curves.items()}
    return ErrorCurve(np.asarray(log_snr), means, {name: _CHUNK * len(rows) for name, rows in curves.items()})
