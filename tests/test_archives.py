"""Zip and tar archives of images that are odd, damaged or cut off."""

import gzip
import io
import tarfile
import zipfile

import pytest

from scoreflow.data import DataError, own
from scoreflow.data.kinds import open_source
from tests.source_files import CATS_AND_DOGS, read_all, write


def test_a_tar_that_is_cut_off_or_compressed_is_one_line(tmp_path):
    path = write(tmp_path / "data.tar", CATS_AND_DOGS)
    whole = path.read_bytes()
    begin = whole.index(b"\x89PNG", len(whole) // 2)
    for end, words in ((begin + 9, "unexpected end of data"), (begin - 512, "it does not end as an archive does")):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=f"data.tar is truncated or altered, or compressed: {words}"):
            read_all(path)
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match=r"data\.tar is truncated or altered, or compressed: .*not compressed"):
        read_all(path)
    path.write_bytes(whole)
    source = open_source(path)
    assert len(source) == len(CATS_AND_DOGS)
    path.write_bytes(whole[: whole.index(b"\x89PNG") + 9])
    with pytest.raises(DataError, match=r"\.png in data.tar is cut off"):
        source.read(0)


def test_a_tar_with_a_damaged_header_or_two_in_one_file_is_refused(tmp_path):
    path = write(tmp_path / "data.tar", CATS_AND_DOGS)
    whole = path.read_bytes()
    header = whole.rindex(b"ustar") - 257
    path.write_bytes(whole[: header + 3] + bytes([whole[header + 3] ^ 1]) + whole[header + 4 :])
    with pytest.raises(DataError, match=f"there is no header of a file at byte {header}"):
        read_all(path)
    path.write_bytes(whole + whole)
    with pytest.raises(DataError, match="there is no header of a file at byte"):
        read_all(path)


def test_links_in_a_tar_are_read_where_they_lead(tmp_path):
    """Also to what comes later, and by way of another link; those to nothing, and in a circle, are left out."""
    first = sorted(CATS_AND_DOGS)[0]
    links = {
        "dogs/before.png": (tarfile.SYMTYPE, f"../{first}"),
        "dogs/hard.png": (tarfile.LNKTYPE, f"./{first}"),
        "dogs/twice.png": (tarfile.SYMTYPE, "before.png"),
        "dogs/lost.png": (tarfile.SYMTYPE, "nowhere.png"),
        "dogs/circle.png": (tarfile.SYMTYPE, "circle.png"),
    }
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        for name, (kind, target) in links.items():
            info = tarfile.TarInfo(f"./{name}")
            info.type, info.linkname = kind, target
            archive.addfile(info)
        for name, content in CATS_AND_DOGS.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    source = open_source(tmp_path / "data.tar")
    assert len(source) == len(CATS_AND_DOGS) + 3 and source.others == 2
    read = {source.read(i).name: source.read(i).content for i in range(len(source))}
    assert {read[f"dogs/{name}.png"] for name in ("before", "hard", "twice")} == {CATS_AND_DOGS[first]}


def test_a_tar_of_files_in_pieces_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "data.tar", CATS_AND_DOGS)
    monkeypatch.setattr(tarfile.TarInfo, "issparse", lambda self: self.name.endswith("03.png"))
    with pytest.raises(DataError, match="03.png is stored in pieces; make the archive without --sparse"):
        read_all(path)


def test_a_name_that_an_archive_has_twice_is_one_image(tmp_path):
    path = write(tmp_path / "data.zip", CATS_AND_DOGS)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(sorted(CATS_AND_DOGS)[0], CATS_AND_DOGS[sorted(CATS_AND_DOGS)[0]])
    assert len(open_source(path)) == len(CATS_AND_DOGS)


def test_a_damaged_lzma_member_is_one_line(tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, content in CATS_AND_DOGS.items():
            archive.writestr(name, content)
    whole = bytearray(path.read_bytes())
    begin = whole.index(b"cats/") + 60
    whole[begin : begin + 20] = bytes(20)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="in data.zip cannot be read"):
        read_all(path)


def test_a_truncated_zip_is_one_line(tmp_path):
    path = write(tmp_path / "data.zip", CATS_AND_DOGS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"data\.zip is not a readable zip archive: File is not a zip file"):
        own.folder(path)
