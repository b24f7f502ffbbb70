"""Images in Parquet, LMDB and TFRecord, in files as those who prepare them write them."""

import io
import json

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from scoreflow.data import DataError, own, parquet
from scoreflow.data.kinds import open_source

RNG = np.random.default_rng(0)
COLORS, CLASSES = RNG.integers(0, 256, (300, 8, 8, 3), np.uint8), (np.arange(300) * 7 % 5).tolist()
NAMES = ["ant", "bee", "cow", "dog", "eel"]


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


FILES = [png(image) for image in COLORS]


def rows(dataset):
    """({pixels: class} of the training split, that of the test split)."""
    out = []
    for split in (dataset.train, dataset.test):
        labels = [None] * len(split.x) if split.label is None else [dataset.class_names[i] for i in split.label]
        out.append({x.tobytes(): label for x, label in zip(split.x, labels)})
    return out


def wanted(indices, names=None):
    return {COLORS[i].tobytes(): None if names is None else names[i] for i in indices}


def both(dataset):
    return rows(dataset)[0] | rows(dataset)[1]


# ----------------------------------------------------------------------------------------------------------------------
# Parquet.

FEATURES = {"image": {"_type": "Image"}, "label": {"names": NAMES[::-1], "_type": "ClassLabel"}}


def table(part=range(40), *, bare=False, features=False, **columns):
    """As Hugging Face's `datasets` stores images, or as bare bytes."""
    images = [FILES[i] if bare else {"bytes": FILES[i], "path": f"{i}.png"} for i in part]
    kind = pa.binary() if bare else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    arrays = {"image": pa.array(images, kind)} | {name: pa.array([v[i] for i in part]) for name, v in columns.items()}
    out = pa.table(arrays)
    if features:
        out = out.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
    return out


@pytest.mark.parametrize("bare", [True, False])
def test_a_parquet_file_has_images_and_labels(tmp_path, bare):
    pq.write_table(table(bare=bare, label=CLASSES), tmp_path / "a.parquet", row_group_size=7)
    for path in (tmp_path, tmp_path / "a.parquet"):
        assert both(own.folder(path)) == wanted(range(40), [str(label) for label in CLASSES])
    assert both(own.folder(tmp_path, label="none")) == wanted(range(40))


def test_class_names_of_hugging_face_are_read_in_their_order(tmp_path):
    """Their order is that of the numbers, not of the words."""
    (tmp_path / "data").mkdir()
    for name, part in (("train-00000-of-00002", range(30)), ("train-00001-of-00002", range(30, 60))):
        pq.write_table(table(part, features=True, label=CLASSES), tmp_path / "data" / f"{name}.parquet")
    pq.write_table(
        table(range(60, 80), features=True, label=CLASSES), tmp_path / "data" / "test-00000-of-00001.parquet"
    )
    dataset = own.folder(tmp_path)
    assert dataset.class_names == tuple(NAMES[::-1])
    names = [NAMES[::-1][label] for label in CLASSES]
    assert rows(dataset) == [wanted(range(60), names), wanted(range(60, 80), names)]


def test_the_column_of_labels_is_looked_for_or_chosen(tmp_path, capsys):
    fine, coarse, text = CLASSES, [label % 2 for label in CLASSES], [f"photo {i}" for i in range(300)]
    pq.write_table(table(text=text, kind=fine), tmp_path / "one.parquet")
    assert both(own.folder(tmp_path / "one.parquet")) == wanted(range(40), [str(each) for each in fine])
    assert "labels are those of column kind" in capsys.readouterr().out
    pq.write_table(table(text=text, fine=fine, coarse=coarse), tmp_path / "two.parquet")
    assert own.folder(tmp_path / "two.parquet").num_classes == 0
    assert "data.label can name a column that has them: fine, coarse" in capsys.readouterr().out
    chosen = own.folder(tmp_path / "two.parquet", label="coarse")
    assert both(chosen) == wanted(range(40), [str(each) for each in coarse])
    with pytest.raises(DataError, match="data.label = size: .* has the columns text, fine, coarse"):
        own.folder(tmp_path / "two.parquet", label="size")


def test_row_groups_are_read_once_and_few_are_kept(tmp_path):
    pq.write_table(table(range(300), label=CLASSES), tmp_path / "a.parquet", row_group_size=20)
    source, groups = open_source(tmp_path / "a.parquet"), parquet._row_group
    groups.cache_clear()
    assert len(source) == 300 and groups.cache_info().misses == 0
    assert source.read(170).content == FILES[170]
    assert (groups.cache_info().misses, pq.ParquetFile(tmp_path / "a.parquet").num_row_groups) == (1, 15)
    assert [source.read(i).content for i in range(300)] == FILES
    assert groups.cache_info().misses == 16 and groups.cache_info().currsize <= 2


def test_parquet_that_does_not_fit_is_one_line(tmp_path):
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"a\.parquet has the columns a \(int64\), b \(string\), none of which is one of"
    ):
        own.folder(tmp_path / "a.parquet")
    pq.write_table(table(label=[None, *CLASSES[1:]]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="1 of 40 images have no label"):
        own.folder(tmp_path / "b.parquet")
    holes = pa.table({"image": pa.array([FILES[0], None, b"text", FILES[3]], pa.binary())})
    pq.write_table(holes, tmp_path / "c.parquet", row_group_size=2)
    lines = "c.parquet row group 0 row 1 has no image in it; c.parquet row group 1 row 0 is not a readable image"
    with pytest.raises(DataError, match=lines):
        own.folder(tmp_path / "c.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"d\.parquet is not a readable Parquet file"):
        own.folder(tmp_path / "d.parquet")
    (tmp_path / "e").mkdir()
    pq.write_table(table(label=CLASSES), tmp_path / "e" / "0.parquet")
    pq.write_table(table(bare=True), tmp_path / "e" / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet has other columns than 0\.parquet"):
        own.folder(tmp_path / "e")


# ----------------------------------------------------------------------------------------------------------------------
# LMDB.


def database(path, values, keys=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=2**24, **options) as environment, environment.begin(write=True) as transaction:
        for i, value in enumerate(values):
            transaction.put(keys[i] if keys else str(i).encode(), value)


@pytest.mark.parametrize("test_name", ["validation.lmdb", "test.lmdb"])
@pytest.mark.parametrize("encoded", [True, False])
def test_lmdb_of_nvae_and_lsgm_is_read(tmp_path, encoded, test_name):
    """As they prepare CelebA-HQ and FFHQ (pixels of a square) and CelebA-64 (files), in folders of these names."""
    values = FILES if encoded else [image.tobytes() for image in COLORS]
    database(tmp_path / "celeba" / "train.lmdb", values[:30])
    database(tmp_path / "celeba" / test_name, values[30:40])
    assert rows(own.folder(tmp_path / "celeba")) == [wanted(range(30)), wanted(range(30, 40))]
    assert both(own.folder(tmp_path / "celeba" / "train.lmdb")) == wanted(range(30))


def test_gray_pixels_other_keys_and_files_of_one_database_are_read(tmp_path):
    database(tmp_path / "gray.lmdb", [image[..., 0].tobytes() for image in COLORS[:20]])
    dataset = own.folder(tmp_path / "gray.lmdb")
    assert dataset.shape == (8, 8, 1) and {row.tobytes() for row in (*dataset.train.x, *dataset.test.x)} == {
        image[..., 0].tobytes() for image in COLORS[:20]
    }
    keys = [f"256-{i:05d}".encode() for i in range(20)] + [b"length"]
    database(tmp_path / "one.lmdb", [*FILES[:20], b"20"], keys, subdir=False)
    assert both(own.folder(tmp_path / "one.lmdb")) == wanted(range(20))


def test_records_are_in_the_order_of_their_numbers(tmp_path):
    database(tmp_path / "a.lmdb", FILES[:30])
    source = open_source(tmp_path / "a.lmdb")
    assert [source.read(i).content for i in range(30)] == FILES[:30]


def test_lmdb_that_does_not_fit_is_one_line(tmp_path):
    values = [image.tobytes() for image in COLORS[:20]]
    database(tmp_path / "a.lmdb", [*values[:7], values[7][:-2], *values[8:]])
    with pytest.raises(DataError, match="a.lmdb key 7 has 190 bytes, the first value has 192"):
        own.folder(tmp_path / "a.lmdb")
    database(tmp_path / "b.lmdb", [b"x" * 50] * 5)
    with pytest.raises(DataError, match="b.lmdb key 0 has 50 bytes: no encoded image, and no square of pixels"):
        own.folder(tmp_path / "b.lmdb")
    (tmp_path / "c.lmdb").mkdir()
    (tmp_path / "c.lmdb" / "data.mdb").write_bytes(b"x" * 9000)
    with pytest.raises(DataError, match="c.lmdb is not a readable LMDB database"):
        own.folder(tmp_path / "c.lmdb")
    database(tmp_path / "d.lmdb", [bytes(192 * 64)] * 300)
    data = tmp_path / "d.lmdb" / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])  # a process that went on would be killed
    with pytest.raises(DataError, match=r"d.lmdb is cut short: it has \d+ bytes of \d+"):
        own.folder(tmp_path / "d.lmdb")
    with pytest.raises(DataError, match="data.label = kind: an LMDB database of images has no labels"):
        own.folder(tmp_path / "a.lmdb", label="kind")
