"""Images in the columns of Parquet files."""

import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scoreflow.data import DataError, first_line
from scoreflow.data.sources import EXTRA, Item, divided, facts_of, files_of
from scoreflow.data.tables import chosen

PARQUET = r"\.parquet$"


class _Table(NamedTuple):
    """What the footers of Parquet files say.

    Attributes:
      files: their names; test: whether each is of the test split; notes: lines for a person.
      file, group: of every row group, its file and its number there; start: [groups + 1] number of its first row.
      image, label: names of the columns; no label where there are none.
      class_names: of the labels 0, 1, 2, ...
    """

    files: list[str]
    test: list[bool | None]
    notes: list[str]
    file: list[int]
    group: list[int]
    start: np.ndarray
    image: str
    label: str | None
    class_names: Sequence[str]


class Parquet:
    """A Parquet file, or a folder of them: a column of encoded images, and one of labels.

    The column of images is binary, or has {bytes, path} as Hugging Face's data sets do, whose class names are read,
    too. Files called `train-...` and `test-...` are the splits. Row groups are read one at a time.

    Args:
      path: the file or the folder.
      label: the column of labels; empty to look for it; `none` for none.
    """

    def __init__(self, path: Path, label: str = ""):
        self.path, self._label = path, label

    @functools.cached_property
    def _paths(self) -> dict[str, Path]:
        return files_of(self.path, PARQUET)

    @functools.cached_property
    def _facts(self) -> dict[str, str]:
        return {name: facts_of(path, name) for name, path in self._paths.items()}

    @functools.cached_property
    def _table(self) -> _Table:
        names, test, notes = divided(self._paths, self.path)
        file, group, start, first = [], [], [0], None
        for i, name in enumerate(names):
            opened = _parquet(str(self._paths[name]), self._facts[name], os.getpid())
            schema = opened.schema_arrow
            first = schema if first is None else first
            if schema.types != first.types or schema.names != first.names:
                raise DataError(f"{self.path}: {name} has other columns than {names[0]}")
            for j in range(opened.metadata.num_row_groups):
                file.append(i)
                group.append(j)
                start.append(start[-1] + opened.metadata.row_group(j).num_rows)
        image = _image_column(first, f"{self.path}: {names[0]}")
        label, class_names, note = self._labels(first, names)
        notes += [note] * bool(note)
        return _Table(names, test, notes, file, group, np.asarray(start), image, label, class_names)

    def _labels(self, schema: Any, names: Sequence[str]) -> tuple[str | None, Sequence[str], str]:
        """(column of labels, names of its classes, a line for a person)."""
        import pyarrow.types as types

        classes = _classes(schema)
        word = lambda kind: types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind)
        plain = lambda kind: types.is_integer(kind) or types.is_boolean(kind) or word(kind)
        columns = [field.name for field in schema if plain(field.type)]
        values = lambda column: [value for name in names for value in self._column(name, column)]
        wanted = self._label
        if not wanted and "label" not in columns and len(classes) == 1:
            wanted = next(iter(classes))
        label, note = chosen(columns, values, wanted, f"{self.path}: {names[0]}")
        return label, classes.get(label or "", ()), note

    def _column(self, name: str, column: str) -> list[Any]:
        """A whole column of labels of a file."""
        opened = _parquet(str(self._paths[name]), self._facts[name], os.getpid())
        return opened.read(columns=[column], use_threads=False).column(0).to_pylist()

    @property
    def others(self) -> int:
        return 0

    @property
    def notes(self) -> Sequence[str]:
        return self._table.notes

    @property
    def class_names(self) -> Sequence[str]:
        return self._table.class_names

    def identity(self) -> Iterator[str]:
        yield self._label
        yield from self._facts.values()

    def __len__(self) -> int:
        return int(self._table.start[-1])

    def read(self, i: int) -> Item:
        table = self._table
        place = int(np.searchsorted(table.start, i, "right")) - 1
        file, row = table.files[table.file[place]], i - int(table.start[place])
        columns = (table.image, *([table.label] if table.label else []))
        name = f"{file} row group {table.group[place]} row {row}"
        try:
            rows = _row_group(str(self._paths[file]), self._facts[file], table.group[place], columns, os.getpid())
            content, *label = (rows.column(column)[row].as_py() for column in columns)
        except (OSError, ValueError, NotImplementedError) as error:  # as pyarrow's errors are
            raise DataError(f"{name} cannot be read: {first_line(error)}") from error
        content = content.get("bytes") if isinstance(content, dict) else content
        if content is None:
            raise DataError(f"{name} has no image in it")
        number = label[0] if label else None
        if not isinstance(number, str | int | None):
            raise DataError(f"{name}: the label {str(number)[:40]} is neither a word nor a whole number")
        if table.class_names and number == -1:
            number = None  # as data sets mark what has no label
        return Item(content, name, number, table.test[table.file[place]])


def _classes(schema: Any) -> dict[str, list[str]]:
    """column -> names of its classes, from what Hugging Face's `datasets` writes into a schema."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: each["names"] for name, each in features.items() if each.get("_type") == "ClassLabel"}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}


def _image_column(schema: Any, where: str) -> str:
    """The name of the column of images: `image` or `img` where several could be."""
    import pyarrow.types as types

    binary = lambda kind: types.is_binary(kind) or types.is_large_binary(kind)
    nested = lambda kind: [each.type for each in kind if each.name == "bytes"] if types.is_struct(kind) else []
    names = [field.name for field in schema if any(map(binary, [field.type, *nested(field.type)]))]
    if named := [name for name in ("image", "img") if name in names]:
        return named[0]
    if len(names) == 1:
        return names[0]
    columns = ", ".join(f"{field.name} ({str(field.type)[:30]})" for field in schema)
    words = "several of which could be" if names else "none of which is"
    raise DataError(f"{where} has the columns {columns}, {words} one of encoded images; call it image")


@functools.lru_cache(maxsize=4)
def _parquet(path: str, facts: str, process: int) -> Any:
    """A file as this process has opened it."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow: {EXTRA}") from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {first_line(error)}") from error


@functools.lru_cache(maxsize=2)
def _row_group(path: str, facts: str, group: int, columns: Sequence[str], process: int) -> Any:
    """Some columns of a row group; without threads, which a process that was split off does not have."""
    return _parquet(path, facts, process).read_row_group(group, columns=list(columns), use_threads=False)
