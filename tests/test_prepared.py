"""Images decoded once: what is kept is what the files hold, whoever decodes them, and later starts decode nothing."""

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from scoreflow.data import DataError, decoding, facts, own, prepared
from scoreflow.data.images import Decoding
from scoreflow.data.kinds import open_source
from scoreflow.data.sources import Item

RNG = np.random.default_rng(0)


def fill(folder, count, *, size=6, first=0):
    """Random gray images of two classes, by name."""
    pixels = {}
    for i in range(first, first + count):
        name = f"{'ab'[i % 2]}/{i:04d}.png"
        pixels[name] = RNG.integers(0, 256, (size, size), np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[name]).save(folder / name)
    return pixels


def rows(dataset):
    """(pixels, label) of every example, as a set."""
    pairs = [zip(split.x, split.label) for split in (dataset.train, dataset.test)]
    return {(row.tobytes(), int(label)) for pair in pairs for row, label in pair}


def read(folder, cache, **options):
    rule = Decoding(options.pop("image_size", 0), options.pop("channels", 0))
    return prepared.prepared(open_source(folder), "photos", cache=cache, rule=rule, **options)


def test_several_processes_decode_what_one_does_and_what_the_files_hold(tmp_path, capfd):
    pixels = fill(tmp_path / "photos", prepared._ALONE + 40)
    several, one = (read(tmp_path / "photos", tmp_path / f"cache-{n}", workers=n) for n in (3, 1))
    for ours, theirs in zip(several[1:3], one[1:3]):
        np.testing.assert_array_equal(ours.x, theirs.x)
        np.testing.assert_array_equal(ours.label, theirs.label)
    assert rows(several) == {(image.tobytes(), "ab".index(name[0])) for name, image in pixels.items()}
    assert several.class_names == ("a", "b") and several.summary.digest == one.summary.digest
    assert "decoding 552 images once, by 3 processes" in capfd.readouterr().out


def test_a_later_start_decodes_nothing_and_maps_the_file(tmp_path, monkeypatch):
    fill(tmp_path / "photos", 50)
    before = read(tmp_path / "photos", tmp_path / "cache")
    monkeypatch.setattr(prepared, "_prepare", lambda *args: pytest.fail("decoded again"))
    after = read(tmp_path / "photos", tmp_path / "cache", test_fraction=0.3)  # another share needs no other file
    assert rows(after) == rows(before) and len(after.test.x) > len(before.test.x)
    assert {row.tobytes() for row in before.test.x} < {row.tobytes() for row in after.test.x}
    base = after.train.x
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) and type(after.train.x[:3] + 0) is np.ndarray


def test_a_changed_file_another_size_and_other_channels_are_decoded_anew(tmp_path):
    fill(tmp_path / "photos", 50)
    before = rows(read(tmp_path / "photos", tmp_path / "cache"))
    pixels = fill(tmp_path / "photos", 1)["a/0000.png"]
    after = rows(read(tmp_path / "photos", tmp_path / "cache"))
    assert after - before == {(pixels.tobytes(), 0)} and len(before - after) == 1
    assert read(tmp_path / "photos", tmp_path / "cache", image_size=3).shape == (3, 3, 1)
    assert read(tmp_path / "photos", tmp_path / "cache", channels=3).shape == (6, 6, 3)
    assert len(list((tmp_path / "cache").glob("*/index.json"))) == 4


def test_other_labels_of_the_same_pixels_are_other_data(tmp_path):
    pixels = fill(tmp_path / "photos", 20)
    for name in pixels:
        moved = tmp_path / "moved" / (name.replace("a/", "b/") if name.startswith("a/0000") else name)
        moved.parent.mkdir(parents=True, exist_ok=True)
        moved.write_bytes((tmp_path / "photos" / name).read_bytes())
    one, two = (read(tmp_path / name, tmp_path / "cache") for name in ("photos", "moved"))
    np.testing.assert_array_equal(one.train.x, two.train.x)
    assert one.summary.digest != two.summary.digest


def test_the_test_split_is_that_of_the_hashes_of_the_files(tmp_path):
    pixels = fill(tmp_path / "photos", 200)
    dataset = read(tmp_path / "photos", tmp_path / "cache", test_fraction=0.25)
    hashes = {name: hash_of(tmp_path / "photos" / name) for name in pixels}
    expected = {pixels[name].tobytes() for name, mark in hashes.items() if mark < 2**62}
    assert {row.tobytes() for row in dataset.test.x} == expected


def hash_of(path):
    return int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:8], "big")


def test_the_shuffle_of_older_versions_is_still_there(tmp_path):
    """A permutation of the files in the order of their names, of which the first tenth is held out."""
    pixels = fill(tmp_path / "photos", 60)
    own.folder(tmp_path / "photos", cache=tmp_path / "cache")
    dataset = own.folder(tmp_path / "photos", cache=tmp_path / "cache", split="shuffled")
    order = np.random.RandomState(0).permutation(60)
    stacked = np.stack([pixels[name] for name in sorted(pixels)])[..., None]
    np.testing.assert_array_equal(dataset.test.x, stacked[order[:6]])
    np.testing.assert_array_equal(dataset.train.x, stacked[order[6:]])


def test_the_same_pixels_in_other_files_are_counted(tmp_path, capsys):
    """Three are stored twice, as PNG and as BMP; two of them on both sides of a given split."""
    train, test = tmp_path / "photos" / "train", tmp_path / "photos" / "test"
    pixels = fill(train, 30) | fill(test, 10, first=30)
    for name, image in list(pixels.items())[:2]:
        Image.fromarray(image).save((test / name).with_suffix(".bmp"))
    Image.fromarray(pixels["a/0004.png"]).save(train / "a" / "again.bmp")
    dataset = read(tmp_path / "photos", tmp_path / "cache")
    said = capsys.readouterr().out
    assert "photos: 3 images have the pixels of another" in said
    assert "photos: 2 test images have the pixels of a training image" in said
    assert (len(dataset.train.x), len(dataset.test.x)) == (31, 12)


def test_copies_on_both_sides_of_a_drawn_split_are_counted(tmp_path, capsys):
    """The files are others, so their hashes are; the pixels are the same."""
    for name, image in fill(tmp_path / "photos", 100).items():
        Image.fromarray(image).save((tmp_path / "photos" / name).with_suffix(".bmp"))
    dataset = read(tmp_path / "photos", tmp_path / "cache")
    train = {row.tobytes() for row in dataset.train.x}
    twice = sum(row.tobytes() in train for row in dataset.test.x)
    assert twice and f"photos: {twice} test images have the pixels of a training image" in capsys.readouterr().out


def test_another_folder_is_other_data_though_its_files_have_the_same_names_sizes_and_times(tmp_path):
    for name in ("one", "two"):
        for i in range(20):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(RNG.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / name / f"{i}.bmp")
            os.utime(tmp_path / name / f"{i}.bmp", (0, 0))
    one, two = (read(tmp_path / name, tmp_path / "cache") for name in ("one", "two"))
    assert one.summary.digest != two.summary.digest
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "one" / "0.bmp")
    os.utime(tmp_path / "one" / "0.bmp", (0, 0))
    assert read(tmp_path / "one", tmp_path / "cache").summary.digest != one.summary.digest


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    """Before anything is decoded: a file that is mapped where there is no room would end the process."""
    fill(tmp_path / "photos", 30)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        DataError, match="^photos: .* cannot be read or written: No space left on device; data.dir can name"
    ):
        read(tmp_path / "photos", tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_what_is_there_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    fill(tmp_path / "photos", 30)
    before = read(tmp_path / "photos", tmp_path / "cache")
    monkeypatch.setattr(prepared, "_alone", lambda folder: pytest.fail("asked to write"))
    assert rows(read(tmp_path / "photos", tmp_path / "cache")) == rows(before)


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    fill(tmp_path / "photos", 30)
    for name, age in ((".old-1", 90_000), (".new-1", 100)):
        (tmp_path / "cache" / name).mkdir(parents=True)
        os.utime(tmp_path / "cache" / name, (time.time() - age,) * 2)
    read(tmp_path / "photos", tmp_path / "cache")
    assert {path.name for path in (tmp_path / "cache").glob(".*")} == {".new-1"}


def test_links_and_names_of_any_kind_are_read_once(tmp_path, capsys):
    """A link to the folder above is not followed, one to nothing is counted, and a name need not be UTF-8."""
    pixels = fill(tmp_path / "photos", 10)
    os.symlink(tmp_path / "photos", tmp_path / "photos" / "a" / "loop")
    os.symlink(tmp_path / "nothing", tmp_path / "photos" / "a" / "broken.png")
    os.rename(
        os.fsencode(tmp_path / "photos" / "a" / "0000.png"), os.fsencode(tmp_path / "photos" / "a") + b"/caf\xe9.png"
    )
    dataset = read(tmp_path / "photos", tmp_path / "cache")
    assert {row.tobytes() for split in dataset[1:3] for row in split.x} == {each.tobytes() for each in pixels.values()}
    assert "photos: 1 other file left out" in capsys.readouterr().out


def test_a_class_that_only_the_test_split_has_is_refused_or_said(tmp_path, capsys):
    """Refused where the source has the split, said where it was drawn."""
    place = tmp_path / "given"
    lines = []
    for i in range(20):
        split = "test" if i >= 15 else "train"
        (place / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (6, 6), np.uint8)).save(place / split / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{split}/{i}.png", "label": 7 if i == 19 else i % 2}))
    (place / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="the test split has class 7, which no training image has"):
        read(place, tmp_path / "cache")
    for i in range(40):
        (tmp_path / "drawn" / f"{i:02d}").mkdir(parents=True)
        Image.fromarray(RNG.integers(0, 256, (6, 6), np.uint8)).save(tmp_path / "drawn" / f"{i:02d}" / "0.png")
    dataset = read(tmp_path / "drawn", tmp_path / "cache", test_fraction=0.3)
    assert f"photos: {len(dataset.test.x)} classes, such as " in capsys.readouterr().out


def test_sizes_that_differ_are_one_line_and_leave_nothing(tmp_path):
    """Whether this process decodes or others do."""
    for count, name in ((20, "few"), (prepared._ALONE + 10, "many")):
        fill(tmp_path / name, count)
        fill(tmp_path / name, 1, size=7)
        with pytest.raises(
            DataError,
            match=r"^photos: images of several sizes, such as 6 x 6 and 7 x 7; set data.image_size to bring them to one$",
        ):
            read(tmp_path / name, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_what_a_kill_leaves_is_not_read(tmp_path):
    """Of a decoding that did not end there is a folder of another name; of a damaged index, one line."""
    fill(tmp_path / "photos", 30)
    whole = read(tmp_path / "photos", tmp_path / "cache")
    (index,) = (tmp_path / "cache").glob("*/index.json")
    kept = index.parent.with_name(f".{index.parent.name}-killed")
    index.parent.rename(kept)
    assert rows(read(tmp_path / "photos", tmp_path / "cache")) == rows(whole)
    index.write_text(index.read_text()[:-5])
    with pytest.raises(DataError, match=r"are damaged .*; delete that folder"):
        read(tmp_path / "photos", tmp_path / "cache")


def test_a_cut_file_of_pixels_is_one_line(tmp_path):
    fill(tmp_path / "photos", 30)
    read(tmp_path / "photos", tmp_path / "cache")
    (x,) = (tmp_path / "cache").glob("*/x.npy")
    x.write_bytes(x.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"are damaged .*; delete that folder"):
        read(tmp_path / "photos", tmp_path / "cache")


def test_counts_of_levels_are_those_of_the_pixels(tmp_path):
    pixels = np.stack(list(fill(tmp_path / "photos", 40).values()))
    dataset = read(tmp_path / "photos", tmp_path / "cache")
    np.testing.assert_array_equal(dataset.summary.counts, np.bincount(pixels.ravel(), minlength=256))
    x = (pixels + 0.5) / 128 - 1
    assert facts.moments(dataset).mean == pytest.approx(x.mean()) and facts.moments(dataset).rms == pytest.approx(
        np.sqrt(np.mean(x**2))
    )


@pytest.mark.slow
def test_two_commands_at_once_decode_once(tmp_path):
    """The second waits for the first, and reads what that wrote."""
    fill(tmp_path / "photos", prepared._ALONE + 200)
    script = "import sys; from pathlib import Path; from scoreflow.data import own; "
    script += "print(own.folder(sys.argv[1], cache=Path(sys.argv[2])).summary.digest)"
    words = [sys.executable, "-c", script, str(tmp_path / "photos"), str(tmp_path / "cache")]
    two = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0]
    assert said[0].splitlines()[-1] == said[1].splitlines()[-1]
    assert sum("decoding" in words for words in said) == 1


def test_the_program_that_decodes_knows_nothing_of_jax():
    """Its processes start fast, and a job's variables do not make them join it."""
    script = "import sys, scoreflow.data.decoding; print('jax' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kept", [0, 1, 2, 30, 50])
def test_rows_are_put_in_order_where_they_are(channels, kept):
    rng = np.random.default_rng(kept)
    x, order = rng.integers(0, 256, (50, 2, 3, 3), np.uint8), rng.permutation(50)[:kept]
    file = x.copy()
    decoding._arrange(file, channels, order)
    there = file.reshape(-1)[: kept * 6 * channels].reshape(kept, 2, 3, channels)
    np.testing.assert_array_equal(there, x[order][..., :channels])


def test_the_digest_does_not_depend_on_how_gray_is_stored(tmp_path):
    for i in range(20):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    digests = {read(tmp_path / "photos", tmp_path / "cache", channels=n).summary.digest for n in (0, 1)}
    assert len(digests) == 1


def test_copies_stay_together_where_few_are_held_out(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(32):
        Image.fromarray(np.full((8, 8, 3), 9 * (i // 4), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    dataset = read(tmp_path / "photos", tmp_path / "cache", test_fraction=0.001)
    assert len(dataset.test.x) == 4 and len(np.unique(dataset.test.x)) == 1


def test_levels_of_gray_and_color_are_counted_as_they_are_read(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(10):
        shape = (8, 8) if i % 2 else (8, 8, 3)
        Image.fromarray(np.full(shape, i, np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    dataset = read(tmp_path / "photos", tmp_path / "cache")
    every = np.concatenate([dataset.train.x, dataset.test.x])
    np.testing.assert_array_equal(dataset.summary.counts, np.bincount(every.ravel(), minlength=256))


def test_what_the_memory_could_not_hold_is_not_taken_for_damaged(tmp_path, monkeypatch):
    fill(tmp_path / "photos", 12)
    monkeypatch.setattr(Image, "open", lambda *args: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(DataError, match=r"\.png cannot be read or written: Cannot allocate memory"):
        read(tmp_path / "photos", tmp_path / "cache")
    monkeypatch.undo()
    assert len(read(tmp_path / "photos", tmp_path / "cache").train.x) > 0


def test_who_shares_the_folder_may_read_it(tmp_path):
    fill(tmp_path / "photos", 12)
    read(tmp_path / "photos", tmp_path / "cache")
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    (tmp_path / "other").mkdir()
    assert folder.stat().st_mode == (tmp_path / "other").stat().st_mode


class _Fatal:
    """A source of which one image ends a process of a pool that reads it, as the system does where memory is short."""

    others, notes, class_names = 0, (), ()

    def identity(self):
        yield "fatal"

    def __len__(self):
        return 300

    def read(self, i):
        if i > 200 and multiprocessing.parent_process() is not None:
            os._exit(9)
        return Item(np.zeros((4, 4, 3), np.uint8), f"{i}")


def test_a_process_that_the_system_ends_is_one_line(tmp_path, monkeypatch, capsys):
    job = decoding.Job(_Fatal(), Decoding(), "content", tmp_path, 2)
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    monkeypatch.setattr(sys, "argv", ["decoding", str(tmp_path / "job")])
    decoding.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"error": "a process that decodes was ended by the system, perhaps for lack of memory"}


def test_pixels_that_cannot_be_mapped_are_not_called_damaged(tmp_path, monkeypatch):
    fill(tmp_path / "photos", 12)
    read(tmp_path / "photos", tmp_path / "cache")
    failed = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    monkeypatch.setattr(np, "load", lambda *args, **options: (_ for _ in ()).throw(failed))
    with pytest.raises(DataError, match="cannot be mapped: Cannot allocate memory"):
        read(tmp_path / "photos", tmp_path / "cache")
