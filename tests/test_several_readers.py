"""Sources that several processes read, and packages that are not there."""

import sys
import zipfile

import pyarrow.parquet as pq
import pytest

from scoreflow.data import DataError, own, prepared
from scoreflow.data.kinds import open_source
from tests.test_records import CLASSES, FILES, both, database, table, wanted
from tests.test_tfrecord import NUMBERS, glow, tfrecords


@pytest.mark.parametrize("module, name", [("pyarrow.parquet", "a.parquet"), ("lmdb", "a.lmdb")])
def test_a_missing_package_is_one_line_with_the_command(tmp_path, monkeypatch, module, name):
    pq.write_table(table(), tmp_path / "a.parquet")
    database(tmp_path / "a.lmdb", FILES[:20])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"{name}: reading .* needs .*: pip install 'scoreflow\[data\]'"):
        own.folder(tmp_path / name)


def _zip(path):
    with zipfile.ZipFile(path / "a.zip", "w") as archive:
        for i, file in enumerate(FILES):
            archive.writestr(f"{CLASSES[i]}/{i}.png", file)
    return path / "a.zip"


def _parquet(path):
    pq.write_table(table(range(300), label=CLASSES), path / "a.parquet", row_group_size=50)
    return path / "a.parquet"


def _lmdb(path):
    database(path / "a.lmdb", FILES)
    return path / "a.lmdb"


@pytest.mark.parametrize("make", [_zip, _parquet, _lmdb, lambda p: tfrecords(p / "a.tfrecord", map(glow, range(300)))])
def test_several_processes_read_one_source(tmp_path, monkeypatch, make):
    """Each opens the files itself, also where the process that it comes from has opened them before."""
    path = make(tmp_path)
    open_source(path).read(0)
    monkeypatch.setattr(prepared, "_ALONE", 10)
    assert both(own.folder(path)) == wanted(range(300), None if path.suffix == ".lmdb" else NUMBERS)
