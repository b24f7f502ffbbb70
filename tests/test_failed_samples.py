"""Where no sample is finite, as with an adaptive sampler of two steps: the rest of a run and of its evaluation is kept."""

import json

import jax
import numpy as np
import pytest

from scoreflow import configure, metrics, train
from scoreflow.evaluate import evaluate
from scoreflow.runs import checkpoint, workdir
from scoreflow.runs import log as run_log
from tests import tiny

FAILING = {"name": "adaptive", "max_steps": 2}


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def points(folder):
    """A data set of points in the plane."""
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32))
    return {"name": "arrays", "path": str(folder / "x.npy")}


def run(config, folder):
    """Trains in a folder, with pictures."""
    experiment = configure.experiment(config, "tiny")
    train.train(experiment, configure.train_options(config, experiment), folder)
    return experiment


@pytest.mark.parametrize("kind", ["images", "points"])
def test_an_evaluation_without_finite_samples_keeps_its_likelihoods(tmp_path, capsys, kind):
    changes = {"data": points(tmp_path)} if kind == "points" else {}
    config, _ = tiny.trained(tmp_path / "run", sampler=FAILING, **changes)
    experiment = configure.experiment(config, "tiny")
    evaluate(experiment, configure.evaluation(config, tmp_path / "cache"), tmp_path / "run")
    said = capsys.readouterr()
    assert said.err.count("none of 100 samples is finite; sample metrics are left out") == 1
    written = json.loads((tmp_path / "run" / "eval" / "8" / "metrics.json").read_text())
    unit = "nats" if kind == "points" else "bits_per_dim"
    assert np.isfinite(written["likelihood"][unit]["value"])
    assert written["samples"]["model"]["samples"] == 0 and written["samples"]["test_data"] == {}
    assert not (tmp_path / "run" / "eval" / "8" / "samples.png").exists()


def test_training_without_finite_samples_ends_with_its_other_pictures(tmp_path, capsys):
    run(tiny.digits(sampler=FAILING, data=points(tmp_path), training__sample_every=4), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "trained to step 8" in printed and "next:" in printed
    assert (tmp_path / "run" / "loss.png").exists() and (tmp_path / "run" / "loss_by_log_snr.png").exists()
    assert not list((tmp_path / "run").glob("samples/*"))


def test_training_without_finite_samples_has_no_best_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    best = ("validation", "frechet")
    tiny.trained(tmp_path / "run", sampler=FAILING, training__best=best)
    assert checkpoint.latest(workdir.checkpoints(tmp_path / "run")) == 8
    assert checkpoint.latest(workdir.checkpoints(tmp_path / "run", "validation")) is not None
    assert not (tmp_path / "run" / "best" / "frechet").exists()
    assert not any("best_frechet" in record for record in run_log.read_metrics(tmp_path / "run"))


def test_the_class_score_of_a_few_samples_is_a_number():
    """Of three, each certain of a class of its own, a split has one sample, and the score of one is 1."""
    assert metrics.class_score(np.eye(3)) == metrics.Estimate(1.0, 0.0)
