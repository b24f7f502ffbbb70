"""Data sets as arrays, and batches as functions of (seed, step).

Nothing here is about diffusion. A batch depends on its arguments alone, so there is nothing to checkpoint and a resumed
run sees what an uninterrupted one would have seen.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from scoreflow.runs.errors import UserError

T = TypeVar("T")


class DataError(UserError):
    """A data set that is missing, damaged or not what was asked for; the message is one line for the user."""


class Split(NamedTuple):
    """Examples [N, ...]: integer levels (uint8) or continuous (float32), and labels [N] int32 or None."""

    x: np.ndarray
    label: np.ndarray | None = None


class Dataset(NamedTuple):
    """A data set.

    Attributes:
      name: for messages and file names.
      train, test: the splits.
      num_levels: number of gray levels; 0 where the data are continuous.
      num_classes: number of labels; 0 where there are none.
      log_prob: log-density (nats) of x [B, ...], where it is known.
      log_density: (x [d], alpha, sigma) -> log-density (nats) of alpha data + sigma noise, where it is known; the
        loaders leave it out.
    """

    name: str
    train: Split
    test: Split
    num_levels: int
    num_classes: int = 0
    log_prob: Callable[[np.ndarray], np.ndarray] | None = None
    log_density: Callable[..., Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.train.x.shape[1:]


@functools.lru_cache(maxsize=8)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits n examples."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def batch(split: Split, seed: int, step: int, size: int, *, flip: bool = False) -> dict[str, np.ndarray]:
    """Batch number `step` of endless shuffled epochs, a function of its arguments.

    Every epoch visits each example once, in an order that depends on (seed, epoch). A batch may span epochs.

    Args:
      split: what to draw from.
      seed, step: which batch.
      size: number of examples.
      flip: mirror each image left to right with probability 1/2.

    Returns:
      {"x": [size, ...]} and, where there are labels, {"label": [size] int32}.
    """
    n = len(split.x)
    position = np.arange(step * size, (step + 1) * size)
    epochs = position // n
    index = np.empty(size, np.int64)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        index[inside] = _order(n, seed, int(epoch))[position[inside] % n]
    x = split.x[index]
    if flip:
        mirrored = np.random.default_rng([seed, step, 1]).random(size) < 0.5
        x = np.where(mirrored.reshape(-1, *[1] * (x.ndim - 1)), x[:, :, ::-1], x)
    return {"x": x} if split.label is None else {"x": x, "label": split.label[index]}


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """The same items in the same order, each computed by another thread while the one before is in use."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, end)
        while (item := waiting.result()) is not end:
            waiting = pool.submit(next, items, end)
            yield item


def hold_out(x: np.ndarray, label: np.ndarray | None, fraction: float, seed: int = 0) -> tuple[Split, Split]:
    """Splits arrays into (train, test), test having ceil(fraction N), by a shuffle that depends on the seed alone."""
    # RandomState, because NumPy has frozen its stream: the same split on every version.
    order = np.random.RandomState(seed).permutation(len(x))
    n_test = int(np.ceil(fraction * len(x)))

    def take(index):
        return Split(x[index], None if label is None else label[index])

    return take(order[n_test:]), take(order[:n_test])
