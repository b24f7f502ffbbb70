"""Control variates of the bound: what a Gaussian of the data gives under the same noise, and on average over it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import likelihood, terminal
from scoreflow.evaluators.bound import time_density
from scoreflow.evaluators.density import fit_gaussian
from scoreflow.gaussian import Gaussian
from scoreflow.likelihood import control
from scoreflow.objectives import times
from scoreflow.processes.sdes import expand
from tests.normal import STD, context_of
from tests.truth import TOY, gaussian_score, process64, with_score

RNG = np.random.default_rng(0)
D, RANK, B = 5, 2, 3
BASIS = np.linalg.qr(RNG.normal(size=(D, D)))[0]
VARIANCES, REST = np.asarray([2.0, 0.7]), 0.3
COVARIANCE = BASIS @ np.diag([*VARIANCES, *[REST] * (D - RANK)]) @ BASIS.T


def around(count=B):
    mean = np.linspace(-1.0, 1.0, D)
    arrays = (mean[None], BASIS[:, :RANK], VARIANCES[None], np.full(1, REST))
    return Gaussian(*map(jnp.asarray, arrays)).of(None, count)


@pytest.fixture
def drawn(x64):
    return jnp.asarray(RNG.normal(size=(B, D))), jnp.asarray([0.9, 0.5, 0.2]), jnp.asarray([0.1, 0.8, 1.3])


def test_error_and_whitened_point_are_those_of_the_gaussian_score(drawn):
    x, alpha, sigma = drawn
    noise = jnp.asarray(RNG.normal(size=(B, D)))
    for i in range(B):
        covariance = alpha[i] ** 2 * COVARIANCE + sigma[i] ** 2 * np.eye(D)
        away = alpha[i] * (x[i] - around().mean[i]) + sigma[i] * noise[i]
        score = -np.linalg.solve(covariance, away)
        error = control.error(around(), x, noise, alpha, sigma)[i]
        np.testing.assert_allclose(error, sigma[i] * score + noise[i], atol=1e-12)
        square = np.sum(control.whitened(around(), x, noise, alpha, sigma)[i] ** 2)
        assert float(square) == pytest.approx(float(-away @ score), rel=1e-12)


def test_mean_squares_are_those_over_the_noise(drawn):
    """A square's mean is that of its constant part and of its part in the noise, which is a sum over unit vectors."""
    x, alpha, sigma = drawn
    one = around(1)
    for i in range(B):
        each = x[i][None], alpha[i], sigma[i]
        means = {control.error: control.mean_error(one, each[0], (sigma[i] / alpha[i]) ** 2)}
        means[control.whitened] = control.mean_whitened(one, *each)
        for part, mean in means.items():
            at = lambda noise, part=part, i=i: part(one, x[i][None], noise[None], alpha[i][None], sigma[i][None])[0]
            constant = at(jnp.zeros(D))
            linear = sum(jnp.sum((at(unit) - constant) ** 2) for unit in jnp.eye(D))
            assert float(mean[0]) == pytest.approx(float(jnp.sum(constant**2) + linear), rel=1e-12)


def test_the_area_is_the_integral_of_the_mean_over_log_noise(drawn):
    x, _, _ = drawn
    points, weights = np.polynomial.legendre.leggauss(80)
    low, high = np.log(1e-2), np.log(30.0)
    q = low + (high - low) * (points + 1) / 2
    means = np.stack([control.mean_error(around(), x, jnp.exp(2 * each)) for each in q])
    area = control.error_area(around(), x, jnp.exp(2 * low), jnp.exp(2 * high))
    np.testing.assert_allclose(area, (high - low) / 2 * weights @ means, rtol=1e-9)


def bounds(score, gaussian, x, keys, **options):
    process = process64("vp")
    run = jax.jit(
        lambda keys: (
            likelihood.bound(
                process, score, terminal.prior(process), keys, x, t_min=1e-3, gaussian=gaussian, **options
            ).total
        )
    )
    return run(keys)


def test_the_bound_of_the_exact_score_of_normal_data_has_no_noise_left(x64):
    process = process64("vp")
    gaussian = Gaussian(*map(jnp.asarray, (np.zeros((1, 2)), np.eye(2), np.full((1, 2), 0.25), np.ones(1))))
    x, keys = jnp.full((400, 2), 0.4), jax.random.split(jax.random.key(0), 400)
    score = gaussian_score(process, 0.0, 0.25)
    alone, known = (bounds(score, each, x, keys, num_times=2) for each in (None, gaussian))
    assert np.std(known) < 0.02 * np.std(alone)
    assert abs(np.mean(alone) - np.mean(known)) < 4 * np.std(alone) / 20


def test_the_bound_is_the_same_with_any_gaussian_and_any_times(x64):
    process = process64("vp")
    score, x, keys = TOY.score(process), jnp.full((4000, 1), 0.5), jax.random.split(jax.random.key(1), 4000)
    rough = Gaussian(*map(jnp.asarray, (np.full((1, 1), 0.1), np.eye(1), np.full((1, 1), 0.4), np.ones(1))))
    rate = jnp.asarray([0.3, 1.0, 2.0, 0.5, 0.1])
    alone = bounds(score, None, x, keys, num_times=4)
    for other in (
        bounds(score, rough, x, keys, num_times=4),
        bounds(score, rough, x, keys, num_times=4, sample_times=functools.partial(times.by_cells, rate=rate)),
    ):
        assert abs(np.mean(alone) - np.mean(other)) < 4 * np.hypot(np.std(alone), np.std(other)) / np.sqrt(4000)


def test_noise_is_the_variance_of_the_square_over_draws(x64):
    """In one dimension |a noise - b|^2 has the variance 2 a^4 + 4 a^2 b^2."""
    process, v, x = process64("vp"), 0.25, 0.7
    keys, many = jax.random.split(jax.random.key(2), 20_000), jnp.full((20_000, 1), x)
    score = gaussian_score(process, 0.0, v)
    noise = likelihood.bound_noise(process, score, keys, many, t_min=1e-3, cells=4)
    top, bottom = (float(process.log_snr(t)) for t in (1e-3, 1.0))
    u = np.exp(-(top - (top - bottom) / 4 * (np.arange(4) + 0.5)))
    a, b = v / (v + u), np.sqrt(u) * x / (v + u)
    wanted = 2 * a**4 + 4 * a**2 * b**2
    apart = np.mean(noise, axis=0) - wanted
    assert np.all(np.abs(apart) < 4 * np.std(noise, axis=0) / np.sqrt(20_000))


def test_times_by_cells_have_the_density_that_is_asked_for(x64):
    process, rate = process64("vp"), np.asarray([3.0, 1.0, 4.0, 2.0])
    drawn = times.by_cells(process, jax.random.key(0), 10_000, t_min=1e-3, rate=jnp.asarray(rate))
    top, bottom = (float(process.log_snr(t)) for t in (1e-3, 1.0))
    cell = np.floor((top - np.asarray(process.log_snr(drawn.t))) / (top - bottom) * 4 - 1e-9).astype(int)
    np.testing.assert_allclose(np.bincount(cell, minlength=4) / 10_000, rate / rate.sum(), atol=2e-3)


def test_chosen_times_leave_less_noise_than_importance(gaussian):
    """Where the score is wrong at one noise level alone, nearly all draws go there."""
    experiment, evaluation = gaussian
    process = experiment.model.process

    def score(x, t, cond=None):
        wrong = 1.0 + 0.5 * jnp.exp(-((process.log_snr(t) - 2.0) ** 2))
        return expand(wrong, x) * gaussian_score(process, np.zeros(2), STD**2)(x, t)

    context = context_of(with_score(experiment, score), evaluation)
    known, x = fit_gaussian(context), jnp.asarray(experiment.data.test.x[:200])
    rate = np.asarray(time_density(context, known))
    edges = np.linspace(*(float(process.log_snr(t)) for t in (context.model.t_min, 1.0)), len(rate) + 1)
    near = np.abs(0.5 * (edges[1:] + edges[:-1]) - 2.0) < 3.0
    assert rate[near].sum() / rate.sum() > 0.7 > 2 * near.mean()
    noise = []
    for sample_times in (times.importance, functools.partial(times.by_cells, rate=jnp.asarray(rate))):
        run = jax.jit(
            lambda keys, sample_times=sample_times: likelihood.bound(
                process, score, terminal.prior(process), keys, x, t_min=context.model.t_min, num_times=4,
                gaussian=known, sample_times=sample_times,
            ).total
        )  # fmt: skip
        draws = [run(jax.random.split(jax.random.key(i), len(x))) for i in range(30)]
        noise.append(float(np.mean(np.var(draws, axis=0))))
    assert noise[1] < 0.8 * noise[0]
