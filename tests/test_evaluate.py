"""Evaluation from end to end where the answer is known: Gaussian data and the exact score in the network's place."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from scoreflow import configure, train
from scoreflow import evaluators as evaluate
from scoreflow.evaluators import density, samples
from scoreflow.metrics import Estimate, frechet
from scoreflow.runs import checkpoint, workdir
from scoreflow.runs.partial import PartialResults
from tests import tiny
from tests.truth import gaussian_score

STD = np.array([0.5, 1.5])
ENTROPY = float(np.log(STD).sum() + np.log(2 * np.pi * np.e))


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    """(experiment, plan) of 4,000 training and 1,000 test points of N(0, diag(STD^2)), and their density."""
    folder = tmp_path_factory.mktemp("gaussian")
    x = (STD * np.random.default_rng(0).standard_normal((5000, 2))).astype(np.float32)
    np.savez(folder / "gaussian.npz", train=x[:4000], test=x[4000:])
    config = tiny.digits(
        data__name="arrays", data__path=str(folder / "gaussian.npz"), eval__divergence="exact", eval__num_test=0,
        eval__batch_size=1000, eval__check=1000, eval__draws=1, eval__num_samples=4000, sampling__batch_size=4000,
        sampling__steps=60, eval__baseline=True, grid__name="log_snr",
    )  # fmt: skip
    experiment = configure.experiment(config, "gaussian")
    exact = gaussian_score(experiment.model.process, np.zeros(2), STD**2)
    source = experiment.data._replace(
        log_prob=lambda x: -0.5 * ((x / STD) ** 2).sum(1) - np.log(STD).sum() - np.log(2 * np.pi)
    )
    experiment = experiment._replace(source=source, score=lambda params, **_: exact)
    return experiment, configure.evaluation(config, folder)


def test_likelihood_of_the_exact_model_is_the_entropy(gaussian):
    experiment, plan = gaussian
    found = evaluate.likelihood_metrics(experiment, plan, None)
    assert abs(found["nats"].value - ENTROPY) < 4 * found["nats"].stderr
    assert found["nats"].stderr == pytest.approx(1 / np.sqrt(1000), rel=0.15)  # var of -log p is d / 2
    # the two differ by the law at t_min and the prior alone, example by example
    assert abs(found["kl_nats"].value) < 2e-3 and found["kl_nats"].stderr < 1e-3
    assert abs(found["solver_error"].value) < 2e-3
    assert found["nats"].value == pytest.approx(found["prior_term"] + found["integral_term"], abs=1e-4)
    assert found["likelihood_failed"] == 0 and found["likelihood_examples"] == 1000


def test_the_bound_and_the_importance_weighted_estimate_of_the_exact_model(gaussian):
    """The bound of the true score is tight; draws of continuous data differ by the probe alone, which exactness ignores."""
    experiment, plan = gaussian
    found = evaluate.likelihood_metrics(
        experiment, plan._replace(bound_times=20, draws=2, weigh_draws=True, num_test=200), None
    )
    assert abs(found["bound"].value - ENTROPY) < 4 * found["bound"].stderr
    terms = sum(found[f"bound_{name}"] for name in ("prior", "diffusion", "offset"))
    assert found["bound"].value == pytest.approx(terms, rel=1e-4)
    assert found["importance_weighted_nats"].value == pytest.approx(found["nats"].value, rel=1e-5)


@pytest.mark.parametrize("rule, draws, wanted", [("exact", 2, True), ("exact", 1, False), ("hutchinson", 2, False)])
def test_draws_are_weighed_only_where_the_density_is_exact(rule, draws, wanted):
    """exp of an unbiased log-density is biased upwards, so with a probe the estimate would look better than the model."""
    config = tiny.digits(eval__divergence=rule, eval__draws=draws)
    assert build.eval_plan(config, configure.dataset(config), None).weigh_draws == wanted


def test_truncated_normal_noise_is_that_of_the_time_where_the_likelihood_begins():
    config = tiny.digits(eval__dequantization="truncated_normal", t_min=0.01)
    experiment = configure.experiment(config, "digits")
    plan = configure.evaluation(config, None)
    levels = experiment.data.test.x[:50]
    found = plan.dequantise(None, jax.random.key(0), levels)
    alpha, sigma = float(experiment.model.process.alpha(0.01)), float(experiment.model.process.sigma(0.01))
    offset = np.asarray(found.x) - alpha * (2 * (levels + 0.5) / 17 - 1)
    assert np.abs(offset).max() <= alpha / 17 + 1e-6
    cut = alpha / (17 * sigma)
    density, mass = np.exp(-(cut**2) / 2) / np.sqrt(2 * np.pi), special.erf(cut / np.sqrt(2))
    assert offset.std() == pytest.approx(sigma * np.sqrt(1 - 2 * cut * density / mass), rel=0.03)


def test_failed_solves_are_counted_and_left_out(gaussian):
    experiment, plan = gaussian

    def score(x, t, cond=None):  # NaN wherever the trajectory of an example passes right of 1
        return gaussian_score(experiment.model.process, np.zeros(2), STD**2)(x, t) + 0.0 * jnp.log(1.0 - x[:, :1])

    found = evaluate.likelihood_metrics(experiment._replace(score=lambda params, **_: score), plan, None)
    share = (experiment.data.test.x[:, 0] > 1).mean()
    assert share * 1000 <= found["likelihood_failed"] < 1000
    for name in ("nats", "kl_nats", "solver_error", "prior_term", "integral_term"):
        value = found[name].value if isinstance(found[name], Estimate) else found[name]
        assert np.isfinite(value), name
    assert abs(found["kl_nats"].value) < 2e-3
    assert found["nats"].value == pytest.approx(found["prior_term"] + found["integral_term"], abs=1e-4)


def test_baseline_of_gaussian_data_is_near_the_entropy(gaussian):
    found = evaluate.baseline_metrics(*gaussian)
    assert found["mixture_nats"] == pytest.approx(ENTROPY, abs=0.1)


def test_samples_of_the_exact_model_are_as_good_as_data(gaussian, tmp_path):
    found = evaluate.sample_metrics(*gaussian, None, tmp_path)
    model, real = found["model"], found["test_data"]
    assert model["samples"] == 4000 and model["sample_nfe"] == 61
    assert model["frechet"].value < 0.02 and real["frechet"].value < 0.05
    assert abs(model["kernel"].value) < 5 * model["kernel"].stderr
    assert model["wasserstein2"] < 1.5 * real["wasserstein2"]  # the floor: two samples of one law
    assert (tmp_path / "samples.png").exists()


@pytest.mark.parametrize(
    "error, words",
    [
        (Estimate(0.0005, 0.0004), "is below"),
        (Estimate(-0.0005, 0.0009), "NOT shown.*raise eval.check"),
        (Estimate(-0.002, 0.0001), "NOT shown.*lower eval.rtol"),
    ],
)
def test_the_verdict_on_the_solver_counts_what_is_not_known_of_it(error, words):
    assert re.search(words, evaluate._verdict(error, 0.01))


def test_noise_error_by_level_is_rho(gaussian):
    """With the exact score the error at every level is the mean over dimensions of rho (losses.dsm)."""
    experiment, _ = gaussian
    log_snr, curves = density.error_by_level(experiment, None, num=4000, levels=6)
    snr = np.exp(log_snr)[:, None]
    rho = (snr * STD**2 / (snr * STD**2 + 1)).mean(1)
    # a sum of two chi-squares of one degree, each halved: relative deviation at most sqrt(2 / n)
    np.testing.assert_allclose(curves["train"], rho, rtol=5 * np.sqrt(2 / 4000))
    assert jax.device_count() == 4


def test_without_the_inception_weights_every_other_metric_still_runs(tmp_path, capsys):
    """One line says which file to put where; samples are drawn, counted and pictured."""
    config = tiny.digits(eval__features="inception", data__dir=str(tmp_path))
    experiment = configure.experiment(config, "vp_digits")
    with jax.numpy_rank_promotion("allow"):
        params = experiment.model.network.init(jax.random.key(0), (1, 8, 8, 1))
        plan = configure.evaluation(config, tmp_path)
        found = evaluate.sample_metrics(experiment, plan, params, tmp_path)
    assert found["features"] == "none" and found["model"]["samples"] == 100 and "frechet" not in found["model"]
    said = capsys.readouterr().err
    place = tmp_path / "downloads" / "pt_inception-2015-12-05-6726825d.pth"
    assert f"put it at {place}" in said and said.count("\n") == 1
    assert (tmp_path / "samples.png").exists()


def test_truncated_noise_is_that_of_the_time_at_which_the_likelihood_begins():
    """With eval.t_min, not t_min: x - alpha center has that deviation, and stays in alpha times half a bin."""
    config = tiny.digits(eval__dequantization="truncated_normal", eval__t_min=4e-3, t_min=1e-5)
    experiment = configure.experiment(config, "vp_digits")
    plan = configure.evaluation(config, None)
    image = np.full((400, 8, 8, 1), 5, np.uint8)
    found = plan.dequantise(None, jax.random.key(0), image)
    alpha, sigma = (float(at(4e-3)) for at in (experiment.model.process.alpha, experiment.model.process.sigma))
    rest = np.asarray(found.x) - alpha * float(experiment.space.bins.place(jnp.asarray(5.0), 0.5))
    cut = 0.5 * alpha * experiment.space.bins.size
    law = stats.truncnorm(-cut / sigma, cut / sigma, scale=sigma)
    assert plan.start == 4e-3 and np.abs(rest).max() <= cut * (1 + 1e-4)
    assert rest.std() == pytest.approx(law.std(), rel=0.02)


def test_features_of_the_training_data_are_taken_once(tmp_path, capsys):
    """--mode=stats and evaluation find the same file; other data or another feature function have files of their own."""
    config = tiny.digits(eval__features="pixels")
    experiment = configure.experiment(config, "vp_digits")
    plan = configure.evaluation(config, tmp_path)
    evaluate.prepare(experiment, plan)
    assert "features of 1437 training examples" in capsys.readouterr().out
    extractor, x = plan.extractor(), experiment.data.train.x
    flat = x.reshape(len(x), -1).astype(np.float64)
    never = extractor._replace(extract=lambda x: 1 / 0)
    found = samples.statistics(never, x, tmp_path)
    mean, covariance = frechet.mean_and_covariance(found.moments)
    np.testing.assert_allclose(mean, flat.mean(0))
    np.testing.assert_allclose(covariance, np.cov(flat.T), atol=1e-9)
    np.testing.assert_array_equal(found.pool, flat)
    for other in ((never._replace(name="other"), x), (never, x[1:])):
        with pytest.raises(ZeroDivisionError):
            samples.statistics(*other, tmp_path)
    (path,) = (tmp_path / "statistics").glob("*.npz")
    path.write_bytes(path.read_bytes()[:100])  # cut short: taken again
    np.testing.assert_array_equal(samples.statistics(extractor, x, tmp_path).pool, flat)


class _Killed(Exception):
    pass


@pytest.fixture
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("_allow_rank_promotion")
def test_a_killed_evaluation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    """Stopped before its sixth piece: the five before are not made again, but for one whose file was damaged."""
    config = tiny.digits(training__steps=2, training__warmup=1, eval__num_samples=100, sampling__batch_size=40)
    config.eval.update({"draws": 2, "num_test": 12, "batch_size": 4, "bound_times": 2})
    experiment, folder = configure.experiment(config, "digits"), tmp_path / "run"
    workdir.claim(folder, experiment.config, resume=True)
    train.train(experiment, configure.train_options(config), folder)

    made, get = [], PartialResults.get

    def counting(stop_before=None):
        made.clear()

        def wrapped(self, name, like, make):
            def count():
                if len(made) == stop_before:
                    raise _Killed
                made.append(name)
                return make()

            return get(self, name, like, count)

        monkeypatch.setattr(PartialResults, "get", wrapped)

    def run(cache):
        results = evaluate.evaluate(experiment, configure.evaluation(config, tmp_path / cache), folder)
        return {name: value for name, value in results.items() if name != "step"}

    counting()
    whole, every = run("a"), list(made)
    assert {"likelihood-0-0", "likelihood-1-8", "check-0", "bound-4", "samples-2", "model-0"} < set(every)
    kept = folder / "eval" / "2" / "pieces"
    assert not kept.exists()

    counting(stop_before=5)
    with pytest.raises(_Killed):
        run("b")
    (damaged,) = kept.glob("*/likelihood-0-4.npz")
    damaged.write_bytes(damaged.read_bytes()[:-30])
    counting()
    again = run("b")
    assert made == ["likelihood-0-4", *every[5:]] and not kept.exists()
    for one, other in zip(
        *((found["likelihood"], found["samples"]["model"], found["samples"]["test_data"]) for found in (whole, again))
    ):
        assert {k: v for k, v in one.items() if "seconds" not in k} == {k: other[k] for k in one if "seconds" not in k}


def test_pieces_of_other_settings_are_not_taken(tmp_path):
    names, kept = [], tmp_path / "checkpoints"
    checkpoint.save(kept, 2, {"ema_params": jnp.zeros(3)})
    for changes in ({}, {"eval__rtol": 1e-2}, {}, {}):
        if len(names) == 3:  # trained anew
            shutil.rmtree(kept)
            checkpoint.save(kept, 2, {"ema_params": jnp.ones(3)})
        names.append(workdir.fingerprint(tmp_path, 2, configure.experiment(tiny.digits(**changes), "digits").config))
    assert names[0] == names[2] and len(set(names)) == 3
