"""Evaluations that were killed go on from their finished batches, and those of other settings or data are others."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import configure, train
from scoreflow.evaluate import evaluate
from scoreflow.runs import checkpoint, workdir
from scoreflow.runs.partial import PartialResults
from tests import tiny


class _Killed(Exception):
    pass


@pytest.fixture
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_allow_rank_promotion")
def test_a_killed_evaluation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    """Stopped before its sixth partial result: the five before are not computed again, but for one whose file was
    damaged."""
    config = tiny.digits(training__steps=2, training__warmup=1, eval__num_samples=100, sampling__batch_size=40)
    config.eval.update({"draws": 2, "num_test": 12, "batch_size": 4, "bound_times": 2})
    experiment, folder = configure.experiment(config, "digits"), tmp_path / "run"
    train.train(experiment, configure.train_options(config, experiment), folder)

    computed, get = [], PartialResults.get

    def counting(stop_before=None):
        computed.clear()

        def wrapped(self, name, like, make):
            def count():
                if len(computed) == stop_before:
                    raise _Killed
                computed.append(name)
                return make()

            return get(self, name, like, count)

        monkeypatch.setattr(PartialResults, "get", wrapped)

    def run(cache):
        results = evaluate(experiment, configure.evaluation(config, tmp_path / cache), folder)
        return {name: value for name, value in results.items() if name != "step"}

    counting()
    whole, every = run("a"), list(computed)
    assert {"likelihood-0-0", "likelihood-1-8", "check-0", "bound-4", "samples-2", "model-0"} < set(every)
    partial = folder / "eval" / "2" / "partial"
    assert not partial.exists()

    counting(stop_before=5)
    with pytest.raises(_Killed):
        run("b")
    (damaged,) = partial.glob("*/likelihood-0-4.npz")
    damaged.write_bytes(damaged.read_bytes()[:-30])
    counting()
    again = run("b")
    assert computed == ["likelihood-0-4", *every[5:]] and not partial.exists()
    sections = ((run["likelihood"], run["samples"]["model"], run["samples"]["test_data"]) for run in (whole, again))
    for one, other in zip(*sections):
        assert {k: v for k, v in one.items() if "seconds" not in k} == {k: other[k] for k in one if "seconds" not in k}


def test_partial_results_of_other_settings_are_not_taken(tmp_path):
    names, checkpoints = [], tmp_path / "checkpoints"
    checkpoint.save(checkpoints, 2, {"ema_params": jnp.zeros(3)})
    for changes in ({}, {"eval__rtol": 1e-2}, {}, {}):
        if len(names) == 3:  # trained anew
            shutil.rmtree(checkpoints)
            checkpoint.save(checkpoints, 2, {"ema_params": jnp.ones(3)})
        made = {"checkpoint": workdir.sealed(tmp_path, 2), "shape": (3,)}
        names.append(workdir.fingerprint(made, configure.experiment(tiny.digits(**changes), "digits").config))
    assert names[0] == names[2] and len(set(names)) == 3


@pytest.mark.usefixtures("_allow_rank_promotion")
def test_partial_results_of_other_data_are_not_taken(tmp_path, monkeypatch):
    """Stopped after two batches, whose file of data is then replaced: the rest is of the new data, and so are they."""
    path, folder, rng = tmp_path / "x.npy", tmp_path / "run", np.random.default_rng(0)
    old, new = (scale * rng.standard_normal((300, 2)).astype(np.float32) for scale in (1, 3))
    np.save(path, old)
    data = {"name": "arrays", "path": str(path)}
    config, _ = tiny.trained(folder, data=data, eval__draws=1, eval__batch_size=4, eval__num_samples=0)

    def run(where):
        experiment = configure.experiment(config, "tiny")
        return evaluate(experiment, configure.evaluation(config, tmp_path / "cache"), where)["likelihood"]["nats"]

    get, count = PartialResults.get, []

    def stopping(self, name, like, make):
        if len(count) == 2:
            raise _Killed
        count.append(name)
        return get(self, name, like, make)

    monkeypatch.setattr(PartialResults, "get", stopping)
    with pytest.raises(_Killed):
        run(folder)
    monkeypatch.undo()
    shutil.copytree(folder / "checkpoints", tmp_path / "calm" / "checkpoints")
    np.save(path, new)
    resumed, calm = run(folder), run(tmp_path / "calm")
    assert resumed == calm
    np.save(path, old)
    assert run(folder).value != pytest.approx(calm.value, rel=0.1)  # the data of three times the size are no better
    assert {path.name for path in (folder / "eval").iterdir()} == {"8", "8-2"}


@pytest.mark.usefixtures("_allow_rank_promotion")
def test_an_evaluation_of_other_data_has_a_folder_of_its_own(tmp_path):
    rng, results = np.random.default_rng(0), {}
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 17, (200, 8, 8), np.uint8))
    of = lambda name: {"name": "arrays", "path": str(tmp_path / f"{name}.npy"), "num_levels": 17}
    config, _ = tiny.trained(tmp_path / "run", data=of("a"), eval__num_samples=0, eval__draws=1)
    for name in ("a", "b", "a"):
        config.data.path = of(name)["path"]
        experiment = configure.experiment(config, "tiny")
        evaluate(experiment, configure.evaluation(config, tmp_path / "cache"), tmp_path / "run")
        for path in tmp_path.glob("run/eval/*/metrics.json"):
            bits = json.loads(path.read_text())["likelihood"]["bits_per_dim"]
            assert results.setdefault(path.parent.name, bits) == bits
    assert results.keys() == {"8", "8-2"} and results["8"] != results["8-2"]
