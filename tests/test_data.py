"""Readers on archives in the original formats, built here from known pixels, and data sets by name."""

import gzip
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scoreflow.data import DataError, archives, fetch, load, prepared, published
from tests.archive_files import MAKERS, png


@pytest.fixture
def make_archive(tmp_path, monkeypatch):
    """name -> (data folder, contents): makes an archive, whose own digests and counts become the published ones."""

    def make(name, place="downloads/{name}"):
        downloads = tmp_path / place.format(name=name)
        downloads.mkdir(parents=True)
        wanted = MAKERS[name](downloads)
        row = archives.ARCHIVES[name]
        files = tuple(f._replace(digest=f"sha256:{fetch.digest(downloads / f.name)}", direct=False) for f in row.files)
        counts = (len(wanted[0][0]), len(wanted[1][0]))
        monkeypatch.setitem(archives.ARCHIVES, name, row._replace(files=files, counts=counts))
        return tmp_path, wanted

    return make


def test_every_archive_has_a_test():
    assert MAKERS.keys() == archives.ARCHIVES.keys()


def test_files_of_earlier_versions_are_still_read(make_archive):
    """All archives used to lie in one folder, `downloads/`; one in the data set's own folder comes first."""
    data_dir, wanted = make_archive("mnist", place="downloads")
    np.testing.assert_array_equal(published.named("mnist", data_dir).train.x, wanted[0][0])
    file = archives.ARCHIVES["mnist"].files[0]
    own = data_dir / "downloads" / "mnist" / file.name
    own.parent.mkdir()
    (data_dir / "downloads" / file.name).rename(own)
    assert fetch.locate("mnist", file, data_dir) == own
    (data_dir / "downloads" / file.name).write_bytes(b"other")
    assert fetch.locate("mnist", file, data_dir) == own


def test_unpacked_files_are_read(make_archive):
    data_dir, wanted = make_archive("kmnist")
    for path in [*(data_dir / "downloads" / "kmnist").iterdir()]:
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    np.testing.assert_array_equal(published.named("kmnist", data_dir).train.x, wanted[0][0])


def test_splits_of_emnist_have_one_archive_in_common(make_archive):
    data_dir, wanted = make_archive("emnist/letters", place="downloads/emnist")
    dataset = published.named("emnist/letters", data_dir)
    np.testing.assert_array_equal(dataset.test.x, wanted[1][0])
    np.testing.assert_array_equal(dataset.test.label, wanted[1][1])


def test_files_of_a_distributions_package_are_found_and_it_is_named(make_archive, monkeypatch, tmp_path):
    """They are compressed anew, so that the published digests do not fit them; the data folder's own come first."""
    data_dir, wanted = make_archive("fashion_mnist")
    row = archives.ARCHIVES["fashion_mnist"]
    files = tuple(f._replace(digest="md5:" + "0" * 32) for f in row.files)
    installed = tmp_path / "installed"
    (data_dir / "downloads" / "fashion_mnist").rename(installed)
    places = row.places._replace(installed=str(installed))
    monkeypatch.setitem(archives.ARCHIVES, "fashion_mnist", row._replace(files=files, places=places))
    np.testing.assert_array_equal(published.named("fashion_mnist", data_dir).train.x, wanted[0][0])
    shutil.rmtree(data_dir / "arrays")
    shutil.rmtree(installed)
    with pytest.raises(DataError, match="or install the package dataset-fashion-mnist of your distribution"):
        published.named("fashion_mnist", data_dir)


def test_fashion_mnist_is_the_published_one_where_it_is_installed(tmp_path):
    """Its counts, and the mean 0.2860 and deviation 0.3530 of pixels / 255 that the literature quotes."""
    if not (Path(archives.ARCHIVES["fashion_mnist"].places.installed) / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    dataset = published.named("fashion_mnist", tmp_path)
    assert (len(dataset.train.x), len(dataset.test.x), dataset.num_classes) == (60000, 10000, 10)
    np.testing.assert_array_equal(np.bincount(dataset.train.label), 6000)
    pixels = dataset.train.x / np.float32(255)
    np.testing.assert_allclose(
        [pixels.mean(dtype=np.float64), pixels.std(dtype=np.float64)], [0.2860, 0.3530], atol=5e-5
    )


# ----------------------------------------------------------------------------------------------------------------------
# By name.


def test_load_knows_every_name():
    assert load.NAMES == ("digits", "arrays", "folder", *load.TOYS, *archives.ARCHIVES)
    with pytest.raises(DataError, match="data.name = cifar is not one of digits, arrays"):
        load.load("cifar")


def test_load_passes_settings_on(make_archive, tmp_path, monkeypatch):
    assert load.load("digits").num_levels == 17
    toys = load.load("rings")
    assert toys.log_prob is not None and toys.log_density is None
    np.save(tmp_path / "a.npy", np.full((10, 4, 4), 3, np.uint8))
    own = load.load("arrays", path=str(tmp_path / "a.npy"), num_levels=4, test_fraction=0.3, split="shuffled")
    assert (len(own.train.x), len(own.test.x), own.num_levels) == (7, 3, 4)
    for i in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    images = load.load("folder", path=str(tmp_path / "images"), image_size=4, test_fraction=0.5, split="shuffled")
    assert images.shape == (4, 4, 3) and len(images.test.x) == 2
    options = {"image_size": 4, "crop": "dhariwal", "label": "none"}
    assert load.load("folder", path=str(tmp_path / "images"), **options).num_classes == 0
    with pytest.raises(DataError, match="data.crop = dhariwal .* leave data.filter"):
        load.load("folder", path=str(tmp_path / "images"), filter="lanczos", **options)
    for name in ("arrays", "folder"):
        with pytest.raises(DataError, match=f"data.path is empty: data.name = {name}"):
            load.load(name)
    data_dir, wanted = make_archive("cifar10")
    np.testing.assert_array_equal(load.load("cifar10", dir=str(data_dir)).test.x, wanted[1][0])
    monkeypatch.setenv("SCOREFLOW_DATA", str(data_dir))
    assert load.load("cifar10", image_size=16).shape == (16, 16, 3)


@pytest.mark.parametrize("name", MAKERS)
def test_reader_end_to_end(name, make_archive):
    data_dir, wanted = make_archive(name)
    decoded = archives.ARCHIVES[name].rule is not None  # into an order of their own
    for _ in range(2):  # from the archive, then from what is kept, which needs it no longer
        source = published.named(name, data_dir)
        for split, (x, label) in zip((source.train, source.test), wanted):
            rows, x = (sorted(each, key=lambda row: row.sum()) if decoded else each for each in (split.x, x))
            np.testing.assert_allclose(rows, x, atol=1 if name == "celeb_a" else 0)
            if label is None:
                assert split.label is None
            else:
                np.testing.assert_array_equal(split.label, label)
        shutil.rmtree(data_dir / "downloads", ignore_errors=True)
    assert source.num_levels == 256 and source.shape == wanted[0][0].shape[1:]


@pytest.mark.parametrize("name", MAKERS)
def test_altered_and_truncated_archives_are_refused_by_name(name, make_archive, monkeypatch):
    data_dir, _ = make_archive(name)
    row = archives.ARCHIVES[name]
    target = data_dir / "downloads" / name / row.files[0].name
    whole = target.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for broken in (bytes(flipped), whole[: len(whole) // 2]):
        target.write_bytes(broken)
        with pytest.raises(DataError, match=f"{target.name}.*truncated or altered"):
            published.named(name, data_dir)
    # without a digest to go by, truncation still shows
    files = tuple(f._replace(digest="") for f in row.files)
    monkeypatch.setitem(archives.ARCHIVES, name, row._replace(files=files))
    target.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{target.name}"):
        published.named(name, data_dir)
    assert not (data_dir / "arrays" / name).exists() and not list(data_dir.glob("prepared/*/"))


def test_a_short_archive_is_refused_by_count(make_archive, monkeypatch):
    data_dir, _ = make_archive("cifar10")
    row = archives.ARCHIVES["cifar10"]
    monkeypatch.setitem(archives.ARCHIVES, "cifar10", row._replace(counts=(50000, 10000)))
    with pytest.raises(DataError, match="50 train images instead of 50000"):
        published.named("cifar10", data_dir)


def test_faces_are_the_central_140_pixels_at_any_side(make_archive, monkeypatch):
    data_dir, _ = make_archive("celeb_a")
    image = np.random.default_rng(0).integers(0, 256, (218, 178, 3), np.uint8)
    path = data_dir / "downloads" / "celeb_a" / "img_align_celeba.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, png(image))
    row = archives.ARCHIVES["celeb_a"]
    files = tuple(file._replace(digest="") for file in row.files)
    monkeypatch.setitem(archives.ARCHIVES, "celeb_a", row._replace(files=files))
    middle = image[39:179, 19:159].astype(float)  # as Song et al. cut it: (218 - 140) / 2, (178 - 140) / 2
    for side in (70, 28):
        means = middle.reshape(side, 140 // side, side, 140 // side, 3).mean((1, 3))
        np.testing.assert_allclose(published.named("celeb_a", data_dir, side).test.x[0], means, atol=1.01)
    small = Image.fromarray(image[39:179, 19:159]).resize((28, 28), Image.Resampling.LANCZOS)
    found = load.load("celeb_a", dir=str(data_dir), image_size=28, filter="lanczos")
    np.testing.assert_array_equal(found.test.x[0], np.asarray(small))


def test_faces_that_lack_an_image_or_have_one_too_few_are_refused(make_archive, monkeypatch):
    data_dir, _ = make_archive("celeb_a")
    row = archives.ARCHIVES["celeb_a"]
    monkeypatch.setitem(archives.ARCHIVES, "celeb_a", row._replace(counts=(9, 4)))
    with pytest.raises(DataError, match="8 train images instead of 9"):
        published.named("celeb_a", data_dir)
    partition = data_dir / "downloads" / "celeb_a" / "list_eval_partition.txt"
    partition.write_text(partition.read_text() + "000099.jpg 0\n")
    files = tuple(file._replace(digest="") for file in row.files)
    monkeypatch.setitem(archives.ARCHIVES, "celeb_a", row._replace(files=files))
    with pytest.raises(DataError, match="img_align_celeba.zip is truncated or altered: it lacks img_align_celeba/0000"):
        published.named("celeb_a", data_dir)


def test_an_image_of_a_published_set_that_cannot_be_read_is_named_or_left_out(make_archive, monkeypatch):
    data_dir, _ = make_archive("downsampled_imagenet/32x32")
    row = archives.ARCHIVES["downsampled_imagenet/32x32"]
    files = tuple(file._replace(digest="") for file in row.files)
    monkeypatch.setitem(archives.ARCHIVES, "downsampled_imagenet/32x32", row._replace(files=files))
    path = data_dir / "downloads" / "downsampled_imagenet/32x32" / "train_32x32.tar"
    content = path.read_bytes()
    begin = content.index(b"\x89PNG")
    path.write_bytes(content[:begin] + bytes(64) + content[begin + 64 :])
    with pytest.raises(DataError, match=r"00000.png is not a readable image.* --config.data.skip_unreadable=True"):
        published.named("downsampled_imagenet/32x32", data_dir)
    kept = load.load("downsampled_imagenet/32x32", dir=str(data_dir), skip_unreadable=True)
    assert (len(kept.train.x), len(kept.test.x)) == (19, 8)
    path.write_bytes(content)  # fetched again
    assert len(published.named("downsampled_imagenet/32x32", data_dir).train.x) == 20


def test_several_processes_read_a_published_archive(make_archive, monkeypatch):
    monkeypatch.setattr(prepared, "_ALONE", 4)
    monkeypatch.setattr(prepared, "_cores", lambda: 2)
    for name in ("celeb_a", "downsampled_imagenet/32x32"):
        data_dir, wanted = make_archive(name)
        source = published.named(name, data_dir)
        rows = [sorted(each, key=lambda row: row.sum()) for each in (source.train.x, wanted[0][0])]
        np.testing.assert_allclose(*rows, atol=1)


def test_the_published_digest_of_cifar10():
    (file,) = archives.ARCHIVES["cifar10"].files
    assert file.digest == "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


def test_a_missing_data_set_says_what_to_put_where(tmp_path, monkeypatch):
    row = archives.ARCHIVES["cifar10"]
    unreachable = tuple(f._replace(url="http://localhost:9/cifar-10-binary.tar.gz") for f in row.files)
    monkeypatch.setitem(archives.ARCHIVES, "cifar10", row._replace(files=unreachable))
    with pytest.raises(DataError) as caught:
        published.named("cifar10", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    place = str(tmp_path / "downloads" / "cifar10" / "cifar-10-binary.tar.gz")
    for words in ("data set cifar10", "get cifar-10-binary.tar.gz from http://localhost:9/", place):
        assert words in message


def test_a_download_is_checked_and_used(make_archive, monkeypatch):
    """The same archive served over HTTP on this machine: fetched once, by digest."""
    import functools
    import http.server
    import threading

    data_dir, wanted = make_archive("cifar10")
    (data_dir / "served").mkdir()
    source_file = data_dir / "downloads" / "cifar10" / "cifar-10-binary.tar.gz"
    source_file.rename(data_dir / "served" / source_file.name)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(data_dir / "served"))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        row = archives.ARCHIVES["cifar10"]
        url = f"http://127.0.0.1:{server.server_address[1]}/{source_file.name}"
        files = tuple(f._replace(url=url, direct=True) for f in row.files)
        monkeypatch.setitem(archives.ARCHIVES, "cifar10", row._replace(files=files))
        np.testing.assert_array_equal(published.named("cifar10", data_dir).train.x, wanted[0][0])
        assert source_file.is_file()
        wrong = tuple(f._replace(digest="sha256:" + "0" * 64) for f in files)
        monkeypatch.setitem(archives.ARCHIVES, "cifar10", row._replace(files=wrong))
        shutil.rmtree(data_dir / "arrays")
        source_file.unlink()
        with pytest.raises(DataError, match="hash"):
            published.named("cifar10", data_dir)
        server.shutdown()


def test_resizing_averages_areas(make_archive):
    data_dir, wanted = make_archive("mnist")
    resized = published.named("mnist", data_dir, image_size=14).train.x
    means = wanted[0][0].astype(float).reshape(-1, 14, 2, 14, 2, 1).mean((2, 4))
    np.testing.assert_allclose(resized, means, atol=1.01)  # Pillow rounds after each direction


# ----------------------------------------------------------------------------------------------------------------------
# Digits.


def test_digits_are_the_real_ones_in_a_fixed_split():
    source = load.digits()
    assert (len(source.train.x), len(source.test.x), source.num_levels) == (1437, 360, 17)
    assert source.train.x.min() == 0 and source.train.x.max() == 16
    assert np.bincount(source.test.label, minlength=10).min() >= 25
    together = {x.tobytes() for x in source.train.x} & {x.tobytes() for x in source.test.x}
    assert not together
    np.testing.assert_array_equal(load.digits().test.label, source.test.label)


@pytest.mark.parametrize(
    "name, total",
    [
        ("omniglot", 1623 * 20),  # each character was drawn by 20 people
        ("celeb_a", 202_599 - 19_867),  # without the validation split
        ("emnist/byclass", 814_255),
        ("emnist/bymerge", 814_255),
        ("emnist/balanced", 47 * 2800),
        ("emnist/letters", 26 * 5600),
        ("emnist/digits", 10 * 28_000),
        ("emnist/mnist", 10 * 7000),
        ("cifar10", 10 * 6000),
        ("cifar100", 100 * 600),
        ("mnist", 70_000),
        ("svhn_cropped", 99_289),
    ],
)
def test_the_numbers_of_images_are_the_published_totals(name, total):
    assert sum(archives.ARCHIVES[name].counts) == total
