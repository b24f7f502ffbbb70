"""What lies at a path: a folder or an archive of images, or files of records."""

import re
from collections import Counter
from pathlib import Path

from scoreflow.data import DataError
from scoreflow.data.databases import Lmdb, lmdb_folders
from scoreflow.data.folders import Folder, Tar, Zip
from scoreflow.data.images import SUFFIXES
from scoreflow.data.parquet import PARQUET, Parquet
from scoreflow.data.records import TFRECORD, TFRecords
from scoreflow.data.sources import NO_LABELS, Source

_KINDS = {"images": "|".join(re.escape(suffix) + "$" for suffix in SUFFIXES), "Parquet": PARQUET, "TFRecord": TFRECORD}
_COMPRESSED = r"\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)$"
_SUFFIXES = ", ".join(suffix[1:] for suffix in SUFFIXES)
READ = f"a folder of images ({_SUFFIXES}), a .zip or .tar of them, .parquet, .tfrecord or LMDB"
"""What can be read, in words."""


def open_source(path: Path, *, label: str = "", image_size: int = 0) -> Source:
    """The source at a path, by what lies there.

    Args:
      path: a folder or a file.
      label: the column or feature that has the labels; empty to look for it; `none` for none.
      image_size: side that is wanted, where a source has several; 0 for the largest.

    Raises:
      DataError: if there is nothing that can be read; it lists what can.
    """
    if path.is_dir():
        source = _in_folder(path, label, image_size)
    elif not path.is_file():
        moved = "if it has moved, say where it is with --config.data.path"
        raise DataError(f"data.path = {path}: there is no such file or folder; {moved}")
    elif path.name == "data.mdb":
        source = Lmdb(path.parent)
    elif path.suffix.lower() in (".lmdb", ".mdb"):
        source = Lmdb(path)
    elif path.suffix.lower() == ".zip":
        source = Zip(path, label)
    elif path.suffix.lower() == ".tar":
        source = Tar(path, label)
    elif re.search(PARQUET, path.name.lower()):
        source = Parquet(path, label)
    elif re.search(TFRECORD, path.name.lower()):
        source = TFRecords(path, label, image_size)
    else:
        way = "; set data.name = arrays for it" if path.suffix.lower() in (".npy", ".npz") else ""
        way = "; unpack it, or make it a plain .tar" if re.search(_COMPRESSED, path.name.lower()) else way
        raise DataError(f"data.path = {path} cannot be read as a folder: it must be {READ}{way}")
    if isinstance(source, Lmdb) and label not in ("", NO_LABELS):
        raise DataError(f"data.label = {label}: an LMDB database of images has no labels")
    return source


def _in_folder(path: Path, label: str, image_size: int) -> Source:
    """Of several kinds of files the one that takes most of the space."""
    if (path / "data.mdb").is_file() or lmdb_folders(path):
        return Lmdb(path)
    folder = Folder(path, label)
    space: Counter[str] = Counter()
    for file in folder.files:
        if kind := next((kind for kind, words in _KINDS.items() if re.search(words, file.name.lower())), None):
            space[kind] += 0 if file.hidden else file.size + 1
    if not +space:
        raise DataError(f"data.path = {path}: none of its {len(folder.files)} files can be read as one of {READ}")
    kind = space.most_common(1)[0][0]
    if kind == "images":
        return folder
    return Parquet(path, label) if kind == "Parquet" else TFRecords(path, label, image_size)
