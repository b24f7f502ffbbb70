"""Readers of the original archives, by data set. No TensorFlow, no code from the archives: only bytes and pixels.

Each reader takes {published file name: path} and returns (train, test). A damaged archive raises `DataError` naming it.
"""

import contextlib
import functools
import gzip
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scoreflow.data import DataError, Split
from scoreflow.data.fetch import NOWHERE, File, Places
from scoreflow.data.folders import Images, Tar, Zip
from scoreflow.data.images import Decoding, decode
from scoreflow.data.sources import NO_LABELS, Two

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
    with _reading(path):
        return _idx_array(path.read_bytes())


def _idx_array(data: bytes) -> np.ndarray:
    """The array [...] uint8 of an IDX file, which may be compressed."""
    data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    zero, kind, ndim = struct.unpack(">HBB", data[:4])
    if zero or kind != 8:
        raise ValueError("not an IDX file of bytes")
    shape = struct.unpack(f">{ndim}I", data[4 : 4 + 4 * ndim])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _labeled(x: np.ndarray, label: np.ndarray, subset: str) -> Split:
    if len(x) != len(label):
        raise DataError(f"{len(x)} images but {len(label)} labels in the {subset} files")
    return Split(x[..., None], label.astype(np.int32))


def _mnist(paths: Paths) -> tuple[Split, Split]:
    def read(prefix):
        x, label = (_idx(paths[f"{prefix}-{kind}-ubyte.gz"]) for kind in ("images-idx3", "labels-idx1"))
        return _labeled(x, label, prefix)

    return read("train"), read("t10k")


def _emnist(split: str, paths: Paths) -> tuple[Split, Split]:
    # Images are stored with rows and columns exchanged, and the letters are numbered from 1.
    (path,) = paths.values()

    def read(archive, subset):
        member = f"gzip/emnist-{split}-{subset}-{{}}-ubyte.gz"
        x, label = (_idx_array(archive.read(member.format(kind))) for kind in ("images-idx3", "labels-idx1"))
        return _labeled(np.ascontiguousarray(x.swapaxes(1, 2)), label - np.uint8(split == "letters"), subset)

    with _reading(path), zipfile.ZipFile(path) as archive:
        return read(archive, "train"), read(archive, "test")


def _omniglot(paths: Paths) -> tuple[Split, Split]:
    def read(name, first_label):
        path = paths[name]
        with _reading(path), zipfile.ZipFile(path) as archive:
            members = sorted(n for n in archive.namelist() if n.endswith(".png") and not n.startswith("__MACOSX"))
            x = _stack((decode(archive.read(n), n, 1).pixels for n in members), path)
        characters = [n.rsplit("/", 1)[0] for n in members]
        _, label = np.unique(characters, return_inverse=True)
        return Split(x, (label + first_label).astype(np.int32))

    train = read("images_background.zip", 0)
    assert train.label is not None
    return train, read("images_evaluation.zip", int(train.label.max()) + 1)


def _omniglot_28(paths: Paths) -> tuple[Split, Split]:
    # columns of 784 gray values in [0, 1], column by column of each image, and one-hot alphabets
    from scipy.io import loadmat

    path = paths["chardata.mat"]
    with _reading(path):
        content = loadmat(str(path))

        def read(x, target):
            images = np.round(255.0 * content[x].T).astype(np.uint8).reshape(-1, 28, 28).swapaxes(1, 2)
            return Split(np.ascontiguousarray(images)[..., None], content[target].argmax(0).astype(np.int32))

        return read("data", "target"), read("testdata", "testtarget")


class CelebA(Zip):
    """The aligned faces. Partition 0 trains, 2 tests, and 1, the validation split, is left out."""

    def __init__(self, path: Path, partition: Path):
        super().__init__(path, NO_LABELS)
        self._partition = partition

    @functools.cached_property
    def _images(self) -> Images:
        with _reading(self._partition):
            lines = [line.split() for line in self._partition.read_text().splitlines() if line.strip()]
            test = {f"img_align_celeba/{name}": part == "2" for name, part in sorted(lines) if part in ("0", "2")}
        if missing := sorted(test.keys() - set(self._archive().namelist())):
            raise DataError(f"{self.path} is truncated or altered: it lacks {missing[0]}; delete it and fetch it again")
        left = len(lines) - len(test)
        note = [f"partition 2 is the test split, {left} images of others left out"] * bool(left)
        return Images(list(test), [None] * len(test), list(test.values()), 0, note)

    @property
    def counts(self) -> tuple[int, int]:
        """Training and test images."""
        test = sum(map(bool, self._images.test))
        return len(self) - test, test


def _celeb_a(paths: Paths) -> CelebA:
    return CelebA(paths["img_align_celeba.zip"], paths["list_eval_partition.txt"])


def _downsampled_imagenet(paths: Paths) -> Two:
    return Two(*(Tar(paths[name], NO_LABELS) for name in ("train_32x32.tar", "valid_32x32.tar")))


class Archive(NamedTuple):
    """A data set as published.

    Attributes:
      files: the original files.
      read: {file name: path} -> (train, test), or the source of the images where there is a rule to decode them.
      num_classes: number of labels, 0 for none.
      counts: numbers of examples (train, test) of the published set.
      places: where the files may lie, besides the folder of the data set's name.
      rule: how image files become pixels; None where the archives hold pixels.
    """

    files: tuple[File, ...]
    read: Callable[[Paths], tuple[Split, Split] | CelebA | Two]
    num_classes: int
    counts: tuple[int, int]
    places: Places = NOWHERE
    rule: Decoding | None = None


_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_EMNIST = "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_KMNIST = "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_IWAE = "https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/"
_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_CELEBA = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_IMAGENET = "https://image-net.org/download-images.php"


def _idx_files(url: str, *md5: str, places: Places = NOWHERE) -> Archive:
    """MNIST, or a set of the same form: four files with these digests."""
    names = (f"{subset}-{kind}-ubyte.gz" for subset in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    files = tuple(File(name, url + name, f"md5:{digest}") for name, digest in zip(names, md5))
    return Archive(files, _mnist, 10, (60000, 10000), places)


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
    "mnist": _idx_files(
        _MNIST,
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashion_mnist": _idx_files(
        _FASHION,
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
        places=Places(installed="/usr/share/datasets/fashion-mnist", package="dataset-fashion-mnist"),
    ),
    "kmnist": _idx_files(
        _KMNIST,
        "bdb82020997e1d708af4cf47b453dcf7",
        "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7",
        "7320c461ea6c1c855c0b718fb2a4b134",
    ),
    **{
        f"emnist/{split}": Archive(
            (File("gzip.zip", _EMNIST + "gzip.zip", "md5:58c8d27c78d21e728a6bc7b3cc06412e"),),
            functools.partial(_emnist, split),
            num_classes,
            counts,
            Places(shared="emnist"),
        )
        for split, num_classes, counts in (
            ("balanced", 47, (112800, 18800)),
            ("byclass", 62, (697932, 116323)),
            ("bymerge", 47, (697932, 116323)),
            ("digits", 10, (240000, 40000)),
            ("letters", 26, (124800, 20800)),
            ("mnist", 10, (60000, 10000)),
        )
    },
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
    # the split on which likelihoods of binary OMNIGLOT are quoted (Burda et al. 2016); its labels are alphabets
    "omniglot_28": Archive(
        (File("chardata.mat", _IWAE + "chardata.mat"),),
        _omniglot_28,
        50,
        (24345, 8070),
    ),
    "celeb_a": Archive(
        (
            File("img_align_celeba.zip", _CELEBA, "md5:00d2c5bc6d35e252742224ab0c1e8fcb", direct=False),
            File("list_eval_partition.txt", _CELEBA, "md5:d32c9cbf5e040fd4025c592c306e6668", direct=False),
        ),
        _celeb_a,
        0,
        (162770, 19962),
        # the usual preparation
        rule=Decoding(image_size=64, channels=3, crop="celeba"),
    ),
    "downsampled_imagenet/32x32": Archive(
        (
            File("train_32x32.tar", _IMAGENET, direct=False),
            File("valid_32x32.tar", _IMAGENET, direct=False),
        ),
        _downsampled_imagenet,
        0,
        (1281149, 49999),
        rule=Decoding(channels=3),
    ),
}
