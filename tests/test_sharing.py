"""Two processes at once: locks, whole files, and caches that never give another's content."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from scoreflow.data import Split, published
from scoreflow.evaluators import features
from scoreflow.metrics import Extractor, classifier, frechet, pixels
from scoreflow.runs import files, lock, parallel, partial
from scoreflow.runs.errors import UserError
from tests import tiny


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


# ----------------------------------------------------------------------------------------------------------------------
# Two at once.

HOLD = """
import sys, time
from pathlib import Path
from scoreflow.runs import lock
with lock.held(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(folder):
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, cwd=tiny.ROOT)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    folder = tmp_path / "run"
    with holder(folder) as process:
        words = rf"training by process {process.pid} on \S+ since \d{{4}}-\d\d-\d\d"
        with pytest.raises(UserError, match=words), lock.held(folder, "training"):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with lock.held(folder, "training"):
            assert json.loads((folder / "lock.json").read_text())["pid"] == os.getpid()
    assert not folder.exists()  # nothing else was put there


def test_a_lock_of_another_machine_counts_while_it_is_renewed(tmp_path):
    path = tmp_path / "lock.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "2026-01-01 00:00:00", "what": "training"}))
    with pytest.raises(UserError, match="process 7 on elsewhere"), lock.held(tmp_path, "training"):
        pass
    long_ago = time.time() - lock.EXPIRED - 5
    os.utime(path, (long_ago, long_ago))
    with lock.held(tmp_path, "training"):
        assert "elsewhere" not in path.read_text()
    assert not path.exists()


def test_only_one_of_many_gets_a_lock(tmp_path):
    """Threads open the file anew, so that they exclude each other as processes do."""

    def attempt(i):
        try:
            with lock.held(tmp_path, "training"):
                time.sleep(0.3)
                return True
        except UserError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    with lock.held(tmp_path, "training"):
        pass


def test_files_are_whole_whoever_writes_them(tmp_path):
    path = tmp_path / "a.json"
    with files.replacing(path) as one, files.replacing(path) as other:
        assert one != other and one.suffix == ".json"
        one.write_text("1")
        other.write_text("2")
        assert not path.exists()
    assert path.read_text() == "1" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(RuntimeError), files.replacing(path) as scratch:
        scratch.write_text("half")
        raise RuntimeError
    assert path.read_text() == "1" and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_of_a_file_is_removed_after_a_day(tmp_path):
    """What another may still be writing, and what is of another file, stays."""
    path, now = tmp_path / "a[1].json", time.time()
    ages = {".a[1]-0123456789ab.json": 90_000, ".a[1]-ba9876543210.json": 60, ".b-0123456789ab.json": 90_000}
    for name, age in ages.items():
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (now - age, now - age))
    files.write_text(path, "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a[1].json", *list(ages)[1:]}


def test_a_loser_keeps_the_arrays_that_are_there(tmp_path, monkeypatch):
    x = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1)
    splits = Split(x, np.array([0, 1], np.int32)), Split(x[:1], np.array([1], np.int32))
    published._store(tmp_path / "mnist", splits)
    inode = (tmp_path / "mnist" / "train_x.npy").stat().st_ino
    published._store(tmp_path / "mnist", splits)
    assert (tmp_path / "mnist" / "train_x.npy").stat().st_ino == inode
    assert [p.name for p in tmp_path.iterdir()] == ["mnist"]
    np.testing.assert_array_equal(published._stored(tmp_path / "mnist", "train").x, x)


# ----------------------------------------------------------------------------------------------------------------------
# Caches.


def test_statistics_are_those_of_the_data_and_of_the_features(tmp_path):
    """Data of the same bytes in another shape or type, and features of the same name by another rule, are others."""
    x = np.arange(96, dtype=np.uint8).reshape(24, 4)
    double = Extractor("pixels", lambda x: pixels(2.0 * x), key="doubled")
    means = lambda extractor, x: features.statistics(extractor, x, tmp_path).moments
    plain = Extractor("pixels", pixels)
    first, mean_of = means(plain, x), lambda moments: frechet.mean_and_covariance(moments)[0]
    np.testing.assert_allclose(mean_of(first), x.mean(0))
    np.testing.assert_allclose(mean_of(means(double, x)), 2 * x.mean(0))
    assert means(plain, x.reshape(12, 8)).n == 12
    assert means(plain, x.view(np.int8)).n == 24
    assert len(list((tmp_path / "statistics").glob("*.npz"))) == 4
    again = means(Extractor("pixels", lambda x: 1 / 0), x)  # from the cache
    np.testing.assert_array_equal(again.total, first.total)


def test_a_classifier_is_that_of_its_labels_levels_and_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "_STEPS", 2)
    rng = np.random.default_rng(0)
    x, label = rng.integers(0, 4, (40, 4, 4, 1), np.uint8), np.arange(40, dtype=np.int32) % 4

    def key(x=x, label=label, num_levels=4, kind="digits"):
        return classifier.classifier(Split(x, label), num_levels, tmp_path, kind).key

    keys = {
        key(),
        key(num_levels=5),
        key(label=label[::-1].copy()),
        key(x.reshape(40, 2, 8, 1)),
        key(kind="classifier"),
    }
    assert len(keys) == len(list(tmp_path.glob("classifier-*.msgpack"))) == 5
    assert key(label=label.astype(np.int64)) in keys


def test_two_processes_that_keep_the_same_statistics_do_not_disturb_each_other(tmp_path, monkeypatch):
    """Another process takes and keeps the statistics of the same data while this one is writing its own."""
    plain, x = Extractor("pixels", pixels), np.arange(96, dtype=np.uint8).reshape(24, 4)
    savez, inner = np.savez, []

    def interrupted(path, **arrays):
        savez(path, **arrays)
        if not inner:
            inner.append(path)
            inner.append(features.statistics(plain, x, tmp_path))

    monkeypatch.setattr(np, "savez", interrupted)
    outer = features.statistics(plain, x, tmp_path)
    np.testing.assert_array_equal(inner[1].pool, outer.pool)
    (kept,) = (tmp_path / "statistics").iterdir()
    with np.load(kept) as stored:
        np.testing.assert_array_equal(stored["pool"], x)


def test_what_one_process_lacks_all_compute(tmp_path, monkeypatch):
    """As where two processes have a cache folder each, and one of them has the statistics."""
    plain, x = Extractor("pixels", pixels), np.arange(96, dtype=np.uint8).reshape(24, 4)
    first = features.statistics(plain, x, tmp_path)
    monkeypatch.setattr(parallel, "agree", lambda flag: False)
    with pytest.raises(ZeroDivisionError):
        features.statistics(Extractor("pixels", lambda x: 1 / 0), x, tmp_path)
    np.testing.assert_array_equal(features.statistics(plain, x, tmp_path).moments.outer, first.moments.outer)
    kept = partial.PartialResults(tmp_path / "pieces")
    assert kept.get("a", lambda: 0, lambda: np.float64(1.0)) == 1.0
    assert kept.get("a", lambda: 0, lambda: np.float64(2.0)) == 2.0


def test_what_is_found_adds_the_seconds_that_it_took(tmp_path, monkeypatch):
    """A piece of 3 s that is found counts 3 s, and one that is computed counts nothing here, since it is timed."""
    now = iter([10.0, 13.0, 20.0, 24.0])
    monkeypatch.setattr(partial.time, "monotonic", lambda: next(now))
    partial.PartialResults(tmp_path).get("a", lambda: 0, lambda: np.float64(1.0))
    again = partial.PartialResults(tmp_path)
    assert again.get("a", lambda: 0, lambda: 1 / 0) == 1.0 and again.seconds == 3.0
    assert again.get("b", lambda: 0, lambda: np.float64(2.0)) == 2.0 and again.seconds == 3.0
