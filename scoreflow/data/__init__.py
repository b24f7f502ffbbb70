"""Data sets as arrays, and batches as functions of (seed, step).

Nothing here is about diffusion. A batch depends on its arguments alone, so there is nothing to checkpoint and a resumed
run sees what an uninterrupted one would have seen.
"""

import dataclasses
import functools
import hashlib
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from scoreflow.runs.errors import UserError

T = TypeVar("T")

UNREADABLE = (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises for files that are damaged, or hold something else."""


class DataError(UserError):
    """A data set that is missing, damaged or not what was asked for; the message is one line for the user."""


class Split(NamedTuple):
    """Examples [N, ...]: integer levels (uint8) or continuous (float32), and labels [N] int32 or None."""

    x: np.ndarray
    label: np.ndarray | None = None


class Summary(NamedTuple):
    """What was counted when images were decoded.

    Attributes:
      digest: of all examples and their labels.
      counts: how often each gray level occurs, [256].
    """

    digest: str
    counts: np.ndarray


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
      class_names: of the labels 0 ... num_classes - 1, where they have names.
      summary: of images that were decoded once and are not in memory.
    """

    name: str
    train: Split
    test: Split
    num_levels: int
    num_classes: int = 0
    log_prob: Callable[[np.ndarray], np.ndarray] | None = None
    log_density: Callable[..., Any] | None = None
    class_names: tuple[str, ...] = ()
    summary: Summary | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.train.x.shape[1:]


_TOGETHER = 10  # copies of an example that are on the same side
_HASHED = 2**28  # bytes of a split that its digest reads


def describe(dataset: Dataset) -> dict[str, Any]:
    """What a run keeps of its data, to know them again: the number of examples, their shape and a digest.

    The digest covers every example of up to 256 MiB, and as much of evenly spaced ones of larger data sets. A data set
    that is drawn from a known density has none: its last digits depend on the machine. Nothing is known of one without
    examples.
    """
    if not len(dataset.train.x):
        return {}
    counts = {"train": len(dataset.train.x), "test": len(dataset.test.x), "shape": list(dataset.shape)}
    if dataset.log_prob is not None:
        return counts
    if dataset.summary is not None:
        return {**counts, "digest": dataset.summary.digest[:16]}
    hashed = []
    for split in (dataset.train, dataset.test):
        every = -(-split.x.nbytes // _HASHED) or 1
        hashed += [array[::every] for array in (split.x, split.label) if array is not None]
    return {**counts, "digest": digest(*hashed, begin=str(dataset.num_levels))[:16]}


def digest(*arrays: np.ndarray, begin: str = "") -> str:
    """The SHA-256 of a text, and of the shapes, types and contents of arrays, in hexadecimal digits.

    The arrays are read in pieces, so that they need not be in memory.
    """
    content = hashlib.sha256(begin.encode())
    for array in arrays:
        content.update(f"{array.shape}{array.dtype}".encode())
        for i in range(0, len(array), 1000):
            content.update(np.ascontiguousarray(array[i : i + 1000]).data)
    return content.hexdigest()


_ALL = slice(None)


def fingerprints(x: np.ndarray) -> np.ndarray:
    """A number for each of the examples [N, ...] that depends on its content alone, [N] uint64."""
    out = np.empty(len(x), np.uint64)
    for i in range(0, len(x), 1000):
        for j, example in enumerate(np.ascontiguousarray(x[i : i + 1000]), i):
            out[j] = int.from_bytes(hashlib.sha256(example.tobytes()).digest()[:8], "big")
    return out


@functools.lru_cache(maxsize=8)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits n examples."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def batch(
    split: Split, seed: int, step: int, size: int, *, flip: bool = False, rows: slice = _ALL
) -> dict[str, np.ndarray]:
    """Batch number `step` of endless shuffled epochs, a function of its arguments.

    Every epoch visits each example once, in an order that depends on (seed, epoch). A batch may span epochs.

    Args:
      split: what to draw from.
      seed: of the order of the examples.
      step: which batch.
      size: number of examples.
      flip: mirror each image left to right with probability 1/2.
      rows: of the batch that are wanted; no others are read.

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
    index = index[rows]
    x = split.x[index]
    if flip:
        mirrored = (np.random.default_rng([seed, step, 1]).random(size) < 0.5)[rows]
        x = np.where(mirrored.reshape(-1, *[1] * (x.ndim - 1)), x[:, :, ::-1], x)
    return {"x": x} if split.label is None else {"x": x, "label": split.label[index]}


@dataclasses.dataclass(frozen=True)
class Batches:
    """So many batches of a split; see `batches`."""

    split: Split
    size: int
    steps: int
    seed: int = 0
    flip: bool = False

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (batch(self.split, self.seed, i, self.size, flip=self.flip) for i in range(self.steps))


def batches(
    x: ArrayLike,
    label: ArrayLike | None = None,
    *,
    size: int = 128,
    steps: int = 1000,
    seed: int = 0,
    flip: bool = False,
) -> Batches:
    """Batches of arrays for `fit`: endless shuffled epochs, of which `steps` batches are taken.

    Args:
      x: examples [N, ...].
      label: of each, [N] integers, or None.
      size: examples of a batch; they may be fewer than that.
      steps: batches.
      seed: of the order of the examples.
      flip: mirror each image [H, W, C] left to right with probability 1/2.

    Raises:
      ValueError: where there are no examples, or not a label for each.

    Examples:
      >>> import numpy as np, scoreflow
      >>> batches = scoreflow.batches(np.zeros((1000, 2), np.float32), size=64, steps=10)
      >>> len(batches), [batch["x"].shape for batch in batches][-1]
      (10, (64, 2))
    """
    x, labels = np.asarray(x), None if label is None else np.asarray(label)
    if not x.ndim or not len(x) or size < 1 or steps < 0:
        raise ValueError(f"x has the shape {x.shape}, size = {size}, steps = {steps}; there must be examples to batch")
    if labels is not None and (labels.shape != x.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(f"labels must be [{len(x)}] integers; they are {list(labels.shape)} {labels.dtype}")
    return Batches(Split(x, None if labels is None else labels.astype(np.int32)), size, steps, seed, flip)


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
    order, n_test = shuffle(len(x), seed), math.ceil(fraction * len(x))

    def take(index: np.ndarray) -> Split:
        return Split(x[index], None if label is None else label[index])

    return take(order[n_test:]), take(order[:n_test])


def shuffle(n: int, seed: int = 0) -> np.ndarray:
    """A permutation of n examples that depends on the seed alone."""
    # RandomState, because NumPy has frozen its stream: the same split on every version.
    return np.random.RandomState(seed).permutation(n)


def marks(digests: Sequence[bytes]) -> tuple[np.ndarray, int]:
    """(a number for each example that depends on its content alone, [N] uint64; the number of distinct contents).

    Examples below fraction 2^64 are held out: another example changes the membership of none. Examples of the same
    content are on the same side, up to ten of them; where data take few values, further ones have numbers of their own.

    Args:
      digests: of each example's content, at least 8 bytes that are as good as random.
    """
    count: Counter[bytes] = Counter()
    numbers = np.empty(len(digests), np.uint64)
    for i, each in enumerate(digests):
        copy = count[each]
        count[each] += 1
        own = each if copy < _TOGETHER else hashlib.sha256(each + copy.to_bytes(8, "big")).digest()
        numbers[i] = int.from_bytes(own[:8], "big")
    return numbers, len(count)


def load_arrays(path: Path, what: str, kind: str = ".npy or .npz") -> np.ndarray | Mapping[str, np.ndarray]:
    """What a `.npy` file holds, or the arrays of a `.npz` file by name, each of which is read when it is asked for.

    Args:
      path: of the file.
      what: it is called in messages.
      kind: of file that is expected, for messages.

    Raises:
      DataError: if it cannot be read, now or when an array is asked for.
    """
    try:
        stored = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise DataError(f"{what} is not a readable {kind} file: {first_line(error)}") from error
    return stored if isinstance(stored, np.ndarray) else _Stored(stored, what)


class _Stored(Mapping[str, np.ndarray]):
    """The arrays of a `.npz` file."""

    def __init__(self, file: Any, what: str):
        self._file, self._what = file, what

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._file[name]
        except UNREADABLE as error:
            raise DataError(f"{self._what}: {name} cannot be read: {first_line(error)}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without addresses of objects; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(" <")[0]
