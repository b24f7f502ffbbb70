"""Images of known pixels as files in folders and archives, and what was read of them."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

from scoreflow.data import own

COLORS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
CLASSES = np.arange(40) % 4


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def write(path, content):
    """Files by name, as a folder, or as an archive where the path says so."""
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for name, each in content.items():
                raw = each.encode() if isinstance(each, str) else each
                info = tarfile.TarInfo(f"./{name}")  # as `tar cf data.tar .` names them
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))
        return path
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, each in content.items():
                archive.writestr(name, each)
        return path
    for name, each in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(each.encode() if isinstance(each, str) else each)
    return path


def rows(split, names):
    """{pixels: name of the class} of a split."""
    labels = [None] * len(split.x) if split.label is None else [names[i] for i in split.label]
    return {x.tobytes(): label for x, label in zip(split.x, labels)}


def wanted(indices, names=None):
    return {COLORS[i].tobytes(): names[i] if names is not None else None for i in indices}


def read_all(path, **options):
    """({pixels: class} of both splits together, the data set)."""
    dataset = own.folder(path, **options)
    return rows(dataset.train, dataset.class_names) | rows(dataset.test, dataset.class_names), dataset


CATS_AND_DOGS = {f"{'cats' if i % 2 else 'dogs'}/{i:02d}.png": png(COLORS[i]) for i in range(40)}
