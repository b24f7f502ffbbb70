"""Archives of published data sets, written in their own form with a few images."""

import gzip
import io
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image
from scipy.io import savemat

RNG = np.random.default_rng(0)
CIFAR_IMAGES = RNG.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
CIFAR_LABELS = RNG.integers(0, 10, 60).astype(np.int32)


def _tar(path, members):
    mode = "w:gz" if path.suffix == ".gz" else "w"
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def _cifar_bytes(images, labels, extra=()):
    rows = [bytes([*extra, label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels)]
    return b"".join(rows)


def _make_cifar10(downloads):
    members = {f"cifar-10-batches-bin/data_batch_{i}.bin": (10 * i - 10, 10 * i) for i in range(1, 6)}
    members["cifar-10-batches-bin/test_batch.bin"] = (50, 60)
    files = {name: _cifar_bytes(CIFAR_IMAGES[a:b], CIFAR_LABELS[a:b]) for name, (a, b) in members.items()}
    _tar(downloads / "cifar-10-binary.tar.gz", files)
    return (CIFAR_IMAGES[:50], CIFAR_LABELS[:50]), (CIFAR_IMAGES[50:], CIFAR_LABELS[50:])


def _make_cifar100(downloads):
    members = {"cifar-100-binary/train.bin": (0, 40), "cifar-100-binary/test.bin": (40, 60)}
    files = {name: _cifar_bytes(CIFAR_IMAGES[a:b], CIFAR_LABELS[a:b], extra=(7,)) for name, (a, b) in members.items()}
    _tar(downloads / "cifar-100-binary.tar.gz", files)
    return (CIFAR_IMAGES[:40], CIFAR_LABELS[:40]), (CIFAR_IMAGES[40:], CIFAR_LABELS[40:])


def _make_svhn(downloads):
    for name, rows in (("train", slice(0, 40)), ("test", slice(40, 60))):
        stored = np.where(CIFAR_LABELS[rows] == 0, 10, CIFAR_LABELS[rows])[:, None]
        savemat(downloads / f"{name}_32x32.mat", {"X": CIFAR_IMAGES[rows].transpose(1, 2, 3, 0), "y": stored})
    return (CIFAR_IMAGES[:40], CIFAR_LABELS[:40]), (CIFAR_IMAGES[40:], CIFAR_LABELS[40:])


def _idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def _make_mnist(downloads):
    images = CIFAR_IMAGES[:, :28, :28, 0]
    for name, rows in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        (downloads / f"{name}-images-idx3-ubyte.gz").write_bytes(_idx(images[rows]))
        (downloads / f"{name}-labels-idx1-ubyte.gz").write_bytes(_idx(CIFAR_LABELS[rows]))
    return (images[:40, ..., None], CIFAR_LABELS[:40]), (images[40:, ..., None], CIFAR_LABELS[40:])


def _make_emnist(split):
    """The archive has the files of all splits; in all of them, an image is stored column after column."""

    def make(downloads):
        images, first = CIFAR_IMAGES[:, :28, :28, 0], int(split == "letters")
        with zipfile.ZipFile(downloads / "gzip.zip", "w") as archive:
            for other in EMNIST:
                for subset, rows in (("train", slice(0, 40)), ("test", slice(40, 60))):
                    content = images[rows] if other == split else np.zeros((3, 28, 28))
                    labels = CIFAR_LABELS[rows] + first if other == split else np.zeros(3)
                    stem = f"gzip/emnist-{other}-{subset}"
                    archive.writestr(f"{stem}-images-idx3-ubyte.gz", _idx(content.transpose(0, 2, 1)))
                    archive.writestr(f"{stem}-labels-idx1-ubyte.gz", _idx(labels))
        return (images[:40, ..., None], CIFAR_LABELS[:40]), (images[40:, ..., None], CIFAR_LABELS[40:])

    return make


def _make_omniglot(downloads):
    strokes = (RNG.random((10, 105, 105)) > 0.1).astype(np.uint8) * 255
    out = []
    for name, indices, first in (("background", range(4), 0), ("evaluation", range(4, 10), 2)):
        with zipfile.ZipFile(downloads / f"images_{name}.zip", "w") as archive:
            for i in indices:
                stored = png(strokes[i].astype(bool)) if i % 2 else png(strokes[i])  # 1-bit and 8-bit files
                archive.writestr(f"images_{name}/Alphabet/character{i // 2:02d}/{i:04d}_01.png", stored)
        labels = np.array([first + (i - indices[0]) // 2 for i in indices], np.int32)
        out.append((strokes[list(indices)][..., None], labels))
    return out


def _make_omniglot_28(downloads):
    """As MATLAB stores them: a column of 784 for each image, which runs down the image's columns."""
    from scipy.io import savemat

    images, labels = RNG.integers(0, 256, (10, 28, 28), dtype=np.uint8), np.arange(10) % 3
    columns = images.transpose(2, 1, 0).reshape(784, 10) / 255.0
    one_hot = np.eye(3)[labels].T
    content = {
        "data": columns[:, :7],
        "testdata": columns[:, 7:],
        "target": one_hot[:, :7],
        "testtarget": one_hot[:, 7:],
    }
    savemat(downloads / "chardata.mat", content)
    return (images[:7, ..., None], labels[:7].astype(np.int32)), (images[7:, ..., None], labels[7:].astype(np.int32))


def _make_celeb_a(downloads):
    images = {f"{i:06d}.jpg": np.full((218, 178, 3), 18 * i, np.uint8) for i in range(1, 14)}
    with zipfile.ZipFile(downloads / "img_align_celeba.zip", "w") as archive:
        for name, image in images.items():
            out = io.BytesIO()
            Image.fromarray(image).save(out, "JPEG", quality=95)
            archive.writestr(f"img_align_celeba/{name}", out.getvalue())
    subsets = dict(zip(images, "0000000012222"))
    (downloads / "list_eval_partition.txt").write_text(
        "".join(f"{name} {subset}\n" for name, subset in subsets.items())
    )

    def wanted(subset):
        return np.stack([np.full((64, 64, 3), 18 * int(n[:6]), np.uint8) for n, s in subsets.items() if s == subset])

    return (wanted("0"), None), (wanted("2"), None)


def _make_imagenet(downloads):
    for name, rows in (("train", slice(0, 20)), ("valid", slice(20, 28))):
        _tar(
            downloads / f"{name}_32x32.tar",
            {f"{name}_32x32/{i:05d}.png": png(image) for i, image in enumerate(CIFAR_IMAGES[rows])},
        )
    return (CIFAR_IMAGES[:20], None), (CIFAR_IMAGES[20:28], None)


EMNIST = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
MAKERS = {
    "cifar10": _make_cifar10,
    "cifar100": _make_cifar100,
    "svhn_cropped": _make_svhn,
    "mnist": _make_mnist,
    "fashion_mnist": _make_mnist,
    "kmnist": _make_mnist,
    **{f"emnist/{split}": _make_emnist(split) for split in EMNIST},
    "omniglot": _make_omniglot,
    "omniglot_28": _make_omniglot_28,
    "celeb_a": _make_celeb_a,
    "downsampled_imagenet/32x32": _make_imagenet,
}
