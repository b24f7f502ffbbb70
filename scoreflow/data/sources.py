"""What a list of images is, whatever keeps them: folders, archives and files of records.

A source is handed to other processes, which open its files themselves; nothing is decoded here. This module imports
nothing that is slow.
"""

import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from scoreflow.data import DataError

EXTRA = "pip install 'scoreflow[data]'"
NO_LABELS = "none"  # the value of data.label with which labels are left out

_SPLIT = re.compile(r"(?:^|[-_.])(train|test|val|valid|validation)(?=[-_.]|$)")
_ENCODED = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # how files of images begin


class Item(NamedTuple):
    """One image as it is stored.

    Attributes:
      content: an encoded file, or pixels [H, W, 1 or 3] uint8.
      name: for messages.
      label: its class, as a word or a number; None where there are none.
      test: whether it belongs to the test split; None where the source has no splits.
    """

    content: bytes | np.ndarray
    name: str
    label: str | int | None = None
    test: bool | None = None


class Source(Protocol):
    """A list of images."""

    @property
    def others(self) -> int:
        """How many files in it are no images, or hidden."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know of how it was read, a line each: the test split, labels, what was left out."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the labels 0, 1, 2, ...; empty where labels are their own names."""
        ...

    def identity(self) -> Iterator[str]:
        """What tells that anything has changed, without reading the images: names, sizes, times."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def read(self, i: int) -> Item:
        """One image; called in several processes."""
        ...


class Two:
    """Two sources, of which one has the training split and the other the test split; neither has class names."""

    class_names: Sequence[str] = ()

    def __init__(self, train: Source, test: Source):
        self._train, self._test = train, test

    @property
    def counts(self) -> tuple[int, int]:
        """Training and test images."""
        return len(self._train), len(self._test)

    @property
    def others(self) -> int:
        return self._train.others + self._test.others

    @property
    def notes(self) -> Sequence[str]:
        return [*self._train.notes, *self._test.notes]

    def identity(self) -> Iterator[str]:
        yield from self._train.identity()
        yield from self._test.identity()

    def __len__(self) -> int:
        return len(self._train) + len(self._test)

    def read(self, i: int) -> Item:
        tested = i >= len(self._train)
        return (self._test.read(i - len(self._train)) if tested else self._train.read(i))._replace(test=tested)


class Sides(NamedTuple):
    """Which of several files, or images, belong to which split.

    Attributes:
      kept: numbers of those that are used.
      test: of each of them, whether it belongs to the test split; None where there are no splits.
      note: which split is the test split, and what is left out; empty where there are no splits.
    """

    kept: list[int]
    test: list[bool | None]
    note: str = ""


def split_word(name: str) -> str | None:
    """The split in the name of a file or of a folder above it: `validation` for `a/validation-00000-of-00128`."""
    words = [_SPLIT.search(part.lower()) for part in reversed(name.split("/"))]
    return next((word.group(1) for word in words if word), None)


def sides(words: Sequence[str | None], unit: str) -> Sides:
    """The splits of files with these words: `train`, and `test`, or else one that is called validation.

    Args:
      words: of each file, that of its split, or None.
      unit: what they are, in the plural.
    """
    count = Counter(words)
    taken = next((word for word in ("test", "validation", "valid", "val") if count[word]), None)
    if not count["train"] or taken is None:
        return Sides(list(range(len(words))), [None] * len(words))
    kept = [i for i, word in enumerate(words) if word in ("train", taken)]
    left = [f"{n} {unit} of {word or 'no split'}" for word, n in count.items() if word not in ("train", taken)]
    note = f"{taken} is the test split" + "".join(f", {words} left out" for words in left)
    return Sides(kept, [words[i] == taken for i in kept], note)


def is_encoded(content: bytes) -> bool:
    """Whether bytes begin as the file of an image does."""
    return content.startswith(_ENCODED)


def raw_pixels(content: bytes, name: str, shape: Sequence[int] = ()) -> np.ndarray:
    """Pixels [H, W, 1 or 3] of raw bytes, row by row, of a shape [H, W, C] or [C, H, W], or of a square.

    Raises:
      DataError: if their number fits no such image.
    """
    if not shape:
        for channels in (3, 1):  # no number is both a square and three times one
            side = math.isqrt(len(content) // channels)
            if side and channels * side * side == len(content):
                shape = (side, side, channels)
    if len(shape) not in (2, 3) or min(shape) < 1 or math.prod(shape) != len(content):
        words = f" of shape {tuple(shape)}" if shape else ": no encoded image, and no square of pixels"
        raise DataError(f"{name} has {len(content)} bytes{words}")
    pixels = np.frombuffer(content, np.uint8).reshape(*shape, *[1] * (3 - len(shape)))
    if pixels.shape[0] in (1, 3) and pixels.shape[-1] not in (1, 3):
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return pixels


def facts_of(path: Path, name: str) -> str:
    """A file's name, size and times.

    Raises:
      DataError: if it is not there.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return f"{name} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"


class File(NamedTuple):
    """A file in a folder.

    Attributes:
      name: below the folder, with slashes.
      hidden: whether it or a folder that it is in begins with a dot or is `__MACOSX`, or it is a link to nothing.
      size: in bytes.
      times: of the last change of its content and of its entry.
    """

    name: str
    hidden: bool
    size: int
    times: str


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out."""
    return name.startswith((".", "__MACOSX"))


def walk(root: Path) -> Iterator[File]:
    """Every file in a folder and its sub-folders. Links are followed, but not to a folder that they lie in.

    Raises:
      DataError: if one of the folders cannot be read.
    """
    try:
        yield from _walk(str(root), "", False, frozenset())
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def _walk(folder: str, inside: str, hidden: bool, above: frozenset[tuple[int, int]]) -> Iterator[File]:
    """By `os.scandir`, because a hundred thousand `Path` objects take seconds."""
    here = os.stat(folder)
    if (place := (here.st_dev, here.st_ino)) in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name, out = f"{inside}{entry.name}", hidden or is_hidden(entry.name)
            try:
                facts = entry.stat()
            except OSError:
                yield File(name, True, 0, "")
                continue
            if stat.S_ISDIR(facts.st_mode):
                yield from _walk(entry.path, f"{name}/", out, above | {place})
            elif stat.S_ISREG(facts.st_mode):
                yield File(name, out, facts.st_size, f"{facts.st_mtime_ns} {facts.st_ctime_ns}")


def files_of(path: Path, pattern: str) -> dict[str, Path]:
    """name -> path of the files of a folder whose name has the pattern, in order; or of the one file itself."""
    if path.is_file():
        return {path.name: path}
    names = sorted(file.name for file in walk(path) if not file.hidden)
    return {name: path / name for name in names if re.search(pattern, name, re.IGNORECASE)}


def divided(files: dict[str, Path], path: Path) -> tuple[list[str], list[bool | None], list[str]]:
    """(names of the files that are used, whether each is of the test split, lines for a person)."""
    names = list(files)
    kept, test, note = sides([split_word(name) if path.is_dir() else None for name in names], "files")
    return [names[i] for i in kept], test, [note] * bool(note)
