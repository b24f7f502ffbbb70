import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow.processes import transitions
from scoreflow.samplers import grids, guide, rules, sample
from scoreflow.samplers.sampler import sampler as make_sampler
from tests.truth import PROCESSES, gaussian_score

RULE = rules.affine(transitions.exponential_sde)


def test_classifier_free_scales():
    def score(x, t, cond=None):
        return -x if cond is None else -x + cond[:, None].astype(x.dtype)

    x, t, cond = jnp.ones((2, 3)), jnp.full(2, 0.5), jnp.array([1, 3])
    for scale, shift in ((0.0, 0.0), (1.0, 1.0), (2.5, 2.5)):
        guided = guide.classifier_free(score, scale)(x, t, cond)
        np.testing.assert_allclose(guided, -x + shift * cond[:, None], rtol=1e-6)


@pytest.mark.parametrize("guidance, asked", [(1.0, [True]), (0.0, [False, True]), (2.5, [False, True])])
def test_guidance_of_one_is_no_guidance(guidance, asked):
    """A sampler then draws with the score itself, bit for bit and at half the cost; 0 draws without labels."""
    process, calls = PROCESSES["vp"], []

    def score(x, t, cond=None):
        calls.append(cond is not None)
        return -x if cond is None else -x + 0.1 * cond[:, None]

    run = functools.partial(sample, RULE)
    sampler = make_sampler(run, process, grids.uniform, steps=5, guidance=guidance)
    key, x, cond = jax.random.key(0), jax.random.normal(jax.random.key(1), (3, 2)), jnp.array([0, 1, 2])
    drawn = sampler.draw(score, key, x, cond)
    assert calls == asked * (len(calls) // len(asked))
    guided = guide.classifier_free(score, guidance)
    wanted = {1.0: score, 0.0: lambda x, t, cond: score(x, t)}.get(guidance, guided)
    direct = run(process, wanted, key, x, grids.uniform(process, 5, t_min=1e-3), cond)
    np.testing.assert_array_equal(drawn.x, direct.x)
    np.testing.assert_array_equal(drawn.nfe, 6)


def test_guidance_of_gaussian_classes_has_the_score_of_the_sharpened_distribution():
    """With p(x) = N(0, v) and p(x given y) = N(m, 1), p(x) (p(x given y) / p(x))^w is Gaussian at t = 0."""
    process, w, m, v, n = PROCESSES["vp"], 2.0, 1.0, 2.0, 50_000

    def score(x, t, cond=None):
        return gaussian_score(process, 0.0, v)(x, t) if cond is None else gaussian_score(process, m, 1.0)(x, t)

    x, t = jax.random.normal(jax.random.key(0), (n, 1)), jnp.full(n, 1e-4)
    guided = guide.classifier_free(score, w)
    precision = (1 - w) / v + w / 1.0
    wanted = -(x * precision - w * m)
    np.testing.assert_allclose(guided(x, t, jnp.zeros(n, jnp.int32)), wanted, rtol=1e-3, atol=2e-3)


def _correlated(process, rho):
    covariance = jnp.array([[1.0, rho], [rho, 1.0]])

    def score(x, t, cond=None):
        alpha, variance = process.alpha(t)[:, None, None], process.variance(t)[:, None, None]
        marginal = alpha**2 * covariance[None] + variance * jnp.eye(2)[None]
        return -jnp.linalg.solve(marginal, x[..., None])[..., 0]

    return score


@pytest.mark.slow
def test_inpainting_a_gaussian_gives_the_exact_conditional(monkeypatch):
    """x2 | x1 = y is N(rho y, 1 - rho^2) once r^2 is the known coordinate's true posterior variance."""
    process, rho, y, n = PROCESSES["vp"], 0.8, 1.2, 20_000

    def true_variance(process, t, sigma_data):
        snr = process.alpha(t) ** 2 / process.variance(t)
        precision = jnp.linalg.inv(jnp.array([[1.0, rho], [rho, 1.0]]))[None] + snr[:, None, None] * jnp.eye(2)[None]
        return jnp.linalg.inv(precision)[:, 0, 0]

    monkeypatch.setattr(guide, "posterior_variance", true_variance)
    known, mask = jnp.broadcast_to(jnp.array([y, 0.0]), (n, 2)), jnp.array([[1.0, 0.0]])
    score = guide.inpaint(process, _correlated(process, rho), known, mask)
    x_init = jax.random.normal(jax.random.key(0), (n, 2))
    grid = grids.log_snr(process, 400, t_min=1e-3)
    x = np.asarray(sample(RULE, process, score, jax.random.key(1), x_init, grid).x)
    np.testing.assert_allclose(x[:, 0], y, atol=1e-3)
    std = np.sqrt(1 - rho**2)
    assert abs(x[:, 1].mean() - rho * y) < 4 * std / np.sqrt(n) + 0.01
    assert abs(x[:, 1].std() / std - 1) < 4 / np.sqrt(2 * n) + 0.02


@pytest.mark.slow
def test_independent_pixels_are_exact_with_the_default_variance():
    """Without correlation the known pixel ends at its value and the other keeps its own distribution; strength 0 agrees."""
    process, n = PROCESSES["vp"], 20_000
    known, mask = jnp.full((n, 2), 0.5), jnp.array([[1.0, 0.0]])
    grid = grids.log_snr(process, 200, t_min=1e-3)
    x_init = jax.random.normal(jax.random.key(0), (n, 2))
    for strength in (0.0, 1.0):
        score = guide.inpaint(process, gaussian_score(process, 0.0, 1.0), known, mask, strength=strength)
        x = sample(RULE, process, score, jax.random.key(1), x_init, grid).x
        np.testing.assert_allclose(x[:, 0], 0.5, atol=1e-3)
        assert abs(float(x[:, 1].var()) - 1) < 5 * np.sqrt(2 / n) + 0.02


def test_posterior_variance_of_independent_gaussians():
    process, t = PROCESSES["vp"], jnp.array([0.1, 0.7])
    precision = 1 / 0.5**2 + process.alpha(t) ** 2 / process.variance(t)
    np.testing.assert_allclose(guide.posterior_variance(process, t, 0.5), 1 / precision, rtol=1e-5)
