"""Finished pieces of long work, kept until all of it is done: a kill loses only the piece that was in progress."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scoreflow.runs import files, parallel


class PartialResults(NamedTuple):
    """The folder of finished pieces; without one nothing is kept."""

    folder: Path | None = None

    def get(self, name: str, like: Callable[[], Any], make: Callable[[], Any]) -> Any:
        """A piece as an earlier run stored it, or else computed and stored. All processes call it.

        Args:
          name: of its file.
          like: () -> a tree of the piece's structure; called only if there is a file.
          make: () -> the piece, a tree of host arrays, the same in every process.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.npz"
        stored = _read(path, like) if path.is_file() else None
        if parallel.agree(stored is not None):
            return stored
        piece = make()
        if parallel.is_main():
            with files.replacing(path) as scratch:
                np.savez(scratch, *jax.tree.leaves(piece))
        return piece

    def forget(self) -> None:
        """Removes all pieces, and those of other settings, once the result they belong to is written."""
        if self.folder is not None and parallel.is_main():
            shutil.rmtree(self.folder.parent, ignore_errors=True)


NONE = PartialResults()
"""Keeps nothing: every piece is computed."""


def _read(path: Path, like: Callable[[], Any]) -> Any:
    """The tree in a file; None where it cannot be read, or has another structure."""
    try:
        with np.load(path) as kept:
            leaves = [kept[f"arr_{i}"] for i in range(len(kept.files))]
        return jax.tree.unflatten(jax.tree.structure(like()), leaves)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
