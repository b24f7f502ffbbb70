"""The parts of the ODE's divergence against closed forms: a Gaussian whose score is scaled by k."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import diagnostics, divergence, likelihood, terminal
from tests.truth import TOY, gaussian_score, process64


def scaled(true, k):
    """k times a score."""
    return lambda x, t, cond=None: k * true(x, t)


def near(values, wanted):
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - wanted) < 4 * error, (np.mean(values), error, wanted)


def variance_of_model(process, k, t):
    """P_t of the ODE model of N(0, 1) under VE with its score scaled by k."""
    spread = lambda t: 1 + process.variance(t)
    return process.prior_std() ** 2 * (spread(t) / spread(process.horizon)) ** k


@pytest.mark.parametrize("probed", [False, True])
def test_the_score_of_the_ode_model(x64, probed):
    """-x / P_t; a linear field has no grad tr, so any probe is exact."""
    process = process64("ve")
    x, t = jnp.array([[0.7, -1.0], [2.0, 0.1], [30.0, 5.0]]), jnp.array([1e-5, 0.3, 0.8])
    score = scaled(gaussian_score(process, 0.0, 1.0), 0.95)
    probe = jnp.ones_like(x) if probed else None
    run = jax.jit(
        lambda x: diagnostics.model_score(process, score, terminal.prior(process), x, t, probe, rtol=1e-9, atol=1e-9)
    )
    found = run(x)
    np.testing.assert_allclose(found.score, -x / variance_of_model(process, 0.95, t)[:, None], rtol=1e-6)
    assert found.ok.all()


def test_the_score_of_the_ode_model_is_the_gradient_of_its_density(x64):
    """On a mixture with a wrong score, against a difference quotient of the likelihood."""
    process = process64("vp")
    score, law = scaled(TOY.score(process), 0.9), terminal.prior(process)
    x, step = jnp.array([[0.1], [-0.3]]), 1e-4
    density = jax.jit(
        lambda x: (
            likelihood.log_prob(
                process,
                score,
                law,
                jax.random.key(0),
                x,
                t_min=0.2,
                divergence=divergence.exact,
                rtol=1e-10,
                atol=1e-10,
            ).logp
        )
    )
    slope = (density(x + step) - density(x - step)) / (2 * step)
    found = jax.jit(lambda x: diagnostics.model_score(process, score, law, x, jnp.full(2, 0.2), rtol=1e-9, atol=1e-9))(
        x
    )
    np.testing.assert_allclose(found.score[:, 0], slope, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "k, j_sm, j_diff, j_f",
    [(0.95, 0.00978043242, 0.02388006100, 0.1499613556), (0.9, 0.03912172968, 0.08063269359, 0.4617091671)],
)
def test_parts_of_the_divergence(x64, k, j_sm, j_diff, j_f):
    """VE, N(0, 1): (2), (3), (4), and the inequality between them."""
    process = process64("ve")
    true = gaussian_score(process, 0.0, 1.0)
    x0 = jax.random.normal(jax.random.key(0), (4000, 1), jnp.float64)
    run = jax.jit(
        lambda key, x0: diagnostics.parts(
            process, scaled(true, k), terminal.prior(process), key, x0, t_min=1e-9, true_score=true, exact=True
        )
    )
    found = run(jax.random.key(1), x0)
    near(found.j_sm, j_sm)
    near(found.j_diff, j_diff)
    near(found.j_f, j_f)
    assert j_sm + j_diff <= np.sqrt(j_sm * j_f)
    # (6) is (2) with the other score: |S - s|^2 = |S - s1|^2 - 2 (S - s1).(s - s1) + |s - s1|^2
    near(found.j_gap, j_f - 2 * (j_sm + j_diff) + j_sm)
