"""From a name or a path to a `Dataset`."""

import functools
from typing import Annotated, Any, Literal

import numpy as np

from scoreflow.data import DataError, Dataset, Split, hold_out, load_arrays, toy
from scoreflow.data.archives import ARCHIVES
from scoreflow.data.fetch import default_dir
from scoreflow.data.images import Crop, Filter
from scoreflow.data.own import SplitRule, arrays, folder
from scoreflow.data.published import named
from scoreflow.runs import files
from scoreflow.types import Check, CountOrZero, Flag, Inside, Text

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
    "fashion_mnist",
    "kmnist",
    "emnist/balanced",
    "emnist/byclass",
    "emnist/bymerge",
    "emnist/digits",
    "emnist/letters",
    "emnist/mnist",
    "omniglot",
    "omniglot_28",
    "celeb_a",
    "downsampled_imagenet/32x32",
)
"""Every data set that `load` knows."""
Name = Annotated[str, Check(str, lambda v: v in NAMES, "one of " + ", ".join(NAMES))]
Gray = Annotated[int, Check(int, lambda v: 0 <= v <= 255, "a whole number from 0 to 255")]
NumLevels = Annotated[int, Check(int, lambda v: 2 <= v <= 256, "a whole number from 2 to 256")]
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
    split: SplitRule = "content",
    channels: Literal[0, 1, 3] = 0,
    background: Gray = 255,
    skip_unreadable: Flag = False,
    crop: Crop = "center",
    filter: Filter = "box",
    label: Text = "",
) -> Dataset:
    """The data set of a name: built in, read from the user's own files, or published.

    Args:
      name: The data set: a built-in or published one, or `arrays` or a `folder` of the user's own.
      dir: folder of prepared or original files of published data sets; empty for $SCOREFLOW_DATA or the user's cache
        folder.
      path: file to read for `arrays`; folder, archive or file of records to read for `folder`.
      num_levels: number of gray levels of uint8 `arrays`.
      image_size: side in pixels to which images of `folder` and of published data sets are resized; 0 leaves them.
      test_fraction: fraction of `arrays` or of a `folder` that is held out where there is no test split.
      split: how these are chosen: by the content of each example, so that another example moves none, or by a shuffle
        of all, as in runs of version 0.1.0.
      channels: channels of the images of a `folder`: 1 gray, 3 color, 0 gray where all images are gray.
      background: gray level that is put behind transparent pixels of a `folder`.
      skip_unreadable: leave out image files, of a `folder` or of a published data set, that cannot be read.
      crop: part of each image of a `folder` that is kept: the largest central square; the central 140 x 140 pixels of
        CelebA's aligned images (Song et al.); the central square after repeated halving and a bicubic resize (Dhariwal
        and Nichol, as EDM's center-crop-dhariwal); or none, for square images.
      filter: resampling filter for `image_size`, with antialias: the mean of the area (box), bilinear, bicubic or
        lanczos.
      label: column of a `folder`'s metadata.jsonl, metadata.csv or Parquet files, or feature of its TFRecords, that has
        the labels; empty to look for it, none to leave labels out.

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
        own = files.local(path, "data.path")
        return arrays(own, test_fraction=test_fraction, num_levels=num_levels, split=split)
    where = files.local(dir, "data.dir") if dir else default_dir()
    if name == "folder":
        options = {"channels": channels, "background": background, "skip_unreadable": skip_unreadable, "split": split}
        options |= {"crop": crop, "filter": filter, "label": label}
        own = files.local(path, "data.path")
        return folder(own, cache=where / "prepared", image_size=image_size, test_fraction=test_fraction, **options)
    if name in ARCHIVES:
        return named(name, where, image_size, filter, skip_unreadable)
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


def samples(path: str, shape: tuple[int, ...], num_levels: int) -> np.ndarray:
    """Samples of any generator, [N, *shape]: an `.npy` file as `--mode=sample` writes it, uint8 where `num_levels` > 0.

    Raises:
      DataError: if it is missing, unreadable or of another shape or kind.
    """
    if not (file := files.local(path, "terminal.path")).is_file():
        raise DataError(f"terminal.path = {path!r}: there is no such file of samples")
    x = load_arrays(file, path, ".npy")
    kind = "uint8" if num_levels else "float"
    if (
        not isinstance(x, np.ndarray)
        or x.shape[1:] != tuple(shape)
        or not len(x)
        or (x.dtype == np.uint8) != bool(num_levels)
    ):
        raise DataError(f"{path} must hold {kind} examples [N, {', '.join(map(str, shape))}]")
    return x
