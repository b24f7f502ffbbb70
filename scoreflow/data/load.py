"""From a name or a path to a `Dataset`."""

import functools
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from scoreflow.data import DataError, Dataset, Split, hold_out, toy
from scoreflow.data.archives import ARCHIVES, Archive, center_crop_resize, decode
from scoreflow.data.fetch import default_dir, locate
from scoreflow.types import Check, CountOrZero, Inside, Text

NAMES = (
    "digits",
    "arrays",
    "folder",
    "mixture",
    "mixture_1d",
    "eight_gaussians",
    "checkerboard",
    "spirals",
    "rings",
    "cifar10",
    "cifar100",
    "svhn_cropped",
    "mnist",
    "omniglot",
    "celeb_a",
    "downsampled_imagenet/32x32",
)
"""Every data set that `load` knows."""
Name = Annotated[str, Check(str, lambda v: v in NAMES, "one of " + ", ".join(NAMES))]
NumLevels = Annotated[int, Check(int, lambda v: 2 <= v <= 256, "a whole number from 2 to 256")]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TOYS = {
    **{name: functools.partial(toy.gaussian_mixture, *mixture) for name, mixture in toy.MIXTURES.items()},
    "checkerboard": toy.checkerboard,
    "spirals": toy.spirals,
    "rings": toy.rings,
}
_TOY_SIZES = (100_000, 20_000)


def load(
    name: Name = "digits",
    *,
    dir: Text = "",
    path: Text = "",
    num_levels: NumLevels = 256,
    image_size: CountOrZero = 0,
    test_fraction: Inside = 0.1,
) -> Dataset:
    """The data set of a name: built in, read from the user's own files, or published.

    Args:
      name: The data set: a built-in or published one, or `arrays` or a `folder` of the user's own.
      dir: folder of prepared or original files of published data sets; empty for $SCOREFLOW_DATA or the user's cache
        folder.
      path: file to read for `arrays`, or folder to read for `folder`.
      num_levels: number of gray levels of uint8 `arrays`.
      image_size: side in pixels to which images of `folder` and of published data sets are resized; 0 leaves them.
      test_fraction: fraction of `arrays` or of a `folder` that is held out where there is no test split.

    Raises:
      DataError: if there is no such data set, or it is missing or damaged.
    """
    if name in ("arrays", "folder") and not path:
        raise DataError(f"data.path is empty: data.name = {name} needs the file or folder to read")
    if name == "digits":
        return digits()
    if name in TOYS:
        return toy_density(name)
    if name == "arrays":
        return arrays(path, test_fraction=test_fraction, num_levels=num_levels)
    if name == "folder":
        return folder(path, image_size=image_size, test_fraction=test_fraction)
    if name in ARCHIVES:
        return named(name, Path(dir).expanduser() if dir else default_dir(), image_size)
    raise DataError(f"data.name = {name} is not one of {', '.join(NAMES)}")


def digits() -> Dataset:
    """The 1797 handwritten digits of scikit-learn, 8x8, 17 levels: 1437 train, 360 test."""
    from sklearn.datasets import load_digits

    content: Any = load_digits()
    x, label = content.images.astype(np.uint8)[..., None], content.target.astype(np.int32)
    return Dataset("digits", *hold_out(x, label, 0.2), num_levels=17, num_classes=10)


def toy_density(name: str) -> Dataset:
    """A density of `toy`: 100,000 training and 20,000 test points from a fixed seed."""
    density = TOYS[name]()
    train, test = (
        Split(density.sample(np.random.default_rng([0, i]), n).astype(np.float32)) for i, n in enumerate(_TOY_SIZES)
    )
    return Dataset(name, train, test, num_levels=0, log_prob=density.log_prob)


def arrays(path: str, *, test_fraction: float = 0.1, num_levels: int = 256) -> Dataset:
    """A `.npy` file [N, ...], or a `.npz` with `train` and optionally `test`, `train_label`, `test_label`.

    uint8 arrays are levels below `num_levels`; floating ones are continuous data, used as they are. Where there is no
    test split, `test_fraction` of the examples is held out.
    """
    if not Path(path).is_file():
        raise DataError(f"data.path = {path}: there is no such file")
    try:
        stored = np.load(path, allow_pickle=False)
        content = {"train": stored} if isinstance(stored, np.ndarray) else dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npy or .npz file: {str(error).splitlines()[0]}") from error
    if "train" not in content:
        raise DataError(f"{path} must hold an array named train; it holds {', '.join(sorted(content)) or 'nothing'}")

    def prepare(x, label):
        if x.ndim < 2 or len(x) < 2:
            raise DataError(f"{path}: examples of shape [N, ...] are needed, not {x.shape}")
        if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
            raise DataError(f"{path}: {x.dtype} is neither uint8 (levels) nor floating (continuous)")
        if x.dtype == np.uint8 and x.max() >= num_levels:
            raise DataError(
                f"{path} has level {x.max()}, but data.num_levels = {num_levels} allows 0 to {num_levels - 1}"
            )
        if label is not None and len(label) != len(x):
            raise DataError(f"{path}: {len(x)} examples but {len(label)} labels")
        if np.issubdtype(x.dtype, np.floating):
            if not np.isfinite(x).all():
                raise DataError(f"{path} holds NaN or infinity")
            x = x.astype(np.float32)
        return Split(x[..., None] if x.dtype == np.uint8 and x.ndim == 3 else x, label)

    train = prepare(content["train"], _labels(content.get("train_label")))
    if "test" in content:
        test = prepare(content["test"], _labels(content.get("test_label")))
    else:
        train, test = hold_out(train.x, train.label, test_fraction)
    classes = 0 if train.label is None else int(train.label.max()) + 1
    return Dataset(Path(path).stem, train, test, num_levels if train.x.dtype == np.uint8 else 0, classes)


def samples(path: str, shape: tuple[int, ...], num_levels: int) -> np.ndarray:
    """Samples of any generator, [N, *shape]: an `.npy` file as `--mode=sample` writes it, uint8 where `num_levels` > 0.

    Raises:
      DataError: if it is missing, unreadable or of another shape or kind.
    """
    if not Path(path).is_file():
        raise DataError(f"terminal.path = {path!r}: there is no such file of samples")
    try:
        x = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npy file: {str(error).splitlines()[0]}") from error
    kind = "uint8" if num_levels else "float"
    if (
        not isinstance(x, np.ndarray)
        or x.shape[1:] != tuple(shape)
        or not len(x)
        or (x.dtype == np.uint8) != bool(num_levels)
    ):
        raise DataError(f"{path} must hold {kind} examples [N, {', '.join(map(str, shape))}]")
    return x


def _labels(label: np.ndarray | None) -> np.ndarray | None:
    return None if label is None else label.astype(np.int32)


def folder(path: str, *, image_size: int = 0, test_fraction: float = 0.1) -> Dataset:
    """A folder of images; if they lie in sub-folders, each is a class.

    With `image_size` every image is cropped to its central square and resized; without, all must have one size.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"data.path = {path}: there is no such folder")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if len(files) < 2:
        raise DataError(f"data.path = {path}: {len(files)} images ({', '.join(IMAGE_SUFFIXES)}) in it; 2 are needed")

    def read(file):
        image = decode(file.read_bytes(), str(file), "RGB")
        return center_crop_resize(image, min(image.shape[:2]), image_size) if image_size else image

    images = [read(file) for file in files]
    if len(shapes := {image.shape for image in images}) > 1:
        raise DataError(f"data.path = {path}: images of {len(shapes)} sizes; set data.image_size to bring them to one")
    names = [str(file.parent.relative_to(root)) for file in files]
    classes, label = np.unique(names, return_inverse=True)
    label = label.astype(np.int32) if len(classes) > 1 else None
    train, test = hold_out(np.stack(images), label, test_fraction)
    return Dataset(root.name, train, test, 256, len(classes) if label is not None else 0)


def named(name: str, data_dir: Path, image_size: int = 0) -> Dataset:
    """A data set of `ARCHIVES`: from cached arrays, a TFDS-prepared folder, or the original archives.

    Looks, in this order, for `<data_dir>/arrays/<name>`, `<data_dir>/<name>/<version>/dataset_info.json` (TFDS,
    array_record files), and the original archives `<data_dir>/downloads/<name>/<file>` (see `fetch.locate`), which are
    downloaded where their host allows it. With `image_size` the images are resized to that side by area weighting.
    """
    archive = ARCHIVES[name]
    cache = data_dir / "arrays" / name
    if not (cache / "train_x.npy").is_file():
        prepared = sorted((data_dir / name).glob("*/dataset_info.json"))
        if prepared:
            splits = _tfds(name, prepared[-1].parent)
        else:
            splits = archive.read({file.name: locate(name, file, data_dir) for file in archive.files})
            _check_counts(name, archive, splits)
        _store(cache, splits)
    train, test = (_resized(_stored(cache, split), image_size) for split in ("train", "test"))
    return Dataset(name, train, test, 256, archive.num_classes if train.label is not None else 0)


def _resized(split: Split, image_size: int) -> Split:
    if image_size in (0, split.x.shape[1]):
        return split
    gray = split.x.shape[-1] == 1
    images = (np.broadcast_to(image, (*image.shape[:2], 3)) if gray else image for image in split.x)
    resized = np.stack([center_crop_resize(np.ascontiguousarray(i), min(i.shape[:2]), image_size) for i in images])
    return Split(resized[..., :1] if gray else resized, split.label)


def _check_counts(name: str, archive: Archive, splits: tuple[Split, Split]) -> None:
    for subset, split, wanted in zip(("train", "test"), splits, archive.counts):
        if len(split.x) != wanted:
            raise DataError(
                f"{name}: the archive has {len(split.x)} {subset} images instead of {wanted}, so it is truncated or "
                f"altered; delete {', '.join(file.name for file in archive.files)} and fetch again"
            )


def _tfds(name: str, path: Path) -> tuple[Split, Split]:
    """Reads a TFDS-prepared folder through its random-access reader, which needs no TensorFlow."""
    import tensorflow_datasets as tfds

    info = json.loads((path / "dataset_info.json").read_text())
    if (kind := info.get("fileFormat", "tfrecord")) != "array_record":
        raise DataError(
            f"{path} holds {kind} files, which need TensorFlow to read: prepare it with file_format='array_record', or "
            f"remove it and put the original archives into downloads/{name}/"
        )
    builder: Any = tfds.builder_from_directory(str(path))
    names = builder.info.splits
    test_name = "test" if "test" in names else "validation"

    def read(split):
        records = builder.as_data_source(split)
        labeled = "label" in builder.info.features
        x = np.stack([np.asarray(record["image"]) for record in records])
        return Split(x, np.asarray([record["label"] for record in records], np.int32) if labeled else None)

    return read("train"), read(test_name)


def _store(cache: Path, splits: tuple[Split, Split]) -> None:
    """Writes the arrays to a temporary folder and renames it, so that a kill leaves nothing half-written in place."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=cache.parent))
    try:
        for name, split in zip(("train", "test"), splits):
            np.save(scratch / f"{name}_x.npy", split.x)
            if split.label is not None:
                np.save(scratch / f"{name}_label.npy", split.label)
        shutil.rmtree(cache, ignore_errors=True)
        os.replace(scratch, cache)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _stored(cache: Path, split: str) -> Split:
    try:
        x = np.load(cache / f"{split}_x.npy", mmap_mode="r")
        labels = cache / f"{split}_label.npy"
        return Split(x, np.load(labels) if labels.is_file() else None)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"the cached arrays in {cache} are damaged ({error}); delete that folder") from error
