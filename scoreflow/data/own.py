"""Data of one's own: a file of arrays, or images."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scoreflow.data import DataError, Dataset, Split, hold_out, load_arrays, marks
from scoreflow.data.decoding import SplitRule
from scoreflow.data.fetch import default_dir
from scoreflow.data.images import Crop, Decoding, Filter, checked
from scoreflow.data.kinds import open_source
from scoreflow.data.prepared import prepared
from scoreflow.runs import report

_NAMED = 5  # files that a message names


class _Names(NamedTuple):
    """What a `.npz` file calls its arrays; empty where it has none such."""

    train: str
    label: str = ""
    test: str = ""
    test_label: str = ""


_CONVENTIONS = (
    _Names("train", "train_label", "test", "test_label"),
    _Names("x_train", "y_train", "x_test", "y_test"),  # Keras
    _Names("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST
    _Names("images", "labels"),
    _Names("X", "y"),
    _Names("arr_0", "arr_1"),  # as np.savez calls them, and the sample files of ADM and EDM
)


def divided(
    x: np.ndarray, label: np.ndarray | None, fraction: float, rule: SplitRule, name: str
) -> tuple[Split, Split]:
    """(train, test) by the rule: by the content of each example, see `data.marks`, or by a shuffle of all.

    Raises:
      DataError: where one of them would be empty.
    """
    if rule == "shuffled":
        train, test = hold_out(x, label, fraction)
    else:
        numbers, distinct = marks([hashlib.sha256(row.tobytes()).digest() for row in x])
        if distinct < len(x) / 2:
            report.say(f"{name}: {distinct} of {len(x)} examples are distinct; from the tenth on, copies are divided")
        held_out = numbers < np.uint64(int(fraction * 2**64))
        if not held_out.any():
            held_out = numbers == numbers.min()
        take = lambda rows: Split(x[rows], None if label is None else label[rows])
        train, test = take(~held_out), take(held_out)
    if not len(train.x) or not len(test.x):
        counts = f"{len(train.x)} training and {len(test.x)} test examples"
        raise DataError(f"{name}: data.test_fraction = {fraction} of {len(x)} examples leaves {counts}; choose another")
    return train, test


def arrays(
    path: str | Path, *, test_fraction: float = 0.1, num_levels: int = 256, split: SplitRule = "content"
) -> Dataset:
    """A `.npy` file [N, ...], or a `.npz` of them with the names of one of `_CONVENTIONS`.

    uint8 arrays are levels below `num_levels`; floating ones are continuous data, used as they are. The distinct labels
    in order, of any kind, become 0 ... n - 1. Without a test split, `test_fraction` of the examples is held out. uint8
    images [N, 1 or 3, H, W] are transposed.

    Raises:
      DataError: if something in it cannot be used, in one line that names it.
    """
    if not Path(path).is_file():
        raise DataError(f"data.path = {path}: there is no such file")
    content, called = _content(Path(path))
    x, names = _examples(content["train"], str(path), num_levels), np.unique(content.get("label", []))
    label = _labels(content.get("label"), names, x, f"{path}: {called.label}")
    if "test" in content:
        test_x = _examples(content["test"], str(path), num_levels)
        if (test_x.shape[1:], test_x.dtype) != (x.shape[1:], x.dtype):
            raise DataError(
                f"{path}: test examples are {test_x.dtype} of shape {test_x.shape[1:]}, training ones {x.dtype} of "
                f"{x.shape[1:]}"
            )
        if "test_label" in content and label is None:
            raise DataError(f"{path} has {called.test_label} without {called.label}")
        test_label = _labels(content.get("test_label"), names, test_x, f"{path}: {called.test_label}")
        train, test = Split(x, label), Split(test_x, test_label)
        if twice := _in_both(train.x, test.x):
            report.warn(f"{path}: {twice} of {len(test.x)} test examples are training examples, too")
    elif "test_label" in content:
        raise DataError(f"{path} has {called.test_label} without {called.test}")
    else:
        train, test = divided(x, label, test_fraction, split, str(path))
    classes = 0 if label is None else len(names)
    return Dataset(
        Path(path).stem, train, test, num_levels if x.dtype == np.uint8 else 0, classes,
        class_names=tuple(map(str, names)),
    )  # fmt: skip


def _content(path: Path) -> tuple[Mapping[str, np.ndarray], _Names]:
    """(the arrays by the field of `_Names` that they are, what the file calls them); only these are read."""
    held = load_arrays(path, str(path))
    if isinstance(held, np.ndarray):
        return {"train": held}, _CONVENTIONS[0]
    called = next((names for names in _CONVENTIONS if names.train in held), None)
    if called is None or (called.train == "arr_0" and "arr_2" in held):
        known = "; ".join(", ".join(filter(None, names)) for names in _CONVENTIONS)
        raise DataError(f"{path} holds {', '.join(sorted(held)) or 'nothing'}; names that are read are {known}")
    content = {field: held[name] for field, name in called._asdict().items() if name in held}
    left = [name for name in held if name not in called]
    words = [f"{called[called._fields.index(field)]} {list(each.shape)}" for field, each in content.items()]
    report.say(f"{path}: read {', '.join(words)}" + (f"; left out: {', '.join(left)}" if left else ""))
    return content, called


def _examples(x: np.ndarray, path: str, num_levels: int) -> np.ndarray:
    if x.dtype == np.uint8 and x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        report.say(f"{path}: images {list(x.shape)} have their channels first; they are transposed")
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    if x.ndim < 2 or len(x) < 2 or not x.size:
        raise DataError(f"{path}: 2 or more examples of shape [N, ...] are needed, not {x.shape}")
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{path}: {x.dtype} is neither uint8 (levels) nor floating (continuous)")
    if x.dtype == np.uint8 and x.max() >= num_levels:
        raise DataError(f"{path} has level {x.max()}, but data.num_levels = {num_levels} allows 0 to {num_levels - 1}")
    if np.issubdtype(x.dtype, np.floating):
        if not np.isfinite(x).all():
            raise DataError(f"{path} holds NaN or infinity")
        if np.abs(x).max() > np.finfo(np.float32).max:
            raise DataError(f"{path} holds {np.abs(x).max():.3g}, which is more than float32 can hold: rescale it")
        x = x.astype(np.float32)
    return x[..., None] if x.dtype == np.uint8 and x.ndim == 3 else x


def _labels(given: np.ndarray | None, names: np.ndarray, x: np.ndarray, what: str) -> np.ndarray | None:
    """Places in `names`, [N] int32."""
    if given is None:
        return None
    given = given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given
    if given.ndim != 1 or len(given) != len(x):
        raise DataError(f"{what} has shape {given.shape}: one label for each of {len(x)} examples is needed")
    if (unknown := np.setdiff1d(given, names)).size:
        words = ", ".join(map(str, unknown[:_NAMED]))
        raise DataError(f"{what} has {words}, which no training example has")
    return np.searchsorted(names, given).astype(np.int32)


def _in_both(train: np.ndarray, test: np.ndarray) -> int:
    """How many test examples are among the training examples."""
    known = {hashlib.sha256(row.tobytes()).digest() for row in train}
    return sum(hashlib.sha256(row.tobytes()).digest() in known for row in test)


def folder(
    path: str | Path,
    *,
    cache: Path | None = None,
    image_size: int = 0,
    test_fraction: float = 0.1,
    channels: int = 0,
    background: int = 255,
    skip_unreadable: bool = False,
    split: SplitRule = "content",
    crop: Crop = "center",
    filter: Filter = "box",
    label: str = "",
) -> Dataset:
    """A folder of images, or another source of them (see `kinds`), decoded once into `cache`.

    With `image_size` every image is cropped and resized; without, all must have one size. What is left out, or done to
    files, is said in one line each.

    Args:
      path: where the images lie.
      cache: folder in which the decoded images are kept; None for one in the user's cache folder.
      image_size: side in pixels; 0 leaves the images as they are.
      test_fraction: fraction that is held out where the source has no splits.
      channels: 1 for gray, 3 for color, 0 for gray where all images are gray.
      background: gray level behind transparent pixels.
      skip_unreadable: whether images that cannot be read are left out instead of refused.
      split: how the held-out examples are chosen, see `prepared`.
      crop: the part of each image that is kept, see `images.cropped`.
      filter: by which it is resized.
      label: the column or feature that has the labels; empty to look for it; `none` for none.

    Raises:
      DataError: if there are no images, or some cannot be used; it names them.
    """
    rule = checked(Decoding(image_size, channels, background, crop, filter))
    options = {"test_fraction": test_fraction, "split": split, "skip_unreadable": skip_unreadable}
    source = open_source(Path(path), label=label, image_size=image_size)
    for line in source.notes:
        report.say(f"data.path = {path}: {line}")
    cache = cache or default_dir() / "prepared"
    dataset = prepared(source, f"data.path = {path}", cache=cache, rule=rule, **options)
    if names := source.class_names:
        called = tuple(names[int(each)] if int(each) < len(names) else each for each in dataset.class_names)
        dataset = dataset._replace(class_names=called)
    return dataset._replace(name=Path(path).resolve().name)
