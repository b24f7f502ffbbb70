"""The Gaussian of data: its moments, its directions, and functions of its covariance."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm

from scoreflow import gaussian

D = 5
RNG = np.random.default_rng(0)
_ROOT = RNG.normal(size=(D, D))


def batches(x, label=None, size=70):
    def rows():
        for i in range(0, len(x), size):
            yield x[i : i + size], None if label is None else label[i : i + size]

    return rows


def dense(fitted, c=0):
    """The covariance [d, d] of a class."""
    basis, d = np.asarray(fitted.basis, np.float64), fitted.mean.shape[1]
    rest = float(fitted.rest[c])
    return rest * np.eye(d) + basis @ np.diag(np.asarray(fitted.variances[c], np.float64) - rest) @ basis.T


def test_all_directions_give_the_covariance_of_the_data():
    x = RNG.normal(size=(300, D)) @ _ROOT + 3.0
    fitted = gaussian.fit(batches(x), D)
    np.testing.assert_allclose(fitted.mean[0], x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(dense(fitted), np.cov(x.T, bias=True), rtol=1e-5, atol=1e-6)


def test_few_directions_are_those_of_largest_variance_and_keep_the_total():
    d, rank = 40, 4
    axes = np.linalg.qr(RNG.normal(size=(d, rank)))[0]
    x = RNG.normal(size=(2000, rank)) * [9.0, 7.0, 5.0, 4.0] @ axes.T + 0.5 * RNG.normal(size=(2000, d))
    fitted = gaussian.fit(batches(x), d, rank=rank)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    overlap = np.linalg.svd(np.asarray(fitted.basis).T @ vectors[:, -rank:])[1]
    np.testing.assert_allclose(overlap, 1.0, atol=1e-4)
    np.testing.assert_allclose(fitted.variances[0], values[::-1][:rank], rtol=1e-4)
    assert float(fitted.rest[0]) == pytest.approx(values[:-rank].mean(), rel=1e-4)


def test_classes_have_means_and_variances_of_their_own():
    label = np.arange(4000) % 2
    scale, shift = np.asarray([[1.0, 2.0], [3.0, 0.5]]), np.asarray([[5.0, 0.0], [-1.0, 2.0]])
    x = RNG.normal(size=(4000, 2)) * scale[label] + shift[label]
    fitted = gaussian.fit(batches(x, label), 2, classes=2)
    for c in range(2):
        np.testing.assert_allclose(fitted.mean[c], x[label == c].mean(0), rtol=1e-5)
        np.testing.assert_allclose(np.diag(dense(fitted, c)), scale[c] ** 2, rtol=0.12)
    # one example of a class has the variance of all
    rare = gaussian.fit(batches(x, np.where(np.arange(4000) == 0, 1, 0)), 2, classes=2)
    np.testing.assert_allclose(rare.variances[1], rare.variances[0] * 30 / 31, rtol=0.02)


def test_functions_of_the_covariance_act_as_matrices():
    x, v = RNG.normal(size=(500, 6)) @ np.diag([3.0, 2.0, 1.0, 0.5, 0.5, 0.5]), RNG.normal(size=(3, 6))
    for rank in (2, 6):
        fitted = gaussian.fit(batches(x), 6, rank=rank)
        root = gaussian.spectral(fitted.of(None, 3), jnp.sqrt)
        wanted = v @ np.real(sqrtm(dense(fitted)))
        np.testing.assert_allclose(root.apply(fitted.basis, jnp.asarray(v, jnp.float32)), wanted, atol=2e-5)


def test_the_gaussian_of_clean_data_is_found_from_that_of_noisy_ones():
    fitted = gaussian.Gaussian(jnp.ones((1, D)), jnp.eye(D), jnp.linspace(0.1, 2.0, D)[None], jnp.ones(1))
    alpha, sigma = 0.8, 0.3
    noisy = fitted._replace(mean=alpha * fitted.mean, variances=alpha**2 * fitted.variances + sigma**2)
    clean = gaussian.undiffused(noisy, alpha, sigma)
    np.testing.assert_allclose(clean.variances, fitted.variances, rtol=1e-5)
    np.testing.assert_allclose(clean.mean, fitted.mean, rtol=1e-5)
    assert np.all(np.asarray(gaussian.undiffused(fitted, 1.0, 100.0).variances) == 0)


def test_a_gaussian_of_no_data_is_refused():
    with pytest.raises(ValueError, match="no data"):
        gaussian.fit(batches(np.zeros((0, 2))), 2)


def test_few_examples_give_few_directions_and_fit_other_examples_better():
    """Of 200 examples in 100 dimensions all directions would have variances from 0.1 to 2.9, where all are 1."""
    x, others = RNG.normal(size=(200, 100)), RNG.normal(size=(1000, 100))

    def cross_entropy(fitted):
        values, vectors = np.linalg.eigh(dense(fitted))
        whitened = (others - np.asarray(fitted.mean[0])) @ vectors
        return 0.5 * (np.log(2 * np.pi * values).sum() + (whitened**2 / values).sum(1).mean())

    few, all_of_them = gaussian.fit(batches(x), 100), gaussian.fit(batches(x), 100, rank=100)
    assert few.basis.shape == (100, 25) and gaussian.fit(batches(others), 100).basis.shape == (100, 100)
    exact = 50 * np.log(2 * np.pi * np.e)
    assert cross_entropy(few) - exact < 0.25 * (cross_entropy(all_of_them) - exact)


def test_whitening_and_back_loses_little_with_all_directions():
    """In float32, at a noise of 2e-3 and variances of 1: next to the noise the way is exact to a hundredth."""
    d, sigma = 200, 2e-3
    x = RNG.normal(size=(1200, d)) @ np.linalg.qr(RNG.normal(size=(d, d)))[0] + 0.5
    fitted = gaussian.undiffused(gaussian.fit(batches(x), d), 1.0, sigma)
    each = fitted.of(None, 20)
    spread = gaussian.spectral(each, lambda v: jnp.sqrt(v + sigma**2))
    y = jnp.asarray(x[:20] - np.asarray(fitted.mean[0]), jnp.float32)
    back = spread.apply(fitted.basis, gaussian.Spectral(*(1.0 / part for part in spread)).apply(fitted.basis, y))
    assert float(jnp.abs(back - y).max()) < 0.01 * sigma


def test_several_classes_need_labels():
    fitted = gaussian.fit(batches(RNG.normal(size=(100, 2)), np.arange(100) % 2), 2, classes=2)
    with pytest.raises(ValueError, match="fitted with labels: give them"):
        fitted.of(None, 3)
