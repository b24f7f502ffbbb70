"""Images in LMDB databases."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scoreflow.data import DataError
from scoreflow.data.sources import EXTRA, Item, divided, facts_of, is_encoded, raw_pixels

_SLACK = 2**20  # bytes of pages at the end that may be free, and never have been written
_COUNTS = (b"length", b"__len__", b"num-samples")  # keys of a number of images


class Lmdb:
    """LMDB databases of images, as NVAE and LSGM prepare CelebA-HQ, CelebA and FFHQ.

    A value is an encoded image, or 8-bit pixels of a square, row by row; keys are numbers, or anything else. Databases
    called `train.lmdb` and `test.lmdb` (or `validation.lmdb`) in one folder are the splits.

    Args:
      path: a database (a folder with `data.mdb`, or a file), or a folder of them.
    """

    def __init__(self, path: Path):
        self.path = path

    @functools.cached_property
    def _paths(self) -> dict[str, Path]:
        if databases := lmdb_folders(self.path):
            return {folder.name: folder for folder in databases}
        return {self.path.name: self.path}

    @functools.cached_property
    def _facts(self) -> dict[str, str]:
        data = {name: path / "data.mdb" if path.is_dir() else path for name, path in self._paths.items()}
        return {name: facts_of(path, name) for name, path in data.items()}

    @functools.cached_property
    def _index(self) -> tuple[list[str], list[bool | None], list[str], list[list[bytes]], list[int]]:
        """(names, test, notes, keys of each database, length of each one's raw pixels or 0 where it has files)."""
        names, test, notes = divided(self._paths, self.path)
        keys, sizes = [], []
        for name in names:
            database = _database(str(self._paths[name]), self._facts[name])
            with database.begin() as transaction:
                stored = [bytes(key) for key in transaction.cursor().iternext(values=False)]
                stored = [key for key in stored if key not in _COUNTS]
                first = [transaction.get(key) for key in stored[:3]]
            keys.append(sorted(stored, key=int) if all(key.isdigit() for key in stored) else stored)
            encoded = all(is_encoded(value) for value in first)  # pixels may begin like a file, but not three images
            sizes.append(0 if encoded else len(first[0]))
        return names, test, notes, keys, sizes

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(len(keys) for keys in self._index[3])])

    @property
    def others(self) -> int:
        return 0

    @property
    def notes(self) -> Sequence[str]:
        return self._index[2]

    @property
    def class_names(self) -> Sequence[str]:
        return ()

    def identity(self) -> Iterator[str]:
        yield from self._facts.values()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, i: int) -> Item:
        names, test, _, keys, sizes = self._index
        place = int(np.searchsorted(self._starts, i, "right")) - 1
        key = keys[place][i - int(self._starts[place])]
        name = f"{names[place]} key {key.decode(errors='replace')}"
        with _database(str(self._paths[names[place]]), self._facts[names[place]]).begin() as transaction:
            content = transaction.get(key)
        if content is None:
            raise DataError(f"{name} is not there any more")
        if sizes[place] and len(content) != sizes[place]:
            raise DataError(f"{name} has {len(content)} bytes, the first value has {sizes[place]}")
        return Item(raw_pixels(content, name) if sizes[place] else content, name, None, test[place])


def lmdb_folders(path: Path) -> list[Path]:
    """The databases in a folder, in the order of their names, which are folders themselves."""
    return sorted(file.parent for file in path.glob("*/data.mdb"))


_databases: dict[str, tuple[tuple[int, str], Any]] = {}


def _database(path: str, facts: str) -> Any:
    """A database as this process has opened it; one that a process before it has opened is closed first.

    A process that reads behind the end of a file that is cut short would be killed, so the size is looked at.
    """
    try:
        import lmdb
    except ImportError as error:
        raise DataError(f"{path}: reading LMDB needs the package lmdb: {EXTRA}") from error
    path = os.path.realpath(path)
    opened_by, database = _databases.get(path, (None, None))
    if opened_by != (os.getpid(), facts):
        if database is not None:
            database.close()
        options = {"readonly": True, "lock": False, "create": False, "readahead": False, "subdir": os.path.isdir(path)}
        try:
            opened = lmdb.open(path, **options)
            needed = (opened.info()["last_pgno"] + 1) * opened.stat()["psize"]
        except lmdb.Error as error:
            raise DataError(f"{path} is not a readable LMDB database: {error}") from error
        size = os.path.getsize(os.path.join(path, "data.mdb") if options["subdir"] else path)
        if size < needed - _SLACK:
            opened.close()
            raise DataError(f"{path} is cut short: it has {size} bytes of {needed}")
        _databases[path] = (os.getpid(), facts), opened
    return _databases[path][1]
