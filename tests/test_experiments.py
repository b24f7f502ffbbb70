"""Experiments: each runs as its command, and its parts are right where the answer is known."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    autoencoder,
    bridge_on_the_line,
    common,
    conservative_in_the_plane,
    fashion,
    keep,
    orders_on_toys,
    perturbed_gaussian,
    processes_on_digits,
    tune_schedule,
)
from scoreflow import configure
from scoreflow.comparison import pairs, read
from scoreflow.configure import assemble
from scoreflow.divergence import asymmetry_exact
from scoreflow.experiment import Model
from scoreflow.runs import workdir
from scoreflow.theory import exact
from tests import tiny
from tests.test_compare import made


def run(name: str, out, *flags: str) -> str:
    """What `python -m experiments.<name> --fast` prints."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", f"experiments.{name}", "--fast", f"--out={out}", *flags]
    result = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_a_schedule_has_the_gradient_that_finite_differences_give(x64):
    data = exact.Gaussian(jnp.array([0.3, -1.0, 0.5]), jnp.array([0.5, 1.0, 2.0]))
    log_schedule = jnp.log(jnp.array([0.1, 20.0, 1.0]))
    distance = lambda log_schedule: tune_schedule.distance(log_schedule, 10, data)
    step = 1e-5 * jnp.eye(3)
    differences = [(distance(log_schedule + h) - distance(log_schedule - h)) / 2e-5 for h in step]
    np.testing.assert_allclose(jax.grad(distance)(log_schedule), differences, rtol=1e-6)


@pytest.mark.slow
def test_descent_on_a_schedule_ends_below_its_start_at_a_flat_place(x64):
    data = exact.Gaussian(jnp.array([0.3, -1.0, 0.5]), jnp.array([0.5, 1.0, 2.0]))
    start = jnp.log(jnp.array([0.1, 20.0, 1.0]))
    best, history = tune_schedule.tune(5, start, data, 300)
    slope = jax.grad(lambda log_schedule: tune_schedule.distance(log_schedule, 5, data))
    assert float(tune_schedule.distance(best, 5, data)) == pytest.approx(min(history)) and min(history) < history[0]
    assert np.linalg.norm(slope(best)) < 0.02 * np.linalg.norm(slope(start))


def test_a_killed_experiment_computes_nothing_twice(tmp_path):
    path, calls = tmp_path / "a" / "runs.json", []
    compute = lambda: calls.append(1) or {"w": [0.1, 2.0]}
    assert common.memo(path, "one", compute) == common.memo(path, "one", compute) == {"w": [0.1, 2.0]}
    assert len(calls) == 1

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        common.memo(path, "two", killed)
    assert common.memo(path, "two", compute) == {"w": [0.1, 2.0]} and len(calls) == 2
    assert common.memo(path, "one", compute) == common.memo(path, "two", compute) and len(calls) == 2


def test_the_table_of_processes_has_rank_correlations_and_orderings():
    distances = {
        "a": np.array([[3.0, 1.0], [3.2, 1.2]]),
        "b": np.array([[2.0, 2.0], [2.2, 2.0]]),
        "c": np.ones((2, 2)) * 1.5,
    }
    expected = {"a": [9.0, 9.0], "b": [8.0, 8.0], "c": [7.0, 7.0]}
    text = "\n".join(processes_on_digits.lines_of("uniform", (10, 20), distances, expected))
    assert re.findall(r"rank correlation (\S+)", text) == ["+1.00", "-0.50"]  # ranks 3 2 1, then 1 3 2, against 3 2 1
    assert "measured  c b a" in text and "measured  a c b" in text and text.count("theory    c b a") == 2
    assert "3.10 ± 0.10" in text


@pytest.mark.slow
def test_tuning_a_schedule_prints_the_gain(tmp_path):
    printed = run("tune_schedule", tmp_path)
    (before, after, gain), *_ = re.findall(r"^10 +(\S+) +(\S+) +(\S+)x", printed, re.MULTILINE)
    assert float(gain) > 1 and float(gain) == pytest.approx(float(before) / float(after), rel=0.01)
    assert (tmp_path / "report.txt").read_text().strip() in printed and (tmp_path / "distance.png").exists()


@pytest.mark.slow
def test_processes_on_digits_resumes(tmp_path):
    printed = run("processes_on_digits", tmp_path)
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert len(runs) == 4  # two processes, two seeds
    means = {float(value) for value in re.findall(r"(\d+\.\d+) ± ", printed)}
    values = [value["uniform"] for value in runs.values()]
    for first, second in zip(values[::2], values[1::2]):
        assert {round((a + b) / 2, 2) for a, b in zip(first, second)} <= means
    runs.popitem()
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    assert run("processes_on_digits", tmp_path) == printed  # the fourth again, to the same number
    assert (tmp_path / "likelihood.png").exists()


@pytest.mark.slow
def test_the_judge_of_the_orders_knows_a_scaled_score(monkeypatch):
    """Mixture, VE, score times 0.95: KL .0553434, J_SM .0136114 in closed form; and the square of both errors is that
    of the score and of its Jacobian."""
    make = orders_on_toys.make

    def with_known_score(*args, **options):
        experiment, train_options = make(*args, **options)
        true = exact.score_of(experiment.model.process, experiment.data.log_density)

        class KnownModel(Model):
            def score(self, params, *, train=False, key=None):
                return lambda x, t, cond=None: 0.95 * true(x, t)

        return experiment._replace(model=KnownModel(*experiment.model)), train_options

    monkeypatch.setattr(orders_on_toys, "make", with_known_score)
    orders_on_toys.judge.cache_clear()
    values = orders_on_toys.score_run(None, "mixture_1d", "VE", 20_000, picture=False)
    orders_on_toys.judge.cache_clear()
    assert values["kl"] == pytest.approx(0.0553434, rel=2e-3)
    assert values["j_sm"] == pytest.approx(0.0136114, rel=0.03)  # 20,000 points
    assert values["j_diff"] == pytest.approx(0.0553434 - 0.0136114, rel=0.02)
    # E sigma^2 |s1|^2 = 1 - L1, whose mean over t is .360750
    assert values["err1"] == pytest.approx(0.05**2 * (1 - 0.360750), rel=0.03)


@pytest.mark.slow
def test_orders_on_toys_prints_what_it_measured(tmp_path):
    printed = run("orders_on_toys", tmp_path)
    (runs,) = json.loads((tmp_path / "runs.json").read_text()).values()
    for recipe in ("1", "3"):
        (line,) = re.findall(rf"^mixture_1d +VE +{recipe} +(.+)$", printed, re.MULTILINE)
        steps, _, kl, j_sm, *_ = line.split()
        assert int(steps) == runs[recipe]["steps"]
        assert (kl, j_sm) == tuple(f"{runs[recipe][name]:.2g}" for name in ("kl", "j_sm"))
    assert (tmp_path / "densities.png").exists()
    assert run("orders_on_toys", tmp_path) == printed  # nothing is measured again


@pytest.mark.slow
def test_orders_on_digits_prints_what_it_measured_and_keeps_its_first_model(tmp_path):
    printed = run("orders_on_digits", tmp_path)
    records = json.loads((tmp_path / "runs.json").read_text())
    (values,) = (value for key, value in records.items() if key.startswith("2, seed 0"))
    (line,) = re.findall(r"^2 +(.+)$", printed, re.MULTILINE)
    assert f"{values['bits_per_dim']:.4g}" in line and f"{values['bound']:.4g}" in line
    assert (tmp_path / "first_fast.npz").exists() and (tmp_path / "bits_per_dim.png").exists()
    assert printed.endswith(run("orders_on_digits", tmp_path))  # what was measured is not measured again


# ----------------------------------------------------------------------------------------------------------------------
# Conservative scores.

# e: steps C, steps U, Asym U, NAsym U, as published but for the exchanged headers of the last two
CLIMBS = {
    0.0: (1, 1, "0.00e+00", "0.00e+00"),
    5.00e-4: (2, 4, "1.77e-02", "4.41e-07"),
    7.50e-4: (3, 5, "2.65e-02", "6.60e-07"),
    1.00e-3: (3, 6, "3.53e-02", "8.78e-07"),
    1.50e-3: (4, 57, "5.28e-02", "1.31e-06"),
    1.75e-3: (5, 121, "6.15e-02", "1.53e-06"),
    2.25e-3: (16, 238, "7.89e-02", "1.96e-06"),
}


@pytest.mark.slow
def test_the_perturbed_gaussian_has_its_published_table(tmp_path):
    assert tuple(CLIMBS) == perturbed_gaussian.ERRORS
    printed = run("perturbed_gaussian", tmp_path)
    for error in perturbed_gaussian.ERRORS[:3]:
        assert f"{error:.2e}  {CLIMBS[error][0]}" in printed
    with jax.enable_x64(True):
        start = jnp.asarray(np.random.RandomState(0).normal(-2.0, 0.5, (10, 2)))
        for error, (steps_c, steps_u, asym, nasym) in CLIMBS.items():
            fields = perturbed_gaussian.scores(error)
            assert perturbed_gaussian.climb(fields["C"], error, start)[0] == steps_c
            assert perturbed_gaussian.climb(fields["U"], error, start)[0] == steps_u
            assert tuple(f"{value:.2e}" for value in perturbed_gaussian.on_grid(fields["U"])) == (asym, nasym)
            assert max(perturbed_gaussian.on_grid(fields["C"])) < 1e-12


def test_when_an_autoencoder_is_conservative(x64):
    """L_QC = |sum_k h'_k (r_k w_k^T - w_k r_k^T)|^2 / 2; 0 for R = W diag(d); but (h'(x2) - h'(x1))^2, .33642976 at
    (0, 1) with tanh, for W = I and R the exchange, which the published condition W R^T = R W^T lets pass."""
    weights, x = autoencoder.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 2))
    w, r, b, _, beta = (np.asarray(leaf) for leaf in weights)
    slope = jax.vmap(jax.vmap(jax.grad(lambda z, beta: z * jax.nn.sigmoid(beta * z)), (0, 0)), (0, None))
    jacobian = np.einsum("nk,ik,jk->nij", slope(jnp.asarray(np.asarray(x) @ w + b), jnp.asarray(beta)), r, w)
    expected = 0.5 * ((jacobian - jacobian.transpose(0, 2, 1)) ** 2).sum((1, 2))
    asym = lambda weights, x, h=None: asymmetry_exact(lambda x: autoencoder.score(weights, x, h), x).asym
    np.testing.assert_allclose(asym(weights, x), expected, rtol=1e-10)
    assert np.abs(asym(weights._replace(r=weights.w * jnp.array([[0.5, -2.0]])), x)).max() < 1e-20
    swap = weights._replace(w=jnp.eye(2), r=jnp.array([[0.0, 1.0], [1.0, 0.0]]), b=jnp.zeros(2), c=jnp.zeros(2))
    assert float(asym(swap, jnp.array([[0.0, 1.0]]), jnp.tanh)[0]) == pytest.approx(0.33642976, rel=1e-7)
    np.testing.assert_allclose(np.asarray(swap.w @ swap.r.T), np.asarray(swap.r @ swap.w.T))


@pytest.mark.slow
def test_descent_on_the_asymmetry_prints_its_measures(tmp_path):
    printed = run("autoencoder", tmp_path)
    (before, after), *rest = re.findall(r"^\d +([\d.e-]+) +([\d.e-]+) ", printed, re.MULTILINE)
    assert len(rest) == 2 and float(after) < float(before)
    with jax.enable_x64(True):
        weights = autoencoder.init(jax.random.key(0))
        assert float(before) == pytest.approx(float(autoencoder.penalty(weights)), rel=0.05)
    assert (tmp_path / "training.png").exists()


@pytest.mark.slow
def test_conservative_scores_in_the_plane_print_what_they_measured(tmp_path):
    """The network has the published 42,509 numbers, C no asymmetry, and the table what was measured."""
    net = conservative_in_the_plane.Net()
    with jax.numpy_rank_promotion("allow"):
        params = net.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 42_509
    printed = run("conservative_in_the_plane", tmp_path)
    records = json.loads((tmp_path / "runs.json").read_text())
    by_model = {key.split(", ")[1]: value for key, value in records.items()}
    assert by_model["C"]["asym"] < 1e-9 < by_model["U"]["asym"]
    for model, values in by_model.items():
        (line,) = re.findall(rf"^8-Gaussian +{model} +(.+)$", printed, re.MULTILINE)
        assert line.split()[:3] == [f"{values[name]:.3g}" for name in ("asym", "nasym", "error")]


@pytest.mark.slow
def test_the_linear_vae_prints_what_it_measured(tmp_path):
    """The bound is the likelihood; the likelihood weight finds the posterior and weight 1 does not."""
    printed = run("latent_linear", tmp_path)
    for line in re.findall(r"^0\.0\d* +(.+)$", printed, re.MULTILINE):
        by_ode, error = re.match(r"(-?[\d.]+) ± ([\de.-]+)", line).groups()
        assert abs(float(by_ode)) < 5e-3 and float(error) < 5e-3
    kl = dict(re.findall(r"^(likelihood weight|weight 1) .* ([\de.+-]+)$", printed, re.MULTILINE))
    assert float(kl["likelihood weight"]) < 0.05 < 0.15 < float(kl["weight 1"])


@pytest.mark.slow
def test_latent_models_of_digits_print_what_they_measured(tmp_path):
    """Both rows of the table are the records, and the reconstruction and the divergence add up to the bound."""
    printed = run("latent_on_digits", tmp_path)
    records = json.loads((tmp_path / "runs.json").read_text())
    for recipe in ("VAE alone", "1"):
        values = records[f"binary, {recipe}, fast"]
        (line,) = re.findall(rf"^{recipe} +(\d.+)$", printed, re.MULTILINE)
        assert f"{values['bound'][0]:.4g} ± " in line
        rest, kl = re.search(r" ([\d.]+) ± \S+ +(-?[\d.]+) ", line.split("±", 1)[1]).groups()
        assert float(rest) + float(kl) == pytest.approx(values["bound"][0], abs=0.02)


@pytest.mark.slow
def test_conservative_scores_on_digits_print_what_they_measured(tmp_path):
    """The penalty costs two to four gradients, and both tables have the kept numbers."""
    printed = run("conservative_on_digits", tmp_path)
    records = json.loads((tmp_path / "runs.json").read_text())
    assert 2 < records["cost of qc, fast"][0] / records["cost of u, fast"][0] < 3.7
    by_model = {key.split(", ")[0]: value for key, value in records.items() if "seed" in key}
    for model, values in by_model.items():
        (line,) = re.findall(rf"^{model} +(.+)$", printed, re.MULTILINE)
        assert f"{values['bits_per_dim']:.4g}" in line and f"{values['nasym']:.4g}" in line
    cost = [by_model[model]["tolerances"][1][2] for model in ("U", "QC 10")]
    assert re.search(rf"1e-02 +1e-03 +{cost[0]:.4g} +{cost[1]:.4g}", printed)
    assert (tmp_path / "asymmetry.png").exists() and (tmp_path / "first_fast.npz").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Diffusion times.


@pytest.mark.slow
def test_diffusion_time_prints_its_table(tmp_path):
    printed = run("diffusion_time", tmp_path)
    for t, row in {
        "0.2": "1.92003 +0.0239146 +0.01881 +-2.7908",
        "0.3": "1.14374 +0.00228523 +0.0416475 +-2.03735",
    }.items():
        assert re.search(rf"^{re.escape(t)} +{row}", printed, re.MULTILINE)
    assert re.search(r"0.3 +0.64151 +0.232150 +0.24113 +0.036629", printed)
    assert re.search(r"^0.2 +13.94188 +7.11531 +1.63414 +0.28486 +0.01286 +7.11531", printed, re.MULTILINE)
    assert (tmp_path / "bound.png").exists()


@pytest.mark.slow
def test_networks_on_the_line_are_judged_by_quadrature(tmp_path):
    """The gap of a network that says 0 is known: half the integral of E |E[noise | x]|^2 = sigma^2 E |score|^2."""
    process, data, t = bridge_on_the_line.PROCESS, bridge_on_the_line.DATA, 0.4
    zero = jax.tree.map(jnp.zeros_like, bridge_on_the_line.NET.init(jax.random.key(0), jnp.zeros(1), jnp.zeros(1)))
    log_snr_points = np.linspace(float(process.log_snr(t)), float(process.log_snr(1e-3)), 400)
    values = []
    for log_snr in log_snr_points:
        noised = data.at(process, float(process.inverse_log_snr(log_snr)))
        x = noised.points()
        p = np.exp(noised.log_density(x))
        values.append(np.trapezoid(np.gradient(p, x) ** 2 / np.maximum(p, 1e-300), x) / (1 + np.exp(log_snr)))
    with jax.numpy_rank_promotion("allow"):
        gap = bridge_on_the_line.gap(zero, t)
    assert gap == pytest.approx(0.5 * np.trapezoid(values, log_snr_points), rel=2e-3)
    printed = run("bridge_on_the_line", tmp_path)
    records = json.loads((tmp_path / "runs.json").read_text())
    gaps = [value for key, value in records.items() if key.startswith("T = 1.0")]
    assert re.search(rf"^1 +{np.median(gaps):.3f} +{min(gaps):.3f}", printed, re.MULTILINE)


@pytest.mark.slow
def test_bridges_on_digits_print_what_they_measured(tmp_path):
    """An untrained score needs its bridge, and the table has the kept numbers."""
    printed = run("bridge_on_digits", tmp_path)
    records = json.loads((tmp_path / "runs.json").read_text())
    measures = records["T = 0.2, fast"]
    assert measures["mixture"]["bits"] < measures["prior"]["bits"]
    (line,) = re.findall(r"^0.2 +mixture  +(.+)$", printed, re.MULTILINE)
    assert line.startswith(f"{measures['mixture']['bits']:.3f} ± {measures['mixture']['bits_error']:.3f}")
    assert measures["mixture, 40 steps"]["sample_nfe"] > 3 * measures["mixture"]["sample_nfe"]
    assert "bits" not in measures["pushforward"] and (tmp_path / "bits_per_dim.png").exists()


def test_a_study_adds_the_runs_that_others_begin_with():
    assert fashion.needed(["joint", "qc_order_2_mixture"]) == ["base", "vae", "joint", "qc_order_2_mixture"]
    assert fashion.needed([]) == list(fashion.RUNS)
    assert all(run.begins in ("", *list(fashion.RUNS)[:i]) for i, run in enumerate(fashion.RUNS.values()))


@pytest.mark.parametrize("name", fashion.RUNS)
def test_every_run_of_the_study_is_complete(name, tmp_path):
    """And so are its tiny one and that for a GPU, which begin with the run of their own seed."""
    for size in (fashion.Size(), fashion.Size(fast=True), fashion.Size(full=True, more={"eval.num_test": "7"})):
        config = fashion.config_of(name, size.full, **fashion.settings(name, 1, tmp_path, size))
        configure.check(config)
        assert (config.eval.num_test == 7) == size.full
        assert (config.training.batch_size == 128) == size.full
        begins = fashion.RUNS[name].begins
        assert config.init_from == (str(tmp_path / f"{begins}-seed1") if begins else "")


@pytest.mark.parametrize("name", [name for name, run in fashion.RUNS.items() if run.begins])
def test_every_run_of_the_study_may_begin_with_the_run_that_it_names(name, tmp_path):
    """What has to be the same in both is the same: the score where it goes on, or the VAE alone."""
    config = configure.resolve(fashion.config_of(name))
    before = configure.resolve(fashion.config_of(fashion.RUNS[name].begins))
    (tmp_path / "checkpoints" / "0").mkdir(parents=True)
    workdir.record(tmp_path, before.to_dict())
    same = assemble._same(config)
    workdir.check_same(tmp_path, config.to_dict(), same, ("process.horizon",), defaults=configure.flat_defaults(config))


def test_what_is_kept_of_a_run_compares_like_the_run(tmp_path):
    """Of two runs, with the numbers of the originals; no path of the folder is in what is kept."""
    out, kept = tmp_path / "out", tmp_path / "kept"
    config = {"training": {"batch_size": 16}, "data": {"name": "digits"}, "init_from": str(out / "a")}
    folders = [
        made(out / name, config=config, step_8=2.0 + shift + np.linspace(-1, 1, 20))
        for name, shift in (("a", 0.0), ("b", 0.1))
    ]
    (folders[1] / "checkpoints").mkdir()
    path = folders[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": f"{tmp_path}/somewhere/configs/vp.py:small"}))
    keep.keep(folders, kept)
    assert sorted(path.name for path in kept.iterdir()) == ["a", "b"] and not (kept / "b" / "checkpoints").exists()
    assert not any(str(tmp_path) in path.read_text() for path in kept.rglob("*.json*"))
    runs = [[read.read(each / name, name, lambda s: s, print) for name in "ab"] for each in (out, kept)]
    (one, _), (two, _) = (pairs.pairs(each) for each in runs)
    assert one == two and one[0].difference == pytest.approx(0.1)
    assert json.loads((kept / "b" / "config.json").read_text())["config"]["init_from"] == "a"
    assert json.loads((kept / "b" / "config.json").read_text())["name"] == "configs/vp.py:small"


@pytest.mark.full
def test_the_study_trains_evaluates_and_compares(tmp_path):
    printed = run("fashion", tmp_path, "--only", "mixture")
    assert "base, seed 0: run 1 of 2" in printed and "mixture, seed 0: run 2 of 2" in printed
    compared = json.loads(next(tmp_path.rglob("compare.json")).read_text())
    text = json.dumps(compared)
    assert "base" in text and "mixture" in text
