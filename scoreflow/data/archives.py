"""Readers of the original archives, by data set. No TensorFlow, no code from the archives: only bytes and pixels.

Each reader takes {published file name: path} and returns (train, test). A damaged archive raises `DataError` naming it.
"""

import contextlib
import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scoreflow.data import DataError, Split
from scoreflow.data.fetch import File

Paths = dict[str, Path]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever a broken file raises into one line that names it."""
    try:
        yield
    except DataError:
        raise
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        zlib.error,
        tarfile.TarError,
        zipfile.BadZipFile,
        struct.error,
    ) as e:
        reason = str(e).strip("'\"").splitlines()[0] if str(e) else type(e).__name__
        raise DataError(f"{path} is truncated or altered: {reason}; delete it and fetch it again") from e


def decode(data: bytes, name: str, mode: str) -> np.ndarray:
    """Pixels of an encoded image: [H, W, 3] for mode "RGB", [H, W, 1] for mode "L", uint8."""
    from PIL import Image

    try:
        image = np.asarray(Image.open(io.BytesIO(data)).convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name} is not a readable image: {error}") from error
    return image if image.ndim == 3 else image[..., None]


def _stack(images: Iterable[np.ndarray], path: Path) -> np.ndarray:
    images = list(images)
    if not images:
        raise DataError(f"{path} is truncated or altered: it holds no images; delete it and fetch it again")
    return np.stack(images)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo | str) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{member} is not a file")
    return file.read()


def _cifar_records(path: Path, members: list[str], label_bytes: int) -> Split:
    size = label_bytes + 3072
    with _reading(path), tarfile.open(path) as tar:
        raw = b"".join(_extract(tar, name) for name in members)
        records = np.frombuffer(raw, np.uint8).reshape(-1, size)
    x = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(x), records[:, label_bytes - 1].astype(np.int32))


def _cifar10(paths: Paths) -> tuple[Split, Split]:
    (path,) = paths.values()
    folder = "cifar-10-batches-bin"
    train = [f"{folder}/data_batch_{i}.bin" for i in range(1, 6)]
    return _cifar_records(path, train, 1), _cifar_records(path, [f"{folder}/test_batch.bin"], 1)


def _cifar100(paths: Paths) -> tuple[Split, Split]:
    # Two label bytes: the coarse class, then the fine one, which is kept.
    (path,) = paths.values()
    train, test = (_cifar_records(path, [f"cifar-100-binary/{name}.bin"], 2) for name in ("train", "test"))
    return train, test


def _svhn(paths: Paths) -> tuple[Split, Split]:
    from scipy.io import loadmat

    def read(name):
        path = paths[name]
        with _reading(path):
            content = loadmat(path)
            x, label = content["X"], content["y"]
        # Stored as [H, W, C, N]; the digit 0 is stored as 10.
        return Split(np.ascontiguousarray(x.transpose(3, 0, 1, 2)), label.ravel().astype(np.int32) % 10)

    return read("train_32x32.mat"), read("test_32x32.mat")


def _idx(path: Path) -> np.ndarray:
    with _reading(path), gzip.open(path) as file:
        data = file.read()
        zero, kind, ndim = struct.unpack(">HBB", data[:4])
        if zero or kind != 8:
            raise ValueError("not an IDX file of bytes")
        shape = struct.unpack(f">{ndim}I", data[4 : 4 + 4 * ndim])
        return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _mnist(paths: Paths) -> tuple[Split, Split]:
    def read(prefix):
        x = _idx(paths[f"{prefix}-images-idx3-ubyte.gz"])[..., None]
        label = _idx(paths[f"{prefix}-labels-idx1-ubyte.gz"]).astype(np.int32)
        if len(x) != len(label):
            raise DataError(f"mnist: {len(x)} images but {len(label)} labels in the {prefix} files")
        return Split(x, label)

    return read("train"), read("t10k")


def _omniglot(paths: Paths) -> tuple[Split, Split]:
    def read(name, first_label):
        path = paths[name]
        with _reading(path), zipfile.ZipFile(path) as archive:
            members = sorted(n for n in archive.namelist() if n.endswith(".png") and not n.startswith("__MACOSX"))
            x = _stack((decode(archive.read(n), n, "L") for n in members), path)
        characters = [n.rsplit("/", 1)[0] for n in members]
        _, label = np.unique(characters, return_inverse=True)
        return Split(x, (label + first_label).astype(np.int32))

    train = read("images_background.zip", 0)
    assert train.label is not None
    return train, read("images_evaluation.zip", int(train.label.max()) + 1)


def center_crop_resize(image: np.ndarray, crop: int, side: int) -> np.ndarray:
    """The central crop x crop pixels, resized to side x side with area weighting."""
    from PIL import Image

    height, width, _ = image.shape
    top, left = (height - crop) // 2, (width - crop) // 2
    patch = Image.fromarray(image[top : top + crop, left : left + crop])
    return np.asarray(patch.resize((side, side), Image.Resampling.BOX))


def _celeb_a(paths: Paths) -> tuple[Split, Split]:
    # The usual preparation: the central 140 pixels at 64 x 64. Partition 0 trains, 2 tests, 1 (validation) is left out.
    partition_path = paths["list_eval_partition.txt"]
    with _reading(partition_path):
        partition = dict(line.split() for line in partition_path.read_text().splitlines() if line.strip())
    path = paths["img_align_celeba.zip"]

    def read(archive, wanted):
        names = sorted(name for name, subset in partition.items() if subset == wanted)
        images = (decode(archive.read(f"img_align_celeba/{name}"), name, "RGB") for name in names)
        return Split(_stack((center_crop_resize(image, 140, 64) for image in images), path))

    with _reading(path), zipfile.ZipFile(path) as archive:
        return read(archive, "0"), read(archive, "2")


def _downsampled_imagenet(paths: Paths) -> tuple[Split, Split]:
    def read(name):
        path = paths[name]
        images = []
        with _reading(path), tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    images.append(decode(_extract(tar, member), member.name, "RGB"))
        return Split(_stack(images, path))

    return read("train_32x32.tar"), read("valid_32x32.tar")


class Archive(NamedTuple):
    """A data set as published.

    Attributes:
      files: the original files.
      read: {file name: path} -> (train, test).
      num_classes: number of labels, 0 for none.
      counts: numbers of examples (train, test) of the published set; (0, 0) where they are not checked.
    """

    files: tuple[File, ...]
    read: Callable[[Paths], tuple[Split, Split]]
    num_classes: int
    counts: tuple[int, int]


_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_CELEBA = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_IMAGENET = "https://image-net.org/download-images.php"

ARCHIVES: dict[str, Archive] = {
    "cifar10": Archive(
        (
            File(
                "cifar-10-binary.tar.gz",
                _CIFAR + "cifar-10-binary.tar.gz",
                "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        _cifar10,
        10,
        (50000, 10000),
    ),
    "cifar100": Archive(
        (
            File(
                "cifar-100-binary.tar.gz",
                _CIFAR + "cifar-100-binary.tar.gz",
                "md5:03b5dce01913d631647c71ecec9e9cb8",
            ),
        ),
        _cifar100,
        100,
        (50000, 10000),
    ),
    "svhn_cropped": Archive(
        (
            File("train_32x32.mat", _SVHN + "train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
            File("test_32x32.mat", _SVHN + "test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3"),
        ),
        _svhn,
        10,
        (73257, 26032),
    ),
    "mnist": Archive(
        tuple(
            File(f"{name}-ubyte.gz", f"{_MNIST}{name}-ubyte.gz", f"md5:{md5}")
            for name, md5 in (
                ("train-images-idx3", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
                ("train-labels-idx1", "d53e105ee54ea40749a09fcbcd1e9432"),
                ("t10k-images-idx3", "9fb629c4189551a2d022fa330f9573f3"),
                ("t10k-labels-idx1", "ec29112dd5afa0611ce80d1b7f02629c"),
            )
        ),
        _mnist,
        10,
        (60000, 10000),
    ),
    "omniglot": Archive(
        (
            File(
                "images_background.zip",
                _OMNIGLOT + "images_background.zip",
                "md5:68d2efa1b9178cc56df9314c21c6e718",
            ),
            File(
                "images_evaluation.zip",
                _OMNIGLOT + "images_evaluation.zip",
                "md5:6b91aef0f799c5bb55b94e3f2daec811",
            ),
        ),
        _omniglot,
        1623,
        (19280, 13180),
    ),
    "celeb_a": Archive(
        (
            File("img_align_celeba.zip", _CELEBA, "md5:00d2c5bc6d35e252742224ab0c1e8fcb", direct=False),
            File("list_eval_partition.txt", _CELEBA, "md5:d32c9cbf5e040fd4025c592c306e6668", direct=False),
        ),
        _celeb_a,
        0,
        (162770, 19962),
    ),
    "downsampled_imagenet/32x32": Archive(
        (
            File("train_32x32.tar", _IMAGENET, direct=False),
            File("valid_32x32.tar", _IMAGENET, direct=False),
        ),
        _downsampled_imagenet,
        0,
        (1281149, 49999),
    ),
}
