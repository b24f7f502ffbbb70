"""Files that are whole or absent, whoever else writes them at the same time."""

import contextlib
import glob
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scoreflow.runs.errors import UserError

_OLD = 86_400.0  # seconds
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # a drive has one letter


def local(path: str | os.PathLike[str], name: str) -> Path:
    """The path that a person gives, with `~` as their home.

    Raises:
      UserError: for the address of an object store, also with one slash, or the home of nobody, naming the setting.
    """
    if address := _ADDRESS.match(str(path)):
        raise UserError(
            f"{name} = {str(path)!r}: {address[1]} is not read or written; mount it, and give the folder's path"
        )
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{name} = {str(path)!r}: no home folder of that user is known; give the whole path") from error


def apart(folder: Path, images: str) -> None:
    """Refuses a run's folder in the folder of its images, whose pictures would become training data.

    Raises:
      UserError: naming both.
    """
    place = local(images, "data.path")
    if place.is_dir() and folder.resolve().is_relative_to(place.resolve()):
        raise UserError(f"--workdir={folder} lies in data.path = {images}: its pictures would become training images")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a new path beside `path`; what is written there takes the place of `path` when the block ends.

    The name belongs to this call alone, so that two processes never write one file. Where the block fails, `path` stays
    as it was. What a process that was killed has left of `path` is removed after a day.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".{glob.escape(path.stem)}-{'?' * 12}{path.suffix}"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _OLD:
                old.unlink()
    scratch = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Gives a new folder beside `path`, which gets that name when the block ends; where the block fails, it is removed.

    If `path` is there by then, because another process has been faster with the same, that is left. What a process that
    was killed has left is removed after a day.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(".*-*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _OLD:
                shutil.rmtree(old, ignore_errors=True)
    scratch = path.with_name(f".{path.name}-{uuid.uuid4().hex[:12]}")
    scratch.mkdir()  # as other folders, so that who shares it may read it
    try:
        yield scratch
        with contextlib.suppress(OSError):
            os.rename(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def save_npy(path: Path, x: np.ndarray) -> None:
    """Writes an array whole."""
    with replacing(path) as scratch:
        np.save(scratch, x)


def write_text(path: Path, text: str) -> None:
    """Writes a text whole, and to the disk before it gets its name."""
    with replacing(path) as scratch, open(scratch, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
