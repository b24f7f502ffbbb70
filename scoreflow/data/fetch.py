"""Finds the original files of a data set: where the user put them, or by download, in both cases checked by digest."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from scoreflow.data import DataError
from scoreflow.runs import caches


class File(NamedTuple):
    """An original file.

    Attributes:
      name: as published.
      url: where it can be had; a page for people where `direct` is False.
      digest: "sha256:..." or "md5:..." as published, or "" where none is (then readers check what is inside).
      direct: whether `url` is the file itself.
    """

    name: str
    url: str
    digest: str = ""
    direct: bool = True


def default_dir() -> Path:
    """SCOREFLOW_DATA, or `scoreflow/data` in the user's cache folder."""
    return Path(os.environ.get("SCOREFLOW_DATA") or caches.folder() / "data")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check_digest(path: Path, file: File) -> None:
    """Compares a file with its published digest.

    Raises:
      DataError: if they differ.
    """
    if not file.digest:
        return
    algorithm, _, wanted = file.digest.partition(":")
    if (found := digest(path, algorithm)) != wanted:
        raise DataError(
            f"{path} is truncated or altered: its {algorithm} is {found[:16]}..., that of the published {file.name} "
            f"is {wanted[:16]}...; delete it and fetch it again from {file.url}"
        )


def locate(name: str, file: File, data_dir: Path) -> Path:
    """The path of a checked original file: `<data_dir>/downloads/<file>`, downloaded there if it is missing.

    Raises:
      DataError: if it is missing and cannot be downloaded, or its digest is wrong; it says what to put where.
    """
    import pooch

    target = data_dir / "downloads" / file.name
    if target.is_file():
        check_digest(target, file)
        return target
    reason = "its host gives it to people only"
    if file.direct:
        try:
            pooch.retrieve(file.url, file.digest or None, file.name, target.parent, progressbar=True)
            return target
        except Exception as error:  # whatever the network or the host says, the way out is the same
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    raise DataError(
        f"data set {name} is not on this machine and was not downloaded ({reason}): get {file.name} from {file.url} "
        f"and put it at {target}"
    )
