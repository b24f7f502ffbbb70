"""Samples and statistics that go between programs: read, written, and compared as if they were our own."""

import json

import numpy as np
import pytest
from PIL import Image

from scoreflow import space
from scoreflow.data import DataError, Dataset, Split, foreign
from scoreflow.evaluate import Evaluation, evaluate_samples
from scoreflow.evaluators.context import EvalOptions
from scoreflow.experiment import Experiment, Model
from scoreflow.models import ParamsOnly
from scoreflow.processes.sdes import vp_linear
from scoreflow.runs import report
from scoreflow.runs.errors import UserError
from scoreflow.sample import SampleOptions, sample, write_images
from tests.test_cli import _complaint, _config, _run


def images(count: int, channels: int = 3, seed: int = 0, num_levels: int = 256) -> np.ndarray:
    """Random levels [count, 6, 5, channels]; the sides differ, so that none can be taken for the other."""
    return np.random.default_rng(seed).integers(0, num_levels, (count, 6, 5, channels)).astype(np.uint8)


def data_of(x: np.ndarray, num_levels: int = 256) -> Dataset:
    """A data set of which all but the last 40 examples are for training."""
    return Dataset("mine", Split(x[:-40]), Split(x[-40:]), num_levels)


def write_folder(path, x: np.ndarray) -> None:
    """One PNG file for each image, in two sub-folders."""
    for i, image in enumerate(x):
        place = path / f"{i // 100}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(place / f"{i:05d}.png")


def evaluation(folder, **options) -> Evaluation:
    """Nothing but the options, with caches in a folder."""
    options = {name: str(value) if name in ("samples", "reference") else value for name, value in options.items()}
    return Evaluation(EvalOptions(**options), {}, cache_dir=folder / "cache", data_dir=folder / "data")


def measured(data: Dataset, folder, out="out", **options) -> dict:
    """The section of the metrics of given samples."""
    return evaluate_samples(data, evaluation(folder, **options), folder / out)["samples"]


def experiment_of(data: Dataset) -> Experiment:
    """As far as statistics need one: there is no score."""
    model = Model(vp_linear(), ParamsOnly(lambda key, shape: {}))
    return Experiment("mine", 0, data, space.pixels(data.shape, data.num_levels), model, *[None] * 2, {})  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------------------
# Samples of others.


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_and_files_of_the_same_images_give_the_same_numbers(tmp_path, channels):
    data, x = data_of(images(240, channels)), images(130, channels, seed=1)
    write_folder(tmp_path / "folder", x)
    np.save(tmp_path / "array.npy", x)
    np.save(tmp_path / "wide.npy", x.astype(np.int64))
    for key in foreign.KEYS:
        np.savez(tmp_path / f"{key}.npz", **{key: x}, labels=np.arange(130))
    np.savez(tmp_path / "first.npz", samples=np.moveaxis(x, -1, 1))
    for name in ("folder", "array.npy", "wide.npy", "first.npz", *(f"{key}.npz" for key in foreign.KEYS)):
        np.testing.assert_array_equal(foreign.read(tmp_path / name, data), x)
    results = [measured(data, tmp_path, samples=tmp_path / name) for name in ("folder", "array.npy", "arr_0.npz")]
    assert results[0]["given"]["samples"] == 130 and results[0]["test_data"]["samples"] == 40
    assert results[0] == results[1] == results[2]


def test_the_training_images_themselves_are_at_distance_0(tmp_path):
    data = data_of(images(240, channels=1))
    write_folder(tmp_path / "copies", data.train.x)
    result = measured(data, tmp_path, samples=tmp_path / "copies")["given"]
    scale = np.trace(np.cov(data.train.x.reshape(200, -1).astype(np.float64).T))
    assert abs(result["frechet"].value) < 1e-9 * scale
    assert result["precision"].value == result["recall"].value == 1.0


def test_results_overwrite_nothing(tmp_path, capsys):
    """Other samples of the same name, other settings and a changed reference have folders of their own."""
    data, out = data_of(images(240, channels=1)), tmp_path / "out"
    np.savez(tmp_path / "reference.npz", mu=np.zeros(30), sigma=np.eye(30))

    def run(x, **options):
        np.save(tmp_path / "theirs.npy", x)
        measured(data, tmp_path, samples=tmp_path / "theirs.npy", **options)
        (written,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote ")]
        assert written.endswith("/metrics.json")
        return written.removeprefix("wrote ").removesuffix("/metrics.json").removeprefix(f"{out}/eval/")

    x = images(100, channels=1, seed=1)
    assert run(x) == "samples-theirs"
    first = (out / "eval" / "samples-theirs" / "metrics.json").read_bytes()
    assert run(x[::-1]) == "samples-theirs-2"
    assert run(x, neighbors=2) == "samples-theirs-3"
    assert run(x, reference=tmp_path / "reference.npz") == "samples-theirs-4"
    np.savez(tmp_path / "reference.npz", mu=np.ones(30), sigma=np.eye(30))
    assert run(x, reference=tmp_path / "reference.npz") == "samples-theirs-5"
    assert run(x) == "samples-theirs"
    assert (out / "eval" / "samples-theirs" / "metrics.json").read_bytes() == first
    assert not list(out.rglob("partial")) and not list(out.rglob("lock.json"))


def test_samples_are_not_measured_without_the_weights_of_their_features(tmp_path):
    """There is nothing else to measure, and nothing is left behind."""
    np.save(tmp_path / "theirs.npy", images(20))
    with pytest.raises(DataError, match="Inception weights are missing: get .* put it at"):
        measured(data_of(images(240)), tmp_path, samples=tmp_path / "theirs.npy", features="inception")
    assert not (tmp_path / "out").exists()


def test_gray_and_color_are_brought_to_the_channels_of_the_data(tmp_path, capsys):
    """Gray as equal channels, color by ITU-R 601-2 as PIL computes it; one line says so."""
    gray, color = images(20, channels=1), images(20, channels=3)
    np.savez(tmp_path / "gray.npz", arr_0=gray[..., 0])
    write_folder(tmp_path / "color", color)
    read = foreign.read(tmp_path / "gray.npz", data_of(images(240, 3)))
    np.testing.assert_array_equal(read, np.repeat(gray, 3, axis=-1))
    assert "gray is made color" in capsys.readouterr().out
    read = foreign.read(tmp_path / "color", data_of(images(240, 1)))
    wanted = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in color])
    np.testing.assert_array_equal(read[..., 0], wanted)
    assert "20 color images made gray" in capsys.readouterr().out


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_the_data_s_own_channels_are_not_said_to_be_changed(tmp_path, capsys, channels):
    write_folder(tmp_path / "theirs", images(60, channels=channels, seed=1))
    foreign.read(tmp_path / "theirs", data_of(images(60, channels=channels)))
    assert "made" not in capsys.readouterr().out


def test_what_is_left_out_of_a_folder_is_said(tmp_path, capsys):
    x = images(20)
    write_folder(tmp_path / "theirs", x)
    write_folder(tmp_path / "theirs" / ".cache", images(3, seed=1))
    (tmp_path / "theirs" / "notes.txt").write_text("seeds 0-19")
    np.testing.assert_array_equal(foreign.read(tmp_path / "theirs", data_of(images(240))), x)
    assert "4 other files left out" in capsys.readouterr().out


BAD_ARRAYS = {
    "floats": (np.zeros((20, 6, 5, 3), np.float32), "holds float32; levels in uint8 are needed"),
    "too high": (np.full((20, 6, 5, 3), 256), "holds levels from 256 to 256; 0 to 255 are possible"),
    "other size": (np.zeros((20, 8, 8, 3), np.uint8), r"shape \(8, 8, 3\), and mine those of \(6, 5, 3\)"),
    "turned": (np.zeros((20, 5, 6, 3), np.uint8), r"shape \(5, 6, 3\), and mine those of \(6, 5, 3\)"),
    "four channels": (np.zeros((20, 6, 5, 4), np.uint8), r"shape \(6, 5, 4\), and mine those of \(6, 5, 3\)"),
    "flat": (np.zeros((20, 90), np.uint8), r"shape \(90,\), and mine those of \(6, 5, 3\)"),
    "a number": (np.uint8(3), r"shape \(\), and mine those of \(6, 5, 3\)"),
    "none": (np.zeros((0, 6, 5, 3), np.uint8), "holds no samples"),
    "few": (np.zeros((15, 6, 5, 3), np.uint8), "15 samples are too few; 16 are needed"),
}


@pytest.mark.parametrize("x, words", BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_arrays_that_are_no_such_images_are_one_line(tmp_path, x, words):
    np.save(tmp_path / "theirs.npy", x)
    with pytest.raises(DataError, match=f"eval.samples = {tmp_path / 'theirs.npy'}.*{words}") as error:
        measured(data_of(images(240)), tmp_path, samples=tmp_path / "theirs.npy")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_files_and_folders_without_such_images_are_one_line(tmp_path):
    data, write = data_of(images(240)), lambda name, x: Image.fromarray(x).save(tmp_path / name)
    for name in ("empty", "sizes", "broken", "points"):
        (tmp_path / name).mkdir()
    for i in range(7):
        write(f"sizes/{i}.png", np.zeros((5, 6, 3), np.uint8))
        (tmp_path / "broken" / f"{i}.png").write_bytes(b"no image")
    write("sizes/right.png", np.zeros((6, 5, 3), np.uint8))
    np.savez(tmp_path / "keys.npz", x=images(20))
    np.savez(tmp_path / "statistics.npz", mu=0, sigma=0)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "keys.npz").read_bytes()[:100])
    (tmp_path / "archive.zip").write_bytes(b"")
    rows = {
        "absent": "there is no such file or folder",
        "empty": "there are no images",
        "sizes": "images of mine have 5 x 6 pixels, and 0.png has 6 x 5; 1.png .*; and 2 more",
        "broken": "0.png is not a readable image.*; and 2 more",
        "keys.npz": "has no array named samples, images or arr_0; it holds x",
        "statistics.npz": "it holds mu, sigma; reference statistics are given as eval.reference",
        "cut.npz": "is not a readable .npy or .npz file",
        "archive.zip": "a folder of images, an .npy or an .npz file is needed",
    }
    for name, words in rows.items():
        with pytest.raises(DataError, match=f"eval.samples = {tmp_path / name}.*{words}") as error:
            foreign.read(tmp_path / name, data)
        assert "\n" not in str(error.value)
    points = Dataset("points", Split(np.zeros((60, 2), np.float32)), Split(np.zeros((40, 2), np.float32)), 0)
    for name, words in {"sizes": "examples of points are none", "keys.npz": "holds x"}.items():
        with pytest.raises(DataError, match=words):
            foreign.read(tmp_path / name, points)
    for x, words in (
        (np.zeros((9, 2), int), "holds int64"),
        (np.zeros((9, 3)), r"shape \(3,\)"),
        (np.full((9, 2), np.nan), "NaN"),
    ):
        np.save(tmp_path / "points.npy", x)
        with pytest.raises(DataError, match=words):
            foreign.read(tmp_path / "points.npy", points)


# ----------------------------------------------------------------------------------------------------------------------
# Samples of ours.


@pytest.mark.parametrize("num_levels, channels", [(256, 3), (256, 1), (17, 1), (2, 1)])
def test_images_for_other_programs_come_back_as_they_were(tmp_path, num_levels, channels):
    """PNG files of 8 bits, and `arr_0` [N, H, W, 3] with `arr_1` as guided-diffusion has them; fewer levels are spread."""
    x, label = images(30, channels, num_levels=num_levels), np.arange(30, dtype=np.int32)
    pixels = report.eight_bits(x, num_levels)
    folder, file = (
        write_images(tmp_path / "8-30", pixels, None, "png"),
        write_images(tmp_path / "8-30", pixels, label, "npz"),
    )
    assert sorted(path.name for path in folder.iterdir()) == [f"{i:06d}.png" for i in range(30)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["8-30", "8-30.npz"]
    with np.load(file) as stored:
        assert stored["arr_0"].shape == (30, 6, 5, 3) and stored["arr_0"].dtype == np.uint8
        np.testing.assert_allclose(stored["arr_0"], x * (255 / (num_levels - 1)) * np.ones(3), atol=0.5)
        np.testing.assert_array_equal(stored["arr_1"], label)
    data = data_of(images(240, channels, num_levels=num_levels), num_levels)
    np.save(tmp_path / "levels.npy", x)
    for path in (folder, file, tmp_path / "levels.npy"):
        np.testing.assert_array_equal(foreign.read(path, data), x)


def test_images_in_a_folder_are_added_to_what_is_there(tmp_path):
    """A file of a person's stays, and the same samples written again are the same files."""
    pixels = images(3)
    (tmp_path / "8-3").mkdir()
    (tmp_path / "8-3" / "notes.txt").write_text("mine")
    for _ in range(2):
        write_images(tmp_path / "8-3", pixels, None, "png")
        assert len(list((tmp_path / "8-3").iterdir())) == 4 and (tmp_path / "8-3" / "notes.txt").read_text() == "mine"


def test_files_of_images_are_refused_where_samples_are_none(tmp_path):
    data = Dataset("points", Split(np.zeros((60, 2), np.float32)), Split(np.zeros((40, 2), np.float32)), 0)
    with pytest.raises(UserError, match="sampling.files = png needs images of 1 or 3 channels of levels, and points"):
        sample(experiment_of(data), SampleOptions(files="png"), tmp_path)


def test_metrics_that_need_more_examples_are_left_out(tmp_path):
    """A test split of two: no distance, and a dash in its place."""
    x = images(100, channels=1)
    data = Dataset("mine", Split(x[:98]), Split(x[98:]), 256)
    np.save(tmp_path / "theirs.npy", images(50, channels=1, seed=1))
    result = measured(data, tmp_path, samples=tmp_path / "theirs.npy")
    assert {result["test_data"][name] for name in ("frechet", "kernel", "precision", "recall")} == {None}
    assert all(np.isfinite(result["given"][name].value) for name in ("frechet", "kernel", "precision", "recall"))
    written = json.loads((tmp_path / "out" / "eval" / "samples-theirs" / "metrics.json").read_text())
    assert written["samples"]["test_data"]["frechet"] is None


@pytest.mark.slow
def test_samples_go_to_other_programs_and_come_back_through_the_command_line(tmp_path):
    config, run = _config(tmp_path), "--workdir=run"
    assert _run(f"--config={config}", run, cwd=tmp_path).returncode == 0
    for form, place in (("png", "8-120"), ("npz", "8-120.npz")):
        options = ["--config.sampling.num=120", f"--config.sampling.files={form}"]
        result = _run(run, "--mode=sample", *options, cwd=tmp_path)
        assert result.returncode == 0 and f"wrote 120 images to run/samples/{place}\n" in result.stdout
    options = ["--config.sampling.num=4", "--config.sampling.files=png", "--config.sampling.inpaint=bottom"]
    assert _run(run, "--mode=sample", *options, cwd=tmp_path).returncode == 0
    samples = tmp_path / "run" / "samples"
    filled = report.eight_bits(np.load(samples / "8-4-inpainted.npy")[2::3, ..., 0], 17)
    for i, image in enumerate(filled):
        np.testing.assert_array_equal(np.asarray(Image.open(samples / "8-4-inpainted" / f"{i:06d}.png")), image)

    assert _run(run, f"--config={config}", "--mode=stats", cwd=tmp_path).returncode == 0
    results = []
    for path in (samples / "8-120", samples / "8-120.npz"):
        given = [f"--config={config}", "--workdir=elsewhere", "--mode=eval", f"--config.eval.samples={path}"]
        result = _run(*given, cwd=tmp_path)
        assert result.returncode == 0 and "features: pixels" in result.stdout, result.stderr
        name = "samples-8-120" + (f"-{len(results) + 1}" if results else "")
        assert f"wrote elsewhere/eval/{name}/metrics.json" in result.stdout
        results.append(json.loads((tmp_path / "elsewhere" / "eval" / name / "metrics.json").read_text()))
    assert results[0] == results[1]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["eval"]

    reference, alone = "--config.eval.reference=run/statistics/pixels.npz", "--config.eval.likelihood=False"
    assert all(_run(run, "--mode=eval", alone, *more, cwd=tmp_path).returncode == 0 for more in ([], [reference]))
    direct, through = (
        json.loads((tmp_path / "run" / "eval" / name / "metrics.json").read_text())["samples"] for name in ("8", "8-2")
    )
    for who in ("model", "test_data"):
        assert through[who]["frechet"]["value"] == pytest.approx(direct[who]["frechet"]["value"], rel=1e-9)
    bad = [
        (["--config.eval.reference=run/samples/8-120.npz"], "eval.reference = run/samples/8-120.npz has no mu and"),
        (["--config.eval.samples=run/samples"], "eval.samples = run/samples: images of digits have 8 x 8 pixels, and"),
    ]
    for words, said in bad:
        result = _run(run, "--mode=eval", *words, cwd=tmp_path)
        assert result.returncode == 2 and said in _complaint(result)
    assert {path.name for path in (tmp_path / "run" / "eval").iterdir()} == {"8", "8-2"}
