"""What is known of data when they are loaded, and the picture of them."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from scoreflow import configure, draw
from scoreflow.data import Dataset, Split, facts, own
from scoreflow.runs import report
from tests import tiny

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("used, said", [(4, True), (5, False)])
def test_at_most_a_quarter_of_the_levels_is_asked_about(used, said):
    x = np.arange(used, dtype=np.uint8).repeat(10)[:, None]
    lines = facts.facts(Dataset("few", Split(x), Split(x), 16))
    assert any("is data.num_levels right?" in line for line in lines) is said


@pytest.mark.parametrize("ratio, said", [(1.45, False), (1.55, True), (1 / 1.45, False), (1 / 1.55, True)])
def test_a_root_mean_square_that_is_half_as_large_again_is_advised(ratio, said):
    x = np.float32([-1.0, 1.0]).repeat(50)[:, None]
    lines = facts.facts(Dataset("signs", Split(x), Split(x), 0), sigma_data=ratio)
    assert ("or auto, would fit" in lines[-1]) is said


@pytest.mark.parametrize(
    "x, words",
    [
        (np.random.default_rng(0).uniform(0, 255, (500, 3)), "bring data to mean 0, and to a deviation near 1"),
        (np.random.default_rng(0).normal(5.0, 1.0, (500, 3)), "bring data to mean 0"),
        (np.full((50, 3), 2.0), "all values are 2"),
        (np.random.default_rng(0).integers(0, 2, (50, 4, 4)).astype(np.uint8), "2 of 256 levels are used"),
        (np.random.default_rng(0).normal(0.0, 1.0, (500, 3)), ""),
        (np.random.default_rng(0).integers(0, 256, (50, 8, 8)).astype(np.uint8), ""),
    ],
)
def test_what_is_odd_of_data_is_said_when_they_are_loaded(tmp_path, x, words):
    np.save(tmp_path / "x.npy", x)
    lines = facts.facts(own.arrays(tmp_path / "x.npy"))
    assert (words in " ".join(lines)) if words else not any(mark in " ".join(lines) for mark in ("?", "bring", "auto"))


def test_what_is_known_of_data_is_what_numpy_finds(tmp_path, capsys):
    """Counts, classes, levels, mean and root mean square in [-1, 1], of images in memory and of decoded ones."""
    pixels, names = RNG.integers(40, 216, (60, 8, 8, 3)).astype(np.uint8), ["cats", "dogs", "owls"]
    for i, image in enumerate(pixels):
        (tmp_path / names[i % 3]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / names[i % 3] / f"{i:03d}.png")
    np.savez(tmp_path / "x.npz", train=pixels, test=pixels[:2])
    x = (pixels + 0.5) / 128.0 - 1.0
    for dataset in (own.folder(tmp_path), own.arrays(tmp_path / "x.npz")):
        lines = facts.facts(dataset, sigma_data=0.1)
        assert lines[1] == f"{len(np.unique(pixels))} of 256 levels are used"
        rms = np.sqrt(np.mean(x**2))
        assert lines[2].startswith(
            f"mean {x.mean():.3g}, root mean square {rms:.3g} in [-1, 1]; score.sigma_data is 0.1"
        )
        assert f"{rms:.3g}, or auto, would fit" in lines[2]
    assert "training and" in facts.facts(own.folder(tmp_path))[0] and "3 classes (cats, dogs, owls)" in "".join(
        facts.facts(own.folder(tmp_path))
    )


def test_moments_of_data_in_the_order_of_their_classes_are_those_of_all():
    x = np.repeat(np.float32([-1.0, 1.0]), 60_000)[:, None]
    measured = facts.moments(Dataset("sorted", Split(x), Split(x[:2]), 0))
    assert measured.mean == pytest.approx(0.0, abs=1e-3) and measured.rms == pytest.approx(1.0)


def test_auto_is_the_root_mean_square_of_the_data():
    """Of digits at the centers of their bins, in the score and in the weight, and in the run's own settings."""
    config = tiny.digits(
        score={"prediction": "edm", "sigma_data": "auto"}, weight={"name": "edm", "sigma_data": "auto"}
    )
    experiment = configure.experiment(config, "auto")
    x = (experiment.data.train.x + 0.5) * 2 / 17 - 1
    rms = experiment.model.options.sigma_data
    assert rms == pytest.approx(np.sqrt(np.mean(x**2)), rel=1e-3)
    assert experiment.config["score"]["sigma_data"] == experiment.config["weight"]["sigma_data"] == rms


def test_a_contact_sheet_shows_each_image_under_the_name_of_its_class(tmp_path):
    """Of two colors, each class shows its own, as large squares; nothing else is in the picture but gaps and words."""
    for name, color in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(40):
            pixels = np.full((8, 8, 3), color, np.uint8)
            pixels[0, 0, 1] = i
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    changes = {"name": "folder", "path": str(tmp_path / "photos")}
    experiment = configure.experiment(tiny.digits(data=changes), "photos")
    assert draw.write_examples(experiment, tmp_path / "data.png")
    sheet = np.asarray(Image.open(tmp_path / "data.png").convert("RGB")).reshape(-1, 3).astype(int)
    shares = [np.mean((sheet[:, [0, 2]] == color).all(1)) for color in ([0, 200], [200, 0])]
    label = experiment.data.train.label[
        np.sort(np.random.default_rng(0).permutation(len(experiment.data.train.x))[:64])
    ]
    assert shares[0] / shares[1] == pytest.approx(np.mean(label == 0) / np.mean(label == 1), rel=1e-6)
    assert sum(shares) > 0.5


@pytest.mark.parametrize(
    "names, words",
    [
        (("cats", "dogs"), "2 classes: 0 cats, 1 dogs"),
        ((), "2 classes"),
        (tuple("abcdefghijkl"), "12 classes: 0 a, 1 b, 2 c, 3 d, 4 e, 5 f, 6 g, 7 h, 8 i, 9 j, ..."),
    ],
)
def test_classes_are_numbered(names, words):
    split = Split(np.zeros((2, 4), np.float32), np.arange(2))
    assert facts.numbered(Dataset("mine", split, split, 0, len(names) or 2, class_names=names)) == words


@pytest.mark.parametrize(
    "counts, said", [((300, 2, 300), "class stray has 2 of 602 training examples"), ((30, 30, 30), "")]
)
def test_a_class_of_few_examples_is_named(counts, said):
    split = Split(np.zeros((sum(counts), 4), np.float32), np.repeat(np.arange(3), counts))
    lines = facts.facts(Dataset("mine", split, split, 0, 3, class_names=("cats", "stray", "dogs")))
    assert (said in lines) if said else not any(line.startswith("class ") for line in lines)


def test_a_grid_of_samples_has_the_names_of_their_classes():
    """The same picture as with the names written by hand, and another one than with numbers."""
    x, label = np.zeros((2, 16, 16, 1), np.uint8), np.asarray([1, 0])
    split = Split(x, label)
    drawn = {}
    for names in (("cats", "dogs"), ()):
        experiment = SimpleNamespace(data=Dataset("mine", split, split, 256, 2, class_names=names))
        drawn[names] = draw.picture(experiment, x, label)
    np.testing.assert_array_equal(drawn["cats", "dogs"], report.grid(x, 256, words=["dogs", "cats"]))
    np.testing.assert_array_equal(drawn[()], report.grid(x, 256, words=["1", "0"]))
    assert (drawn[()] != drawn["cats", "dogs"]).any()
