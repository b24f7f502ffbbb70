"""Ctrl-C and SIGTERM: a training saves the step that it is at."""

import os
import signal

import jax
import pytest

from scoreflow import train
from scoreflow.runs import checkpoint, parallel, stop, workdir
from tests.test_train import _experiment, _run, _same, whole  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_which_is_saved(whole, tmp_path, monkeypatch, capfd, number):  # noqa: F811
    """Between two checkpoints; the run then goes on to the same end, and signals are as they were before."""
    experiment, options = _experiment()
    before, check = signal.getsignal(number), train.check_finite

    def at_the_fifth(metrics, first, *args, **keywords):
        if first == 4:
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) is before  # so that a second one has its usual effect
        return check(metrics, first, *args, **keywords)

    monkeypatch.setattr(train, "check_finite", at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        train.train(experiment, options._replace(checkpoint_every=4), tmp_path)
    monkeypatch.undo()
    assert checkpoint.latest(workdir.checkpoints(tmp_path)) == 5 and signal.getsignal(number) is before
    assert "stopping after this step" in capfd.readouterr().err
    step, state = _run(tmp_path)
    assert step == 8 and _same(state, whole[1])


def test_of_several_processes_none_stops_alone(monkeypatch):
    monkeypatch.setattr(parallel, "processes", lambda: (0, 2))
    before = signal.getsignal(signal.SIGTERM)
    with stop.listening() as stopping:
        stopping.begin()
        assert signal.getsignal(signal.SIGTERM) is before and not stopping.asked
