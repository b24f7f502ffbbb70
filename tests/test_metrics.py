import itertools

import numpy as np
import pytest
from scipy.linalg import sqrtm

from scoreflow import metrics
from scoreflow.data import load
from scoreflow.metrics import baseline, classifier, frechet, kernel, neighbors, transport


def _distance(first, second):
    return frechet.frechet_distance(first, frechet.reference(*frechet.mean_and_covariance(second)))


def test_bures_distance_closed_form():
    target = frechet.reference(np.array([0, 1.0]), np.array([[1, -0.3], [-0.3, 2]]))
    square = frechet.gaussian_distance(np.array([1.0, 0]), np.array([[2, 0.5], [0.5, 1]]), target)
    assert np.sqrt(square) == pytest.approx(1.6048133515, rel=1e-9)


def test_frechet_against_the_matrix_square_root():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)), 0.5 + rng.standard_normal((400, 6))
    stats = [frechet.update(frechet.init(a[0]), a) for a in (x, y)]
    c1, c2 = np.cov(x.T), np.cov(y.T)
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert _distance(*stats) == pytest.approx(wanted, rel=1e-9)
    assert _distance(stats[0], stats[0]) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_of_fewer_samples_than_dimensions():
    """A rank-deficient covariance: the distance of two samples on orthogonal lines is that of their own variances."""
    x, y = np.zeros((4, 5)), np.zeros((4, 5))
    x[:, 0], y[:, 1] = [-1, 1, -1, 1], [-2, 2, -2, 2]
    stats = [frechet.update(frechet.init(a[0]), a) for a in (x, y)]
    assert _distance(*stats) == pytest.approx(4 / 3 + 16 / 3)


def test_moments_stream_and_merge_without_losing_digits():
    x = 1e6 + np.random.default_rng(0).standard_normal((1000, 3))
    batches = [frechet.update(frechet.init(x[0]), rows) for rows in np.array_split(x, 7)]
    total = batches[0]
    for moments in batches[1:]:
        total = frechet.merge(total, moments)
    mean, cov = frechet.mean_and_covariance(total)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(cov, np.cov(x.T), rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match="origins"):
        frechet.merge(batches[0], frechet.init(x[1]))


def test_kernel_distance_is_the_unbiased_u_statistic():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((4, 3)) + 1

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    wanted = np.mean([k(a, b) for a, b in itertools.permutations(x, 2)])
    wanted += np.mean([k(a, b) for a, b in itertools.permutations(y, 2)])
    wanted -= 2 * np.mean([k(a, b) for a in x for b in y])
    assert kernel.mmd2(x, y) == pytest.approx(wanted, rel=1e-12)


def test_kernel_distance_is_zero_in_expectation_for_one_distribution():
    rng = np.random.default_rng(1)
    same = kernel.kernel_distance(rng.standard_normal((4000, 4)), rng.standard_normal((4000, 4)), subset=100)
    assert abs(same.value) < 4 * same.stderr
    other = kernel.kernel_distance(rng.standard_normal((4000, 4)), rng.standard_normal((4000, 4)) + 1, subset=100)
    assert other.value > 10 * other.stderr


def test_precision_and_recall_of_known_configurations():
    line = np.arange(10.0)[:, None]
    assert neighbors.covered(line + 0.2, line, k=1).all()
    assert not neighbors.covered(line + 100, line, k=1).any()
    # balls of radius 1 around 0 ... 9: 9.9 is inside, 10.1 is not
    np.testing.assert_array_equal(neighbors.covered(np.array([[9.9], [10.1]]), line, k=1), [True, False])
    half = line[:5]  # a sample that misses half of the data: all precise, about half recalled
    assert neighbors.covered(half, line, k=1).mean() == 1.0
    assert neighbors.covered(line, half, k=1).mean() == 0.6


def test_wasserstein_in_one_dimension_is_sorting():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 300, 1))
    wanted = np.sqrt(((np.sort(x, axis=0) - np.sort(y, axis=0)) ** 2).mean())
    assert transport.wasserstein2(x, y) == pytest.approx(wanted)
    assert transport.wasserstein2(x, x + 3.0) == pytest.approx(3.0)


def test_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(0).standard_normal(50)
    left_out = [np.delete(x, i).mean() for i in range(50)]
    estimate = metrics.jackknife(x.mean(), np.array(left_out))
    assert estimate.stderr == pytest.approx(metrics.mean_estimate(x).stderr, rel=1e-12)


def test_mixture_baseline_finds_a_gaussian():
    """For Gaussian data the best mixture is one Gaussian, and its score is minus the entropy."""
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((5000, 3)), rng.standard_normal((5000, 3))
    fitted = baseline.gaussian_mixture(train, test)
    entropy = 1.5 * np.log(2 * np.pi * np.e)
    assert fitted.components <= 2
    assert abs(fitted.log_prob + entropy) < 4 * np.sqrt(1.5 / 5000) + 0.01


def test_the_class_score_of_certain_and_of_uncertain_classifiers():
    """K for K equally frequent classes with certainty; 1 for one class, and for uniform probabilities."""
    certain = np.tile(np.eye(4), (50, 1))
    assert metrics.class_score(certain).value == pytest.approx(4.0)
    assert metrics.class_score(np.tile(np.eye(4)[:1], (50, 1))).value == pytest.approx(1.0)
    assert metrics.class_score(np.full((50, 4), 0.25)).value == pytest.approx(1.0)
    # two classes told apart with probability p: exp(log 2 - entropy of p)
    p = 0.9
    pair = np.tile([[p, 1 - p], [1 - p, p]], (50, 1))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert metrics.class_score(pair).value == pytest.approx(2.0 * np.exp(-entropy))


@pytest.mark.parametrize(
    "kind, steps",
    [pytest.param("digits", 1500, marks=pytest.mark.slow), pytest.param("classifier", 500, marks=pytest.mark.full)],
)
def test_a_classifier_knows_digits_and_is_cached(kind, steps, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "_STEPS", steps)
    source = load.digits()
    extractor = classifier.classifier(source.train, source.num_levels, tmp_path, kind)
    features = extractor.extract(source.test.x)
    assert (features.probs.argmax(1) == source.test.label).mean() > 0.95
    np.testing.assert_allclose(features.probs.sum(1), 1, rtol=1e-5)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    again = classifier.classifier(source.train, source.num_levels, tmp_path, kind).extract(source.test.x)
    np.testing.assert_array_equal(again.pool, features.pool)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:100])  # a damaged cache is refitted, to the same network
    refitted = classifier.classifier(source.train, source.num_levels, tmp_path, kind).extract(source.test.x)
    np.testing.assert_allclose(refitted.probs, features.probs, atol=1e-4)
