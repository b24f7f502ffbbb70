"""The best checkpoints of a run: what is compared with what, and whose they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import configure, sample, train
from scoreflow.runs import checkpoint, workdir
from scoreflow.runs.best import Best
from scoreflow.runs.errors import UserError
from tests import tiny

PARAMS = {"a": jnp.ones(2)}


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def newest(folder, measure="frechet"):
    return checkpoint.latest(workdir.checkpoints(folder, measure))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_best_is_never_a_value_that_is_not_finite(tmp_path, value):
    best = Best(tmp_path, ["frechet"], 0)
    assert not best.offer("frechet", 2, value, PARAMS) and newest(tmp_path) is None
    assert best.offer("frechet", 4, 5.0, PARAMS) and not best.offer("frechet", 6, value, PARAMS)
    assert best.values == {"frechet": 5.0} and newest(tmp_path) == 4


def test_the_best_that_an_older_version_kept_with_nan_gives_way(tmp_path):
    content = {"ema_params": PARAMS, "value": jnp.float32(np.nan)}
    checkpoint.save(workdir.checkpoints(tmp_path, "frechet"), 2, content)
    assert Best(tmp_path, ["frechet"], 2).offer("frechet", 4, 1e9, PARAMS)
    assert newest(tmp_path) == 4


def test_the_best_is_chosen_anew_where_it_is_measured_otherwise(tmp_path, capsys):
    """A distance of 900 between pixels is not worse than one of 2 between other features. A kill before the next save
    changes nothing."""
    of = lambda features, step: Best(tmp_path, ["frechet"], step, {"frechet": {"features": features, "samples": 100}})
    assert of("digits", 0).offer("frechet", 2, 2.0, PARAMS)
    assert of("digits", 2).values == {"frechet": 2.0} and "anew" not in capsys.readouterr().out
    for _ in range(2):
        changed = of("pixels", 2)
        said = capsys.readouterr().out
        assert "best checkpoint by frechet is chosen anew: features was digits, is pixels" in said
        assert changed.values == {} and newest(tmp_path) == 2
    assert changed.offer("frechet", 4, 900.0, PARAMS) and newest(tmp_path) == 4
    assert of("pixels", 4).values == {"frechet": 900.0} and "anew" not in capsys.readouterr().out


def test_the_best_of_a_resumed_training_knows_what_it_was_measured_by(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    best = {"training__best": ("frechet",), "training__checkpoint_every": 4}
    run = lambda steps, **changes: tiny.trained(tmp_path / "run", training__steps=steps, **best, **changes)
    run(4)
    run(8)
    assert "chosen anew" not in capsys.readouterr().out
    run(12, sampling__steps=6)
    assert "chosen anew: sampling.steps was 4, is 6" in capsys.readouterr().out
    assert newest(tmp_path / "run") == 12


def test_the_best_of_steps_that_a_run_no_longer_has_are_dropped(tmp_path):
    """Also those by a measure that is no longer asked for: sampling would take them for this run's."""
    best = Best(tmp_path, ["frechet", "validation"], 0)
    for measure in ("frechet", "validation"):
        best.offer(measure, 2, 5.0, PARAMS)
        best.offer(measure, 4, 4.0, PARAMS)
    Best(tmp_path, ["frechet"], 3)
    assert newest(tmp_path, "frechet") == newest(tmp_path, "validation") == 2
    Best(tmp_path, [], 0)
    assert newest(tmp_path, "frechet") is newest(tmp_path, "validation") is None


def test_the_best_of_a_run_belong_to_it_without_its_other_checkpoints(tmp_path):
    """Another config may not take the folder, and the same one that begins again does not keep the old best."""
    config, experiment = tiny.trained(tmp_path, training__best=("validation",))
    checkpoints = workdir.checkpoints(tmp_path)
    checkpoints.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds a run with seed = 0, not 1"):
        workdir.check(tmp_path, tiny.digits(seed=1).to_dict(), resume=True)
    other = configure.experiment(config_other := tiny.digits(seed=1, training__pictures=False), "other")
    with pytest.raises(UserError, match="holds a run with seed = 0, not 1"):
        train.train(other, configure.train_options(config_other, other), tmp_path)
    assert newest(tmp_path, "validation") is not None
    tiny.trained(tmp_path)
    config.checkpoint = "validation"
    with pytest.raises(UserError, match="keeps no best checkpoint by validation"):
        sample.sample(experiment, configure.sample_options(config), tmp_path)
