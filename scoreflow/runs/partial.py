"""Finished pieces of long work, kept until all of it is done: a kill loses only the piece that was in progress."""

import dataclasses
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scoreflow.runs import files, parallel


@dataclasses.dataclass(frozen=True)
class PartialResults:
    """The folder of finished pieces; without one nothing is kept."""

    folder: Path | None = None
    _restored: list[float] = dataclasses.field(default_factory=list, init=False)

    @property
    def seconds(self) -> float:
        """What the pieces took that were found, and not computed again; work that is timed adds them."""
        return sum(self._restored)

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
        if parallel.agree(stored is not None) and stored is not None:
            piece, seconds = stored
            self._restored.append(seconds)
            return piece
        began = time.monotonic()
        piece = make()
        if parallel.is_main():
            with files.replacing(path) as scratch:
                np.savez(scratch, *jax.tree.leaves(piece), seconds=time.monotonic() - began)
        return piece

    def forget(self) -> None:
        """Removes all pieces, and those of other settings, once the result they belong to is written."""
        if self.folder is not None and parallel.is_main():
            shutil.rmtree(self.folder.parent, ignore_errors=True)


NONE = PartialResults()
"""Keeps nothing: every piece is computed."""


def _read(path: Path, like: Callable[[], Any]) -> tuple[Any, float] | None:
    """The tree in a file, and the seconds it took; None where it cannot be read, or has another structure."""
    try:
        with np.load(path) as kept:
            leaves, seconds = [kept[f"arr_{i}"] for i in range(len(kept.files) - 1)], float(kept["seconds"])
        return jax.tree.unflatten(jax.tree.structure(like()), leaves), seconds
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
