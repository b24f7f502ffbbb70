"""Data as people have them: folders of images and files of arrays."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from scoreflow import configure, data
from scoreflow.data import DataError, own
from tests import tiny

RNG = np.random.default_rng(0)
COLORS, CLASSES = RNG.integers(0, 256, (60, 32, 32, 3), np.uint8), (np.arange(60) % 10).astype(np.int32)


def fill(folder, count=60, *, gray=False, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        values = np.random.default_rng(i).integers(0, 256, (8, 8) if gray else (8, 8, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{i:03d}.png")


def test_another_file_changes_the_side_of_none(tmp_path):
    fill(tmp_path / "a", 100)
    before = own.folder(tmp_path / "a")
    fill(tmp_path / "a", 1, start=500)
    (tmp_path / "a" / "000.png").rename(tmp_path / "a" / "zzz.png")  # nor does another name
    after = own.folder(tmp_path / "a")
    rows = lambda split: {row.tobytes() for row in split.x}
    assert len(after.train.x) + len(after.test.x) == 101
    assert rows(before.train) <= rows(after.train) and rows(before.test) <= rows(after.test)


def held_out(contents, fraction):
    return data.marks([hashlib.sha256(each).digest() for each in contents])[0] < fraction * 2**64


def test_about_the_asked_share_is_held_out_and_copies_stay_together():
    contents = [f"{i}".encode() for i in range(20_000)]
    tested = held_out(contents, 0.1)
    assert abs(tested.mean() - 0.1) < 5 * np.sqrt(0.09 / 20_000)
    np.testing.assert_array_equal(held_out(contents * 2, 0.1), np.tile(tested, 2))
    assert (held_out(contents, 0.05) <= tested).all()  # a larger share only adds


def test_one_more_copy_moves_no_example():
    """Also where most of the data are copies then, which no rule may notice."""
    contents = [f"{i}".encode() for i in range(100)] * 2
    before, after = held_out(contents, 0.2), held_out([*contents, b"7"], 0.2)
    np.testing.assert_array_equal(before, after[:-1])
    assert after[-1] == before[7] and (before[:100] == before[100:]).all()


def test_where_data_take_few_values_each_of_them_is_on_both_sides():
    """A tenth of the copies of each, and another example, of an old value or a new one, moves none of them."""
    contents = [bytes([i % 5]) for i in range(5000)]
    tested = held_out(contents, 0.1)
    for value in range(5):
        assert abs(tested[value::5].sum() - 100) < 5 * np.sqrt(1000 * 0.1 * 0.9)
    np.testing.assert_array_equal(held_out([*contents, b"new", bytes([3])], 0.1)[:5000], tested)


def test_what_is_left_out_of_a_folder_is_said(tmp_path, capsys):
    fill(tmp_path / "a" / "cats", 20)
    fill(tmp_path / "a" / "dogs", 20, start=20)
    fill(tmp_path / "a" / ".ipynb_checkpoints", 3, start=50)
    fill(tmp_path / "a" / "__MACOSX", 3, start=60)
    (tmp_path / "a" / "notes.txt").write_text("")
    dataset = own.folder(tmp_path / "a")
    assert dataset.class_names == ("cats", "dogs") and len(dataset.train.x) + len(dataset.test.x) == 40
    assert "7 other files left out" in capsys.readouterr().out


def test_all_bad_files_are_named_at_once_or_left_out(tmp_path, capsys):
    fill(tmp_path / "a", 30)
    for name in ("x.png", "y.jpg"):
        (tmp_path / "a" / name).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"x\.png is not .*; y\.jpg is not .*; --config\.data\.skip_unreadable=True"):
        own.folder(tmp_path / "a")
    assert len(own.folder(tmp_path / "a", skip_unreadable=True).train.x) < 30
    assert "2 unreadable images left out" in capsys.readouterr().out


def test_channels_are_those_of_the_files_or_those_asked_for(tmp_path):
    fill(tmp_path / "gray", 30, gray=True)
    assert own.folder(tmp_path / "gray").shape == (8, 8, 1)
    assert own.folder(tmp_path / "gray", channels=3).shape == (8, 8, 3)
    fill(tmp_path / "gray", 5, start=40)
    assert own.folder(tmp_path / "gray").shape == (8, 8, 3)
    assert own.folder(tmp_path / "gray", channels=1).shape == (8, 8, 1)


@pytest.mark.slow
def test_a_small_folder_is_trained_on(tmp_path):
    """Of 30 photos about three are held out, fewer than a batch."""
    fill(tmp_path / "photos", 30)
    config = tiny.digits(data={"name": "folder", "path": str(tmp_path / "photos")}, training__pictures=False)
    experiment = configure.experiment(config, "photos")
    assert 1 <= len(experiment.data.test.x) < 16
    import jax

    from scoreflow import train

    with jax.numpy_rank_promotion("allow"):
        state = train.train(experiment, configure.train_options(config, experiment), tmp_path / "run")
    assert state.step == 8


# ----------------------------------------------------------------------------------------------------------------------
# Arrays.

X = RNG.integers(0, 17, (60, 4, 4), np.uint8)


def of(tmp_path, **content):
    np.savez(tmp_path / "x.npz", **content)
    return own.arrays(tmp_path / "x.npz", num_levels=17)


def test_labels_of_any_kind_become_numbers_and_keep_their_names(tmp_path):
    words = np.array(["dog", "cat", "eel"])[np.arange(60) % 3]
    dataset = of(tmp_path, train=X, train_label=words, test=X[:5] + 0, test_label=words[:5])
    assert dataset.class_names == ("cat", "dog", "eel") and dataset.num_classes == 3
    np.testing.assert_array_equal(dataset.train.label, np.array([1, 0, 2])[np.arange(60) % 3])
    np.testing.assert_array_equal(dataset.test.label, [1, 0, 2, 1, 0])
    sparse = of(tmp_path, train=X, train_label=np.array([2, 7])[np.arange(60) % 2])
    assert sparse.class_names == ("2", "7") and set(sparse.train.label) == {0, 1}


@pytest.mark.parametrize(
    "content, words",
    [
        ({"train_label": np.arange(60) % 5, "test": X[:9], "test_label": np.full(9, 7)}, "test_label has 7, which no"),
        ({"test_label": np.arange(9), "test": X[:9]}, "has test_label without train_label"),
        ({"train_label": np.zeros((60, 2))}, r"train_label has shape \(60, 2\): one label for each of 60"),
        ({"train_label": np.zeros(59)}, r"train_label has shape \(59,\)"),
        ({"train_label": np.arange(60) % 2, "test_label": np.zeros(9)}, "has test_label without test$"),
        ({"train": np.zeros((0, 4))}, r"2 or more examples of shape \[N, ...\] are needed, not \(0, 4\)"),
        ({"test": X[:9, :3]}, r"test examples are uint8 of shape \(3, 4, 1\), training ones uint8 of \(4, 4, 1\)"),
        ({"test": X[:9].astype(np.float32)}, "test examples are float32 of shape"),
        ({"test": X[:9, ..., None].astype(np.float32)}, r"test examples are float32 of shape \(4, 4, 1\), training"),
        ({"train": np.full((60, 3), 1e39)}, r"holds 1e\+39, which is more than float32 can hold"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        of(tmp_path, **{"train": X, **content})


Y = np.array(["dog", "cat", "eel"])[np.arange(60) % 3]
TEST = (X[:7] + 1) % 17


@pytest.mark.parametrize(
    "train, label, test, test_label",
    [
        ("train", "train_label", "test", "test_label"),
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("images", "labels", "", ""),
        ("X", "y", "", ""),
        ("arr_0", "arr_1", "", ""),
    ],
)
@pytest.mark.parametrize("column", [False, True])  # labels [N, 1], as Keras and MedMNIST have them
def test_names_that_others_give_to_arrays_are_known(tmp_path, capsys, train, label, test, test_label, column):
    labels = Y[:, None] if column else Y
    content = {train: X, label: labels, "extra": np.arange(3)}
    if test:
        content |= {test: TEST, test_label: labels[:7]}
    dataset = of(tmp_path, **content)
    x, words = dataset.train.x, np.array(dataset.class_names)[dataset.train.label]
    if test:
        np.testing.assert_array_equal(dataset.test.x[..., 0], TEST)
        assert [dataset.class_names[i] for i in dataset.test.label] == Y[:7].tolist()
    else:
        x = np.concatenate([x, dataset.test.x])
        words = np.concatenate([words, np.array(dataset.class_names)[dataset.test.label]])
    known = dict(zip((row.tobytes() for row in X), Y))
    assert [known[row.tobytes()] for row in x] == words.tolist() and len(x) == 60
    line = f"x.npz: read {train} [60, 4, 4], {label} [60{', 1' * column}]"
    out = capsys.readouterr().out
    assert line in out and "; left out: extra" in out


def test_channels_that_come_first_are_put_last(tmp_path, capsys):
    np.save(tmp_path / "x.npy", COLORS.transpose(0, 3, 1, 2))
    dataset = own.arrays(tmp_path / "x.npy", split="shuffled")
    assert "images [60, 3, 32, 32] have their channels first; they are transposed" in capsys.readouterr().out
    np.save(tmp_path / "y.npy", COLORS)
    np.testing.assert_array_equal(dataset.train.x, own.arrays(tmp_path / "y.npy", split="shuffled").train.x)
    assert "transposed" not in capsys.readouterr().out
    for shape, wanted in (((9, 1, 4, 4), (4, 4, 1)), ((9, 3, 4, 3), (3, 4, 3)), ((9, 2, 4, 4), (2, 4, 4))):
        np.save(tmp_path / "x.npy", RNG.integers(0, 9, shape, np.uint8))
        assert own.arrays(tmp_path / "x.npy").shape == wanted


@pytest.mark.parametrize(
    "content, words",
    [
        (
            {"pictures": X},
            "x.npz holds pictures; names that are read are train, train_label, test, test_label; x_train, ",
        ),
        ({}, "x.npz holds nothing; names that are read are"),
        ({"arr_0": X, "arr_1": Y, "arr_2": X}, "x.npz holds arr_0, arr_1, arr_2; names that are read are"),
        ({"images": X, "labels": Y[:59]}, r"labels has shape \(59,\): one label for each of 60"),
        ({"images": np.array([1, "a", None] * 20, object)}, "x.npz: images cannot be read: Object arrays"),
        ({"arr_0": X, "arr_1": X}, r"arr_1 has shape \(60, 4, 4\): one label"),
    ],
)
def test_arrays_of_unknown_names_or_kinds_are_one_line(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as error:
        of(tmp_path, **content)
    assert "\n" not in str(error.value)


def test_examples_on_both_sides_are_counted(tmp_path, capsys):
    of(tmp_path, train=X, test=np.concatenate([X[:4], (X[:3] + 1) % 17]))
    assert "4 of 7 test examples are training examples, too" in capsys.readouterr().err


def test_a_share_that_leaves_nothing_to_train_on_is_refused(tmp_path, fraction=0.9999):
    np.save(tmp_path / "x.npy", X[:40])
    with pytest.raises(DataError, match=f"data.test_fraction = {fraction} of 40 examples leaves"):
        own.arrays(tmp_path / "x.npy", num_levels=17, test_fraction=fraction)


def test_of_a_few_examples_one_is_held_out(tmp_path):
    for count in range(2, 30):
        np.save(tmp_path / "x.npy", X[:count])
        dataset = own.arrays(tmp_path / "x.npy", num_levels=17)
        assert len(dataset.test.x) >= 1 and len(dataset.train.x) + len(dataset.test.x) == count


def test_where_chance_would_hold_out_none_the_one_of_least_hash_is(tmp_path):
    x = np.arange(12, dtype=np.float32)[:, None]
    np.save(tmp_path / "x.npy", x)
    dataset = own.arrays(tmp_path / "x.npy", test_fraction=1e-9)
    hashes = [hashlib.sha256(row.tobytes()).digest()[:8] for row in x]
    assert dataset.test.x.ravel().tolist() == [hashes.index(min(hashes))]


def test_arrays_and_their_refusals(tmp_path):
    np.savez(tmp_path / "a.npz", train=COLORS, test=COLORS[:5], train_label=CLASSES)
    source = own.arrays(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(source.train.x, COLORS)
    assert source.num_levels == 256 and source.num_classes == CLASSES.max() + 1
    points = RNG.standard_normal((20, 3))
    np.save(tmp_path / "b.npy", points)
    source = own.arrays(str(tmp_path / "b.npy"), test_fraction=0.25, split="shuffled")
    assert (len(source.train.x), len(source.test.x), source.num_levels) == (15, 5, 0)
    assert sorted(np.concatenate([source.train.x, source.test.x])[:, 0]) == sorted(points.astype(np.float32)[:, 0])

    def refused(content, words, name="c.npy", **options):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
        with pytest.raises(DataError, match=words):
            own.arrays(str(path), **options)

    refused(b"nonsense", "not a readable")
    refused((tmp_path / "a.npz").read_bytes()[:900], "not a readable", name="c.npz")
    refused(np.ones((4, 2), np.int64), "int64 is neither")
    refused(np.full((4, 2), np.nan), "NaN")
    refused(np.full((4, 2, 2), 17, np.uint8), "level 17", num_levels=17)
    refused(np.ones(4), r"shape \[N")
    with pytest.raises(DataError, match="no such file"):
        own.arrays(str(tmp_path / "missing.npy"))


def test_folders_of_images(tmp_path):
    for i in range(6):
        sub = tmp_path / ("cats" if i % 2 else "dogs")
        sub.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 10 if i == 5 else 8, 3), 10 * i, np.uint8)).save(sub / f"{i}.png")
    with pytest.raises(DataError, match="several sizes, such as .*; set data.image_size"):
        own.folder(str(tmp_path))
    source = own.folder(str(tmp_path), image_size=4, test_fraction=0.3)
    assert source.shape == (4, 4, 3) and source.num_classes == 2
    for x, label in zip(source.train.x, source.train.label):
        assert (x[0, 0, 0] // 10) % 2 == (label == 0) and np.ptp(x) == 0
    (tmp_path / "dogs" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="0.png is not a readable image"):
        own.folder(str(tmp_path), image_size=4)
    with pytest.raises(DataError, match="no such file or folder"):
        own.folder(str(tmp_path / "none"))


def test_wide_photos_are_said_to_be_cut_and_square_ones_are_not(tmp_path, capsys):
    for i in range(4):
        (tmp_path / "a").mkdir(exist_ok=True)
        size = (12, 8) if i < 3 else (8, 8)  # width, height
        Image.fromarray(np.full((size[1], size[0], 3), 50 * i, np.uint8)).save(tmp_path / "a" / f"{i}.png")
    own.folder(tmp_path / "a", cache=tmp_path / "cache", image_size=4)
    assert "3 cut to the square in the middle" in capsys.readouterr().out
    own.folder(tmp_path / "a", cache=tmp_path / "cache", image_size=4, crop="dhariwal")
    assert "3 cut to the square in the middle" in capsys.readouterr().out


def test_images_beside_the_folders_of_classes_are_counted(tmp_path, capsys):
    fill(tmp_path / "a" / "cats", 20)
    fill(tmp_path / "a", 5, start=100)
    dataset = own.folder(tmp_path / "a", cache=tmp_path / "cache")
    assert dataset.class_names == (".", "cats")
    assert "5 images lie in no folder of a class; their class is called ." in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, words",
    [
        ("photos.tar.gz", "must be a folder of images .*; unpack it, or make it a plain .tar"),
        ("photos.npz", "must be a folder of images .*; set data.name = arrays for it"),
        ("photos.doc", "must be a folder of images .* or LMDB$"),
    ],
)
def test_a_file_that_is_no_folder_of_images_says_what_to_do(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=words):
        own.folder(tmp_path / name)


def test_a_folder_that_has_moved_says_how_to_name_the_new_place(tmp_path):
    with pytest.raises(DataError, match="no such file or folder; if it has moved, .* --config.data.path"):
        own.folder(tmp_path / "gone")
