"""Readers on archives in the original formats, built here from known pixels; toy densities against their own samples."""

import gzip
import io
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from scoreflow.data import DataError, Split, archives, batch, fetch, hold_out, load, prefetch, toy

RNG = np.random.default_rng(0)
CIFAR_IMAGES = RNG.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
CIFAR_LABELS = RNG.integers(0, 10, 60).astype(np.int32)


def _tar(path, members):
    mode = "w:gz" if path.suffix == ".gz" else "w"
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _png(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def _cifar_bytes(images, labels, extra=()):
    rows = [bytes([*extra, label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels)]
    return b"".join(rows)


def _make_cifar10(downloads):
    members = {f"cifar-10-batches-bin/data_batch_{i}.bin": (10 * i - 10, 10 * i) for i in range(1, 6)}
    members["cifar-10-batches-bin/test_batch.bin"] = (50, 60)
    files = {name: _cifar_bytes(CIFAR_IMAGES[a:b], CIFAR_LABELS[a:b]) for name, (a, b) in members.items()}
    _tar(downloads / "cifar-10-binary.tar.gz", files)
    return (CIFAR_IMAGES[:50], CIFAR_LABELS[:50]), (CIFAR_IMAGES[50:], CIFAR_LABELS[50:])


def _make_cifar100(downloads):
    members = {"cifar-100-binary/train.bin": (0, 40), "cifar-100-binary/test.bin": (40, 60)}
    files = {name: _cifar_bytes(CIFAR_IMAGES[a:b], CIFAR_LABELS[a:b], extra=(7,)) for name, (a, b) in members.items()}
    _tar(downloads / "cifar-100-binary.tar.gz", files)
    return (CIFAR_IMAGES[:40], CIFAR_LABELS[:40]), (CIFAR_IMAGES[40:], CIFAR_LABELS[40:])


def _make_svhn(downloads):
    for name, rows in (("train", slice(0, 40)), ("test", slice(40, 60))):
        stored = np.where(CIFAR_LABELS[rows] == 0, 10, CIFAR_LABELS[rows])[:, None]
        savemat(downloads / f"{name}_32x32.mat", {"X": CIFAR_IMAGES[rows].transpose(1, 2, 3, 0), "y": stored})
    return (CIFAR_IMAGES[:40], CIFAR_LABELS[:40]), (CIFAR_IMAGES[40:], CIFAR_LABELS[40:])


def _make_mnist(downloads):
    images = CIFAR_IMAGES[:, :28, :28, 0]
    for name, rows in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        header = struct.pack(">HBBIII", 0, 8, 3, len(images[rows]), 28, 28)
        with gzip.open(downloads / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + images[rows].tobytes())
        with gzip.open(downloads / f"{name}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">HBBI", 0, 8, 1, len(images[rows])) + CIFAR_LABELS[rows].astype(np.uint8).tobytes())
    return (images[:40, ..., None], CIFAR_LABELS[:40]), (images[40:, ..., None], CIFAR_LABELS[40:])


def _make_omniglot(downloads):
    strokes = (RNG.random((10, 105, 105)) > 0.1).astype(np.uint8) * 255
    out = []
    for name, indices, first in (("background", range(4), 0), ("evaluation", range(4, 10), 2)):
        with zipfile.ZipFile(downloads / f"images_{name}.zip", "w") as archive:
            for i in indices:
                stored = _png(strokes[i].astype(bool)) if i % 2 else _png(strokes[i])  # 1-bit and 8-bit files
                archive.writestr(f"images_{name}/Alphabet/character{i // 2:02d}/{i:04d}_01.png", stored)
        labels = np.array([first + (i - indices[0]) // 2 for i in indices], np.int32)
        out.append((strokes[list(indices)][..., None], labels))
    return out


def _make_celeb_a(downloads):
    images = {f"{i:06d}.jpg": np.full((218, 178, 3), 18 * i, np.uint8) for i in range(1, 14)}
    with zipfile.ZipFile(downloads / "img_align_celeba.zip", "w") as archive:
        for name, image in images.items():
            out = io.BytesIO()
            Image.fromarray(image).save(out, "JPEG", quality=95)
            archive.writestr(f"img_align_celeba/{name}", out.getvalue())
    subsets = dict(zip(images, "0000000012222"))
    (downloads / "list_eval_partition.txt").write_text(
        "".join(f"{name} {subset}\n" for name, subset in subsets.items())
    )

    def wanted(subset):
        return np.stack([np.full((64, 64, 3), 18 * int(n[:6]), np.uint8) for n, s in subsets.items() if s == subset])

    return (wanted("0"), None), (wanted("2"), None)


def _make_imagenet(downloads):
    for name, rows in (("train", slice(0, 20)), ("valid", slice(20, 28))):
        _tar(
            downloads / f"{name}_32x32.tar",
            {f"{name}_32x32/{i:05d}.png": _png(image) for i, image in enumerate(CIFAR_IMAGES[rows])},
        )
    return (CIFAR_IMAGES[:20], None), (CIFAR_IMAGES[20:28], None)


MAKERS = {
    "cifar10": _make_cifar10,
    "cifar100": _make_cifar100,
    "svhn_cropped": _make_svhn,
    "mnist": _make_mnist,
    "omniglot": _make_omniglot,
    "celeb_a": _make_celeb_a,
    "downsampled_imagenet/32x32": _make_imagenet,
}


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
    np.testing.assert_array_equal(load.named("mnist", data_dir).train.x, wanted[0][0])
    file = archives.ARCHIVES["mnist"].files[0]
    own = data_dir / "downloads" / "mnist" / file.name
    own.parent.mkdir()
    (data_dir / "downloads" / file.name).rename(own)
    assert fetch.locate("mnist", file, data_dir) == own
    (data_dir / "downloads" / file.name).write_bytes(b"other")
    assert fetch.locate("mnist", file, data_dir) == own


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
    own = load.load("arrays", path=str(tmp_path / "a.npy"), num_levels=4, test_fraction=0.3)
    assert (len(own.train.x), len(own.test.x), own.num_levels) == (7, 3, 4)
    for i in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    images = load.load("folder", path=str(tmp_path / "images"), image_size=4, test_fraction=0.5)
    assert images.shape == (4, 4, 3) and len(images.test.x) == 2
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
    for _ in range(2):  # from the archive, then from cached arrays, which need it no longer
        source = load.named(name, data_dir)
        for split, (x, label) in zip((source.train, source.test), wanted):
            np.testing.assert_allclose(split.x, x, atol=1 if name == "celeb_a" else 0)
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
            load.named(name, data_dir)
    # without a digest to go by, truncation still shows
    files = tuple(f._replace(digest="") for f in row.files)
    monkeypatch.setitem(archives.ARCHIVES, name, row._replace(files=files))
    target.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{target.name}"):
        load.named(name, data_dir)
    assert not (data_dir / "arrays" / name).exists()


def test_a_short_archive_is_refused_by_count(make_archive, monkeypatch):
    data_dir, _ = make_archive("cifar10")
    row = archives.ARCHIVES["cifar10"]
    monkeypatch.setitem(archives.ARCHIVES, "cifar10", row._replace(counts=(50000, 10000)))
    with pytest.raises(DataError, match="50 train images instead of 50000"):
        load.named("cifar10", data_dir)


def test_the_published_digest_of_cifar10():
    (file,) = archives.ARCHIVES["cifar10"].files
    assert file.digest == "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


def test_a_missing_data_set_says_what_to_put_where(tmp_path, monkeypatch):
    row = archives.ARCHIVES["cifar10"]
    unreachable = tuple(f._replace(url="http://localhost:9/cifar-10-binary.tar.gz") for f in row.files)
    monkeypatch.setitem(archives.ARCHIVES, "cifar10", row._replace(files=unreachable))
    with pytest.raises(DataError) as caught:
        load.named("cifar10", tmp_path)
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
        np.testing.assert_array_equal(load.named("cifar10", data_dir).train.x, wanted[0][0])
        assert source_file.is_file()
        wrong = tuple(f._replace(digest="sha256:" + "0" * 64) for f in files)
        monkeypatch.setitem(archives.ARCHIVES, "cifar10", row._replace(files=wrong))
        shutil.rmtree(data_dir / "arrays")
        source_file.unlink()
        with pytest.raises(DataError, match="hash"):
            load.named("cifar10", data_dir)
        server.shutdown()


def test_a_tfds_prepared_folder_is_read_without_tensorflow(tmp_path, monkeypatch):
    """A folder written by TFDS itself, in array_record files, under the name of a known data set."""
    import sys

    tfds = pytest.importorskip("tensorflow_datasets")
    images, labels = CIFAR_IMAGES[:8], CIFAR_LABELS[:8]

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("3.0.2")
        name = "cifar10"

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(32, 32, 3), dtype=np.uint8),
                    "label": tfds.features.Scalar(dtype=np.int64),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate(range(6)), "test": self._generate(range(6, 8))}

        def _generate_examples(self, indices):
            raise AssertionError

        def _generate(self, indices):
            for i in indices:
                yield i, {"image": images[i], "label": int(labels[i])}

    Cifar10(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    source = load.named("cifar10", tmp_path)
    assert "tensorflow" not in sys.modules
    labels_by_image = {bytes(x.tobytes()): int(y) for x, y in zip(source.train.x, source.train.label)}
    assert labels_by_image == {bytes(x.tobytes()): int(y) for x, y in zip(images[:6], labels[:6])}
    assert len(source.test.x) == 2


def test_a_tfrecord_folder_is_refused_with_the_way_out(tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(DataError, match="array_record"):
        load.named("mnist", tmp_path)


def test_resizing_averages_areas(make_archive):
    data_dir, wanted = make_archive("mnist")
    resized = load.named("mnist", data_dir, image_size=14).train.x
    means = wanted[0][0].astype(float).reshape(-1, 14, 2, 14, 2, 1).mean((2, 4))
    np.testing.assert_allclose(resized, means, atol=1.01)  # Pillow rounds after each direction


# ----------------------------------------------------------------------------------------------------------------------
# Arrays, folders, digits.


def test_digits_are_the_real_ones_in_a_fixed_split():
    source = load.digits()
    assert (len(source.train.x), len(source.test.x), source.num_levels) == (1437, 360, 17)
    assert source.train.x.min() == 0 and source.train.x.max() == 16
    assert np.bincount(source.test.label, minlength=10).min() >= 25
    together = {x.tobytes() for x in source.train.x} & {x.tobytes() for x in source.test.x}
    assert not together
    np.testing.assert_array_equal(load.digits().test.label, source.test.label)


def test_arrays_and_their_refusals(tmp_path):
    np.savez(tmp_path / "a.npz", train=CIFAR_IMAGES, test=CIFAR_IMAGES[:5], train_label=CIFAR_LABELS)
    source = load.arrays(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(source.train.x, CIFAR_IMAGES)
    assert source.num_levels == 256 and source.num_classes == CIFAR_LABELS.max() + 1
    points = RNG.standard_normal((20, 3))
    np.save(tmp_path / "b.npy", points)
    source = load.arrays(str(tmp_path / "b.npy"), test_fraction=0.25)
    assert (len(source.train.x), len(source.test.x), source.num_levels) == (15, 5, 0)
    assert sorted(np.concatenate([source.train.x, source.test.x])[:, 0]) == sorted(points.astype(np.float32)[:, 0])

    def refused(content, words, name="c.npy", **options):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
        with pytest.raises(DataError, match=words):
            load.arrays(str(path), **options)

    refused(b"nonsense", "not a readable")
    refused((tmp_path / "a.npz").read_bytes()[:900], "not a readable", name="c.npz")
    refused(np.ones((4, 2), np.int64), "int64 is neither")
    refused(np.full((4, 2), np.nan), "NaN")
    refused(np.full((4, 2, 2), 17, np.uint8), "level 17", num_levels=17)
    refused(np.ones(4), r"shape \[N")
    with pytest.raises(DataError, match="no such file"):
        load.arrays(str(tmp_path / "missing.npy"))


def test_folders_of_images(tmp_path):
    for i in range(6):
        sub = tmp_path / ("cats" if i % 2 else "dogs")
        sub.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 10 if i == 5 else 8, 3), 10 * i, np.uint8)).save(sub / f"{i}.png")
    with pytest.raises(DataError, match="sizes; set data.image_size"):
        load.folder(str(tmp_path))
    source = load.folder(str(tmp_path), image_size=4, test_fraction=0.3)
    assert source.shape == (4, 4, 3) and source.num_classes == 2
    for x, label in zip(source.train.x, source.train.label):
        assert (x[0, 0, 0] // 10) % 2 == (label == 0) and np.ptp(x) == 0
    (tmp_path / "dogs" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="0.png is not a readable image"):
        load.folder(str(tmp_path), image_size=4)
    with pytest.raises(DataError, match="no such folder"):
        load.folder(str(tmp_path / "none"))


# ----------------------------------------------------------------------------------------------------------------------
# Batches.


def test_batches_are_functions_of_seed_and_step_and_cover_epochs():
    split = Split(np.arange(10)[:, None], np.arange(10, dtype=np.int32))
    steps = [batch(split, 3, step, 4) for step in range(5)]
    seen = np.concatenate([b["x"][:, 0] for b in steps])
    assert sorted(seen[:10]) == list(range(10)) and sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    np.testing.assert_array_equal(batch(split, 3, 3, 4)["x"], steps[3]["x"])
    assert any((batch(split, 4, s, 4)["x"] != steps[s]["x"]).any() for s in range(3))
    for b in steps:
        np.testing.assert_array_equal(b["x"][:, 0], b["label"])
    whole = np.concatenate([batch(split, 3, step, 5)["x"][:, 0] for step in range(4)])
    np.testing.assert_array_equal(whole, seen)  # the stream does not depend on how it is cut


def test_flips_mirror_half_of_the_images():
    split = Split(np.arange(8, dtype=np.uint8).reshape(1, 1, 8, 1).repeat(4, 0))
    flipped = [batch(split, 0, step, 4, flip=True)["x"][:, 0, 0, 0] == 7 for step in range(200)]
    assert abs(np.mean(flipped) - 0.5) < 4 * 0.5 / np.sqrt(800)


def test_hold_out_partitions():
    train, test = hold_out(np.arange(11)[:, None], None, 0.2)
    assert len(test.x) == 3 and sorted([*train.x[:, 0], *test.x[:, 0]]) == list(range(11))


# ----------------------------------------------------------------------------------------------------------------------
# Toy densities.


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "spirals")) for name in load.TOYS if name != "mixture_1d"],
)
def test_density_integrates_to_one_and_fits_its_samples(name):
    density = load.TOYS[name]()
    side = np.linspace(-6, 6, 301)[:-1] + 0.02
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    mass = np.exp(density.log_prob(points)) * 0.04**2
    assert mass.sum() == pytest.approx(1, abs=5e-3)
    # expectations of a few functions under samples and under the density
    x = density.sample(np.random.default_rng(1), 50_000)
    for h in (
        lambda p: p[:, 0],
        lambda p: (p**2).sum(1),
        lambda p: np.cos(p[:, 0] + 2 * p[:, 1]),
        lambda p: np.sin(3 * p).prod(1),
    ):
        wanted, values = (mass * h(points)).sum(), h(x)
        assert abs(values.mean() - wanted) < 4.5 * values.std() / np.sqrt(len(x)) + 5e-3


def test_mixture_on_the_line():
    """Entropy -0.128854075 nats, by quadrature and by its samples; log density at published points."""
    density, side = toy.gaussian_mixture(*toy.MIXTURES["mixture_1d"]), np.linspace(-2, 2, 8001)
    log_q = density.log_prob(side[:, None])
    entropy = -(np.exp(log_q) * log_q).sum() * 0.0005
    assert entropy == pytest.approx(-0.128854075, abs=1e-8)
    values = -density.log_prob(density.sample(np.random.default_rng(0), 100_000))
    assert abs(values.mean() - entropy) < 4 * values.std() / np.sqrt(1e5)
    log_prob = density.log_prob(np.array([[-0.9], [-0.25], [0.5]]))
    np.testing.assert_allclose(log_prob, [0.5242913580, 0.6617913961, -0.0143191160], atol=1e-9)


def test_toy_values():
    assert toy.checkerboard().log_prob(np.array([[0.5, 1.0]]))[0] == pytest.approx(-np.log(32))
    log_prob = toy.gaussian_mixture(*toy.MIXTURES["mixture"]).log_prob(np.array([[0.3, -0.4]]))
    weights, means = np.array([0.5, 0.3, 0.2]), np.array([[1, 0], [-1, 1], [0, -2]])
    covs = np.array([[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0], [0, 0.6]], [[0.2, -0.1], [-0.1, 0.3]]])
    wanted = 0.0
    for w, m, c in zip(weights, means, covs):
        d = np.array([0.3, -0.4]) - m
        wanted += w * np.exp(-0.5 * d @ np.linalg.inv(c) @ d) / (2 * np.pi * np.sqrt(np.linalg.det(c)))
    assert log_prob[0] == pytest.approx(np.log(wanted), rel=1e-12)


def test_ring_density_against_quadrature():
    """The blurred circle as a two-dimensional convolution, by brute force over the angle."""
    density, x = toy.rings(radii=(1.5,), std=0.3), np.array([0.7, -1.1])
    angles = np.linspace(0, 2 * np.pi, 4001)[:-1]
    centers = 1.5 * np.stack([np.cos(angles), np.sin(angles)], 1)
    wanted = np.mean(np.exp(-0.5 * ((x - centers) ** 2).sum(1) / 0.09) / (2 * np.pi * 0.09))
    assert density.log_prob(x[None])[0] == pytest.approx(np.log(wanted), rel=1e-10)


def test_prefetch_changes_neither_items_nor_errors():
    produced = []

    def numbers(count, broken=None):
        for i in range(count):
            if i == broken:
                raise DataError("the third is damaged")
            produced.append(i)
            yield i

    assert list(prefetch(numbers(5))) == [0, 1, 2, 3, 4]
    taken = []
    with pytest.raises(DataError, match="damaged"):
        for i in prefetch(numbers(5, broken=3)):
            taken.append(i)
    assert taken == [0, 1, 2]
    produced.clear()
    items = prefetch(numbers(10**9))
    assert next(items) == 0
    items.close()  # as when a run stops: it ends, with one item too many
    assert len(produced) <= 2
