"""Folders and archives of images, with splits and labels as people keep them; each is built here."""

import csv
import io
import json
import pickle

import numpy as np
import pytest

from scoreflow.data import DataError, own, sources
from scoreflow.data.folders import Folder, Zip
from scoreflow.data.kinds import open_source
from tests.source_files import CATS_AND_DOGS, CLASSES, COLORS, png, read_all, rows, wanted, write

edm = {f"00000/img{i:08d}.png": png(COLORS[i]) for i in range(20)}
edm |= {f"00001/img{i:08d}.png": png(COLORS[i]) for i in range(20, 40)}
EDM_NAMES = [*edm]
PETS = np.where(np.arange(40) % 2, "cats", "dogs").tolist()
places = pytest.mark.parametrize("place", ["data", "data.zip", "data.tar"])


# ----------------------------------------------------------------------------------------------------------------------
# Classes and splits.


@places
@pytest.mark.parametrize("above", ["", "pets/"])
def test_sub_folders_are_classes_in_a_folder_and_in_an_archive(tmp_path, place, above):
    there, dataset = read_all(write(tmp_path / place, {above + name: each for name, each in CATS_AND_DOGS.items()}))
    assert dataset.class_names == ("cats", "dogs") and there == wanted(range(40), PETS)


@places
@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "Test"])
def test_a_folder_beside_train_is_the_test_split(tmp_path, capsys, place, name):
    content = {f"train/{n}": each for n, each in [*CATS_AND_DOGS.items()][:30]}
    content |= {f"{name}/{n}": each for n, each in [*CATS_AND_DOGS.items()][30:]}
    dataset = own.folder(write(tmp_path / place, content))
    assert rows(dataset.train, dataset.class_names) == wanted(range(30), PETS)
    assert rows(dataset.test, dataset.class_names) == wanted(range(30, 40), PETS)
    assert f"{name.lower()} is the test split\n" in capsys.readouterr().out


@places
def test_test_comes_before_validation_and_what_is_left_out_is_said(tmp_path, capsys, place):
    content = {f"train/{i}.png": png(COLORS[i]) for i in range(20)} | {"readme.txt": ""}
    content |= {f"val/{i}.png": png(COLORS[i]) for i in range(20, 25)}
    content |= {f"test/{i}.png": png(COLORS[i]) for i in range(25, 30)}
    content |= {f"extra/{i}.png": png(COLORS[i]) for i in range(30, 33)}
    dataset = own.folder(write(tmp_path / place, content))
    assert rows(dataset.train, ()) == wanted(range(20)) and rows(dataset.test, ()) == wanted(range(25, 30))
    assert dataset.num_classes == 0
    out = capsys.readouterr().out
    assert "test is the test split, 3 images of no split left out, 5 images of val left out" in out
    assert "1 other file left out" in out


def test_train_without_a_test_split_is_the_folder_itself(tmp_path):
    there, dataset = read_all(write(tmp_path / "data", {f"train/{n}": each for n, each in CATS_AND_DOGS.items()}))
    assert there == wanted(range(40), PETS) and len(dataset.test.x) < 20


def test_classes_of_the_test_split_that_are_not_trained_on_are_refused(tmp_path):
    content = {f"train/{n}": each for n, each in CATS_AND_DOGS.items()}
    flat = {f"test/{i}.png": png(COLORS[i] // 2) for i in range(5)}
    _, dataset = read_all(write(tmp_path / "flat", content | flat))
    assert dataset.num_classes == 0 and len(dataset.test.x) == 5
    other = {f"test/eels/{i}.png": png(COLORS[i] // 2) for i in range(5)}
    with pytest.raises(DataError, match="the test split has class eels, which the training split does not have"):
        own.folder(write(tmp_path / "other", content | other))


# ----------------------------------------------------------------------------------------------------------------------
# dataset.json.


@places
def test_labels_of_dataset_json_are_read(tmp_path, place):
    """As `dataset_tool.py` of EDM and StyleGAN writes them, with the ten classes of which 3 and 11 occur, and others."""
    numbers = np.array([3, 11, 2, 7])[CLASSES].tolist()
    table = json.dumps({"labels": [list(pair) for pair in zip(EDM_NAMES, numbers)]})
    there, dataset = read_all(write(tmp_path / place, edm | {"dataset.json": table}))
    assert dataset.class_names == ("2", "3", "7", "11")
    assert there == wanted(range(40), [str(number) for number in numbers])


@places
def test_null_labels_are_none_and_folders_of_a_thousand_are_no_classes(tmp_path, place):
    there, dataset = read_all(write(tmp_path / place, edm | {"dataset.json": '{"labels": null}'}))
    assert there == wanted(range(40)) and dataset.num_classes == 0


@places
@pytest.mark.parametrize(
    "table, words",
    [
        (
            {"labels": [[n, 1] for n in [*EDM_NAMES, "00002/a.png"]]},
            "names 1 images that are not there, such as 00002/a",
        ),
        (
            {"labels": [[n, i % 2] for i, n in enumerate(EDM_NAMES[:30])]},
            "has no label for 10 of 40 images, such as 00001",
        ),
        ({"labels": [[n, [0.5, 0.1]] for n in EDM_NAMES]}, r"img00000000.png is \[0.5, 0.1\]; only whole numbers"),
        ({"labels": [[n, 0.5] for n in EDM_NAMES]}, "is 0.5; only whole numbers"),
        ({"labels": dict.fromkeys(EDM_NAMES, 1)}, r"must be a list of \[name, number\]"),
        ('{"labels": [["00000', " is damaged: Unterminated string"),
    ],
)
def test_a_dataset_json_that_does_not_fit_is_one_line(tmp_path, place, table, words):
    text = table if isinstance(table, str) else json.dumps(table)
    with pytest.raises(DataError, match=f"{place}: dataset.json.*{words}") as error:
        own.folder(write(tmp_path / place, edm | {"dataset.json": text}))
    assert "\n" not in str(error.value)


def test_a_dataset_json_of_another_kind_is_left_alone(tmp_path):
    there, _ = read_all(write(tmp_path / "data", CATS_AND_DOGS | {"dataset.json": '{"images": []}'}))
    assert there == wanted(range(40), PETS)


def test_labels_none_leaves_labels_out(tmp_path):
    table = json.dumps({"labels": [[name, i % 4] for i, name in enumerate(EDM_NAMES)]})
    for content in (CATS_AND_DOGS, edm | {"dataset.json": table}):
        there, dataset = read_all(write(tmp_path / f"{len(content)}.zip", content), label="none")
        assert there == wanted(range(40)) and dataset.num_classes == 0


# ----------------------------------------------------------------------------------------------------------------------
# Tables of rows.

IMAGES = {f"img/{i}.png": png(COLORS[i]) for i in range(40)}
SPECIES = np.array(["cat", "dog", "eel", "fox"])[CLASSES].tolist()


def table_of(kind, **columns):
    keys, lines = [*columns], [dict(zip(columns, values)) for values in zip(*columns.values())]
    if kind == "metadata.jsonl":
        return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    out = io.StringIO()
    writer = csv.DictWriter(out, keys)
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


kinds = pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv"])
CAPTIONS = [f'a photo of "{i}", with a comma, \n and two kinds of \u2028 line ends' for i in range(40)]


@places
@kinds
@pytest.mark.parametrize("column", ["label", "species"])
def test_metadata_beside_images_gives_labels(tmp_path, place, kind, column):
    """The column `label`, or else the only one of few values."""
    table = table_of(kind, file_name=[*IMAGES], text=CAPTIONS, **{column: SPECIES})
    there, dataset = read_all(write(tmp_path / place, IMAGES | {kind: table}))
    assert dataset.class_names == ("cat", "dog", "eel", "fox") and there == wanted(range(40), SPECIES)


@kinds
def test_numbers_in_words_are_in_the_order_of_numbers(tmp_path, kind):
    numbers = np.array([9, 10, 100, 2])[CLASSES].tolist()
    table = table_of(kind, file_name=[*IMAGES], label=numbers)
    there, dataset = read_all(write(tmp_path / "data", IMAGES | {kind: table}))
    assert dataset.class_names == ("2", "9", "10", "100") and there == wanted(range(40), [str(n) for n in numbers])


def test_where_several_columns_could_be_labels_one_line_says_how_to_choose(tmp_path, capsys):
    colors = [["red", "blue"][i // 5 % 2] for i in range(40)]
    table = table_of("metadata.jsonl", file_name=[*IMAGES], species=SPECIES, color=colors, text=CAPTIONS)
    path = write(tmp_path / "data", IMAGES | {"metadata.jsonl": table})
    assert read_all(path)[1].num_classes == 0
    assert "no labels are read; data.label can name a column that has them: species, color" in capsys.readouterr().out
    assert read_all(path, label="color")[0] == wanted(range(40), colors)
    assert read_all(path, label="species")[0] == wanted(range(40), SPECIES)
    assert read_all(path, label="none")[0] == wanted(range(40))
    with pytest.raises(DataError, match="data.label = size: .* has the columns species, color, text"):
        read_all(path, label="size")
    with pytest.raises(DataError, match="data.label = size: .* has no metadata.jsonl or metadata.csv"):
        read_all(write(tmp_path / "other", IMAGES), label="size")


def test_metadata_of_each_split_lies_in_its_folder(tmp_path):
    content = {}
    for name, part in (("train", range(30)), ("validation", range(30, 40))):
        content |= {f"{name}/{i}.png": png(COLORS[i]) for i in part}
        table = table_of("metadata.jsonl", file_name=[f"{i}.png" for i in part], label=[SPECIES[i] for i in part])
        content[f"{name}/metadata.jsonl"] = table
    dataset = own.folder(write(tmp_path / "data", content))
    assert rows(dataset.train, dataset.class_names) == wanted(range(30), SPECIES)
    assert rows(dataset.test, dataset.class_names) == wanted(range(30, 40), SPECIES)


@kinds
@pytest.mark.parametrize(
    "change, words",
    [
        ({"file_name": [*IMAGES][:39] + ["img/40.png"]}, "names 1 images that are not there, such as img/40.png"),
        ({"label": [""] + SPECIES[1:]}, "has no label for 1 of 40 images, such as img/0.png"),
        ({"file": [*IMAGES]}, "row 1 has no file_name"),
    ],
)
def test_metadata_that_does_not_fit_is_one_line(tmp_path, kind, change, words):
    columns = {"file_name": [*IMAGES], "label": SPECIES} | change
    if "file" in change:
        del columns["file_name"]
    with pytest.raises(DataError, match=f"{kind}:? {words}"):
        own.folder(write(tmp_path / "data", IMAGES | {kind: table_of(kind, **columns)}))


def test_metadata_for_some_images_and_broken_lines_are_refused(tmp_path):
    table = table_of("metadata.jsonl", file_name=[*IMAGES][:30], label=SPECIES[:30])
    with pytest.raises(DataError, match="has no label for 10 of 40 images, such as img/3[0-9].png"):
        own.folder(write(tmp_path / "data", IMAGES | {"metadata.jsonl": table}))
    with pytest.raises(DataError, match="metadata.jsonl is damaged: Unterminated"):
        own.folder(write(tmp_path / "cut", IMAGES | {"metadata.jsonl": table[:-3]}))


def test_other_labels_are_other_data(tmp_path):
    """A table that changes, or another column of it, is decoded anew."""
    colors = [["red", "blue"][i // 5 % 2] for i in range(40)]
    path = tmp_path / "data"
    write(path, IMAGES | {"metadata.csv": table_of("metadata.csv", file_name=[*IMAGES], label=SPECIES)})
    first = own.folder(path)
    write(path, {"metadata.csv": table_of("metadata.csv", file_name=[*IMAGES], label=colors)})
    second = own.folder(path)
    assert (first.num_classes, second.num_classes) == (4, 2)
    np.testing.assert_array_equal(np.sort(first.train.x, 0), np.sort(second.train.x, 0))


# ----------------------------------------------------------------------------------------------------------------------
# Archives, and what is at a path.


def test_a_source_that_has_been_read_can_be_handed_to_another_process(tmp_path):
    for path in (tmp_path / "data", tmp_path / "data.zip"):
        source = open_source(write(path, CATS_AND_DOGS))
        items = [source.read(i) for i in range(len(source))]
        copy = pickle.loads(pickle.dumps(source))
        assert [copy.read(i) for i in range(len(copy))] == items


def test_an_archive_is_told_by_its_name_size_and_time(tmp_path):
    path = write(tmp_path / "data.zip", CATS_AND_DOGS)
    before = [*Zip(path).identity()]
    assert before == [*Zip(path).identity()]
    write(path, CATS_AND_DOGS | {"cats/1.png": png(COLORS[0])})
    assert before != [*Zip(path).identity()]


def test_an_archive_that_was_written_anew_is_read_anew(tmp_path):
    path = write(tmp_path / "data.zip", CATS_AND_DOGS)
    assert read_all(path)[0] == wanted(range(40), PETS)
    write(path, {name: each for name, each in [*CATS_AND_DOGS.items()][::-1] if name != "cats/01.png"})
    assert read_all(path)[0] == wanted(sorted({*range(40)} - {1}), PETS)


def test_a_class_whose_name_is_no_text_is_read(tmp_path):
    import os

    for folder, shift in ((b"caf\xe9", 0), (b"tea", 20)):
        place = os.path.join(os.fsencode(tmp_path), b"data", folder)
        os.makedirs(place)
        for i in range(20):
            with open(os.path.join(place, b"%02d.png" % i), "wb") as file:
                file.write(png(COLORS[i + shift]))
    there, dataset = read_all(tmp_path / "data")
    assert dataset.class_names == ("caf\ufffd", "tea") and there == wanted(range(40), ["caf\ufffd"] * 20 + ["tea"] * 20)


@pytest.mark.parametrize("place", ["data", "data.zip", "data.tar"])
def test_what_has_the_labels_belongs_to_the_identity(tmp_path, place):
    path = write(tmp_path / place, CATS_AND_DOGS)
    assert [*open_source(path).identity()] != [*open_source(path, label="none").identity()]


def test_a_damaged_member_is_named_and_can_be_left_out(tmp_path):
    path = write(tmp_path / "data.zip", CATS_AND_DOGS)
    content = bytearray(path.read_bytes())
    content[content.index(png(COLORS[3])) + 60] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="cats/03.png in data.zip cannot be read: Bad CRC-32"):
        own.folder(path)
    assert read_all(path, skip_unreadable=True)[0] == wanted(sorted({*range(40)} - {3}), PETS)


def test_hidden_members_are_left_out_and_counted(tmp_path, capsys):
    extra = {"__MACOSX/cats/._01.png": b"", "cats/.DS_Store": b"", ".hidden/a.png": b"", "readme.txt": b""}
    there, _ = read_all(write(tmp_path / "data.zip", CATS_AND_DOGS | extra))
    assert there == wanted(range(40), PETS) and "4 other files left out" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.txt", "a.npz", "a.tar.gz", "folder/a.txt"])
def test_what_cannot_be_read_is_one_line_that_lists_what_can(tmp_path, name):
    write(tmp_path, {name: b"text"})
    path = tmp_path / name.split("/")[0]
    with pytest.raises(
        DataError, match=r"a folder of images \(png, .*\), a .zip or .tar of them, .parquet, .tfrecord or LMDB"
    ):
        open_source(path)
    with pytest.raises(DataError, match="there is no such file or folder"):
        open_source(tmp_path / "nothing")


def test_of_several_kinds_in_a_folder_the_largest_is_read(tmp_path):
    write(tmp_path / "data", IMAGES | {"table.parquet": b"x" * 10})
    assert isinstance(open_source(tmp_path / "data"), Folder)
    write(tmp_path / "data", {"table.parquet": b"x" * 10**6})
    assert type(open_source(tmp_path / "data")).__name__ == "Parquet"


@pytest.mark.parametrize("shape, wanted", [((1, 8, 8), (8, 8, 1)), ((8, 8), (8, 8, 1)), ((3, 1, 5), (1, 5, 3))])
def test_raw_pixels_may_have_channels_or_rows_of_one(shape, wanted):
    content = np.arange(int(np.prod(shape)), dtype=np.uint8)
    planes = content.reshape(shape if len(shape) == 3 else (1, *shape))
    np.testing.assert_array_equal(sources.raw_pixels(content.tobytes(), "a", shape), planes.transpose(1, 2, 0))
    assert sources.raw_pixels(content.tobytes(), "a", shape).shape == wanted
