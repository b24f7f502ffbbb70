"""Finds the original files of a data set, where the user put them or by download, and checks their digests."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from scoreflow.data import DataError
from scoreflow.runs import caches, files


class File(NamedTuple):
    """An original file.

    Attributes:
      name: as published.
      url: where it can be downloaded; a page to be opened in a browser where `direct` is False.
      digest: "sha256:..." or "md5:..." as published, or "" where none is (then readers check what is inside).
      direct: whether `url` is the file itself.
    """

    name: str
    url: str
    digest: str = ""
    direct: bool = True


class Places(NamedTuple):
    """Where the files of a data set may lie, besides the folder of its own name in `downloads`.

    Attributes:
      shared: folder in `downloads` of data sets that have their files in common.
      installed: folder in which a distribution's package puts them, compressed anew: their digests are others.
      package: name of that package.
    """

    shared: str = ""
    installed: str = ""
    package: str = ""


NOWHERE = Places()
"""No other places."""


def default_dir() -> Path:
    """SCOREFLOW_DATA, or `scoreflow/data` in the user's cache folder."""
    return files.local(os.environ.get("SCOREFLOW_DATA") or caches.folder() / "data", "SCOREFLOW_DATA")


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
    if (actual := digest(path, algorithm)) != wanted:
        raise DataError(
            f"{path} is truncated or altered: its {algorithm} is {actual[:16]}..., that of the published {file.name} "
            f"is {wanted[:16]}...; delete it and fetch it again from {file.url}"
        )


def locate(name: str, file: File, data_dir: Path, places: Places = NOWHERE) -> Path:
    """The path of a checked original file of the data set `name`, downloaded if it is missing.

    It is `<data_dir>/downloads/<name>/<file>`, to which missing files are downloaded, or `<data_dir>/downloads/<file>`,
    where earlier versions kept the files of all data sets, or in one of `places`. A file whose name ends in `.gz` may
    have been unpacked; then it has no digest, and readers check what is inside.

    Raises:
      DataError: if it is missing and cannot be downloaded, or its digest is wrong; it says what to put where.
    """
    import pooch

    downloads = data_dir / "downloads"
    folders = list(dict.fromkeys((downloads / (places.shared or name), downloads / name, downloads)))
    for folder in folders:
        if (path := folder / file.name).is_file():
            check_digest(path, file)
            return path
        if file.name.endswith(".gz") and (path := folder / file.name.removesuffix(".gz")).is_file():
            return path
    if places.installed and (path := Path(places.installed, file.name)).is_file():
        return path
    reason = "its host requires a browser"
    target = folders[0] / file.name
    if file.direct:
        try:
            pooch.retrieve(file.url, file.digest or None, file.name, target.parent, progressbar=True)
            return target
        except Exception as error:  # whatever the network or the host says, the way out is the same
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    package = f", or install the package {places.package} of your distribution" if places.package else ""
    raise DataError(
        f"data set {name} is not on this machine and was not downloaded ({reason}): get {file.name} from {file.url} "
        f"and put it at {target}{package}"
    )
