"""Runs next to each other: differences over the same examples, equal budgets, and what is read of damaged folders."""

import json
import os
import re
import shutil

import jax
import numpy as np
import pytest

from scoreflow import cli, compare, configure
from scoreflow.comparison import forms, measures, read, tables
from scoreflow.comparison import pairs as pairs_of
from scoreflow.comparison.budgets import budgets, losses_differ
from scoreflow.comparison.contents import compared
from scoreflow.comparison.pairs import paired, pairs
from scoreflow.dispatch import Dispatcher, batches_of
from scoreflow.experiment import INIT
from scoreflow.metrics import mean_estimate
from scoreflow.models import count_params
from scoreflow.runs import cost, lock
from scoreflow.runs.errors import UserError
from scoreflow.step import init_state
from tests import tiny


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def made(folder, *, config=None, lines=(), digest="d0", **evaluations):
    """The folder of a run as the modes write it; `evaluations` are step_<number>=(bits/dim, Frechet distance) or an
    array of bits/dim by example."""
    data = {"train": 90, "test": 30, "shape": [8, 8, 1]} | ({"digest": digest} if digest else {})
    settings = {"training": {"batch_size": 16}, "data": {"name": "digits"}} if config is None else config
    versions = {"scoreflow": "0.1.0"}
    about = {"config": settings, "name": "made", "data": data, "versions": versions, "devices": "1 x cpu in 1 process"}
    write_json(folder / "config.json", about)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, result in evaluations.items():
        step = int(name.removeprefix("step_"))
        bits, frechet = result if isinstance(result, tuple) else (float(np.mean(result)), 3.0)
        likelihood = {"bits_per_dim": {"value": bits, "stderr": 0.1}, "likelihood_nfe": 16.0, "likelihood_examples": 30}
        model = {"frechet": {"value": frechet, "stderr": 0.2}, "sample_nfe": 41.0, "samples": 100}
        samples = {"features": "pixels", "reference": "training data", "model": model, "test_data": {}}
        where = folder / "eval" / str(step)
        write_json(where / "metrics.json", {"step": step, "likelihood": likelihood, "samples": samples})
        write_json(where / "eval.json", {"step": step, "data": data, "settings": {"eval.draws": 5}})
        if not isinstance(result, tuple):
            keep(where, result)
    return folder


def keep(where, bits, first=0, seed=0):
    """Bits/dim of the test examples from `first` on."""
    index = np.arange(first, first + len(bits))
    content = np.random.default_rng(seed).integers(0, 2**63, 1000).astype(np.uint64)
    np.savez(where / "examples.npz", index=index, fingerprint=content[index], bits_per_dim=bits)


def opened(*folders, warn=pytest.fail):
    names = read.names(folders)
    return [read.read(folder, name, lambda settings: {}, warn) for folder, name in zip(folders, names)]


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_the_error_of_a_paired_difference_is_that_of_the_closed_form():
    """With x = c + u, y = c + v and orthogonal c, u, v of variances 9, 1, 1, the correlation is 9/10: the variance of
    x - y is 2, and for independent samples it would be 20, so that pairing divides the error by sqrt(10)."""
    signs = np.array([[1, 1], [1, -1]])
    hadamard = np.kron(np.kron(signs, signs), signs)  # orthogonal columns, all but the first of mean 0
    c, u, v = 3 * hadamard[:, 1], hadamard[:, 2], hadamard[:, 4]
    difference, stderr, unpaired = paired(2.0 + c + u, 1.75 + c + v)
    assert difference == pytest.approx(0.25)
    assert stderr == pytest.approx(np.sqrt(2 * (8 / 7) / 8))  # the sample variance has 7 in the denominator
    assert unpaired / stderr == pytest.approx(np.sqrt(10))


def test_runs_are_paired_over_the_examples_that_both_have(tmp_path):
    """One scored examples 0 ... 11, the other 4 ... 19, with a solve that failed: there are seven in common."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(2.0, 0.3, 12), rng.normal(2.1, 0.3, 16)
    second[1] = np.nan  # example 5
    a, b = made(tmp_path / "a", step_8=first), made(tmp_path / "b", step_8=second)
    keep(b / "eval" / "8", second, first=4)
    (pair,), notes = pairs(opened(a, b))
    both = np.array([4, 6, 7, 8, 9, 10, 11])
    wanted = mean_estimate(second[both - 4] - first[both])
    assert (pair.run, pair.other, pair.examples, notes) == (1, 0, 7, [])
    assert (pair.difference, pair.stderr) == pytest.approx(tuple(wanted))


@pytest.mark.parametrize("case", ["digest", "content", "other rows", "not kept"])
def test_runs_on_other_data_are_not_paired(tmp_path, case):
    """One line says why; without the digest, as of data that are drawn from a density, the content of examples does."""
    bits, digest = np.linspace(1, 2, 9), None if case == "content" else "d0"
    a = made(tmp_path / "a", step_8=bits, digest=digest)
    b = made(tmp_path / "b", step_8=bits, digest="d1" if case == "digest" else digest)
    if case in ("content", "other rows"):
        keep(b / "eval" / "8", bits, first=100 if case == "other rows" else 0, seed=case == "content")
    if case == "not kept":
        (b / "eval" / "8" / "examples.npz").unlink()
    runs = opened(a, b)
    paired_runs, notes = pairs(runs)
    words = {
        "digest": ["a and b are not paired: their data differ (digests d0 and d1)"],
        "content": ["a and b are not paired: their test examples differ"],
        "other rows": ["a and b are not paired: they have scored no test example in common"],
        "not kept": [],
    }
    assert paired_runs == [] and notes == words[case]
    if case == "not kept":
        (gap, *_) = compared(runs).gaps
        assert gap[0].startswith("b has not kept densities by example") and gap[1].endswith(f"{b} --mode=eval")


def test_what_is_best_counts_the_error_of_the_pair(tmp_path):
    """Means 2.0 and 2.1 with errors of 0.1 cannot be told apart, and the same examples tell them apart."""
    shared = np.linspace(-1, 1, 20)
    runs = opened(made(tmp_path / "a", step_8=2.0 + shared), made(tmp_path / "b", step_8=2.1 + shared))
    comparison = compared(runs)
    row = next(row for row in comparison.rows if row.name == "bits_per_dim")
    assert tables.best_of(row) == [False, False] and tables.best_of(row, comparison.pairs) == [True, False]
    assert "a has 0.1" in forms.in_terminal(comparison) and "bits/dim less than b" in forms.in_terminal(comparison)


# --- cost and budgets -------------------------------------------------------------------------------------------------


def test_seconds_follow_from_the_speed_between_lines(tmp_path):
    """Ten steps of 16 examples at 32 a second take 5 s, ten more at 16 a second take 10 s."""
    lines = [{"step": step, "loss": 1.0, "examples_per_second": speed} for step, speed in ((10, 32.0), (20, 16.0))]
    (run,) = opened(made(tmp_path / "a", lines=lines))
    assert [measures.seconds(run, step) for step in (0, 10, 15, 20, 21)] == pytest.approx([0.0, 5.0, 10.0, 15.0, None])


def budget_runs(tmp_path):
    """A run of 3 operations and 1 s a step, and one of 1 operation and 2 s, evaluated at steps 50, 100 and 200."""
    evaluations = {"step_50": (3.0, 9.0), "step_100": (2.5, 5.0), "step_200": (2.2, 4.0)}
    for name, operations, speed in (("a", 3.0, 16.0), ("b", 1.0, 8.0)):
        lines = [{"step": s, "loss": 1.0, "validation_loss": 0.1 * s, "examples_per_second": speed} for s in (100, 200)]
        cost.write(made(tmp_path / name, lines=lines, **evaluations), cost.Cost(10, operations, 2**20))
    return opened(tmp_path / "a", tmp_path / "b")


def test_equal_steps_operations_and_seconds_are_three_tables(tmp_path):
    """Step 200 costs (600, 200) operations, so the first run counts at step 50; and (200, 400) s, so the second counts
    at step 100. The validation loss is known at steps 100 and 200 alone."""
    by_axis = {each.axis: each for each in budgets(budget_runs(tmp_path))}
    assert {axis: each.budget for axis, each in by_axis.items()} == {"steps": 200, "operations": 200, "seconds": 200}
    values = lambda axis, name: [v.value for v in measures.of(by_axis[axis].rows, name).values]
    assert [values(axis, "step_evaluated") for axis in by_axis] == [[200, 200], [50, 200], [200, 100]]
    assert [values(axis, "bits_per_dim") for axis in by_axis] == [[2.2, 2.2], [3.0, 2.2], [2.2, 2.5]]
    assert [values(axis, "validation_loss") for axis in by_axis] == [[20.0, 20.0], [None, 20.0], [20.0, 10.0]]
    assert values("operations", "operations_evaluated") == [150, 200]


def test_none_is_the_best_where_one_had_spent_less(tmp_path):
    """Step 50 cost 150 of the 200 operations that step 200 of the other cost, and 200 s are 200 s: a quarter less is
    not equal, and equal steps are equal."""
    by_axis = {each.axis: each for each in budgets(budget_runs(tmp_path))}
    better = lambda axis, name: measures.of(by_axis[axis].rows, name).better
    assert [better(axis, "bits_per_dim") for axis in by_axis] == [-1, 0, -1]
    lines = lambda *steps: [{"step": step, "validation_loss": 0.1 * step} for step in steps]
    runs = opened(made(tmp_path / "c", lines=lines(80, 100)), made(tmp_path / "d", lines=lines(90)))
    (equal,) = budgets(runs)  # at most 90 steps, after which the first run was not validated
    loss = measures.of(equal.rows, "validation_loss")
    assert [value.value for value in loss.values] == [8.0, 9.0] and loss.better == 0


def test_a_quick_evaluation_does_not_replace_a_thorough_one(tmp_path):
    """Of one step: that of more test examples counts, then of more draws, then of more samples, then the newer one."""
    bits = np.linspace(1.0, 3.0, 20)
    folder = made(tmp_path / "a", step_8=bits)
    for number, count, options in ((2, 20, {"eval.draws": 5, "eval.num_samples": 9}), (3, 4, {"eval.draws": 50})):
        where = folder / "eval" / f"8-{number}"
        shutil.copytree(folder / "eval" / "8", where)
        write_json(where / "eval.json", {"step": 8, "settings": options})
        keep(where, bits[:count])
        os.utime(where / "metrics.json", (2e9 + number, 2e9 + number))
    (run,) = opened(folder)
    assert [each.name for each in run.evaluations] == ["8-3", "8", "8-2"]
    assert measures.newest(run)[0].name == "8-2" and pairs_of.with_examples(run).name == "8-2"


def test_losses_of_other_objectives_are_not_compared(tmp_path):
    settings = [{"loss": {"name": name}, "training": {"batch_size": 16}} for name in ("first_order", "high_order")]
    runs = opened(*(made(tmp_path / str(i), config=config) for i, config in enumerate(settings)))
    assert losses_differ(runs) == "loss.name differs" and losses_differ(runs[:1]) == ""


@pytest.mark.parametrize("changes", [{}, {"steps_per_dispatch": 2}, {"grad_accum": 2}], ids=str)
def test_operations_of_a_step_are_those_of_its_products(changes):
    """Of a dense network: two for each parameter and example, twice as many for the gradients; the same for several
    steps in a dispatch, and for microbatches."""
    config = tiny.digits(training__log_every=2, model={"width": 256, "depth": 2, "dropout": 0.0})
    experiment = configure.experiment(config, "tiny")
    options = configure.train_options(config, experiment)._replace(**changes)
    state = init_state(experiment.init, options.optimizer, experiment.key(INIT))
    _, batch = next(batches_of(experiment, options, 0))
    operations = Dispatcher(experiment, options).operations(state, batch)
    parameters = count_params(state.params)
    assert parameters > 200_000 and operations == pytest.approx(6 * parameters * 16, rel=0.25)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_run_in_training_is_shown_as_it_is(tmp_path):
    """Without an evaluation, and with a line of the log still in writing, which is no damage."""
    lines = [{"step": 5, "loss": 2.0, "examples_per_second": 16.0}]
    a = made(tmp_path / "a", lines=lines, step_8=(2.0, 3.0))
    b = made(tmp_path / "b", lines=lines)
    with open(b / "metrics.jsonl", "a") as log, lock.held(b, "training"):
        log.write('{"step": 6, "lo')
        log.flush()
        comparison = compare.compare([a, b], tmp_path / "out")
    assert [run.training for run in comparison.runs] == [False, True] and comparison.runs[1].step == 5
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "in training, at step 5" in page and "b is still training: numbers are those of now." in page
    what, command = comparison.gaps[0]
    assert what == "b has not been evaluated" and command.endswith(f"--workdir={b} --mode=eval")


def test_runs_of_older_versions_have_todays_names_and_defaults(tmp_path, capsys):
    """The old one calls its settings otherwise, lacks some, and has one that this version does not know."""
    digits = configure.resolve(tiny.digits()).to_dict()
    a = made(tmp_path / "a", config=digits, step_8=(2.0, 3.0))
    old = json.loads(json.dumps(digits))
    old["training"]["accumulate"] = old["training"].pop("grad_accum")
    old["score"]["kind"] = old["score"].pop("prediction")
    del old["score"]["energy_power"], old["training"]["skip"]
    old["training"]["forgotten"] = 7
    b = made(tmp_path / "b", config=old, step_8=(2.0, 3.0))
    (b / "eval" / "8" / "eval.json").unlink()
    comparison = compare.compare([a, b], tmp_path / "out", complete=cli._complete)
    assert comparison.settings.pop("training.forgotten") == [None, 7]
    assert {name.partition(".")[0] for name in comparison.settings} <= {"eval"}  # which the old one has not kept
    assert "WARNING" not in capsys.readouterr().err


DAMAGE = {
    "config.json": '{"config": {"mod',
    "metrics.jsonl": 'half a line\n{"step": 4, "loss": 1.0}\n',
    "cost.json": "[1]",
    "loss_by_log_snr.json": '{"log_snr": [1, 2], "train": [1], "test": [1, 2]}',  # not equally many
    "eval/8/metrics.json": "\x00",
    "eval/9/eval.json": "{",
    "eval/9/examples.npz": "PK",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_one_line(tmp_path, capsys, name):
    bits = np.linspace(1, 2, 9)
    folder = made(tmp_path / "a", lines=[{"step": 4, "loss": 1.0}], step_8=bits, step_9=bits)
    (folder / name).write_text(DAMAGE[name])
    comparison = compare.compare([folder, made(tmp_path / "b", step_8=bits)], tmp_path / "out", complete=cli._complete)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING: ")]
    assert len(warnings) == 1 and str(folder / name) in warnings[0], warnings
    assert warnings[0].removeprefix("WARNING: ") in comparison.notes
    assert [run.step for run in comparison.runs] == [9, 8]


def leaves(content, path=()):
    """The paths to everything in nested plain values."""
    children = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(leaf for key, value in children for leaf in leaves(value, (*path, key)))]


def replaced(content, path, value):
    """A copy with another value at a path."""
    if not path:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("name", ["config.json", "cost.json", "eval/8/metrics.json", "eval/8/eval.json"])
def test_no_value_of_another_kind_stops_a_comparison(tmp_path, name):
    """In the place of any one value of a file, whatever JSON can hold."""
    folder = made(tmp_path / "a", config=tiny.digits().to_dict(), step_8=np.linspace(1, 2, 9))
    cost.write(folder, cost.Cost(10, 1e6, 2**20))
    other = opened(made(tmp_path / "b", step_8=np.linspace(1, 2, 9)))
    content, rng = json.loads((folder / name).read_text()), np.random.default_rng(0)
    junk = [None, [], {}, "\ud800", float("nan"), float("inf"), -1, True, 10**400, [1, [2]], {"a": {"b": 1}}, 1e300]
    paths = leaves(content)
    for path in (paths[i] for i in rng.permutation(len(paths))[:25]):
        value = junk[rng.integers(len(junk))]
        (folder / name).write_text(json.dumps(replaced(content, path, value)))
        comparison = compared([read.read(folder, "a", cli._complete, lambda message: None), *other])
        assert forms.in_terminal(comparison) and forms.in_markdown(comparison), (path, value)
        json.dumps(forms.in_json(comparison), allow_nan=False)


def test_settings_that_cannot_be_completed_are_shown_as_they_are(tmp_path, capsys):
    a = made(tmp_path / "a", config={"process": {"name": "of the future", "speed": 3}})
    (run,) = compare.compare([a], tmp_path / "out", complete=cli._complete).runs
    assert run.settings == {"process.name": "of the future", "process.speed": 3}
    assert "are shown as they are, without defaults" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        ("", "--runs is empty"),
        ("none", "--runs: none is no folder"),
        ("a/config.json", "is a file; give folders of runs"),
        ("empty", "--runs: empty is no run and holds none"),
        ("a,b,./a", "--runs: a is given twice"),
        ("a,.", "--runs: a is given twice"),
    ],
)
def test_wrong_runs_are_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("a", "b"):
        made(tmp_path / name)
    with pytest.raises(UserError, match=re.escape(message)):
        read.folders(words)


def test_runs_are_named_by_as_much_of_their_path_as_tells_them_apart(tmp_path):
    paths = [made(tmp_path / name) for name in ("x/a", "y/a", "y/b")]
    assert read.names(paths) == ["x/a", "y/a", "y/b"] and read.names(paths[1:]) == ["a", "b"]
    assert read.folders(str(tmp_path / "y")) == paths[1:]


def test_a_comparison_is_written_next_to_its_runs_and_over_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a, b = (made(tmp_path / "runs" / name) for name in "ab")
    assert [str(compare.place(runs, None)) for runs in ([a, b], [a], [a, b])] == [
        "runs/compare",
        "runs/compare-2",
        "runs/compare",
    ]
    given = compare.place([a, b], tmp_path / "mine")
    compare.compare([a, b], given)
    assert compare.place([a, b], given) == given and "replacing" not in capsys.readouterr().out
    compare.place([a], given)
    assert f"replacing the comparison of a, b in {given}" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "compare.md").write_text("of a person")
    for path, message in ((a, "holds a run"), (tmp_path / "other", "has a compare.md of another origin")):
        with pytest.raises(UserError, match=message):
            compare.place([a, b], path)
