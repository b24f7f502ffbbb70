"""What a run keeps: its last step, its settings and its data; and systems that are not like others."""

import errno
import os
import shutil

import jax
import numpy as np
import pytest

from scoreflow import cli, configure, data, train
from scoreflow.begin import WarmStart
from scoreflow.configure import overrides
from scoreflow.data import Split, load
from scoreflow.dispatch import batches_of
from scoreflow.runs import checkpoint, files, parallel, workdir
from scoreflow.runs import log as run_log
from scoreflow.runs.errors import RunError, UserError
from tests import tiny


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def logged(folder, name="loss"):
    return [record["step"] for record in run_log.read_metrics(folder) if name in record]


# ----------------------------------------------------------------------------------------------------------------------
# Steps.


SLOW = [pytest.param(*row, marks=pytest.mark.slow) for row in ((3, 11, 8), (7, 8, 5))]


@pytest.mark.parametrize("first, last, most", [(10, 20, 4), (0, 7, 3), *SLOW])
def test_the_last_step_is_saved_whatever_the_dispatch(tmp_path, first, last, most):
    """And the state is that of single steps: the split into dispatches is none of the run, nor is a stop in between."""
    intervals = {
        "training__schedule": "constant",
        "training__log_every": most,
        "training__checkpoint_every": most,
        "training__validate_every": 0,
    }
    if first:
        tiny.trained(tmp_path / "a", training__steps=first, **intervals)
    tiny.trained(tmp_path / "a", training__steps=last, training__steps_per_dispatch=most, **intervals)
    assert checkpoint.latest(workdir.checkpoints(tmp_path / "a")) == last
    assert logged(tmp_path / "a")[-1] == last and len(set(logged(tmp_path / "a"))) == len(logged(tmp_path / "a"))
    _, experiment = tiny.trained(tmp_path / "b", training__steps=last, **intervals)
    like = jax.eval_shape(lambda: experiment.init(jax.random.key(0)))
    ours, plain = (workdir.averaged(tmp_path / name, last, like) for name in "ab")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), ours, plain)


def test_dispatches_end_at_multiples_and_at_the_last_step():
    config = tiny.digits(training__steps=21, training__steps_per_dispatch=8, training__log_every=8)
    config.training.update({"checkpoint_every": 8, "validate_every": 8})
    experiment = configure.experiment(config, "tiny")
    options = configure.train_options(config, experiment)
    sizes = lambda start: [(first, len(batch["x"])) for first, batch in batches_of(experiment, options, start)]
    assert sizes(0) == [(0, 8), (8, 8), (16, 5)]
    assert sizes(3) == [(3, 5), (8, 8), (16, 5)]
    assert sizes(21) == []


def test_an_interval_is_due_where_a_multiple_of_it_is_passed():
    due = lambda interval: [step for step in range(4, 24, 4) if train._due(interval, step - 4, step, 20)]
    assert due(8) == [8, 16, 20] and due(6) == [8, 12, 20] and due(0) == [20] and due(1) == [4, 8, 12, 16, 20]


def test_a_longer_cosine_schedule_is_said(tmp_path, capsys):
    """At step 8 of 8 the rate is 0; of 16, after a warm-up of 2, it is half way down: cos^2(pi/2 * 6/14) of the peak."""
    tiny.trained(tmp_path)
    tiny.trained(tmp_path, training__steps=16)
    rate = 2e-3 * np.cos(np.pi / 2 * 6 / 14) ** 2
    said = capsys.readouterr().out
    assert "training.steps = 16, 8 before: the cosine schedule now ends there" in said
    assert f"at step 8 the learning rate is {rate:.2g}, not 0" in said


def test_a_run_that_is_done_says_so_and_nothing_of_training(tmp_path, capsys):
    tiny.trained(tmp_path)
    assert "trained to step 8 in" in capsys.readouterr().out
    for steps in (8, 4):
        tiny.trained(tmp_path, training__steps=steps)
        printed = capsys.readouterr().out
        assert "step 8 is there already" in printed and "trained to" not in printed
        assert "learning rate" not in printed and "compiling the training step" not in printed


@pytest.mark.parametrize(
    "mode, words",
    [
        ("train", "step 8 is saved, from which the same command goes on"),
        ("eval", "goes on after the last batch that was finished"),
        ("sample", "nothing is lost but this command's own work"),
    ],
)
def test_who_interrupts_a_command_is_told_what_is_kept(tmp_path, mode, words):
    tiny.trained(tmp_path)
    assert words in cli._way_on(mode, tmp_path)
    assert cli._way_on("train", tmp_path / "other") == cli._way_on("train", None) == "no step is saved yet"


# ----------------------------------------------------------------------------------------------------------------------
# Folders.


@pytest.mark.parametrize("wrong", ["first stage", "devices"])
def test_a_failed_start_leaves_nothing(tmp_path, wrong):
    config = tiny.digits()
    experiment = configure.experiment(config, "tiny")
    options = configure.train_options(config, experiment)
    if wrong == "first stage":
        options = options._replace(warm_start=WarmStart(tmp_path / "missing"))
    else:
        options = options._replace(batch_size=6)  # of four devices
    with pytest.raises(UserError):
        train.train(experiment, options, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_learned_nothing_makes_room(tmp_path):
    """Its loss was not finite before the first checkpoint; another learning rate may try again. A trained one stays."""
    config = tiny.digits(training__checkpoint_every=8, training__learning_rate=1e30)
    experiment = configure.experiment(config, "tiny")
    with pytest.raises(RunError):
        train.train(experiment, configure.train_options(config, experiment), tmp_path)
    lower = tiny.digits(training__learning_rate=1e-3).to_dict()
    assert workdir.stored_settings(tmp_path)["training.learning_rate"] == 1e30
    workdir.check(tmp_path, lower, resume=True)
    tiny.trained(tmp_path, training__learning_rate=1e-3)
    with pytest.raises(UserError, match=r"training\.learning_rate = 0\.001, not 1e\+30"):
        workdir.check(tmp_path, config.to_dict(), resume=True)


def test_settings_that_do_not_change_what_was_learned_may_change(tmp_path):
    config, experiment = tiny.trained(tmp_path)
    change = lambda name, value: configure.resolve(config, {name: value}).to_dict()
    for name, value in (("training.grad_accum", "2"), ("training.steps_per_dispatch", "2"), ("eval.batch_size", "4")):
        workdir.check(tmp_path, change(name, value), resume=True)
    for name, value in (("model.dtype", "bfloat16"), ("model.dropout", "0.5"), ("training.batch_size", "32")):
        workdir.check(tmp_path, change(name, value), resume=False)
        with pytest.raises(UserError, match=name):
            workdir.check(tmp_path, change(name, value), resume=True)
    with pytest.raises(UserError, match=r"model\.width"):
        workdir.check(tmp_path, change("model.width", "32"), resume=False)


def test_what_was_measured_for_a_run_is_no_difference_to_its_config():
    """A config that says auto is the config of the run that has the number, and another number is not."""
    file = tiny.digits(score__prediction="edm", score__sigma_data="auto")
    stored = overrides.flatten(configure.resolve(file, {"score.sigma_data": "0.5"}).to_dict())
    config, apart = configure.of_run(stored, None, file)
    assert apart == [] and config.score.sigma_data == 0.5
    file.score.sigma_data = 0.7
    assert configure.of_run(stored, None, file)[1] == ["score.sigma_data = 0.5, not 0.7"]


def test_the_validation_loss_does_not_depend_on_accumulation():
    """The best checkpoint goes by it across changes of grad_accum: one number for 1, 2 and 4 microbatches."""
    config = tiny.digits()
    experiment = configure.experiment(config, "tiny")
    options, params = configure.train_options(config, experiment), experiment.init(jax.random.key(0))
    measures = [options._replace(grad_accum=count, best=("validation",)) for count in (1, 2, 4)]
    losses = [train._measures(experiment, each)["validation"](params) for each in measures]
    assert losses[0] == losses[1] == losses[2]


def test_data_may_move_and_may_not_change_in_silence(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rng.integers(0, 17, (200, 8, 8), np.uint8))
    shutil.copy(tmp_path / "a.npy", tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", rng.integers(0, 17, (210, 8, 8), np.uint8))
    arrays = lambda name: {"name": "arrays", "path": str(tmp_path / f"{name}.npy"), "num_levels": 17}
    config, experiment = tiny.trained(tmp_path / "run", data=arrays("a"))
    facts = lambda name: data.describe(configure.dataset(tiny.digits(data=arrays(name))))
    for resume in (True, False):
        workdir.check(tmp_path / "run", tiny.digits(data=arrays("b")).to_dict(), resume=resume, data=facts("b"))
    words = "trained on other data: train was 180, is 189, test was 20, is 21, digest was"
    with pytest.raises(UserError, match=words):
        workdir.check(tmp_path / "run", tiny.digits(data=arrays("c")).to_dict(), resume=True, data=facts("c"))
    workdir.check(tmp_path / "run", tiny.digits(data=arrays("c")).to_dict(), resume=False, data=facts("c"))
    assert words in capsys.readouterr().err


def test_a_digest_knows_every_value_label_and_type():
    x, label = np.zeros((3000, 4), np.uint8), np.arange(3000, dtype=np.int32) % 3
    of = lambda x, label, levels=256: data.describe(data.Dataset("d", Split(x, label), Split(x[:5]), levels))["digest"]
    one = x.copy()
    one[2999, 3] = 1
    other = label.copy()
    other[17] = 0 if label[17] else 1
    digests = {
        of(x, label),
        of(one, label),
        of(x, other),
        of(x, None),
        of(x, label, 2),
        of(x.astype(np.float32), label),
    }
    assert len(digests) == 6 and of(x.copy(), label.copy()) in digests


# ----------------------------------------------------------------------------------------------------------------------
# Systems.


@pytest.mark.parametrize("system", ["without", "refusing"])
def test_a_checkpoint_is_written_where_nothing_can_be_reserved(tmp_path, monkeypatch, system):
    if system == "without":
        monkeypatch.delattr(os, "posix_fallocate")
    else:

        def refuse(*_):
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    state = parallel.replicate({"x": np.arange(5.0, dtype=np.float32)})
    checkpoint.save(tmp_path / "a", 3, state)
    np.testing.assert_array_equal(checkpoint.restore(tmp_path / "a", 3, state)["x"], state["x"])
    full = shutil.disk_usage(tmp_path)._replace(free=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(RunError, match=r"b/3 could not be written \(.*No space left"):
        checkpoint.save(tmp_path / "b", 3, state)
    assert not (tmp_path / "b" / "3").exists()


def test_home_is_known_in_every_path_and_an_object_store_in_none(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "x.npy", np.zeros((20, 3), np.float32))
    assert load.load("arrays", path="~/x.npy").shape == (3,)
    assert load.samples("~/x.npy", (3,), 0).shape == (20, 3)
    assert files.local("~/runs", "--workdir") == tmp_path / "runs"
    for path in ("gs://bucket/run", "s3://bucket/x.npy", "http://host/x"):
        with pytest.raises(UserError, match=f"data.path = '{path}': {path.partition(':')[0]} is not read or written"):
            load.load("arrays", path=path)
    with pytest.raises(UserError, match="init_from = 'gs://a'"):
        config = tiny.digits(init_from="gs://a")
        configure.train_options(config, configure.experiment(config, "tiny"))


def test_seeds_that_would_be_the_same_are_refused():
    for name in ("seed", "sampling.seed"):
        with pytest.raises(UserError, match=f"{name} = 4294967296 must be a whole number from 0 to below 2"):
            configure.resolve(tiny.digits(), {name: "4294967296"})


@pytest.mark.parametrize(
    "horizon, said", [(1.0, ""), (0.4, "choose terminal.name = mixture, or a larger process.horizon")]
)
def test_a_horizon_at_which_data_are_left_is_said(tmp_path, capsys, horizon, said):
    """exp(-int beta / 2) of the linear schedule from 0.1 to 20 is 0.0066 at t = 1, and 0.43 at t = 0.4."""
    tiny.trained(tmp_path, process__horizon=horizon, training__steps=2, training__warmup=0)
    printed = capsys.readouterr().out
    assert ("at t = T the data are still" in printed) == bool(said) and said in printed
