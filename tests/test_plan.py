"""Planning on data that are Gaussian, where what it says can be computed by hand."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import configure, planner
from scoreflow.processes import sdes, transitions
from scoreflow.samplers import grids
from scoreflow.theory import exact, wasserstein
from tests import tiny


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """(experiment, options, rows, folder) for 4,000 points of a correlated Gaussian in three dimensions."""
    folder = tmp_path_factory.mktemp("plan")
    rng = np.random.default_rng(0)
    mixing = np.array([[1.0, 0.5, 0.0], [0.0, 0.8, 0.3], [0.0, 0.0, 0.6]])
    np.save(folder / "gaussian.npy", (rng.standard_normal((4000, 3)) @ mixing + 0.2).astype(np.float32))
    config = tiny.digits(
        data__name="arrays", data__path=str(folder / "gaussian.npy"), sampler__name="ancestral", plan__steps=(50, 10),
        plan__num=3000,
    )  # fmt: skip
    experiment = configure.experiment(config, "gaussian")
    options = configure.planner_options(config)
    kept = ("vp_linear", "vp_cosine", "vp_constant", "ve_geometric")
    options = options._replace(others={name: sdes.NAMED[name]() for name in kept})
    rows = planner.plan(experiment, options, folder)  # which puts the numbers of steps in order
    return experiment, options._replace(steps=(10, 50)), rows, folder


@pytest.mark.slow
def test_the_gaussian_is_that_of_the_data(planned):
    experiment, options, _, _ = planned
    x = experiment.data.train.x[:3000].astype(np.float64)
    gaussian = planner.fit_gaussian(experiment, None, options.num)
    values, axes = np.linalg.eigh(np.cov(x.T))
    np.testing.assert_allclose(gaussian.variance, values, rtol=1e-6)
    np.testing.assert_allclose(np.abs(gaussian.mean), np.abs(axes.T @ x.mean(0)), rtol=1e-4)
    target = planner.target_of(gaussian)
    assert target.m0 == pytest.approx(1 / values.max()) and target.L0 == pytest.approx(1 / values.min())
    assert target.x0_l2 == pytest.approx(math.sqrt((x**2).sum(1).mean()), rel=1e-3)
    assert planner.target_of(exact.Gaussian(np.zeros(2), np.array([1.0, 0.0]))).L0 == math.inf


@pytest.mark.slow
def test_rows_are_what_the_theory_says(planned, x64):
    """The configured process by hand: its horizon, and the distances at both ends of its steps."""
    experiment, options, rows, _ = planned
    data = jax.tree.map(jnp.asarray, planner.fit_gaussian(experiment, None, options.num))
    target, accuracy = planner.target_of(data), 0.1 * math.sqrt(float(data.variance.sum()))
    row = rows[0]
    assert row.name == options.configured == "vp_linear" and options.rule is transitions.ancestral
    process = sdes.vp_linear(horizon=row.horizon)
    assert float(wasserstein.start_limit(process, target)) == pytest.approx(accuracy / 2, rel=1e-9)
    start = exact.Gaussian(jnp.zeros(3), jnp.ones(3))  # what sampling starts from
    for name, make in (("uniform", grids.uniform), ("log_snr", grids.log_snr)):
        needed = row.grids[name]

        def distance(k, make=make):
            times = make(process, k, t_min=options.t_min)
            return float(exact.w2(exact.gaussian_law(process, times, transitions.ancestral, data, start=start), data))

        assert distance(needed.steps) <= accuracy < distance(needed.steps - 1)
        np.testing.assert_allclose(needed.distances, [distance(k) for k in options.steps], rtol=1e-9)
        assert all(exact_one <= bound for exact_one, bound in zip(needed.distances, needed.bounds))
        assert needed.promised is None or needed.promised >= needed.steps


@pytest.mark.slow
def test_retimings_are_one_sampler_on_a_grid_in_log_snr(planned):
    """VP with any beta: the same alpha and sigma at the same log-SNR, so the same samples; not so on a uniform grid."""
    _, _, rows, _ = planned
    by_name = {row.name: row for row in rows}
    first = by_name["vp_linear"].grids["log_snr"]
    for name in ("vp_cosine", "vp_constant"):
        other = by_name[name].grids["log_snr"]
        assert (other.steps, other.promised) == (first.steps, first.promised)
        np.testing.assert_allclose(other.distances, first.distances, rtol=1e-6)
        assert by_name[name].log_snr == pytest.approx(by_name["vp_linear"].log_snr, rel=1e-9)
        assert by_name[name].grids["uniform"].steps != by_name["vp_linear"].grids["uniform"].steps


@pytest.mark.slow
def test_planning_writes_its_table_and_says_what_is_proved(planned, capsys):
    experiment, options, rows, folder = planned
    planner.plan(experiment, options, folder)
    said = capsys.readouterr().out
    written = json.loads((folder / "plan" / "plan.json").read_text())
    assert written["rule"] == "ancestral" and written["dimensions"] == 3 and written["steps"] == [10, 50]
    assert [row["name"] for row in written["processes"]] == [row.name for row in rows]
    assert (folder / "plan" / "plan.png").stat().st_size > 10_000
    fewest = min(needed.steps for row in rows for needed in row.grids.values())
    assert f"{fewest} steps on the" in said and "vp_linear *" in said
    assert "proved:" in said and "heuristic:" in said


@pytest.mark.slow
def test_another_plan_has_a_folder_of_its_own(planned):
    experiment, options, _, folder = planned
    before = (folder / "plan" / "plan.json").read_bytes()
    planner.plan(experiment, options._replace(accuracy=2 * options.accuracy), folder)
    planner.plan(experiment, options, folder)
    assert (folder / "plan" / "plan.json").read_bytes() == before
    assert sorted(path.name for path in folder.glob("plan*")) == ["plan", "plan-2"]
    first, second = (json.loads((folder / name / "plan.json").read_text()) for name in ("plan", "plan-2"))
    assert second["accuracy"] == pytest.approx(2 * first["accuracy"])


@pytest.mark.slow
def test_an_accuracy_that_nothing_reaches_gets_no_recommendation(planned):
    _, options, rows, _ = planned
    none = planner.Needed(None, None, [1.0, 1.0], [1.0, 1.0])
    hopeless = [row._replace(grids={name: none for name in row.grids}) for row in rows]
    (line,) = planner._recommendation(options, hopeless)
    assert "no process reaches it" in line


def test_every_named_process_is_compared_by_default():
    config = tiny.digits(process__beta_max=7.0)
    options = configure.planner_options(config)
    others = planner.others_of(options)
    assert {"vp_linear", "vp_cosine", "vp_geometric", "sub_vp_linear", "ve_power", "edm"} <= others.keys()
    assert not any(name.startswith("theory") for name in others) and options.configured == "vp_linear"
    assert float(configure.experiment(config, "tiny").model.process.beta(1.0)) == pytest.approx(7.0)
    assert options.rule is transitions.exponential_sde  # the configured sampler is no affine one
