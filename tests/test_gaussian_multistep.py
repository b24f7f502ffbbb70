"""The sampler in which the data's Gaussian is exact, and the weights of its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from scoreflow import gaussian
from scoreflow.likelihood import multistep, nodes
from scoreflow.samplers import grids, sample
from scoreflow.samplers.adams import ORDER, adams
from scoreflow.samplers.gaussian_multistep import gaussian_multistep
from tests.test_multistep import COVARIANCE, MEAN, STARTS, correlated_score, exact_gaussian
from tests.truth import PROCESSES, TOY, lagrange_weights, process64, slope


@pytest.mark.parametrize("order", [1, 2, 3])
def test_weights_are_integrals_of_lagrange_polynomials(order):
    """Through the last nodes, of which there are fewer at the beginning; NumPy's and JAX's are equal."""
    q = np.asarray([-1.0, -0.3, 0.1, 0.9, 1.4])
    predictor, corrector = adams(q, order)
    for n in range(1, len(q)):
        for first, row in ((n - 1, predictor[n]), (n, corrector[n])):
            at = [first - j for j in range(order) if first >= j]
            np.testing.assert_allclose(row[: len(at)], lagrange_weights(q, n - 1, at), atol=1e-13)
            np.testing.assert_array_equal(row[len(at) :], 0.0)
    assert not predictor[0].any() and not corrector[0].any()
    for ours, theirs in zip(adams(jnp.asarray(q, jnp.float32), order), (predictor, corrector)):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_weights_of_even_nodes_are_those_of_adams_bashforth_and_moulton():
    predictor, corrector = adams(np.arange(6.0), 3)
    np.testing.assert_allclose(predictor[4], np.asarray([23, -16, 5]) / 12, atol=1e-13)
    np.testing.assert_allclose(corrector[4], np.asarray([5, 8, -1]) / 12, atol=1e-13)


@pytest.mark.parametrize("name", STARTS)
def test_one_step_is_exact_for_gaussian_data(name):
    """x_T = alpha m + C_T^(1/2) w goes to alpha m + C_0^(1/2) w, and then to the mean of x_0 given that."""
    process, start = PROCESSES[name], STARTS[name]
    variances, basis = np.linalg.eigh(COVARIANCE)

    def at(t, w):
        alpha, variance = float(process.alpha(t)), float(process.variance(t))
        return alpha * MEAN + (w @ basis * np.sqrt(alpha**2 * variances + variance)) @ basis.T

    w, end = np.random.default_rng(1).normal(size=(4, 5)), float(process.horizon)
    rule, grid = gaussian_multistep(exact_gaussian()), jnp.asarray([end, start])
    x_init = jnp.asarray(at(end, w), jnp.float32)
    run = lambda **options: sample(rule, process, correlated_score(process), jax.random.key(0), x_init, grid, **options)
    noisy, clean = run(denoise=False), run()
    scale = np.sqrt(np.trace(COVARIANCE))
    np.testing.assert_allclose(noisy.x, at(start, w), atol=5e-5 * scale)  # float32, through a step over all times
    alpha, variance = float(process.alpha(start)), float(process.variance(start))
    gain = alpha * COVARIANCE @ np.linalg.inv(alpha**2 * COVARIANCE + variance * np.eye(5))
    np.testing.assert_allclose(clean.x, MEAN + (at(start, w) - alpha * MEAN) @ gain.T, atol=3e-4 * scale)
    assert np.all(np.asarray(noisy.nfe) == 1) and np.all(np.asarray(clean.nfe) == 2)


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_error_with_another_gaussian_falls_at_least_with_the_order(x64, order, corrector):
    """On a mixture, whose exact flow is the monotone map between its distributions at both ends."""
    process, t_min, x = process64("vp"), 0.05, np.asarray([-1.5, -0.4, 0.3, 1.2])
    exact = np.array([TOY.transport(process, 1.0, t_min, value) for value in x])
    rule = gaussian_multistep(gaussian.standard(1, 0.7), order, corrector)
    counts, errors = (160, 320, 640), []
    for n in counts:
        grid = grids.log_snr(process, n, t_min=t_min)
        result = sample(rule, process, TOY.score(process), jax.random.key(0), x[:, None], grid, denoise=False)
        errors.append(np.abs(np.asarray(result.x)[:, 0] - exact).max())
    assert slope(errors, counts) > order - 0.3


def test_the_path_is_that_of_the_likelihood_backwards():
    """Both follow the same flow: a point that is sampled is carried back to where it began."""
    process, end = PROCESSES["vp"], 1.0
    known = gaussian.standard(1, 0.5)
    x_init = jnp.asarray([[-1.3], [0.2], [0.9]])
    grid = grids.log_snr(process, 200, t_min=1e-3)
    score = TOY.score(process)
    x = sample(gaussian_multistep(known, 3), process, score, jax.random.key(0), x_init, grid, denoise=False).x
    rule = multistep.rule_at(process, nodes.even(process, 1e-3, end, 200), ORDER)
    back = multistep.follow(process, score, known, rule, x).last
    np.testing.assert_allclose(back, x_init, atol=2e-4)


def test_the_factor_is_integrated_exactly_where_the_denoiser_adds_a_constant():
    """E[x_0 | x] = the Gaussian's + c: then w moves by the integral of -c (v + rho^2)^(-1/2), in as few steps as one."""
    process, v, c, t_min = PROCESSES["vp"], 0.5, 0.3, 1e-2
    known = gaussian.standard(1, v)

    def score(x, t, cond=None):
        alpha, variance = process.alpha(t)[:, None], process.variance(t)[:, None]
        return (alpha * (alpha * v / (alpha**2 * v + variance) * x + c) - x) / variance

    ends = jnp.asarray([0.3, t_min])
    x_init = jnp.asarray([[-0.4], [1.0]])
    rule = gaussian_multistep(known)
    result = sample(rule, process, score, jax.random.key(0), x_init, ends, denoise=False)
    alpha, sigma = np.asarray(process.alpha(ends), float), np.asarray(process.sigma(ends), float)
    spread, (before, after) = np.sqrt(alpha**2 * v + sigma**2), sigma / alpha
    moved = c / np.sqrt(v) * (np.arcsinh(np.sqrt(v) / after) - np.arcsinh(np.sqrt(v) / before))
    np.testing.assert_allclose(result.x, spread[1] * (np.asarray(x_init) / spread[0] + moved), rtol=1e-4)


def test_steps_of_the_bell_grid_hold_equal_parts_of_its_density():
    process, n = PROCESSES["edm"], 9
    grid = grids.bell(process, n, t_min=2e-3, center=1.0, width=2.0, floor=0.4)
    at = np.asarray(process.log_snr(grid), float)
    parts = [quad(lambda u: 0.4 + 1.0 / np.cosh((u - 1.0) / 2.0), low, high)[0] for low, high in zip(at, at[1:])]
    np.testing.assert_allclose(parts, np.mean(parts), rtol=1e-3)
    assert grid[0] == process.horizon and grid[-1] == np.float32(2e-3)


def test_classes_have_their_own_gaussian():
    """Two classes, each of a normal distribution: one step is exact for both."""
    process, means, stds = PROCESSES["vp"], np.asarray([-2.0, 1.0]), np.asarray([0.3, 0.6])

    def score(x, t, cond):
        alpha, variance = process.alpha(t)[:, None], process.variance(t)[:, None]
        mean, var = jnp.asarray(means, jnp.float32)[cond][:, None], jnp.asarray(stds**2, jnp.float32)[cond][:, None]
        return -(x - alpha * mean) / (alpha**2 * var + variance)

    known = gaussian.Gaussian(
        *(jnp.asarray(a, jnp.float32) for a in (means[:, None], np.zeros((1, 0)), np.zeros((2, 0)), stds**2))
    )
    cond, grid = jnp.asarray([0, 1, 0, 1]), jnp.asarray([1.0, 1e-3])
    x_init = jnp.asarray([[-1.0], [-1.0], [0.5], [0.5]])
    result = sample(gaussian_multistep(known), process, score, jax.random.key(0), x_init, grid, cond, denoise=False)
    alpha, variance = (np.asarray([float(f(t)) for t in (1.0, 1e-3)]) for f in (process.alpha, process.variance))
    spread = np.sqrt(alpha[:, None] ** 2 * stds**2 + variance[:, None])
    for x, w, label in zip(np.asarray(result.x)[:, 0], np.asarray(x_init)[:, 0], np.asarray(cond)):
        begun = (w - alpha[0] * means[label]) / spread[0, label]
        assert x == pytest.approx(alpha[1] * means[label] + spread[1, label] * begun, abs=1e-4)
