"""Labels in tables: `dataset.json`, `metadata.jsonl` and `metadata.csv` beside images, and columns of any table."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from scoreflow.data import DataError
from scoreflow.data.sources import NO_LABELS

TABLES = ("dataset.json", "metadata.jsonl", "metadata.csv")
"""Files that name the labels of the images in their own folder and below.

`dataset.json` is that of NVIDIA's `dataset_tool.py`: {"labels": [[name, number], ...]}, or null for none. The others
are those of Hugging Face's image folders: a row for each image with its `file_name`.
"""

_CLASSES = 1000  # more distinct values than these are no classes


class Column(NamedTuple):
    """The column that has the labels.

    Attributes:
      name: of the column; None where there is none.
      note: a line for a person, if the choice was not plain.
    """

    name: str | None
    note: str = ""


def labels_of(
    tables: Sequence[str],
    images: Sequence[str],
    there: Set[str],
    read: Callable[[str], bytes],
    where: Path,
    column: str,
) -> tuple[Sequence[str | int | None] | None, list[str]]:
    """The label of each image as tables name them, and lines for a person; None where no table has labels.

    Args:
      tables: names of files whose last part is one of `TABLES`.
      images: names of the images.
      there: these, and names of images that are left out.
      read: name -> content.
      where: of them, for messages.
      column: that has the labels; empty to look for one.

    Raises:
      DataError: if a table is damaged, names images that are not there, or leaves some out.
    """
    numbered = [name for name in tables if os.path.basename(name) == "dataset.json"]
    stored = {name: _dataset_json(read(name), f"{where}: {name}") for name in numbered}
    stored = {name: labels for name, labels in stored.items() if labels is not None}
    if stored and not column:
        by_name = {_beside(name, key): label for name, labels in stored.items() for key, label in labels.items()}
        first = next(iter(stored))
        if not by_name:
            return [None] * len(images), [f"{first} has no labels"]
        return _matched(by_name, images, there, f"{where}: {first}"), []

    rows: dict[str, dict[str, Any]] = {}
    columns: dict[str, None] = {}
    described = [name for name in tables if name not in numbered]
    for name in described:
        for row in _rows(read(name), name, f"{where}: {name}"):
            rows[_beside(name, row["file_name"])] = row
            columns |= dict.fromkeys(row)
    if not rows:
        if column:
            raise DataError(f"data.label = {column}: {where} has no metadata.jsonl or metadata.csv with such a column")
        return None, []
    columns.pop("file_name")
    first = described[0]
    values = lambda name: [row.get(name) for row in rows.values()]
    found_column = chosen(tuple(columns), values, column, f"{where}: {first}")
    notes = [found_column.note] * bool(found_column.note)
    if found_column.name is None:
        return None, notes
    given = _whole(values(found_column.name))
    return _matched(dict(zip(rows, given)), images, there, f"{where}: {first}"), notes


def _beside(table: str, name: str) -> str:
    """The name of a file whose name is given relative to a table's."""
    return os.path.normpath(os.path.join(os.path.dirname(table), name.replace("\\", "/")))


def _dataset_json(content: bytes, where: str) -> dict[str, int] | None:
    """{name: label}, empty for `"labels": null`; None where the file is of another kind."""
    try:
        stored = json.loads(content)
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}") from error
    if not isinstance(stored, dict) or "labels" not in stored:
        return None
    labels = stored["labels"]
    if labels is None:
        return {}
    pairs = isinstance(labels, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in labels
    )
    if not pairs:
        raise DataError(f'{where}: "labels" must be a list of [name, number]')
    for name, label in labels:
        if not isinstance(label, int) or isinstance(label, bool):
            raise DataError(f"{where}: the label of {name} is {str(label)[:40]}; only whole numbers are read")
    return dict(labels)


def _rows(content: bytes, name: str, where: str) -> list[dict[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
        if name.endswith(".csv"):
            rows: list[Any] = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, csv.Error) as error:
        raise DataError(f"{where} is damaged: {error}") from error
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise DataError(f"{where}: row {i + 1} has no file_name")
    return rows


def chosen(columns: Sequence[str], values: Callable[[str], Sequence[Any]], wanted: str, where: str) -> Column:
    """The column of a table that has the labels: the wanted one, else `label`, else the only one of few values.

    Args:
      columns: names of all columns that are no images.
      values: name -> the column.
      wanted: its name; empty to look for it, `none` for none.
      where: of the table, for messages.

    Raises:
      DataError: if there is no such column.
    """
    if wanted == NO_LABELS:
        return Column(None)
    if wanted or "label" in columns:
        if (name := wanted or "label") not in columns:
            raise DataError(f"data.label = {wanted}: {where} has the columns {', '.join(columns) or 'of images only'}")
        return Column(name)
    few = [name for name in columns if _few(values(name))]
    if len(few) == 1:
        return Column(few[0], f"labels are those of column {few[0]}")
    if not columns:
        return Column(None)
    return Column(None, f"no labels are read; data.label can name a column that has them: {', '.join(few or columns)}")


def _few(values: Sequence[Any]) -> bool:
    """Whether a column can be one of classes: words or whole numbers, of which each occurs twice on average."""
    if not all(isinstance(value, str | int) for value in values):
        return False
    return 2 <= len(set(values)) <= min(_CLASSES, len(values) // 2)


def _whole(values: Sequence[Any]) -> Sequence[Any]:
    """Words that are all whole numbers, as numbers, so that 10 comes after 9."""
    if all(isinstance(value, str) and value.isdecimal() for value in values):
        return [int(value) for value in values]
    return values


def _matched(by_name: Mapping[str, Any], images: Sequence[str], there: Set[str], where: str) -> list[str | int]:
    """The label of each image.

    Raises:
      DataError: if one has none, or is not there.
    """
    if absent := by_name.keys() - there:
        raise DataError(f"{where} names {len(absent)} images that are not there, such as {min(absent)}")
    without = [name for name in images if by_name.get(name) in (None, "")]
    if without:
        count = f"{len(without)} of {len(images)} images"
        raise DataError(f"{where} has no label for {count}, such as {without[0]}; data.label = none leaves labels out")
    labels = [by_name[name] for name in images]
    for name, label in zip(images, labels):
        if not isinstance(label, str | int):
            raise DataError(f"{where}: the label of {name} is {str(label)[:40]}, neither a word nor a whole number")
    if len({isinstance(label, str) for label in labels}) > 1:
        return [str(label) for label in labels]
    return [label if isinstance(label, str) else int(label) for label in labels]
