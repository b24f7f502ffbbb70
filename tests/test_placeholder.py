"""Samples of a run whose data are elsewhere."""

import json
import shutil

import jax
import numpy as np
import pytest

import scoreflow
from scoreflow import configure, sample
from scoreflow.data import DataError, placeholder
from scoreflow.runs import workdir
from scoreflow.runs.errors import UserError
from tests import tiny


@pytest.fixture(scope="module", autouse=True)
def promotion():
    with jax.numpy_rank_promotion("allow"):  # Flax relies on it
        yield


@pytest.fixture(scope="module")
def moved(promotion, tmp_path_factory):
    """A run with labels, and samples of it; then its data are gone."""
    home = tmp_path_factory.mktemp("placeholder")
    rng = np.random.default_rng(0)
    np.savez(home / "x.npz", images=rng.integers(0, 17, (200, 8, 8, 1), np.uint8), labels=np.arange(200) % 3)
    arrays = {"name": "arrays", "path": str(home / "x.npz"), "num_levels": 17, "conditional": True}
    config, experiment = tiny.trained(home / "run", data=arrays)
    before = sample.sample(experiment, configure.sample_options(config), home / "run")
    shutil.move(home / "x.npz", home / "elsewhere.npz")
    return home, config, before


def reopened(folder, config):
    return configure.experiment(config, "moved", workdir.stored_data(folder))


def test_samples_are_the_same_without_the_data(moved, capsys):
    home, config, before = moved
    experiment = reopened(home / "run", config)
    assert "x.npz" in capsys.readouterr().err  # what is missing is said
    assert len(experiment.data.train.x) == 0 and experiment.data.num_classes == 3
    again = sample.sample(experiment, configure.sample_options(config), home / "run")
    np.testing.assert_array_equal(again, before)


def test_a_run_is_loaded_without_its_data(moved):
    home, _, _ = moved
    model = scoreflow.load(home / "run")
    images = model.sample(0, 3, cond=[0, 1, 2], steps=3)
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8 and images.max() < 17
    assert np.isfinite(model.bits_per_dim(images, cond=[0, 1, 2], tolerance=1e-2)).all()


def test_points_in_the_plane_are_drawn_without_their_data(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32))
    config, _ = tiny.trained(tmp_path / "run", data={"name": "arrays", "path": str(tmp_path / "x.npy")})
    (tmp_path / "x.npy").unlink()
    sample.sample(reopened(tmp_path / "run", config), configure.sample_options(config), tmp_path / "run")
    assert (tmp_path / "run" / "samples" / "8-8.png").is_file()


def test_training_and_older_runs_need_the_data(moved):
    home, config, _ = moved
    with pytest.raises(DataError, match=r"x\.npz"):
        configure.experiment(config, "moved")
    known = workdir.stored_data(home / "run")
    older = {name: value for name, value in known.items() if name in ("train", "test", "shape", "digest")}
    with pytest.raises(DataError, match=r"x\.npz"):
        configure.experiment(config, "moved", older)


def test_a_sampler_that_needs_the_data_says_so(moved):
    home, config, _ = moved
    config = configure.resolve(config, {"sampler.name": "gaussian_multistep"})
    with pytest.raises(UserError, match="needs the training data"):
        reopened(home / "run", config)


def test_what_older_runs_know_of_their_data_is_enough_to_go_on(tmp_path):
    """A run whose notes lack the levels and classes is the same run, and training goes on."""
    config, experiment = tiny.trained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["data"] = {name: content["data"][name] for name in ("train", "test", "shape", "digest")}
    path.write_text(json.dumps(content))
    workdir.check(tmp_path, experiment.config, resume=True, data=placeholder.describe(experiment.data))


def test_the_command_samples_without_the_data(moved, monkeypatch, capsys):
    from scoreflow import cli

    home, _, before = moved
    monkeypatch.setattr(cli, "_overrides", {})
    flags = [f"--workdir={home / 'run'}", "--mode=sample", "--config.sampling.num=8"]
    cli.flags.FLAGS(["scoreflow", *cli.take_settings(flags)[0]])
    cli._overrides.update(cli.take_settings(flags)[1])
    cli._main([])
    assert "going on without the data" in capsys.readouterr().err
    cli.flags.FLAGS.unparse_flags()
    np.testing.assert_array_equal(np.load(home / "run" / "samples" / "8-8.npy"), before)


def test_a_data_set_that_takes_their_place_has_all_but_its_examples(moved):
    home, _, _ = moved
    data = placeholder.placeholder("arrays", workdir.stored_data(home / "run"))
    assert data.shape == (8, 8, 1) and data.num_levels == 17 and data.train.x.dtype == np.uint8
    assert placeholder.describe(data) == {}
