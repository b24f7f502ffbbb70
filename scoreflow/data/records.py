"""Images in TFRecord files."""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from scoreflow.data import DataError, tfrecord
from scoreflow.data.sources import NO_LABELS, Item, divided, facts_of, files_of, is_encoded, raw_pixels

TFRECORD = r"\.tfrecords?\b|-\d+-of-\d+$"
_RESOLUTION = re.compile(r"-r(\d\d)[-.]")
_IMAGES = ("image/encoded", "data", "image_raw", "image")
_LABELS = ("label", "image/class/label")


class TFRecords:
    """TFRecord files of images: those of CelebA-HQ by GLOW and ProGAN, TensorFlow's ImageNet, and alike.

    A record has `data` (raw pixels, with `shape` [H, W, C] or [C, H, W]), or an encoded image in `image/encoded`,
    `image_raw`, `image` or `data`; and a whole number `label` or `image/class/label`, if any. Names with `train` and
    `test` or `validation` are the splits. Of several resolutions (`-r08`, which is 2^8 pixels) one is taken.

    Args:
      path: a file or a folder of them.
      label: the feature that has the labels; empty to look for it; `none` for none.
      image_size: side that is wanted: of several resolutions the smallest that is as large; 0 for the largest.
    """

    def __init__(self, path: Path, label: str = "", image_size: int = 0):
        self.path, self._label, self._image_size = path, label, image_size

    @functools.cached_property
    def _paths(self) -> dict[str, Path]:
        return files_of(self.path, TFRECORD)

    @functools.cached_property
    def _chosen(self) -> tuple[list[str], list[bool | None], list[str]]:
        """(names of the files that are read, whether each is of the test split, lines for a person)."""
        marks = {name: mark for name in self._paths if (mark := _RESOLUTION.search(name))}
        levels = {name: int(mark.group(1)) for name, mark in marks.items()}
        if len(set(levels.values())) < 2:
            return divided(self._paths, self.path)
        enough = [level for level in levels.values() if self._image_size and 2**level >= self._image_size]
        taken = min(enough, default=max(levels.values()))
        names, test, notes = divided({n: p for n, p in self._paths.items() if levels.get(n) == taken}, self.path)
        return names, test, [*notes, f"files of {2**taken} x {2**taken} pixels are read, other resolutions left out"]

    @functools.cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """(start and length of every record, [N, 2]; number of its file, [N])."""
        places = [tfrecord.offsets(self._paths[name]) for name in self._chosen[0]]
        return np.concatenate(places), np.repeat(np.arange(len(places)), [len(each) for each in places])

    @property
    def others(self) -> int:
        return 0

    @property
    def notes(self) -> Sequence[str]:
        return self._chosen[2]

    @property
    def class_names(self) -> Sequence[str]:
        return ()

    def identity(self) -> Iterator[str]:
        yield self._label
        yield from (facts_of(self._paths[name], name) for name in self._chosen[0])

    def __len__(self) -> int:
        if self._label and len(self._places[0]):
            self._label_of(*self._features(0))  # a wrong name is told once, not for every record
        return len(self._places[0])

    def _features(self, i: int) -> tuple[dict[str, tfrecord.Feature], str]:
        """(the features of a record, its name)."""
        places, files = self._places
        file = self._chosen[0][files[i]]
        name = f"{file} record {i - int(np.searchsorted(files, files[i]))}"
        start, length = (int(number) for number in places[i])
        return tfrecord.example(tfrecord.record(self._paths[file], start, length, name), name), name

    def read(self, i: int) -> Item:
        features, name = self._features(i)
        image = next((features[key] for key in _IMAGES if key in features), None)
        if not image or not isinstance(image[0], bytes):
            raise DataError(f"{name} has {', '.join(sorted(features)) or 'nothing'}; none of {', '.join(_IMAGES)}")
        content = image[0]
        shape = [size for size in features.get("shape", []) if isinstance(size, int)]
        if math.prod(shape) == len(content) or not is_encoded(content):
            content = raw_pixels(content, name, shape)
        return Item(content, name, self._label_of(features, name), self._chosen[1][self._places[1][i]])

    def _label_of(self, features: dict[str, tfrecord.Feature], name: str) -> str | int | None:
        if self._label == NO_LABELS:
            return None
        if self._label and self._label not in features:
            raise DataError(f"data.label = {self._label}: {name} has {', '.join(sorted(features))}")
        key = self._label or next((key for key in _LABELS if key in features), None)
        values = features[key] if key else []
        if len(values) != 1 or isinstance(values[0], float):
            if self._label:
                raise DataError(f"data.label = {self._label}: {name} has {len(values)} numbers or words there, not one")
            return None
        return values[0].decode(errors="replace") if isinstance(values[0], bytes) else values[0]
