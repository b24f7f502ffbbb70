"""Terminal distributions from a config to an evaluation: fitted and frozen parameters stay, and T is the one set."""

import json

import jax
import numpy as np
import pytest

from scoreflow import configure, terminal, train
from scoreflow.evaluate import evaluate
from scoreflow.experiment import INIT, load_params
from scoreflow.models import MAIN, TERMINAL
from scoreflow.runs import checkpoint, workdir
from scoreflow.runs.errors import UserError
from tests import tiny

SMALL = {"eval__draws": 1, "eval__rtol": 1e-2, "eval__atol": 1e-2}


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def run(folder, **changes):
    """Trains; (experiment, config, averaged parameters)."""
    config = tiny.digits(**SMALL, **changes)
    experiment = configure.experiment(config, "configs/tiny.py")
    train.train(experiment, configure.train_options(config, experiment), folder)
    return experiment, config, load_params(experiment, folder, workdir.newest(folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run with the process's own Gaussian, to T = 0.5."""
    folder = tmp_path_factory.mktemp("finished")
    with jax.numpy_rank_promotion("allow"):
        run(folder, process__horizon=0.5)
    return folder


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


ALONE = {"training__learn": "terminal", "training__steps": 0, "process__horizon": 0.2}


@pytest.mark.slow
def test_a_mixture_fitted_to_a_finished_score(finished, tmp_path, capsys):
    """The score is that of the first run to the last bit, at a shorter T; evaluation compares the distributions and
    names T*."""
    mixture = {"name": "mixture", "components": 2, "covariance": "low_rank", "rank": 4}
    experiment, config, params = run(tmp_path, terminal=mixture, init_from=str(finished), **ALONE)
    first = configure.experiment(tiny.digits(process__horizon=0.5), "first")
    same(params[MAIN], load_params(first, finished, workdir.newest(finished)))
    assert config.training.steps == 0 and workdir.newest(tmp_path) == 0
    assert "raise training.steps" not in capsys.readouterr().out
    again = run(tmp_path, terminal=mixture, init_from=str(finished), **ALONE)[2]  # the same command again
    same(again, params)
    assert "step 0 is there already" in capsys.readouterr().out
    config.eval.update({"horizons": (0.05, 0.2), "bound_times": 10})
    short, last = evaluate(experiment, configure.evaluation(config, tmp_path), tmp_path)["horizons"]
    assert "slope_fitted" in short and short["T"] == pytest.approx(0.05)
    difference = last["prior"].value - last["fitted"].value
    assert last["gain"].value == pytest.approx(difference, abs=1e-4)
    assert last["gain_nats"].value == pytest.approx(difference * 64 * np.log(2), rel=1e-3)
    assert last["gain"].value > 0.1  # of a network that learned next to nothing, most
    printed = capsys.readouterr().out
    assert "T* = " in printed and "with the fitted distribution" in printed
    written = json.loads((tmp_path / "eval" / "0" / "metrics.json").read_text())
    assert written["horizons"][1]["fitted"]["value"] == last["fitted"].value


@pytest.mark.slow
def test_a_fitted_mixture_does_not_move_while_the_score_is_trained(tmp_path):
    experiment, _, params = run(tmp_path, terminal={"name": "mixture", "fitted_to": "end"}, process__horizon=0.3)
    fitted = experiment.model.fits[TERMINAL](None, jax.random.fold_in(experiment.key(INIT), 1))
    same(params[TERMINAL], fitted)
    assert float(fitted["along"].min()) >= float(experiment.model.process.variance(0.3)) * (1 - 1e-6)


@pytest.mark.slow
def test_a_flow_is_trained_on_the_end_of_the_path_and_the_score_is_not_touched(finished, tmp_path):
    """Its nats fall; the network of the first run stays; and it is used at its own T alone."""
    flow = {"name": "glow", "resolutions": 1, "steps": 1, "width": 8, "learning_rate": 0.01}
    changes = ALONE | {"training__steps": 60, "training__warmup": 0, "training__log_every": 20}
    changes |= {"training__checkpoint_every": 60, "training__validate_every": 60, "training__batch_size": 64}
    experiment, config, params = run(tmp_path, terminal=flow, init_from=str(finished), **changes)
    first = configure.experiment(tiny.digits(process__horizon=0.5), "first")
    same(params[MAIN], load_params(first, finished, workdir.newest(finished)))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    nats = [record["terminal"] for record in records if "terminal" in record]
    assert nats[-1] < nats[0]
    assert not experiment.model.family.anywhere
    config.eval.update({"horizons": (0.1, 0.2), "bound_times": 5})
    short, last = evaluate(experiment, configure.evaluation(config, tmp_path), tmp_path)["horizons"]
    assert "fitted" not in short and "fitted" in last


@pytest.mark.slow
def test_beside_the_score_the_flow_changes_nothing_of_it(tmp_path):
    """Two runs of one seed whose flows learn at different rates have the same score, step by step."""
    flow = {"name": "glow", "resolutions": 1, "steps": 1, "width": 4}
    slow, fast = (run(tmp_path / str(rate), terminal=flow | {"learning_rate": rate})[2] for rate in (1e-5, 1e-2))
    same(slow[MAIN], fast[MAIN])
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), slow[TERMINAL]["flow"], fast[TERMINAL]["flow"])
    assert max(jax.tree.leaves(apart["params"])) > 0 == max(jax.tree.leaves(apart["fixed"]))


@pytest.mark.slow
def test_a_longer_path_or_another_process_than_the_score_was_trained_for_is_refused(finished, tmp_path):
    for changes, words in (
        ({"process__horizon": 0.6}, "process.horizon = 0.5"),
        ({"process__beta_max": 10.0}, "beta_max"),
    ):
        with pytest.raises(UserError, match=words):
            run(tmp_path, terminal={"name": "mixture"}, init_from=str(finished), **(ALONE | changes))
    run(tmp_path / "prior", init_from=str(finished), **ALONE)  # none fitted at all: the same score from an earlier T
    assert checkpoint.latest(workdir.checkpoints(tmp_path / "prior")) == 0


@pytest.mark.slow
def test_samples_of_any_generator_start_the_path(tmp_path):
    """Start: alpha x + sigma noise of the file's images; likelihood is refused in words, and a wrong file too."""
    images = np.full((20, 8, 8, 1), 16, np.uint8)
    np.save(tmp_path / "images.npy", images)
    pushforward = {"name": "pushforward", "path": str(tmp_path / "images.npy")}
    experiment, config, params = run(
        tmp_path / "run", terminal=pushforward, process__horizon=0.1, eval__likelihood=False
    )
    start = experiment.model.terminal(params)
    assert isinstance(start, terminal.Pushforward)
    x = np.asarray(start.sample(jax.random.key(0), (4000, 8, 8, 1)))
    alpha, sigma = float(experiment.model.process.alpha(0.1)), float(experiment.model.process.sigma(0.1))
    assert x.mean() == pytest.approx(alpha * (1 - 1 / 17), abs=4 * sigma / np.sqrt(x.size) + 2e-3)
    metrics = evaluate(experiment, configure.evaluation(config, tmp_path), tmp_path / "run")
    assert metrics["samples"]["model"]["samples"] == 100
    with pytest.raises(UserError, match="eval.likelihood = False"):
        configure.experiment(tiny.digits(terminal=pushforward), "likelihood")
    for array, words in ((images[..., :4, :], "8, 8, 1"), (images.astype(np.float32), "uint8")):
        np.save(tmp_path / "images.npy", array)
        with pytest.raises(UserError, match=words):
            configure.experiment(tiny.digits(terminal=pushforward, eval__likelihood=False), "wrong")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"training__learn": "terminal"}, "needs init_from"),
        ({"training__steps": 0}, "training.steps = 0 must be above 0"),
        ({"training__learn": "terminal", "init_from": "x", "terminal": {"name": "mixture"}}, "must be 0: training.learn"),
        ({"terminal": {"name": "pushforward"}, "eval__likelihood": False}, "no such file of samples"),
        ({"terminal": {"name": "glow", "resolutions": 4}}, "terminal.resolutions = 4 needs images whose sides 16"),
        (
            {"terminal": {"name": "mixture", "rnak": 3}},
            "^terminal.rnak is not a known setting; the nearest are terminal.rank, ",
        ),
        ({"eval__horizons": (0.5, 2.0)}, "not beyond process.horizon = 1.0"),
        ({"eval__horizons": (0.5, -1.0)}, "must be a tuple of numbers above 0, or \\(\\)$"),
    ],
)  # fmt: skip
def test_terminal_settings_that_cannot_work_are_refused_in_one_line(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        configure.experiment(tiny.digits(**changes), "wrong")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, horizon, steps", [("vp_linear", 0.25, 10), ("vp_linear", 0.01, 1), ("edm", 40.0, 20), ("edm", 80.0, 40)]
)
def test_steps_scale_with_the_horizon_of_the_process_unless_told_not_to(name, horizon, steps):
    for scale, wanted in ((True, steps), (False, 40)):
        config = tiny.digits(
            process={"name": name, "horizon": horizon}, sampling__steps=40, sampling__scale_steps=scale
        )
        assert len(configure.experiment(config, "grid").sampler.grid) == wanted + 1
