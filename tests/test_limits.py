"""Values and paths that are allowed as such and cannot work: one line, before anything is begun."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from scoreflow import cli, configure, train
from scoreflow.runs import files, parallel
from scoreflow.runs.errors import UserError
from scoreflow.step import init_state
from tests import tiny


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model__width": 10**9}, "a training state of 5,000,000,203,000,000,064 parameters.*choose a smaller model"),
        ({"training__batch_size": 10**10}, "training.batch_size = 10000000000 needs .* GiB.*choose a smaller one"),
        ({"training__batch_size": 10**18}, "training.batch_size = 1000000000000000000 needs .* GiB"),
    ],
)
def test_training_that_no_memory_can_hold_is_refused_and_leaves_nothing(tmp_path, changes, words):
    config = tiny.digits(**changes)
    experiment = configure.experiment(config, "huge")
    with pytest.raises(UserError, match=words):
        train.train(experiment, configure.train_options(config, experiment), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_sampling_that_no_memory_can_hold_is_refused():
    from scoreflow.draw import make_draw

    experiment = configure.experiment(tiny.digits(), "tiny")
    with pytest.raises(UserError, match="sampling.batch_size = 10000000000 needs"):
        make_draw(experiment, 10**10)


def test_a_training_state_may_fill_the_memory_of_a_device_and_not_more(monkeypatch):
    """Of n parameters: their values, averages and two moments in four bytes each, and two counts of steps."""
    config = tiny.digits()
    experiment = configure.experiment(config, "tiny")
    optimizer = configure.train_options(config, experiment).optimizer
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    for room, fits in ((16 * count, False), (16 * count + 64, True)):
        monkeypatch.setattr(parallel, "memory", lambda room=room: room)
        if fits:
            init_state(experiment.init, optimizer, jax.random.key(0))
        else:
            with pytest.raises(UserError, match=f"of {count:,} parameters"):
                init_state(experiment.init, optimizer, jax.random.key(0))
    monkeypatch.setattr(parallel, "memory", lambda: None)  # where nothing says so
    init_state(experiment.init, optimizer, jax.random.key(0))


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="it is Linux that says so")
def test_the_memory_of_this_machine_is_what_it_says():
    kilobytes = re.search(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())[1]
    assert parallel.memory() == int(kilobytes) * 1024


@pytest.mark.parametrize("kind", ["host", "device", "other"])
def test_memory_that_runs_out_is_one_line(tmp_path, monkeypatch, capsys, kind):
    """Through the command, with an error as NumPy and XLA raise it; another of XLA's is not hidden."""
    errors = {
        "host": MemoryError("Unable to allocate 74.5 GiB for an array"),
        "device": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 256 bytes.\nmore"),
        "other": jax.errors.JaxRuntimeError("INTERNAL: something else"),
    }

    def fail(*_):
        raise errors[kind]

    monkeypatch.setattr(train, "Dispatcher", lambda *_: fail)
    monkeypatch.setattr(cli, "_config", lambda mode: ("tiny", tmp_path / "run", configure.resolve(tiny.digits())))
    if not cli.flags.FLAGS.is_parsed():
        cli.flags.FLAGS(["scoreflow"])
    if kind == "other":
        with pytest.raises(jax.errors.JaxRuntimeError):
            cli._main([])
        return
    with pytest.raises(SystemExit) as ended:
        cli._main([])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert ended.value.code == 1 and len(said) == 1 and said[0].startswith("error: out of memory (")
    assert "more" not in said[0].split(";")[0] and not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["gs:/bucket/run", "s3:/bucket/x.npy", "file:/tmp/x"])
def test_an_address_with_one_slash_is_no_folder(path):
    with pytest.raises(UserError, match=f"--workdir = '{path}': {path.partition(':')[0]} is not read or written"):
        files.local(path, "--workdir")


def test_paths_with_a_colon_are_paths():
    for path in ("a:b/c", "12:30/run", "C:/runs", "runs/gs:"):
        assert files.local(path, "--workdir") == Path(path)


def test_the_home_of_nobody_is_one_line():
    with pytest.raises(UserError, match="--workdir = '~nobody_here/run': no home folder of that user"):
        files.local("~nobody_here/run", "--workdir")
    with pytest.raises(UserError, match="--config = '~nobody_here/x.py': no home folder of that user"):
        cli.find("~nobody_here/x.py")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are text")
def test_a_workdir_that_is_not_in_utf_8_is_one_line(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(tiny.ROOT)}
    command = [sys.executable, "-m", "scoreflow", "--config=vp_digits", b"--workdir=run-\xff"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "checkpoints need a path in UTF-8" in result.stderr and list(tmp_path.iterdir()) == []


def test_a_run_does_not_lie_in_the_folder_of_its_images(tmp_path):
    (tmp_path / "photos").mkdir()
    for inside in ("photos", "photos/run", "photos/../photos/a/b"):
        with pytest.raises(UserError, match="its pictures would become training images"):
            files.apart(tmp_path / inside, str(tmp_path / "photos"))
    files.apart(tmp_path / "run", str(tmp_path / "photos"))
    files.apart(tmp_path / "photos2", str(tmp_path / "photos"))


def test_a_path_that_the_data_set_does_not_read_is_refused():
    with pytest.raises(
        UserError, match=r"data.path = photos is not read by data.name = digits; set data.name = folder"
    ):
        configure.check(configure.resolve(tiny.digits(), {"data.path": "photos"}))
