"""Evaluation from end to end where the answer is known: Gaussian data and the exact score in the network's place."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from scipy.spatial.distance import pdist

from scoreflow import configure, divergence
from scoreflow.evaluate import _print, measure, prepare
from scoreflow.evaluators.baseline import baseline_metrics
from scoreflow.evaluators.bound import bound
from scoreflow.evaluators.context import EvalOptions, Table
from scoreflow.evaluators.density import Method
from scoreflow.evaluators.error_curve import error_curve
from scoreflow.evaluators.features import distance, extractor, statistics
from scoreflow.evaluators.latent import _COMPARED, largest_distance
from scoreflow.evaluators.likelihood import _verdict, likelihood
from scoreflow.evaluators.mismatch import differences
from scoreflow.evaluators.samples import feature_metrics, sample_metrics, table
from scoreflow.experiment import Experiment
from scoreflow.likelihood import LogProb
from scoreflow.metrics import Estimate, Extractor, Features, frechet
from scoreflow.metrics.baseline import gaussian_mixture
from scoreflow.runs.partial import NONE
from tests import tiny
from tests.normal import ENTROPY, STD, context_of
from tests.truth import gaussian_score, with_score


def likelihood_metrics(experiment: Experiment, evaluation) -> dict:
    only = ("likelihood", "bound", "baseline")
    return measure(context_of(experiment, evaluation), evaluation.evaluators, only=only).metrics["likelihood"]


def test_likelihood_of_the_exact_model_is_the_entropy(gaussian):
    metrics = likelihood_metrics(*gaussian)
    assert abs(metrics["nats"].value - ENTROPY) < 4 * metrics["nats"].stderr
    assert metrics["nats"].stderr == pytest.approx(1 / np.sqrt(1000), rel=0.15)  # var of -log p is d / 2
    # the two differ by the distribution at t_min and the prior alone, example by example
    assert abs(metrics["kl_nats"].value) < 2e-3 and metrics["kl_nats"].stderr < 1e-3
    assert abs(metrics["solver_error"].value) < 2e-3
    assert metrics["nats"].value == pytest.approx(metrics["prior_term"] + metrics["integral_term"], abs=1e-4)
    assert metrics["likelihood_failed"] == 0 and metrics["likelihood_examples"] == 1000


def test_the_solver_s_own_error_is_that_of_a_loose_solve(gaussian):
    """At a loose tolerance it is the difference to the log-density of the exact flow, which the tight solve gives."""
    experiment, evaluation = gaussian
    loose = context_of(experiment, evaluation, solver="adaptive", rtol=0.1, atol=0.1, num_test=64)
    tight = context_of(experiment, evaluation, solver="adaptive", rtol=1e-5, atol=1e-5, num_test=64)
    metrics = likelihood(loose, draws=1, check=64).metrics["likelihood"]
    truth = likelihood(tight, draws=1, check=64).metrics["likelihood"]
    assert abs(metrics["solver_error"].value) > 1e-3
    wanted = metrics["nats"].value - truth["nats"].value
    assert metrics["solver_error"].value == pytest.approx(wanted, rel=0.05)


def test_the_bound_and_the_importance_weighted_estimate_of_the_exact_model(gaussian):
    """The bound of the true score is tight; draws of continuous data differ by the probe alone, which the exact
    divergence ignores."""
    context = context_of(*gaussian, num_test=200)
    bounded = bound(context, bound_times=20).metrics["likelihood"]
    assert abs(bounded["bound"].value - ENTROPY) < 4 * bounded["bound"].stderr
    terms = sum(bounded[f"bound_{name}"] for name in ("prior", "diffusion", "offset"))
    assert bounded["bound"].value == pytest.approx(terms, rel=1e-4)
    metrics = likelihood(context, draws=2, check=200).metrics["likelihood"]
    assert metrics["importance_weighted_nats"].value == pytest.approx(metrics["nats"].value, rel=1e-5)


@pytest.mark.parametrize("rule, draws", [("exact", 2), ("exact", 1), ("hutchinson", 2)])
def test_draws_are_weighed_only_where_the_density_is_exact(gaussian, monkeypatch, rule, draws):
    """exp of an unbiased log-density is biased upwards, so with a probe the estimate would look better than the model.

    Of log-densities -1 and -3 the mean is -2, and the log of the mean density -1 + log((1 + e^-2) / 2)."""
    log_prob = {"likelihood-0": -1.0, "likelihood-1": -3.0, "check": -1.0}

    def solver(name, keys, x, cond, *, finer=False):
        logp = np.full(len(x), log_prob[name])
        return LogProb(logp, logp, 0 * logp, np.full(len(x), 6), np.full(len(x), True), None)

    monkeypatch.setattr("scoreflow.evaluators.likelihood.make_log_prob", lambda context: Method(solver))
    context = context_of(*gaussian, divergence=getattr(divergence, rule), num_test=8)
    metrics = likelihood(context, draws=draws, check=8).metrics["likelihood"]
    assert metrics["nats"].value == pytest.approx(draws)
    assert ("importance_weighted_nats" in metrics) == (rule == "exact" and draws == 2)
    if "importance_weighted_nats" in metrics:
        assert metrics["importance_weighted_nats"].value == pytest.approx(1 - np.log((1 + np.exp(-2)) / 2))


def test_truncated_normal_noise_is_that_of_the_time_where_the_likelihood_begins():
    config = tiny.digits(eval__dequantization="truncated_normal", t_min=0.01)
    experiment = configure.experiment(config, "digits")
    context = configure.evaluation(config).context(experiment, None)
    levels = experiment.data.test.x[:50]
    point = context.rule(None, jax.random.key(0), levels)
    alpha, sigma = float(experiment.model.process.alpha(0.01)), float(experiment.model.process.sigma(0.01))
    offset = np.asarray(point.x) - alpha * (2 * (levels + 0.5) / 17 - 1)
    assert np.abs(offset).max() <= alpha / 17 + 1e-6
    cut = alpha / (17 * sigma)
    density, mass = np.exp(-(cut**2) / 2) / np.sqrt(2 * np.pi), special.erf(cut / np.sqrt(2))
    assert offset.std() == pytest.approx(sigma * np.sqrt(1 - 2 * cut * density / mass), rel=0.03)


def test_failed_solves_are_counted_and_left_out(gaussian):
    experiment, evaluation = gaussian

    def score(x, t, cond=None):  # NaN wherever the trajectory of an example passes right of 1
        return gaussian_score(experiment.model.process, np.zeros(2), STD**2)(x, t) + 0.0 * jnp.log(1.0 - x[:, :1])

    metrics = likelihood_metrics(with_score(experiment, score), evaluation)
    share = (experiment.data.test.x[:, 0] > 1).mean()
    assert share * 1000 <= metrics["likelihood_failed"] < 1000
    for name in ("nats", "kl_nats", "solver_error", "prior_term", "integral_term"):
        value = metrics[name].value if isinstance(metrics[name], Estimate) else metrics[name]
        assert np.isfinite(value), name
    assert abs(metrics["kl_nats"].value) < 2e-3
    assert metrics["nats"].value == pytest.approx(metrics["prior_term"] + metrics["integral_term"], abs=1e-4)


def test_bits_are_nats_by_the_size_and_the_logarithm_of_2():
    context = configure.evaluation(config := tiny.digits()).context(configure.experiment(config, "digits"), None)
    assert context.scale == pytest.approx(64 * np.log(2.0)) and context.unit == "bits/dim"
    # a density of 1 over the whole range of [-1, 1] has as many bits as 17 levels in 2
    np.testing.assert_allclose(context.in_unit(np.zeros(3), np.zeros(3)), np.log2(17 / 2), rtol=1e-6)


def test_the_mismatch_is_the_divergence_at_the_horizon(tmp_path):
    """KL(N(alpha m, alpha^2 v + sigma^2) || N(0, sigma_T^2)) in closed form, for normal data on a short path."""
    mean, std = np.asarray([1.0, -0.5]), np.asarray([0.6, 2.4])
    x = mean + std * np.random.default_rng(0).standard_normal((9000, 2))
    np.savez(tmp_path / "own.npz", train=x[:4000].astype(np.float32), test=x[4000:].astype(np.float32))
    config = tiny.digits(data__name="arrays", data__path=str(tmp_path / "own.npz"), process__horizon=0.4)
    experiment = configure.experiment(config, "own")
    process = experiment.model.process
    evaluation = configure.evaluation(config)
    evaluation = evaluation._replace(options=evaluation.options._replace(num_test=0, batch_size=5000))
    found = differences(evaluation.context(experiment, None))
    alpha, added = float(process.alpha(0.4)), float(process.variance(0.4))
    last, prior = alpha**2 * std**2 + added, float(process.prior_std()) ** 2
    wanted = 0.5 * np.sum(last / prior - 1 + np.log(prior / last) + (alpha * mean) ** 2 / prior)
    assert wanted > 0.1 and found.mean() == pytest.approx(wanted, abs=5 * found.std() / np.sqrt(len(found)) + 0.02)


def test_the_largest_distance_is_that_of_all_pairs(gaussian):
    experiment, _ = gaussian
    wanted = pdist(experiment.data.train.x[:_COMPARED].astype(np.float64)).max()
    assert largest_distance(experiment, None) == pytest.approx(wanted, rel=1e-4)


def test_the_baseline_of_normal_data_has_one_component():
    x = np.random.default_rng(0).standard_normal((600, 3))
    assert gaussian_mixture(x[:400], x[400:]).components == 1


def test_baseline_of_gaussian_data_is_near_the_entropy(gaussian):
    assert baseline_metrics(context_of(*gaussian))["mixture_nats"] == pytest.approx(ENTROPY, abs=0.1)


def test_samples_of_the_exact_model_are_as_good_as_data(gaussian, tmp_path):
    metrics = sample_metrics(context_of(*gaussian, tmp_path), 4000, batch=4000)
    model, real = metrics["model"], metrics["test_data"]
    assert model["samples"] == 4000 and model["sample_nfe"] == 61
    assert model["frechet"].value < 0.02 and real["frechet"].value < 0.05
    assert abs(model["kernel"].value) < 5 * model["kernel"].stderr
    assert model["wasserstein2"] < 1.5 * real["wasserstein2"]  # the floor: two samples of one distribution
    assert (tmp_path / "samples.png").exists()


def test_training_and_evaluation_measure_samples_by_the_same_reference(gaussian, tmp_path):
    """The distance by which a best checkpoint is chosen is the one that evaluation prints: here to N(1, I)."""
    np.savez(tmp_path / "reference.npz", mu=np.ones(2), sigma=np.eye(2))
    experiment, evaluation = gaussian
    path, folder = str(tmp_path / "reference.npz"), evaluation.cache_dir
    evaluated = sample_metrics(context_of(experiment, evaluation, reference=path), 4000, batch=4000)
    chosen_by = distance("pixels", 4000, 4000, folder, folder, path)(experiment)(None)
    assert evaluated["model"]["frechet"].value == pytest.approx(chosen_by, rel=1e-9)
    gap = 2.0 + ((STD - 1) ** 2).sum()  # of two Gaussians with diagonal covariances
    assert chosen_by == pytest.approx(gap, abs=4 * evaluated["model"]["frechet"].stderr)
    assert evaluated["reference"] == path and "precision" not in evaluated["model"]


@pytest.mark.parametrize(
    "error, words",
    [
        (Estimate(0.0005, 0.0004), "is below"),
        (Estimate(-0.0005, 0.0009), "NOT shown.*raise eval.check"),
        (Estimate(-0.002, 0.0001), "NOT shown.*lower eval.rtol"),
    ],
)
def test_the_verdict_on_the_solver_counts_what_is_not_known_of_it(error, words):
    assert re.search(words, _verdict(error, 0.01, "lower eval.rtol"))


def test_noise_error_over_log_snr_is_rho(gaussian):
    """With the exact score the error at every log-SNR is the mean over dimensions of rho (`objectives.dsm`)."""
    experiment, _ = gaussian
    log_snr, curves, examples = error_curve(experiment, None, num=4000, log_snr_points=6)
    snr = np.exp(log_snr)[:, None]
    rho = (snr * STD**2 / (snr * STD**2 + 1)).mean(1)
    # a sum of two chi-squares of one degree, each halved: relative deviation at most sqrt(2 / n)
    np.testing.assert_allclose(curves["train"], rho, rtol=5 * np.sqrt(2 / 4000))
    assert examples == {"train": 4000, "test": 1008} and jax.device_count() == 4  # in chunks of 16; there are 1000


def test_without_the_inception_weights_every_other_metric_still_runs(tmp_path, capsys):
    """One line says which file to put where; samples are drawn, counted and pictured."""
    config = tiny.digits(eval__features="inception", data__dir=str(tmp_path))
    experiment = configure.experiment(config, "vp_digits")
    evaluation = configure.evaluation(config, tmp_path)
    with jax.numpy_rank_promotion("allow"):
        context = evaluation.context(experiment, experiment.init(jax.random.key(0)), tmp_path)
        metrics = measure(context, evaluation.evaluators, only=("samples",)).metrics["samples"]
    assert metrics["features"] == "none" and metrics["model"]["samples"] == 100 and "frechet" not in metrics["model"]
    printed = capsys.readouterr().err.splitlines()
    (said,) = [line for line in printed if "samples   " not in line]  # apart from progress
    assert printed[0] == said  # before the samples, which take longer
    assert f"put it at {tmp_path / 'downloads' / 'pt_inception-2015-12-05-6726825d.pth'}" in said
    assert (tmp_path / "samples.png").exists()


def test_notes_of_a_report_fit_a_terminal(tmp_path, capsys):
    note = "; ".join(f"{i} words that follow each other without a line's end" for i in range(6))
    _print("a title", [Table("a table", [("name", "1.0 ± 0.1")], (note,))], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 100 and note in " ".join(lines)


def test_truncated_noise_is_that_of_eval_t_min():
    """With eval.t_min, not t_min: x - alpha center has that deviation, and stays in alpha times half a bin."""
    config = tiny.digits(eval__dequantization="truncated_normal", eval__t_min=4e-3, t_min=1e-5)
    experiment = configure.experiment(config, "vp_digits")
    context = configure.evaluation(config).context(experiment, None)
    image = np.full((400, 8, 8, 1), 5, np.uint8)
    point = context.rule(None, jax.random.key(0), image)
    alpha, sigma = (float(at(4e-3)) for at in (experiment.model.process.alpha, experiment.model.process.sigma))
    rest = np.asarray(point.x) - alpha * float(experiment.space.bins.place(jnp.asarray(5.0), 0.5))
    cut = 0.5 * alpha * experiment.space.bins.size
    noise = stats.truncnorm(-cut / sigma, cut / sigma, scale=sigma)
    assert context.start == 4e-3 and np.abs(rest).max() <= cut * (1 + 1e-4)
    assert rest.std() == pytest.approx(noise.std(), rel=0.02)


def test_features_of_the_training_data_are_taken_once(tmp_path, capsys):
    """--mode=stats and evaluation read the same file; other data or another feature function have files of their own."""
    config = tiny.digits(eval__features="pixels")
    experiment = configure.experiment(config, "vp_digits")
    prepare(experiment, configure.evaluation(config, tmp_path), tmp_path / "run")
    assert "features of 1437 training examples" in capsys.readouterr().out
    extract, x = extractor("pixels", experiment.data, tmp_path, tmp_path), experiment.data.train.x
    flat = x.reshape(len(x), -1).astype(np.float64) / 16
    never = extract._replace(extract=lambda x: 1 / 0)
    stored = statistics(never, x, tmp_path)
    mean, covariance = frechet.mean_and_covariance(stored.moments)
    np.testing.assert_allclose(mean, flat.mean(0))
    np.testing.assert_allclose(covariance, np.cov(flat.T), atol=1e-9)
    np.testing.assert_array_equal(stored.pool, flat)
    for other in ((never._replace(name="other"), x), (never, x[1:])):
        with pytest.raises(ZeroDivisionError):
            statistics(*other, tmp_path)
    (path,) = (tmp_path / "statistics").glob("*.npz")
    path.write_bytes(path.read_bytes()[:100])  # cut short: taken again
    np.testing.assert_array_equal(statistics(extract, x, tmp_path).pool, flat)


def test_the_accuracy_of_a_classifier_is_the_share_of_test_data_that_it_gets_right(tmp_path):
    """A rule that is wrong for every fourth example, in words next to the metrics; features of other networks have
    no classes of the data, and samples no labels."""
    data = configure.experiment(tiny.digits(), "tiny").data
    test, label = data.test.x[:120], np.arange(120) % 10

    def extract(x):
        given = label if len(x) == 120 else np.zeros(len(x), int)
        guess = np.where(np.arange(len(x)) % 4 == 0, (given + 1) % 10, given)
        return Features(np.asarray(x, float).reshape(len(x), -1)[:, :3], np.eye(10)[guess])

    def measured(classes):
        rule = Extractor("rule", extract, key=f"{classes}", classes=classes)
        sets, labels = {"model": test, "test_data": test}, {"test_data": label}
        return feature_metrics(rule, sets, data, EvalOptions(), tmp_path, NONE, labels)

    metrics = measured(True)
    right = metrics["test_data"]["classifier_accuracy"]
    assert right.value == 0.75 and right.stderr == pytest.approx(np.sqrt(0.75 * 0.25 / 119))
    assert "classifier_accuracy" not in metrics["model"]
    assert any("the classifier's accuracy on them is 0.75" in note for note in table(metrics, "model").notes)
    assert "classifier_accuracy" not in measured(False)["test_data"]
