"""Latent codes of the probability flow, and gradients of the log-density, by the multistep rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import divergence, gaussian, terminal
from scoreflow.likelihood import codes, multistep, nodes, ode
from tests.truth import PROCESSES, TOY, gaussian_score

PROCESS, START = PROCESSES["vp"], 1e-3


def times(count):
    return nodes.even(PROCESS, START, PROCESS.horizon, count)


def test_codes_of_normal_data_are_their_standard_scores_in_two_evaluations():
    """N(0, s^2) is carried onto N(0, alpha_T^2 s^2 + sigma_T^2) by a scaling."""
    spread, x = 0.6, jnp.asarray([[0.3], [-1.2]])
    known = {"gaussian": gaussian.standard(1, spread**2), "t": times(2)}
    z = jax.jit(lambda x: codes.encode(PROCESS, gaussian_score(PROCESS, 0.0, spread**2), x, **known))(x)
    first, last = (np.hypot(float(PROCESS.alpha(t)) * spread, float(PROCESS.sigma(t))) for t in (START, 1.0))
    np.testing.assert_allclose(z, x * last / first, rtol=1e-5)


def test_codes_of_a_mixture_are_those_of_its_transport():
    x = np.asarray([-0.8, -0.3, 0.2, 0.6])
    z = codes.encode(PROCESS, TOY.score(PROCESS), jnp.asarray(x[:, None], jnp.float32), gaussian=_AROUND, t=times(400))
    wanted = [TOY.transport(PROCESS, START, 1.0, each) for each in x]
    np.testing.assert_allclose(z[:, 0], wanted, atol=2e-3)


_AROUND = gaussian.standard(1, 0.4)


def test_decoding_undoes_encoding_to_the_order_of_the_rule():
    x = jnp.asarray(TOY.sample(np.random.default_rng(0), 50), jnp.float32).reshape(-1, 1)
    apart = []
    for count in (101, 201):
        known = {"gaussian": _AROUND, "t": times(count), "order": 2}
        z = codes.encode(PROCESS, TOY.score(PROCESS), x, **known)
        apart.append(float(jnp.sqrt(jnp.mean((codes.decode(PROCESS, TOY.score(PROCESS), z, **known) - x) ** 2))))
    assert apart[0] / apart[1] > 3.0 and apart[1] < 1e-3


def test_interpolated_codes_lie_on_the_circle_through_both():
    first, last = np.asarray([[3.0, 0.0]]), np.asarray([[0.0, 5.0]])
    between = np.asarray(codes.interpolate(jnp.asarray(first), jnp.asarray(last), 5))
    assert between.shape == (5, 1, 2)
    np.testing.assert_allclose(between[[0, -1]], [first, last], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(between, axis=(1, 2)), np.linspace(3, 5, 5), rtol=1e-6)
    np.testing.assert_allclose(np.arctan2(between[:, 0, 1], between[:, 0, 0]), np.linspace(0, np.pi / 2, 5), atol=1e-6)
    same = codes.interpolate(jnp.asarray(first), 2.0 * jnp.asarray(first), 3)
    np.testing.assert_allclose(same[1], 1.5 * first, rtol=1e-6)


@pytest.mark.parametrize("kind", [divergence.exact, divergence.hutchinson])
def test_the_gradient_of_the_log_density_is_the_score_and_the_quotient_of_differences(kind):
    start = 1e-2
    score, end = TOY.score(PROCESS), terminal.prior(PROCESS)
    rule = multistep.rule_at(PROCESS, nodes.even(PROCESS, start, 1.0, 301), 3)
    x = jnp.asarray([[-0.7], [0.1], [0.6]])
    options = {"gaussian": gaussian.standard(1, 0.8), "rule": rule, "divergence": kind}
    run = jax.jit(lambda x: codes.log_prob_and_grad(PROCESS, score, end, jax.random.key(0), x, **options))
    logp, slope = run(x)
    np.testing.assert_allclose(slope, score(x, jnp.full(3, start)), rtol=0.01, atol=0.01)
    step = 1e-2
    np.testing.assert_allclose(slope[:, 0], (run(x + step)[0] - run(x - step)[0]) / (2 * step), rtol=0.02, atol=0.02)
    np.testing.assert_allclose(
        logp, multistep.log_prob(PROCESS, score, end, jax.random.key(0), x, **options).logp, rtol=1e-5
    )


def test_in_two_dimensions_the_gradient_by_probes_is_that_of_each_estimate_and_right_on_average():
    """Half of the sum of both Rademacher probes, u = (1, 1) and (1, -1), is the exact trace."""
    start, end = 1e-2, terminal.prior(PROCESS)
    means, spread = jnp.asarray([[-0.8, -0.3], [0.6, 0.5], [0.1, -0.9]]), 0.09

    def score(x, t, cond=None):
        alpha, variance = PROCESS.alpha(t)[:, None, None], PROCESS.variance(t)[:, None]
        total, apart = PROCESS.alpha(t)[:, None] ** 2 * spread + variance, x[:, None] - alpha * means[None]
        share = jax.nn.softmax(-jnp.sum(apart**2, -1) / (2 * total), -1)
        return -jnp.einsum("bk,bkd->bd", share, apart) / total

    rule = multistep.rule_at(PROCESS, nodes.even(PROCESS, start, 1.0, 201), 3)
    known = {"gaussian": gaussian.standard(2, 0.5), "rule": rule}
    keys = jax.random.split(jax.random.key(0), 16)
    sign = np.asarray(jnp.prod(ode.probes(keys, jnp.zeros((16, 2))), -1))
    both = keys[np.asarray([np.argmax(sign == 1), np.argmax(sign == -1)])]
    x = jnp.asarray([[0.3, -0.4], [0.3, -0.4]])
    run = jax.jit(lambda x: codes.log_prob_and_grad(PROCESS, score, end, both, x, **known))
    logp, slopes = run(x)
    assert abs(logp[0] - logp[1]) > 0.1 and np.abs(slopes[0] - slopes[1]).max() > 0.1
    step = 1e-2
    for axis in np.eye(2, dtype=np.float32)[:, None]:
        quotient = (run(x + step * axis)[0] - run(x - step * axis)[0]) / (2 * step)
        np.testing.assert_allclose((slopes * axis).sum(1), quotient, rtol=0.02, atol=0.02)
    exact = codes.log_prob_and_grad(PROCESS, score, end, both, x, **known, divergence=divergence.exact)
    np.testing.assert_allclose(slopes.mean(0), exact[1][0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(slopes.mean(0), score(x, jnp.full(2, start))[0], rtol=0.01, atol=0.02)
