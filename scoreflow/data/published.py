"""Published data sets: from what earlier starts have kept, a folder that TFDS prepared, or the original archives."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scoreflow.data import UNREADABLE, DataError, Dataset, Split, first_line
from scoreflow.data.archives import ARCHIVES, Archive
from scoreflow.data.fetch import locate
from scoreflow.data.images import Decoding, Filter, center_crop_resize
from scoreflow.data.prepared import prepared
from scoreflow.data.sources import Item, Source, walk
from scoreflow.runs import files, report


def named(
    name: str, data_dir: Path, image_size: int = 0, filter: Filter = "box", skip_unreadable: bool = False
) -> Dataset:
    """A data set of `ARCHIVES`: from cached arrays, a TFDS-prepared folder, or the original archives.

    Looks, in this order, for `<data_dir>/arrays/<name>`, `<data_dir>/<name>/<version>/dataset_info.json` (TFDS,
    array_record files), and the original archives `<data_dir>/downloads/<name>/<file>` (see `fetch.locate`), which are
    downloaded where their host allows it. Sets of many image files are decoded into `<data_dir>/prepared`, see
    `prepared`, and no longer need their archives then.

    Args:
      name: the data set.
      data_dir: where files of data sets lie.
      image_size: side to which the images are resized; 0 for the published one.
      filter: by which they are resized.
      skip_unreadable: whether image files that cannot be read are left out instead of refused.

    Raises:
      DataError: if it is missing or damaged.
    """
    archive, cache = ARCHIVES[name], data_dir / "arrays" / name
    rule = archive.rule or Decoding()
    rule = rule._replace(image_size=image_size or rule.image_size, filter=filter)
    options: dict[str, Any] = {"cache": data_dir / "prepared", "rule": rule, "skip_unreadable": skip_unreadable}
    if archive.rule or not (cache / "train_x.npy").is_file():
        if folders := sorted((data_dir / name).glob("*/dataset_info.json")):
            return _numbered(prepared(Tfds(folders[-1].parent, name), name, **options), archive, name)
        if archive.rule:
            # by their name alone, images that were mended would not be read again
            source = Published(name, functools.partial(_source, name, data_dir))
            return prepared(source, name, forget_damaged=True, **options)
        _store(cache, _arrays(name, data_dir))
    train, test = (_resized(_stored(cache, split), image_size, filter) for split in ("train", "test"))
    return Dataset(name, train, test, 256, archive.num_classes if train.label is not None else 0)


def _numbered(dataset: Dataset, archive: Archive, name: str) -> Dataset:
    """With the numbers of its classes as published, whichever of them occur."""
    numbers = np.asarray(dataset.class_names, np.int32)
    if not len(numbers):
        return dataset
    if not 0 <= numbers.min() <= numbers.max() < archive.num_classes:
        raise DataError(f"{name}: labels {numbers.min()} to {numbers.max()}, but it has {archive.num_classes} classes")
    train, test = (split._replace(label=numbers[split.label]) for split in (dataset.train, dataset.test))
    return dataset._replace(train=train, test=test, num_classes=archive.num_classes, class_names=())


def _paths(name: str, data_dir: Path) -> dict[str, Path]:
    archive = ARCHIVES[name]
    return {file.name: locate(name, file, data_dir, archive.places) for file in archive.files}


def _arrays(name: str, data_dir: Path) -> tuple[Split, Split]:
    archive = ARCHIVES[name]
    splits = archive.read(_paths(name, data_dir))
    assert isinstance(splits, tuple)
    for subset, split, wanted in zip(("train", "test"), splits, archive.counts):
        _check_count(name, f"{subset} images", len(split.x), wanted)
    return splits


def _source(name: str, data_dir: Path) -> Source:
    source = ARCHIVES[name].read(_paths(name, data_dir))
    assert not isinstance(source, tuple)
    for subset, count, wanted in zip(("train", "test"), source.counts, ARCHIVES[name].counts):
        _check_count(name, f"{subset} images", count, wanted)
    for line in source.notes:
        report.say(f"{name}: {line}")
    return source


def _check_count(name: str, what: str, count: int, wanted: int) -> None:
    if count != wanted:
        raise DataError(
            f"{name}: the archive has {count} {what} instead of {wanted}, so it is truncated or altered; "
            f"delete {', '.join(file.name for file in ARCHIVES[name].files)} and fetch again"
        )


class Published:
    """The images of a published data set, whose files are looked for only if they have not been decoded before.

    Args:
      name: of the data set; with it the images are known.
      find: the source of the images; raises `DataError` where files are missing or damaged.
    """

    others: int = 0
    notes: Sequence[str] = ()
    class_names: Sequence[str] = ()

    def __init__(self, name: str, find: Callable[[], Source]):
        self._name, self._find = name, find

    def __getstate__(self) -> dict[str, object]:
        return {"_name": self._name, "_source": self._source}

    @functools.cached_property
    def _source(self) -> Source:
        return self._find()

    def identity(self) -> Iterator[str]:
        yield self._name

    def __len__(self) -> int:
        return len(self._source)

    def read(self, i: int) -> Item:
        return self._source.read(i)


class Tfds:
    """A folder of array_record files as tensorflow-datasets prepares it; read without TensorFlow.

    Args:
      root: the folder of a version.
      name: of the data set, for messages.

    Raises:
      DataError: if its files are of another form.
    """

    others: int = 0
    notes: Sequence[str] = ()
    class_names: Sequence[str] = ()

    def __init__(self, root: Path, name: str):
        self._root, self._name = root, name
        try:
            info = json.loads((root / "dataset_info.json").read_text())
        except UNREADABLE as error:
            raise self._damaged(error) from error
        if (kind := info.get("fileFormat", "tfrecord")) != "array_record":
            raise DataError(
                f"{root} holds {kind} files, which need TensorFlow to read: prepare it with "
                f"file_format='array_record', or remove it and put the original archives into downloads/{name}/"
            )

    def __getstate__(self) -> dict[str, object]:
        return {"_root": self._root, "_name": self._name}  # each process opens the files itself

    @functools.cached_property
    def _splits(self) -> tuple[Sequence[Any], Sequence[Any]]:
        import tensorflow_datasets as tfds

        try:
            builder: Any = tfds.builder_from_directory(str(self._root))
            test = "test" if "test" in builder.info.splits else "validation"
            return builder.as_data_source("train"), builder.as_data_source(test)
        except Exception as error:  # of folders that are not whole it raises almost anything
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        words = f"is no whole folder of tensorflow-datasets: {first_line(error)}"
        return DataError(f"{self._root} {words}; prepare it again, or remove it")

    def identity(self) -> Iterator[str]:
        yield str(self._root.resolve())
        for file in sorted(walk(self._root)):
            yield f"{file.name} {file.size} {file.times}"

    def __len__(self) -> int:
        return sum(map(len, self._splits))

    def read(self, i: int) -> Item:
        train, test = self._splits
        tested = i >= len(train)
        try:
            record = test[i - len(train)] if tested else train[i]
            image, label = np.asarray(record["image"]), int(record["label"]) if "label" in record else None
        except Exception as error:
            raise self._damaged(error) from error
        if self._name.startswith("emnist/"):  # as in the archive, see `archives`
            image = np.ascontiguousarray(image.swapaxes(0, 1))
            label = label - 1 if label is not None and self._name.endswith("letters") else label
        return Item(image, f"{self._name} {i}", label, tested)


def _resized(split: Split, image_size: int, filter: Filter) -> Split:
    if image_size in (0, split.x.shape[1]):
        return split
    return Split(np.stack([center_crop_resize(i, min(i.shape[:2]), image_size, filter) for i in split.x]), split.label)


def _store(cache: Path, splits: tuple[Split, Split]) -> None:
    """Writes the arrays to a temporary folder and renames it, so that what is there is whole, whoever wrote first."""
    with files.folder_beside(cache) as scratch:
        for name, split in zip(("train", "test"), splits):
            np.save(scratch / f"{name}_x.npy", split.x)
            if split.label is not None:
                np.save(scratch / f"{name}_label.npy", split.label)


def _stored(cache: Path, split: str) -> Split:
    try:
        x = np.load(cache / f"{split}_x.npy", mmap_mode="r")
        labels = cache / f"{split}_label.npy"
        return Split(x, np.load(labels) if labels.is_file() else None)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"the cached arrays in {cache} are damaged ({error}); delete that folder") from error
