"""Folders that tensorflow-datasets prepared, under the names of published data sets."""

import numpy as np
import pytest

from scoreflow.data import DataError, prepared, published
from tests.archive_files import CIFAR_IMAGES, CIFAR_LABELS


def tfds_folder(path, name, images, labels, splits, version="3.0.2"):
    """A folder written by TFDS itself, in array_record files, under the name of a known data set."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = {"image": tfds.features.Tensor(shape=images.shape[1:], dtype=np.uint8)}
    features["label"] = tfds.features.Scalar(dtype=np.int64)

    kind = name.partition("/")[0]

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        name = kind

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate(rows) for split, rows in splits.items()}

        def _generate_examples(self, indices):
            raise AssertionError

        def _generate(self, indices):
            for i in indices:
                yield i, {"image": images[i], "label": int(labels[i])}

    Builder(data_dir=str(path / "made"), file_format="array_record").download_and_prepare()
    folder = path / name / version
    folder.parent.mkdir(parents=True)
    (path / "made" / kind / version).rename(folder)
    return folder


def test_a_tfds_prepared_folder_is_read_without_tensorflow(tmp_path, monkeypatch):
    import sys

    images, labels = CIFAR_IMAGES[:8], CIFAR_LABELS[:8]
    assert set(labels[6:]) <= set(labels[:6]) and set(labels) != set(range(10))
    tfds_folder(tmp_path, "cifar10", images, labels, {"train": range(6), "test": range(6, 8)})
    for _ in range(2):  # from the records, then from what is kept
        source = published.named("cifar10", tmp_path)
        assert "tensorflow" not in sys.modules and source.num_classes == 10
        for split, rows in ((source.train, slice(6)), (source.test, slice(6, 8))):
            labels_by_image = {x.tobytes(): int(y) for x, y in zip(split.x, split.label)}
            assert labels_by_image == {x.tobytes(): int(y) for x, y in zip(images[rows], labels[rows])}
        monkeypatch.setattr(prepared, "_prepare", lambda *args: pytest.fail("decoded again"))


def test_letters_of_a_tfds_folder_are_those_of_the_archive(tmp_path):
    """TFDS keeps the images as they are stored, with rows and columns exchanged, and the numbers from 1."""
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28, 1), np.uint8)
    labels = np.asarray([1, 26, 3, 3, 5, 5, 7, 1, 26, 3])
    tfds_folder(tmp_path, "emnist/letters", images, labels, {"train": range(7), "validation": range(7, 10)})
    source = published.named("emnist/letters", tmp_path)
    assert source.num_classes == 26
    there = {x.tobytes(): int(y) for x, y in zip(source.train.x, source.train.label)}
    assert there == {np.ascontiguousarray(x.swapaxes(0, 1)).tobytes(): y - 1 for x, y in zip(images[:7], labels[:7])}


def test_a_tfds_folder_that_is_not_whole_is_one_line(tmp_path):
    folder = tfds_folder(tmp_path, "cifar10", CIFAR_IMAGES[:8], np.arange(8) + 4, {"train": range(8), "test": range(2)})
    with pytest.raises(DataError, match="cifar10: labels 4 to 11, but it has 10 classes"):
        published.named("cifar10", tmp_path)
    shard = next(folder.glob("*train*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:40])
    with pytest.raises(DataError, match="is no whole folder of tensorflow-datasets"):
        published.named("cifar10", tmp_path)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="is no whole folder of tensorflow-datasets: Expecting"):
        published.named("cifar10", tmp_path)


def test_a_tfrecord_folder_is_refused_with_the_way_out(tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(DataError, match="array_record"):
        published.named("mnist", tmp_path)
