"""Folders of runs that are not as a run leaves them: of another version, damaged, without parts, or in use."""

import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import configure, train
from scoreflow.evaluate import evaluate
from scoreflow.experiment import load_newest
from scoreflow.runs import checkpoint, lock, workdir
from scoreflow.runs import log as run_log
from scoreflow.runs.errors import UserError
from tests import tiny


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 steps, and its config."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with jax.numpy_rank_promotion("allow"):
        return folder, tiny.trained(folder)[0]


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run that may be changed, and its config."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    return folder, finished[1]


def damage(folder, step):
    """Alters a file of a checkpoint."""
    path = max(
        (p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    path.write_bytes(path.read_bytes()[:-3])


# ----------------------------------------------------------------------------------------------------------------------
# Other versions.


def with_settings(folder, **settings):
    """Adds settings, section__name, to the stored ones, as another version would have."""
    content = json.loads((folder / "config.json").read_text())
    for name, value in settings.items():
        section, _, key = name.partition("__")
        content["config"].setdefault(section, {})[key] = value
    content["versions"]["scoreflow"] = "9.1"
    (folder / "config.json").write_text(json.dumps(content))


def checked(run, resume):
    folder, config = run
    config = configure.resolve(config)
    workdir.check(folder, config.to_dict(), resume=resume, defaults=configure.flat_defaults(config))


def test_a_setting_of_another_version_is_named_when_its_run_is_used_and_refused_when_it_goes_on(run, capsys):
    with_settings(run[0], score__newer_setting=3)
    checked(run, resume=False)
    said = capsys.readouterr().err
    assert "settings that this version does not know, and which are ignored: score.newer_setting = 3\n" in said
    words = r"made by another version of scoreflow \(9\.1\), which had score\.newer_setting = 3; .*init_from"
    with pytest.raises(UserError, match=words) as error:
        checked(run, resume=True)
    assert "set it back" not in str(error.value)
    with pytest.raises(UserError, match=r"another version of scoreflow \(9\.1\), which had score\.newer_setting = 3"):
        workdir.check_same(run[0], run[1].to_dict(), ("score.",))


def test_a_setting_of_another_version_that_is_not_learned_with_does_not_stop_training(run, capsys):
    with_settings(run[0], eval__newer=3, sampling__newer=1)
    checked(run, resume=True)
    assert "ignored: eval.newer = 3, sampling.newer = 1\n" in capsys.readouterr().err


def test_settings_of_another_choice_are_not_of_another_version(run, capsys):
    """A fixed grid's sampler has settings that the adaptive one lacks."""
    folder, config = run
    config = configure.resolve(config, {"sampler.name": "adaptive"})
    workdir.check(folder, config.to_dict(), resume=False, defaults=configure.flat_defaults(config))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_without_its_config_goes_on_with_a_line(run, capsys, resume):
    """As the line about an unreadable config.json advises."""
    folder, config = run
    (folder / "config.json").unlink()
    checked(run, resume)
    experiment = configure.experiment(config, "tiny")
    if resume:
        train.train(experiment, configure.train_options(config, experiment), folder)
        assert workdir.stored_settings(folder)["model.width"] == 16
    assert capsys.readouterr().err.count("has checkpoints and no config.json") == 1


def test_a_run_begins_from_another_without_a_config_with_a_line(run, tmp_path, capsys):
    (run[0] / "config.json").unlink()
    config = tiny.digits(init_from=str(run[0]), training__pictures=False)
    experiment = configure.experiment(config, "tiny")
    options = configure.train_options(config, experiment)
    options = options._replace(warm_start=options.warm_start._replace(same=("model.", "data.")))
    train.train(experiment, options, tmp_path / "new")
    assert "has checkpoints and no config.json" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------------
# Damage.


def test_training_does_not_begin_again_over_damaged_checkpoints(run, capsys):
    folder, config = run
    experiment = configure.experiment(config, "tiny")
    start = lambda: train.train(experiment, configure.train_options(config, experiment), folder)
    for step in (4, 6, 8):
        damage(folder, step)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"none of its 3 checkpoints is whole \(step 8: .*remove \S+checkpoints to begin"
    ):
        start()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "going back" not in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be used: none of its 3 checkpoints is whole"):
        load_newest(experiment, folder)
    shutil.rmtree(folder / "checkpoints")  # as advised
    start()
    assert checkpoint.latest(folder / "checkpoints") == 8


def test_training_begins_again_where_its_first_save_was_killed(run, capsys):
    folder, config = run
    for step in (4, 6):
        shutil.rmtree(folder / "checkpoints" / str(step))
    (folder / "checkpoints" / "8.sha256.json").unlink()
    experiment = configure.experiment(config, "tiny")
    train.train(experiment, configure.train_options(config, experiment), folder)
    assert "first save" in capsys.readouterr().err
    assert [r["step"] for r in run_log.read_metrics(folder) if "loss" in r] == [2, 4, 6, 8]
    assert checkpoint.latest(folder / "checkpoints") == 8


def test_an_old_checkpoint_is_kept_until_the_new_one_counts(tmp_path, monkeypatch):
    """Killed before its seal is written, a save with keep = 1 has lost nothing."""
    checkpoint.save(tmp_path, 2, {"x": jnp.ones(3)}, keep=1)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_digests", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 4, {"x": jnp.zeros(3)}, keep=1)
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path) == 2
    checkpoint.quarantine(tmp_path, 2)
    checkpoint.save(tmp_path, 4, {"x": jnp.zeros(3)}, keep=1)
    assert checkpoint.latest(tmp_path) == 4 and not (tmp_path / "2").exists()


# ----------------------------------------------------------------------------------------------------------------------
# In use.


def test_a_run_is_used_while_it_prunes_its_checkpoints(run, monkeypatch):
    """The newest step vanishes when it has been chosen, and again when its digest has been read: newer ones are used."""
    folder, config = run
    experiment = configure.experiment(config, "tiny")
    like = jax.eval_shape(lambda: experiment.init(jax.random.key(0)))
    params = workdir.averaged(folder, 8, like)
    sealed, averaged = workdir.sealed, workdir.averaged

    def replace(step):
        checkpoint.save(folder / "checkpoints", step + 2, {"ema_params": params}, keep=1)

    def vanishing_seal(workdir, step, best=""):
        if step == 8:
            replace(step)
        return sealed(workdir, step, best)

    def vanishing_files(workdir, step, like, best=""):
        if step == 10:
            replace(step)
        return averaged(workdir, step, like, best)

    monkeypatch.setattr(workdir, "sealed", vanishing_seal)
    monkeypatch.setattr(workdir, "averaged", vanishing_files)
    loaded = load_newest(experiment, folder)
    assert loaded.step == 12 and loaded.digest == sealed(folder, 12)


def test_a_step_that_is_being_saved_is_no_damage_while_a_training_holds_the_folder(run, capsys):
    folder, _ = run
    (folder / "checkpoints" / "8.sha256.json").unlink()
    with lock.held(folder, "training"):
        assert workdir.newest(folder) == 6 and capsys.readouterr().err == ""
    assert workdir.newest(folder) == 6 and "8 is damaged: it was never sealed" in capsys.readouterr().err
    shutil.rmtree(folder / "checkpoints")
    with lock.held(folder, "training"), pytest.raises(UserError, match="is being trained and has saved no checkpoint"):
        workdir.newest(folder)
    with pytest.raises(UserError, match="train first"):
        workdir.newest(folder)


@pytest.mark.parametrize(
    "content", [{"job": 1, "node": "a", "when": "now"}, {"host": "elsewhere"}, {"pid": "x"}, [1], 3]
)
def test_a_lock_file_of_another_form_is_no_holder_with_a_name(tmp_path, content):
    """Held by another thread, which has the file open; whatever it says, the refusal is one line."""
    path, done, ready = tmp_path / "lock.json", threading.Event(), threading.Event()

    def hold():
        with lock.held(tmp_path, "training"):
            path.write_text(json.dumps(content))
            ready.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert ready.wait(60)
        with pytest.raises(UserError, match="in use: training by another process"), lock.held(tmp_path, "training"):
            pass
        lock.busy(tmp_path)
    finally:
        done.set()
        thread.join()
    path.write_text(json.dumps({"host": "elsewhere", "other": 1, "key": 2}))
    with pytest.raises(UserError, match="by another process"), lock.held(tmp_path, "training"):
        pass


def test_the_lock_of_a_process_that_is_gone_is_not_busy(tmp_path):
    assert not lock.busy(tmp_path) and not lock.busy(tmp_path / "missing")
    with lock.held(tmp_path, "training"):
        content = json.loads((tmp_path / "lock.json").read_text())
        assert lock.busy(tmp_path)
    (tmp_path / "lock.json").write_text(json.dumps(content | {"pid": 2**30}))  # beyond every process
    assert not lock.busy(tmp_path)


@pytest.mark.parametrize("made_before", [True, False])
def test_a_failed_start_leaves_folders_as_they_were(tmp_path, made_before):
    folder = tmp_path / "runs" / "mine"
    if made_before:
        folder.mkdir(parents=True)
    with pytest.raises(RuntimeError), lock.held(folder, "training"):
        raise RuntimeError
    assert folder.exists() == (tmp_path / "runs").exists() == made_before


def test_a_failed_start_without_the_weights_of_a_measure_leaves_nothing(tmp_path):
    config = tiny.digits(training__best=("frechet",), eval__features="inception", data__dir=str(tmp_path / "data"))
    experiment = configure.experiment(config, "tiny")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="put it at"):
        train.train(experiment, configure.train_options(config, experiment), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("what", ["train", "evaluate"])
def test_a_command_is_refused_while_another_holds_its_folder(run, what):
    folder, config = run
    experiment = configure.experiment(config, "tiny")
    if what == "train":
        begin, held = lambda: train.train(experiment, configure.train_options(config, experiment), folder), folder
    else:
        evaluation = configure.evaluation(config, folder / "cache")._replace(evaluators={})
        begin, held = lambda: evaluate(experiment, evaluation, folder), folder / "eval" / "8"
        begin()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with lock.held(held, "another command"), pytest.raises(UserError, match=f"{held} is in use"):
        begin()
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert after == before
    begin()  # once the other is gone


# ----------------------------------------------------------------------------------------------------------------------
# Schedules.


def test_a_longer_cosine_schedule_of_the_vae_is_said(capsys):
    """From 1e-4 to 1e-5: at step 8 of 8 the rate is 1e-5; of 16, after a warm-up of 2, it is cos^2(pi/2 * 6/14) down."""
    from scoreflow.begin import say_if_stretched

    config = tiny.digits(training__schedule="constant").to_dict()
    config["latent"] = {
        "name": "joint",
        "learning_rate": 1e-4,
        "learning_rate_end": 1e-5,
        "eps": 1e-3,
        "weight_decay": 3e-4,
    }
    say_if_stretched(config, 8, 8, 16)
    rate = 1e-5 + 9e-5 * np.cos(np.pi / 2 * 6 / 14) ** 2
    printed = capsys.readouterr().out
    assert f"at step 8 the VAE's learning rate is {rate:.2g}, not 1e-05" in printed and printed.count("\n") == 2
    config["training"]["schedule"] = "cosine"
    say_if_stretched(config, 8, 8, 16)
    assert capsys.readouterr().out.count("\n") == 3
    say_if_stretched(config | {"latent": {"name": "none"}}, 8, 8, 8)
    assert capsys.readouterr().out == ""
