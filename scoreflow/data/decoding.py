"""Decodes a source of images into one file of pixels, in several processes.

    python -m scoreflow.data.decoding <job file>

`prepared` starts it as a program of its own, so that the processes that it starts never run a person's script again,
and know nothing of JAX. It prints the number of images of every chunk, or, as JSON, why it cannot go on.
"""

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from scoreflow.data import DataError, marks, shuffle
from scoreflow.data.images import Decoding, pixels_of
from scoreflow.data.sources import Source

SplitRule = Literal["content", "shuffled"]

_CHUNK = 128  # images of a task
_COMPARED = 16  # images whose sizes are compared before all are decoded
_BYTES = ("utf-8", "surrogateescape")  # of names of files
_HEADER = 128  # bytes before the pixels


class Job(NamedTuple):
    """What to do.

    Attributes:
      source: the images.
      rule: how they become pixels.
      split: how the order is made in which they are written; the test split is its beginning.
      out: an empty folder for the results.
      workers: number of processes; 1 for this one alone.
    """

    source: Source
    rule: Decoding
    split: SplitRule
    out: Path
    workers: int


class _Row(NamedTuple):
    """What is known of an image besides its pixels; `size` where it is not that of the first."""

    content: bytes
    pixels: bytes
    label: str | int | None
    test: bool | None
    gray: bool
    notes: tuple[str, ...]
    size: tuple[int, ...] | None = None


class _Chunk(NamedTuple):
    """What is known of a chunk.

    Attributes:
      rows: of each image a row, or why it cannot be read.
      counts: how often each level occurs, [2, 256]: in images of color, and of gray.
    """

    rows: list[_Row | str]
    counts: np.ndarray


def _task(job: Job, shape: tuple[int, ...], start: int) -> _Chunk:
    """Decodes a chunk into the shared file."""
    pixels, counts = _raw(job, shape), np.zeros((2, 256), np.int64)
    rows: list[_Row | str] = []
    for i in range(start, min(start + _CHUNK, shape[0])):
        try:
            item = job.source.read(i)
            image, gray, notes = pixels_of(item.content, item.name, job.rule)
        except DataError as error:
            rows.append(str(error))
            continue
        content = item.content if isinstance(item.content, bytes) else item.content.tobytes()
        row = _Row(hashlib.sha256(content).digest(), b"", item.label, item.test, gray, notes)
        if image.shape[:2] == shape[1:3]:
            pixels[i] = image
            counts[int(gray)] += np.bincount(image.ravel(), minlength=256)
            rows.append(row._replace(pixels=_digest(pixels[i])))
        else:
            rows.append(row._replace(size=image.shape[:2]))
    return _Chunk(rows, counts)


def _digest(image: np.ndarray) -> bytes:
    """Of the pixels, whether gray is stored as one channel or as three."""
    gray = image[..., :1]
    return hashlib.sha256((gray if np.all(image == gray) else image).tobytes()).digest()


_given: tuple[Job, tuple[int, ...]]  # in a process of the pool: handed over once, since it names every image


def _begin(*given: Any) -> None:
    global _given
    _given = given


def _task_of_all(start: int) -> _Chunk:
    return _task(*_given, start)


def _raw(job: Job, shape: tuple[int, ...]) -> np.ndarray:
    """The shared file of pixels, first in the order of the source; as a plain array, whose rows are quick to take."""
    return np.memmap(job.out / "x.npy", np.uint8, "r+", _HEADER, shape).view(np.ndarray)


def _header(shape: tuple[int, ...]) -> bytes:
    """That of a `.npy` file, of a length that does not depend on the shape."""
    words = repr({"descr": "|u1", "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\1\0" + (_HEADER - 10).to_bytes(2, "little") + words.ljust(_HEADER - 11).encode() + b"\n"


def decode_all(job: Job, done: Callable[[int], None]) -> None:
    """Writes `x.npy` [N, H, W, C] uint8, `label.npy`, `marks.npy`, `pixels.npy` and `index.json` to `job.out`.

    Args:
      job: what to do.
      done: called with the number of images of every chunk.

    Raises:
      DataError: where the images have several sizes, or none can be read.
    """
    shape = _shape(job)
    with open(job.out / "x.npy", "wb") as file:
        _reserve(file, _HEADER + math.prod(shape))
    starts, rows, counts, given = range(0, shape[0], _CHUNK), [], np.zeros((2, 256), np.int64), (job, shape)
    many = ProcessPoolExecutor(job.workers, initializer=_begin, initargs=given) if job.workers > 1 else None
    with many or contextlib.nullcontext():
        for chunk in many.map(_task_of_all, starts) if many else map(functools.partial(_task, *given), starts):
            if sizes := {row.size for row in chunk.rows if not isinstance(row, str) and row.size}:
                raise _several({shape[1:3], *sizes})
            rows += chunk.rows
            counts += chunk.counts
            done(len(chunk.rows))
    _write(job, shape, rows, counts)


def _reserve(file: IO[bytes], size: int) -> None:
    """Gives a file its size, and its room on the disk: in a file that is mapped, a full disk would end the process."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
    if shutil.disk_usage(file.name).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    file.truncate(size)


def _several(sizes: Iterable[tuple[int, ...]]) -> DataError:
    words = " and ".join(f"{width} x {height}" for height, width in sorted(sizes)[:2])
    return DataError(f"images of several sizes, such as {words}; set data.image_size to bring them to one")


def _shape(job: Job) -> tuple[int, ...]:
    """That of the shared file: three channels where an image may have them; of the sizes, a few are compared."""
    count, channels = len(job.source), 1 if job.rule.channels == 1 else 3
    if side := job.rule.image_size:
        return count, side, side, channels
    sizes: set[tuple[int, ...]] = set()
    for i in range(count):
        if sizes and i % -(-count // _COMPARED):
            continue
        with contextlib.suppress(DataError):
            item = job.source.read(i)
            sizes.add(pixels_of(item.content, item.name, job.rule)[0].shape[:2])
    if len(sizes) > 1:
        raise _several(sizes)
    return count, *(sizes or {(1, 1)}).pop(), channels


def _write(job: Job, shape: tuple[int, ...], rows: Sequence[_Row | str], counts: np.ndarray) -> None:
    """Puts the pixels in order, the test split first, and writes down what is known of them."""
    good = np.asarray([i for i, row in enumerate(rows) if not isinstance(row, str)], np.int64)
    kept = [row for row in rows if not isinstance(row, str)]
    index: dict[str, Any] = {"unreadable": [row for row in rows if isinstance(row, str)], "others": job.source.others}
    order, index["test"] = _order(job, kept)
    index["notes"] = Counter(note for row in kept for note in row.notes)
    if any(row.label is not None for row in kept):
        names, places = _classes([row.label for row in kept])
        index["classes"] = names
        np.save(job.out / "label.npy", places[order])

    channels = 1 if job.rule.channels == 0 and all(row.gray for row in kept) else shape[-1]
    _arrange(_raw(job, shape), channels, good[order])
    kept_shape = (len(kept), *shape[1:3], channels)
    with open(job.out / "x.npy", "r+b") as file:
        file.write(_header(kept_shape))
        file.truncate(_HEADER + math.prod(kept_shape))
    color, gray = counts
    index["counts"] = (color + gray * channels).tolist()
    index["digest"] = hashlib.sha256(
        b"".join(kept[i].pixels + str(kept[i].label).encode(*_BYTES) for i in order)
    ).hexdigest()
    pixels = np.frombuffer(b"".join(kept[i].pixels[:8] for i in order), np.uint64)
    np.save(job.out / "pixels.npy", pixels)
    (job.out / "index.json").write_text(json.dumps(index))


def _arrange(x: np.ndarray, channels: int, order: np.ndarray) -> None:
    """Puts rows in order where they are: a copy would take as long as a tenth of the decoding, and as much disk again.

    Args:
      x: [N, H, W, C]; changed, so that it begins with rows of [H, W, channels], in order.
      channels: how many of C are kept.
      order: numbers of the rows that are kept.
    """
    if channels < x.shape[-1]:
        packed = x.reshape(-1)[: math.prod(x.shape[:3]) * channels].reshape(*x.shape[:3], channels)
        for i in range(len(x)):
            packed[i] = x[i, ..., :channels].copy()
        x = packed
    left = np.setdiff1d(np.arange(len(x)), order)
    wanted, done = np.concatenate([order, left]).tolist(), bytearray(len(x))
    for start in range(len(x)):  # along the cycles of the permutation
        first, place = x[start].copy(), start
        while not done[place]:
            done[place], other = 1, wanted[place]
            x[place] = first if other == start else x[other]
            place = other


def _order(job: Job, rows: Sequence[_Row]) -> tuple[np.ndarray, int | None]:
    """The order of the examples, and how many of them a source's own split tests.

    With that number None, the beginning of any length is a test split by the rule; `marks.npy` has the examples' marks.
    """
    numbers, _ = marks([row.content for row in rows])
    order = shuffle(len(rows)) if job.split == "shuffled" else np.argsort(numbers, kind="stable")
    np.save(job.out / "marks.npy", numbers[order])
    if all(row.test is None for row in rows):
        return order, None
    tested = np.asarray([bool(row.test) for row in rows])[order]
    return np.concatenate([order[tested], order[~tested]]), int(tested.sum())


def _classes(labels: Sequence[str | int | None]) -> tuple[list[str], np.ndarray]:
    """The distinct labels in order, as words, and the place of each example's, [N] int32."""
    if missing := sum(label is None for label in labels):
        raise DataError(f"{missing} of {len(labels)} images have no label; give all of them one, or none")
    names, places = np.unique(np.asarray(labels), return_inverse=True)
    return [str(name).encode(*_BYTES).decode(errors="replace") for name in names], places.astype(np.int32)


def main() -> None:
    """Does the job in a file; an error is one line of JSON."""
    job: Job = pickle.loads(Path(sys.argv[1]).read_bytes())
    try:
        decode_all(job, lambda number: print(number, flush=True))
    except DataError as error:
        print(json.dumps({"error": str(error)}), flush=True)
    except BrokenPipeError:  # who has started this is gone
        os._exit(1)
    except BrokenProcessPool:
        words = "a process that decodes was ended by the system, perhaps for lack of memory"
        print(json.dumps({"error": words}), flush=True)
    except OSError as error:
        words = f"{error.filename or job.out} cannot be read or written: {error.strerror}"
        print(json.dumps({"error": words}), flush=True)


if __name__ == "__main__":
    main()
