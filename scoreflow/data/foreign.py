"""Samples that another program made, brought to the form in which the examples of a data set are stored."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from scoreflow.data import DataError, Dataset, load_arrays
from scoreflow.data.folders import image_names, read_file
from scoreflow.data.images import SUFFIXES, Decoded, decode, with_channels
from scoreflow.runs import report

KEYS = ("samples", "images", "arr_0")
"""Names of an array of samples in an `.npz` file; the last is guided-diffusion's."""

_NAMED = 5  # files that a message names
_MANY = 2000  # images from which on progress is shown
_THREADS = 8


def read(path: Path, data: Dataset, name: str = "eval.samples") -> np.ndarray:
    """Samples [N, ...] of the shape and kind of the data's examples.

    They are a folder of images, with those of its sub-folders, an `.npy` file, or an `.npz` file with one of `KEYS`.
    What is done to them is said in one line each: color and gray are brought to the data's channels, channels that come
    first are moved last, and 8-bit pixels become levels where the data have fewer than 256. Nothing is resized.

    Args:
      path: of the folder or file.
      data: what the samples are compared with.
      name: of the setting that gives the path, for messages.

    Raises:
      DataError: if they cannot be read, or are no examples of that shape and kind; one line that names them.
    """
    what = f"{name} = {path}"
    if path.is_dir():
        x = _levels(_folder(path, data, what), data.num_levels, what, pixels=True)
    elif not path.is_file():
        raise DataError(f"{what}: there is no such file or folder")
    elif data.num_levels:
        x = _levels(_shaped(_integers(_array(path, what), what), data, what), data.num_levels, what)
    else:
        x = _continuous(_array(path, what), data, what)
    if not len(x):
        raise DataError(f"{what} holds no samples")
    return x


def _array(path: Path, what: str) -> np.ndarray:
    if path.suffix.lower() not in (".npy", ".npz"):
        raise DataError(f"{what}: a folder of images, an .npy or an .npz file is needed")
    held = load_arrays(path, what)
    if isinstance(held, np.ndarray):
        return held if held.ndim else held[None]
    if keys := [key for key in KEYS if key in held]:
        return held[keys[0]]
    names = ", ".join(sorted(held)) or "nothing"
    words = f"{what} has no array named {', '.join(KEYS[:-1])} or {KEYS[-1]}; it holds {names}"
    raise DataError(words + ("; reference statistics are given as eval.reference" if "mu" in held else ""))


def _integers(x: np.ndarray, what: str) -> np.ndarray:
    if not np.issubdtype(x.dtype, np.integer):
        raise DataError(f"{what} holds {x.dtype}; levels in uint8 are needed: scale them to 0 ... 255 and round")
    if x.dtype != np.uint8 and x.size and not (0 <= x.min() and x.max() <= 255):
        raise DataError(f"{what} holds levels from {x.min()} to {x.max()}; 0 to 255 are possible")
    return x.astype(np.uint8, copy=False)


def _continuous(x: np.ndarray, data: Dataset, what: str) -> np.ndarray:
    if not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{what} holds {x.dtype}, and {data.name} floating-point numbers")
    if x.shape[1:] != data.shape:
        raise DataError(f"{what} holds examples of shape {x.shape[1:]}, and {data.name} those of {data.shape}")
    x = x.astype(data.train.x.dtype)
    if not np.isfinite(x).all():
        raise DataError(f"{what} holds NaN or infinity")
    return x


def _shaped(x: np.ndarray, data: Dataset, what: str) -> np.ndarray:
    """Integers [N, ...] in the data's shape."""
    given = x.shape[1:]
    if len(data.shape) == 3 and given != data.shape:
        *sides, channels = data.shape
        x = x[..., None] if x.ndim == 3 else x
        if x.ndim == 4 and x.shape[1] in (1, 3) and list(x.shape[2:]) == sides:
            report.say(f"{what}: channels come first, and are moved last")
            x = np.moveaxis(x, 1, -1)
        if x.ndim == 4 and list(x.shape[1:3]) == sides and {x.shape[3], channels} == {1, 3}:
            report.say(f"{what}: {'color is made gray' if channels == 1 else 'gray is made color'}")
            x = with_channels(x, channels)
    if x.shape[1:] != data.shape:
        raise DataError(f"{what} holds examples of shape {given}, and {data.name} those of {data.shape}")
    return x


def _levels(x: np.ndarray, num_levels: int, what: str, pixels: bool = False) -> np.ndarray:
    """Levels below `num_levels`; of 8-bit pixels, the nearest ones. Arrays may hold either, as their maximum says."""
    if num_levels == 256 or not (pixels or (x.size and x.max() >= num_levels)):
        return x
    report.say(f"{what}: pixels from 0 to 255 are brought to {num_levels} levels")
    return np.rint(x * ((num_levels - 1) / 255.0)).astype(np.uint8)


def _folder(root: Path, data: Dataset, what: str) -> np.ndarray:
    if not data.num_levels or len(data.shape) != 3 or data.shape[-1] not in (1, 3):
        raise DataError(f"{what} is a folder of images, and examples of {data.name} are none; give a file of arrays")
    names, others = image_names(root)
    if not names:
        raise DataError(f"{what}: there are no images ({', '.join(SUFFIXES)}) in it")

    def attempt(name: str) -> Decoded | DataError:
        try:
            return decode(read_file(root, name), name)
        except DataError as error:
            return error

    images, bad, other, notes = [], [], [], Counter()
    with ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(attempt, names)
        shown = results if len(names) < _MANY else report.progress(results, total=len(names), unit="image")
        for name, result in zip(names, shown):
            if isinstance(result, DataError):
                bad.append(str(result))
                continue
            height, width, channels = result.pixels.shape
            if (height, width) != data.shape[:2]:
                other.append(f"{name} has {width} x {height}")
                continue
            notes.update(result.notes)
            if channels != data.shape[-1]:
                notes["color images made gray" if channels == 3 else "gray images made color"] += 1
            images.append(with_channels(result.pixels, data.shape[-1]))
    if bad:
        raise DataError(f"{what}: {'; '.join(bad[:_NAMED])}{_more(bad)}")
    if other:
        size = f"{data.shape[1]} x {data.shape[0]}"
        raise DataError(
            f"{what}: images of {data.name} have {size} pixels, and {'; '.join(other[:_NAMED])}{_more(other)}"
        )
    for words, count in [("other files left out", others), *notes.items()]:
        if count:
            report.say(f"{what}: {count} {words}")
    return np.stack(images)


def _more(listed: list[str]) -> str:
    return f"; and {len(listed) - _NAMED} more" if listed[_NAMED:] else ""
