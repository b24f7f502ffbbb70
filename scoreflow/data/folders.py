"""Folders and archives of images, with labels from sub-folders or from tables beside the images."""

import abc
import functools
import lzma
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scoreflow.data import UNREADABLE, DataError, first_line
from scoreflow.data.images import SUFFIXES
from scoreflow.data.sources import NO_LABELS, File, Item, facts_of, is_hidden, sides, walk
from scoreflow.data.tables import TABLES, labels_of

_TAR_END = 1024  # bytes of zeros
_SPLITS = ("train", "test", "val", "valid", "validation")


class Images(NamedTuple):
    """The images of a folder or an archive, in the order of their names.

    Attributes:
      names: of the images.
      labels: of each image; None where there are none.
      test: whether each is of the test split; None where there are no splits.
      others: number of other files.
      notes: lines for a person.
    """

    names: list[str]
    labels: Sequence[str | int | None]
    test: list[bool | None]
    others: int
    notes: list[str]


def _arranged(files: Sequence[tuple[str, bool]], read: Callable[[str], bytes], where: Path, column: str) -> Images:
    """Finds images, splits and labels among files.

    Args:
      files: (name with slashes, whether it is hidden) of every file.
      read: name -> content.
      where: of them, for messages.
      column: that of a table that has the labels; empty to look for one.
    """
    seen = [name for name, hidden in files if not hidden]
    images = sorted((name for name in seen if is_image(name)), key=lambda name: name.split("/"))
    tables = [name for name in seen if os.path.basename(name) in TABLES]
    others, notes = len(files) - len(images) - len(tables), []

    base = _common([os.path.dirname(name) for name in images])
    inside = [name[len(base) :] for name in images]  # names below the folder in which all images are
    tops = [name.partition("/")[0] for name in inside]
    words = [top.lower() if "/" in name and top.lower() in _SPLITS else None for top, name in zip(tops, inside)]
    kept, test, note = sides(words, "images")
    if note:
        notes.append(note)
        left = {base + tops[i] + "/" for i in set(range(len(images))) - set(kept)}
        tables = [name for name in tables if not name.startswith(tuple(left))]
        inside = [name.partition("/")[2] for name in inside]
    names = [images[i] for i in kept]
    if column == NO_LABELS:
        return Images(names, [None] * len(names), test, others, notes)

    labels, more = labels_of(tables, names, set(images), read, where, column)
    if labels is None:
        labels = [os.path.dirname(inside[i]) or "." for i in kept]
        beside = labels.count(".") if len(set(labels)) > 1 else 0
        labels, less = _classes(labels, test, where)
        more += less + [f"{beside} images lie in no folder of a class; their class is called ."] * bool(beside)
    return Images(names, labels, test, others, [*notes, *more])


def _common(folders: Sequence[str]) -> str:
    """The folder that contains all of these, with a slash at its end; empty for the root."""
    common = os.path.commonprefix([f"{folder}/".split("/")[:-1] for folder in folders])
    return "".join(f"{part}/" for part in common if folders and common != [""])


def _classes(labels: list[str], test: Sequence[bool | None], where: Path) -> tuple[Sequence[str | None], list[str]]:
    """Labels that are names of folders, or none where the test split has no such folders; and a line about it."""
    trained = {label for label, tested in zip(labels, test) if not tested}
    unknown = sorted({label for label, tested in zip(labels, test) if tested} - trained)
    if not unknown:
        return labels, []
    if len(trained) < 2 or unknown == ["."]:
        return [None] * len(labels), ["the test split has no folders of the same classes, so no labels are read"]
    raise DataError(f"{where}: the test split has class {unknown[0]}, which the training split does not have")


class _Files(abc.ABC):
    """Images among files, whatever keeps the files; the methods of a `Source`."""

    class_names: Sequence[str] = ()

    @property
    @abc.abstractmethod
    def _images(self) -> Images: ...

    @abc.abstractmethod
    def _content(self, name: str) -> bytes: ...

    @property
    def others(self) -> int:
        return self._images.others

    @property
    def notes(self) -> Sequence[str]:
        return self._images.notes

    def __len__(self) -> int:
        return len(self._images.names)

    def read(self, i: int) -> Item:
        name = self._images.names[i]
        return Item(self._content(name), name, self._images.labels[i], self._images.test[i])


class Folder(_Files):
    """A folder of images; if they lie in sub-folders, each is a class, unless a table names the labels.

    Names that begin with a dot, and `__MACOSX`, are left out. With `train/` and `test/` (or `val/`, `valid/`,
    `validation/` where there is no `test/`) in it, these are the splits.

    Args:
      root: the folder.
      label: column of `metadata.jsonl` or `metadata.csv` that has the labels; empty to look for it; `none` for none.
    """

    def __init__(self, root: Path, label: str = ""):
        self.root, self._label = root, label

    def __getstate__(self) -> dict[str, object]:
        """Without what other processes do not need: the files, of which a hundred thousand are long to hand over."""
        self._images  # noqa: B018, which is made of the files
        return {name: value for name, value in self.__dict__.items() if name != "files"}

    @functools.cached_property
    def files(self) -> list[File]:
        """Every file."""
        return list(walk(self.root))

    @functools.cached_property
    def _images(self) -> Images:
        return _arranged([(file.name, file.hidden) for file in self.files], self._content, self.root, self._label)

    def _content(self, name: str) -> bytes:
        return read_file(self.root, name)

    def identity(self) -> Iterator[str]:
        yield f"{self.root.resolve()} {self._label}"
        for file in sorted(self.files, key=lambda file: file.name.split("/")):
            if not file.hidden and (is_image(file.name) or os.path.basename(file.name) in TABLES):
                yield f"{file.name} {file.size} {file.times}"


def read_file(root: Path, name: str) -> bytes:
    """The content of a file in a folder.

    Raises:
      DataError: if it cannot be read.
    """
    try:
        return (root / name).read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from error


def image_names(root: Path) -> tuple[list[str], int]:
    """The images in a folder and its sub-folders in the order of their names, and how many other files there are."""
    files = list(walk(root))
    images = [file.name for file in files if is_image(file.name) and not file.hidden]
    return sorted(images, key=lambda name: name.split("/")), len(files) - len(images)


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(SUFFIXES)


class _Archive(_Files):
    """Images in one file.

    Args:
      path: the archive.
      label: as for `Folder`.
    """

    def __init__(self, path: Path, label: str = ""):
        self.path, self._label = path, label

    @abc.abstractmethod
    def _members(self) -> Iterator[tuple[str, bool]]:
        """Names of the files in it, and whether they can be read."""

    @functools.cached_property
    def _facts(self) -> str:
        return facts_of(self.path, self.path.name)

    @functools.cached_property
    def _images(self) -> Images:
        files = [(name, not there or any(map(is_hidden, name.split("/")))) for name, there in self._members()]
        return _arranged(files, self._content, self.path, self._label)

    def identity(self) -> Iterator[str]:
        yield from (self._label, self._facts)


class Zip(_Archive):
    """A zip archive, with labels as in a `Folder`: `dataset.json` as EDM's `dataset_tool.py` writes it, too."""

    def _archive(self) -> zipfile.ZipFile:
        return _archive(str(self.path), self._facts, os.getpid())

    def _members(self) -> Iterator[tuple[str, bool]]:
        names = dict.fromkeys(info.filename for info in self._archive().infolist() if not info.is_dir())
        yield from ((name, True) for name in names)

    def _content(self, name: str) -> bytes:
        try:
            return self._archive().read(name)
        # a password is a RuntimeError of zipfile, an unknown compression a NotImplementedError
        except (*UNREADABLE, RuntimeError, NotImplementedError, lzma.LZMAError) as error:
            raise DataError(f"{name} in {self.path.name} cannot be read: {first_line(error)}") from error


class Tar(_Archive):
    """A tar archive that is not compressed, with labels as in a `Folder`. Links are read where they lead."""

    def _members(self) -> Iterator[tuple[str, bool]]:
        yield from ((name, place is not None) for name, place in self._places.items())

    @functools.cached_property
    def _places(self) -> dict[str, tuple[int, int] | None]:
        """Where each file begins, and its size; None for a link to nothing."""
        places: dict[str, tuple[int, int] | None] = {}
        links: dict[str, str] = {}
        try:
            with tarfile.open(self.path, "r:") as archive:
                while member := archive.next():
                    vars(archive)["members"].clear()  # a million of them would need a gigabyte
                    name = posixpath.normpath(member.name)
                    links.pop(name, None)
                    if member.issparse():
                        words = "is stored in pieces; make the archive without --sparse"
                        raise DataError(f"{self.path}: {member.name} {words}")
                    if member.isfile():
                        places[name] = member.offset_data, member.size
                    elif member.islnk() or member.issym():
                        inside = "" if member.islnk() else posixpath.dirname(name)
                        links[name] = posixpath.normpath(posixpath.join(inside, member.linkname))
                self._check_end(archive.offset)
        except (OSError, EOFError, tarfile.TarError) as error:
            words = f"{self.path} is truncated or altered, or compressed: {first_line(error)}"
            raise DataError(f"{words}; of tar archives those are read that are not compressed") from error
        return places | {name: places.get(_end_of(links, name)) for name in links}

    def _check_end(self, offset: int) -> None:
        """Refuses an archive with anything but zeros at its end: at a damaged header tarfile stops without a word."""
        with open(self.path, "rb") as file:
            file.seek(offset)
            ends = 0
            while content := file.read(2**20):
                ends += len(content)
                if any(content):
                    raise EOFError(f"there is no header of a file at byte {offset}")
        if ends < _TAR_END:
            raise EOFError("it does not end as an archive does")

    def _content(self, name: str) -> bytes:
        place = self._places[name]
        assert place is not None
        try:
            with open(self.path, "rb") as file:
                file.seek(place[0])
                content = file.read(place[1])
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        if len(content) < place[1]:
            raise DataError(f"{name} in {self.path.name} is cut off")
        return content


def _end_of(links: dict[str, str], name: str) -> str:
    """Where a link leads in the end; itself, if it leads to itself."""
    seen = {name}
    while name in links and links[name] not in seen:
        name = links[name]
        seen.add(name)
    return name


@functools.lru_cache(maxsize=2)
def _archive(path: str, facts: str, process: int) -> zipfile.ZipFile:
    """An archive as this process has opened it: processes that share an open file would move each other's position."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:  # as zipfile's errors are
        raise DataError(f"{path} is not a readable zip archive: {first_line(error)}") from error
