"""Images decoded once, into a file that later starts map into memory.

    <data folder>/prepared/<key>/x.npy          pixels [N, H, W, C], the test split first
                                 label.npy      classes [N], where there are any
                                 marks.npy      what decides which examples are held out
                                 pixels.npy     8 bytes of the digest of each image's pixels, to find copies
                                 index.json     counts, names of classes, what was left out, a digest

The key covers the place, names, sizes and times of all files, and the rule by which they are decoded; what has changed
is decoded anew. Any of these folders can be deleted.
"""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scoreflow.data import UNREADABLE, DataError, Dataset, Split, Summary
from scoreflow.data.decoding import Job, SplitRule, decode_all
from scoreflow.data.images import Decoding
from scoreflow.data.sources import Source
from scoreflow.runs import files, report

_VERSION = 2  # of what is written
_ALONE = 512  # images that this process decodes itself: others take half a second to start
_NAMED = 5  # files that a message names
_INDEX = "index.json"  # written last
_ENTRIES = ("unreadable", "others", "notes", "test", "counts", "digest")  # of it


def prepared(
    source: Source,
    name: str,
    *,
    cache: Path,
    rule: Decoding,
    test_fraction: float = 0.1,
    split: SplitRule = "content",
    skip_unreadable: bool = False,
    workers: int = 0,
    forget_damaged: bool = False,
) -> Dataset:
    """The data set of a source of images; decoded where that has not been done before.

    Args:
      source: the images.
      name: of the data set, for messages.
      cache: folder in which the decoded images are kept.
      rule: how they become pixels.
      test_fraction: fraction that is held out, where the source has no splits.
      split: how: by the content of each example, so that another example moves none, or by a shuffle of all.
      skip_unreadable: whether images that cannot be read are left out instead of refused.
      workers: number of processes that decode; 0 for one on each core.
      forget_damaged: whether images are decoded again next time if some could not be read, since the source does not
        show that its files have changed.

    Raises:
      DataError: if something in it cannot be used, in one line that names it.
    """
    folder = cache / _key(source, rule, split)
    try:
        if not (folder / _INDEX).is_file():
            with _alone(folder):
                if not (folder / _INDEX).is_file():
                    _prepare(Job(source, rule, split, folder, workers or _cores()), name)
    except OSError as error:
        words = f"{error.filename or folder} cannot be read or written: {error.strerror}"
        raise DataError(f"{name}: {words}; data.dir can name another folder") from error
    index = _index(folder)
    try:
        _tell(index, name, skip_unreadable)
        return _dataset(folder, index, name, test_fraction, split)
    finally:
        if forget_damaged and index["unreadable"]:
            shutil.rmtree(folder, ignore_errors=True)  # what is mapped stays


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(source: Source, rule: Decoding, split: SplitRule) -> str:
    content = hashlib.sha256(repr((_VERSION, type(source).__name__, rule, split)).encode())
    for each in source.identity():
        content.update(each.encode("utf-8", "surrogateescape") + b"\0")
    return content.hexdigest()[:32]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process of this machine prepares the same; where a file system has no locks, it does not."""
    import fcntl

    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare(job: Job, name: str) -> None:
    """Decodes everything into a folder of another name, and renames it: what is there is whole."""
    if len(job.source) < 2:
        raise DataError(f"{name}: {len(job.source)} images in it; 2 are needed")
    images = len(job.source)
    try:
        with files.folder_beside(job.out) as scratch:
            if images <= _ALONE:
                decode_all(job._replace(out=scratch, workers=1), lambda number: None)
                return
            workers = f"{job.workers} process{'es' * (job.workers > 1)}"
            report.say(f"{name}: decoding {images} images once, by {workers}, into {job.out}")
            (scratch / "job").write_bytes(pickle.dumps(job._replace(out=scratch)))
            counts = _counts(scratch / "job", name)
            for _ in report.progress(counts, total=images, unit="image", size=lambda number: number):
                pass
            (scratch / "job").unlink()
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _counts(job: Path, name: str) -> Iterator[int]:
    """Runs a job as a program of its own; the numbers of images that it prints."""
    package = str(Path(__file__).parent.parent.parent)
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "scoreflow.data.decoding", str(job)]
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
        assert program.stdout is not None
        try:
            for line in program.stdout:
                said = json.loads(line)
                if not isinstance(said, int):
                    raise DataError(said["error"])
                yield said
        except BaseException:
            program.terminate()
            raise
    if program.returncode:
        raise DataError(f"the program that decodes {name} ended with exit code {program.returncode}")


def _index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / _INDEX).read_text())
        return {name: index[name] for name in index | dict.fromkeys(_ENTRIES)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the decoded images in {folder} are damaged ({error}); delete that folder") from error


def _tell(index: dict[str, Any], name: str, skip_unreadable: bool) -> None:
    """Says what was left out, or done to images, in one line each."""
    bad, kept = index["unreadable"], sum(index["counts"])
    if bad and not (skip_unreadable and kept):
        more = f" and {len(bad) - _NAMED} more" if bad[_NAMED:] else ""
        words = "; --config.data.skip_unreadable=True leaves them out" if kept else ""
        raise DataError(f"{name}: {'; '.join(bad[:_NAMED])}{more}{words}")
    more = f"; and {len(bad) - _NAMED} more" if bad[_NAMED:] else ""
    unreadable = f"unreadable images left out: {'; '.join(bad[:_NAMED])}{more}"
    for words, count in ({unreadable: len(bad), "other files left out": index["others"]} | index["notes"]).items():
        if count:
            one = words.replace("images", "image", 1).replace("files", "file", 1) if count == 1 else words
            report.say(f"{name}: {count} {one}")


def _dataset(folder: Path, index: dict[str, Any], name: str, test_fraction: float, split: SplitRule) -> Dataset:
    try:
        # as plain arrays, so that what is made of them is in memory
        x = np.load(folder / "x.npy", mmap_mode="r").view(np.ndarray)
        marks, pixels = np.load(folder / "marks.npy"), np.load(folder / "pixels.npy")
        label = np.load(folder / "label.npy") if "classes" in index else None
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EACCES):
            raise DataError(f"the decoded images in {folder} cannot be mapped: {error.strerror}") from error
        raise DataError(f"the decoded images in {folder} are damaged ({error}); delete that folder") from error
    num_test = index["test"]
    if num_test is None:
        num_test = int(np.ceil(test_fraction * len(x)))
        if split == "content":
            below, least = np.uint64(int(test_fraction * 2**64)), marks[0]
            num_test = max(int(np.searchsorted(marks, below)), int(np.searchsorted(marks, least, side="right")))
    if not 0 < num_test < len(x):
        counts = f"{len(x) - num_test} training and {num_test} test examples"
        raise DataError(f"{name}: data.test_fraction = {test_fraction} of {len(x)} examples leaves {counts}")
    classes = index.get("classes", [])
    if len(classes) < 2:
        label, classes = None, []
    _tell_sides(pixels, label, classes, num_test, name, given=index["test"] is not None)
    parts = (slice(num_test), slice(num_test, None))
    test, train = (Split(x[part], None if label is None else label[part]) for part in parts)
    counts = np.asarray(index["counts"], np.float64)
    return Dataset(
        name, train, test, 256, len(classes), class_names=tuple(classes), summary=Summary(index["digest"], counts)
    )


def _tell_sides(
    pixels: np.ndarray, label: np.ndarray | None, classes: list[str], num_test: int, name: str, *, given: bool
) -> None:
    """Says which images are on both sides, and which classes on one.

    Raises:
      DataError: if a source's own test split has a class that its training split does not have.
    """
    copies = len(pixels) - len(np.unique(pixels))
    in_both = int(np.isin(pixels[:num_test], pixels[num_test:]).sum())
    counted = [(copies, "images have the pixels of another")]
    for count, words in [*counted, (in_both, "test images have the pixels of a training image")]:
        if count:
            report.say(f"{name}: {count} {words}")
    unknown = [] if label is None else np.setdiff1d(label[:num_test], label[num_test:]).tolist()
    if unknown and given:
        raise DataError(f"{name}: the test split has class {classes[unknown[0]]}, which no training image has")
    if unknown:
        report.say(f"{name}: {len(unknown)} classes, such as {classes[unknown[0]]}, have no training image")
