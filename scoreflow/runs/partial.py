"""Finished pieces of long work, kept until all of it is done: a kill loses the piece it fell into, and no more."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from scoreflow.runs import parallel


class PartialResults(NamedTuple):
    """Where finished pieces are kept; without a `folder` nowhere."""

    folder: Path | None = None

    def get(self, name: str, like: Callable, make: Callable):
        """A piece as an earlier process left it, or made now and kept. All processes call it.

        Args:
          name: of its file.
          like: () -> a tree of the piece's structure; asked only where there is a file.
          make: () -> the piece, a tree of host arrays, the same in every process.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.npz"
        found = _read(path, like) if path.is_file() else None
        if parallel.agree(found is not None):
            return found
        made = make()
        if parallel.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(".tmp")
            with open(scratch, "wb") as file:
                np.savez(file, *jax.tree.leaves(made))
            scratch.replace(path)
        return made

    def forget(self) -> None:
        """Removes all pieces, once what they were for is written; and those of other settings beside them."""
        if self.folder is not None and parallel.is_main():
            shutil.rmtree(self.folder.parent, ignore_errors=True)


NONE = PartialResults()


def _read(path: Path, like: Callable):
    """The tree in a file; None where it cannot be read, or holds another."""
    try:
        with np.load(path) as kept:
            leaves = [kept[f"arr_{i}"] for i in range(len(kept.files))]
        return jax.tree.unflatten(jax.tree.structure(like()), leaves)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
