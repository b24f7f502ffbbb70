import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import divergence
from scoreflow import score as scores
from tests.truth import PROCESSES, gaussian_score, process64

KINDS = scores.PREDICTIONS


def _example(rms=0.7):
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, 5, 3))
    alpha, sigma = 0.8, 0.9
    return x0, noise, alpha * x0 + sigma * noise, scores.SignalNoise(alpha, sigma, rms)


def _meaning(x0, noise, scales):
    """What each network should output for this x_t, from the definitions."""
    alpha, sigma, rms = scales
    r = sigma / alpha
    c_skip, c_out = rms**2 / (r**2 + rms**2), r * rms / np.sqrt(r**2 + rms**2)
    return {
        "noise": noise,
        "x0": x0,
        "v": alpha * noise - sigma * x0,
        "velocity": noise - x0,
        "flow": (noise - x0) / np.sqrt(2),
        "score": -noise / sigma,
        "edm": (x0 - c_skip * (alpha * x0 + sigma * noise) / alpha) / c_out,
    }


@pytest.mark.parametrize("source, target", list(itertools.product(KINDS, KINDS)))
def test_every_conversion_keeps_the_meaning(x64, source, target):
    x0, noise, xt, scales = _example()
    outputs = _meaning(x0, noise, scales)
    converted = scores.convert(outputs[source], xt, scales, KINDS[source], KINDS[target])
    np.testing.assert_allclose(converted, outputs[target], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve"])
def test_a_perfect_network_gives_the_exact_score(x64, kind, name):
    """The network that knows the Gaussian's posterior mean, expressed in each parameterization, has the exact score."""
    process = process64(name)
    mean, var, rms = np.array([0.3, -1.0]), np.array([0.5, 2.0]), 0.7
    exact = gaussian_score(process, mean, var)
    t = jnp.array([1e-3, 0.2, 0.8])
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2)))

    def apply(params, scaled, log_snr, cond):
        times = process.inverse_log_snr(log_snr)
        scales = scores.SignalNoise(process.alpha(times)[:, None], process.sigma(times)[:, None], rms)
        xt = scaled * jnp.sqrt(scales.alpha**2 * rms**2 + scales.sigma**2)
        return scores.convert(exact(xt, times), xt, scales, scores.SCORE, KINDS[kind])

    score = scores.score_fn(process, apply, None, KINDS[kind], sigma_data=rms)(x, t)
    np.testing.assert_allclose(score, exact(x, t), rtol=1e-7)


def test_network_input_has_unit_mean_square():
    process, rms = PROCESSES["ve"], 0.5
    seen = {}

    def apply(params, scaled, log_snr, cond):
        seen["x"] = scaled
        return scaled

    n = 50_000
    for t in (0.01, 0.5, 1.0):
        times = jnp.full(n, t)
        xt = process.perturb(jax.random.key(0), rms * jax.random.normal(jax.random.key(1), (n, 1)), times).xt
        scores.score_fn(process, apply, None, scores.EDM, sigma_data=rms)(xt, times)
        assert abs(float(jnp.mean(seen["x"] ** 2)) - 1) < 4 * np.sqrt(2 / n)


def test_v_and_edm_agree_where_vp_data_have_unit_scale(x64):
    """For alpha^2 + sigma^2 = 1 and sigma_data = 1, F = -v."""
    x0, noise = np.random.default_rng(0).standard_normal((2, 4))
    scales = scores.SignalNoise(0.6, 0.8, 1.0)
    xt = 0.6 * x0 + 0.8 * noise
    np.testing.assert_allclose(
        scores.convert(noise, xt, scales, scores.NOISE, scores.EDM),
        -scores.convert(noise, xt, scales, scores.NOISE, scores.V),
        rtol=1e-12,
    )


def test_velocity_networks_and_the_noise(x64):
    """eps = alpha F + sigma x_t for F = v under VP, eps = sqrt(2) alpha F + x_t for the flow on the straight path."""
    x0, noise, f = np.random.default_rng(0).standard_normal((3, 4))
    for alpha, sigma, kind, scale, share in ((0.6, 0.8, scores.V, 1.0, 0.8), (0.3, 0.7, scores.FLOW, np.sqrt(2), 1.0)):
        xt, scales = alpha * x0 + sigma * noise, scores.SignalNoise(alpha, sigma)
        noise_of = scores.convert(f, xt, scales, kind, scores.NOISE)
        np.testing.assert_allclose(noise_of, scale * alpha * f + share * xt, rtol=1e-12)


def test_tweedie_and_probability_flow_of_a_gaussian(x64):
    process = process64("vp")
    score = gaussian_score(process, 0.5, 2.0)
    x, t = jnp.array([[0.7]]), jnp.array([0.3])
    alpha, variance = float(process.alpha(0.3)), float(process.variance(0.3))
    total = alpha**2 * 2 + variance
    posterior_mean = 0.5 + alpha * 2 / total * (0.7 - alpha * 0.5)
    np.testing.assert_allclose(scores.denoised(process, score, x, t), posterior_mean, rtol=1e-12)
    # the flow keeps (x - alpha m) / std constant, so dx/dt = alpha' m + (x - alpha m) std' / std
    std = jax.grad(lambda t: jnp.sqrt(process.alpha(t) ** 2 * 2 + process.variance(t)))(0.3)
    slope = jax.grad(process.alpha)(0.3) * 0.5 + (0.7 - alpha * 0.5) * std / np.sqrt(total)
    np.testing.assert_allclose(scores.probability_flow(process, score)(t, x), slope, rtol=1e-10)


# ----------------------------------------------------------------------------------------------------------------------
# Constrained scores.


@pytest.mark.parametrize("power", [1, -1, 2])
def test_the_energy_of_a_linear_network(x64, power):
    """x - f = (I - B) x: E = sigma^(power - 2) |(I - B) x|^2 / 2, its score -sigma^(power - 2) (I - B)^T (I - B) x."""
    process, t = process64("ve"), jnp.array([0.3, 0.7])
    matrix = np.eye(3) - np.random.default_rng(0).standard_normal((3, 3))
    sigma, x = process.sigma(t)[:, None], jnp.asarray(np.random.default_rng(1).standard_normal((2, 3)))
    free = lambda x, t, cond=None: x @ matrix.T / process.sigma(t)[:, None]
    energy = scores.energy_fn(process, free, power)
    moved = np.asarray(x) @ matrix.T
    np.testing.assert_allclose(energy(x, t), 0.5 * sigma[:, 0] ** (power - 2) * (moved**2).sum(1), rtol=1e-12)
    bound = scores.constrained(energy)
    np.testing.assert_allclose(bound(x, t), -(sigma ** (power - 2)) * moved @ matrix, rtol=1e-12)
    asym = lambda score: divergence.asymmetry_exact(lambda x: score(x, t), x).asym
    assert np.abs(asym(bound)).max() < 1e-20
    np.testing.assert_allclose(asym(free), ((matrix - matrix.T) ** 2).sum() / (2 * sigma[:, 0] ** 2), rtol=1e-12)


def test_the_energy_of_noise_is_that_of_its_gaussian(x64):
    """With power 2 the exact score of N(0, sigma^2) comes back, and the energy is -log-density up to a constant."""
    process, t = process64("ve"), jnp.array([0.9, 0.2])
    exact = lambda x, t, cond=None: -x / process.variance(t)[:, None]
    energy, x = scores.energy_fn(process, exact), jnp.array([[1.0, -2.0], [0.3, 0.1]])
    np.testing.assert_allclose(scores.constrained(energy)(x, t), exact(x, t), rtol=1e-12)
    np.testing.assert_allclose(energy(x, t), 0.5 * (x**2).sum(1) / process.variance(t), rtol=1e-12)
