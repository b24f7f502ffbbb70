import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import dequantise, divergence, likelihood, terminal
from tests.truth import PROCESSES, TOY, gaussian_score, process64


def _solve(process, score, x, t_min, **options):
    return jax.jit(
        lambda x: likelihood.log_prob(
            process, score, terminal.prior(process), jax.random.key(0), x, t_min=t_min, **options
        )
    )(x)


@pytest.mark.parametrize("rule", [divergence.hutchinson, divergence.exact])
@pytest.mark.parametrize(
    "name, t_min, wanted",
    [
        ("ve", 1e-5, -1.205647400),
        ("vp", 1e-5, -1.205774365),
        ("vp", 1e-3, -1.205617577),
        ("sub_vp", 1e-3, -1.205807830),
    ],
)
def test_gaussian_closed_form(x64, name, t_min, wanted, rule):
    """Per dimension, for c^2 = 0.25 at x = 0.7, in two dimensions at once."""
    process = process64(name)
    found = _solve(
        process, gaussian_score(process, 0.0, 0.25), jnp.full((1, 2), 0.7), t_min, divergence=rule, rtol=1e-9, atol=1e-9
    )
    assert float(found.logp[0]) / 2 == pytest.approx(wanted, abs=2e-8)
    assert bool(found.ok[0]) and float(found.prior[0] + found.integral[0]) == pytest.approx(float(found.logp[0]))


@pytest.mark.parametrize("name, column", [("ve", 0), ("vp", 1)])
def test_mixture_against_monotone_transport(x64, name, column):
    """A solver-free oracle: in one dimension the flow is the monotone map between marginals."""
    wanted = {
        -0.9: (0.5175780034, 0.5230550664),
        -0.25: (0.6527344743, 0.6617554809),
        0.0: (-7.8520669630, -7.8887587406),
        0.5: (-0.0147515952, -0.0138998305),
        1.0: (-4.3630808824, -4.3865469439),
    }
    process = process64(name)
    x = jnp.array(list(wanted))[:, None]
    found = _solve(process, TOY.score(process), x, 1e-5, divergence=divergence.exact, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.logp, [values[column] for values in wanted.values()], atol=3e-7)


def test_default_tolerance_in_float32_is_good_to_a_thousandth():
    for name, wanted in (("ve", -1.205647400), ("vp", -1.205774365)):
        process = PROCESSES[name]
        found = _solve(process, gaussian_score(process, 0.0, 0.25), jnp.full((1, 8), 0.7), 1e-5)
        assert float(found.logp[0]) / 8 == pytest.approx(wanted, abs=1e-3)


def test_the_flow_is_invertible_and_runs_from_data_to_noise(x64):
    """log p falls with |x| of a Gaussian: the reversed integral would make it rise."""
    process = process64("vp")
    found = _solve(process, gaussian_score(process, 0.0, 0.25), jnp.array([[0.0], [1.0], [2.0]]), 1e-5).logp
    np.testing.assert_allclose(np.diff(found), [-2.0, -6.0], rtol=1e-2)


def test_hutchinson_is_unbiased_and_exact_is_exact(x64):
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)))

    def field(x):
        return jnp.tanh(x @ matrix)

    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3)))
    jacobians = jax.vmap(jax.jacfwd(lambda x: field(x[None])[0]))(x)
    traces = jnp.trace(jacobians, axis1=1, axis2=2)
    value, found = divergence.exact(field, x)
    np.testing.assert_allclose(found, traces, rtol=1e-12)
    np.testing.assert_allclose(value, field(x), rtol=1e-12)
    # all 8 sign patterns: their mean is the trace exactly
    signs = jnp.asarray(np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, 8).T)
    draws = [divergence.hutchinson(field, x, jnp.broadcast_to(s, x.shape))[1] for s in signs]
    np.testing.assert_allclose(np.mean(draws, axis=0), traces, rtol=1e-12)


def test_one_probe_per_solve_and_one_per_example():
    """With a non-diagonal Jacobian the estimate depends on the probe; the same key gives the same numbers."""
    process = PROCESSES["vp"]
    covariance = jnp.array([[1.0, 0.9], [0.9, 1.0]])

    def score(x, t, cond=None):
        alpha, variance = process.alpha(t)[:, None, None], process.variance(t)[:, None, None]
        marginal = alpha**2 * covariance[None] + variance * jnp.eye(2)[None]
        return -jnp.linalg.solve(marginal, x[..., None])[..., 0]

    x = jnp.tile(jnp.array([[0.5, -0.3]]), (16, 1))
    law = terminal.prior(process)
    first = likelihood.log_prob(process, score, law, jax.random.key(1), x, t_min=1e-3)
    again = likelihood.log_prob(process, score, law, jax.random.key(1), x, t_min=1e-3)
    assert len(np.unique(np.round(np.asarray(first.logp), 3))) > 1
    np.testing.assert_array_equal(first.logp, again.logp)
    part = likelihood.log_prob(process, score, law, jax.random.split(jax.random.key(1), 16)[5:7], x[5:7], t_min=1e-3)
    np.testing.assert_allclose(part.logp, first.logp[5:7], rtol=1e-5)


def test_integer_data_are_refused():
    process = PROCESSES["vp"]
    with pytest.raises(TypeError, match="uint8.*dequantisation"):
        likelihood.log_prob(
            process, None, terminal.prior(process), jax.random.key(0), jnp.zeros((2, 3), jnp.uint8), t_min=1e-3
        )


def test_a_solve_that_cannot_finish_says_so():
    process = PROCESSES["vp"]
    found = _solve(process, gaussian_score(process, 0.0, 0.25), jnp.full((2, 2), 0.7), 1e-5, max_steps=3)
    assert not np.asarray(found.ok).any() and np.isnan(np.asarray(found.logp)).all()


# ----------------------------------------------------------------------------------------------------------------------
# Units.


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_a_uniform_density_scores_log2_levels(levels):
    size = 12
    log_p = -size * np.log(2.0)  # uniform on [-1, 1]^12
    assert dequantise.bits_per_dim(np.array([log_p]), np.zeros(1), size, levels)[0] == pytest.approx(np.log2(levels))


def test_uniform_dequantisation_bounds_the_discrete_model():
    """y ~ N(.1, .3^2), 256 levels, pixel 100: exact 7.38327520 bits, uniform bound 7.38332010."""
    pixel = jnp.full((200_000, 1), 100, jnp.uint8)
    x, log_q = dequantise.uniform(jax.random.key(0), pixel, 256)
    log_p = -0.5 * (x[:, 0] - 0.1) ** 2 / 0.09 - np.log(0.3 * np.sqrt(2 * np.pi))
    bits = np.asarray(dequantise.bits_per_dim(log_p, log_q, 1, 256), np.float64)
    assert abs(bits.mean() - 7.38332010) < 4 * bits.std() / np.sqrt(len(bits)) + 2e-6
    assert bits.mean() > 7.38327520


def test_dequantised_levels_come_back():
    levels = jnp.arange(17, dtype=jnp.uint8).repeat(100)[:, None]
    x = dequantise.uniform(jax.random.key(0), levels, 17).x
    np.testing.assert_array_equal(dequantise.quantise(x, 17), levels)
    assert float(x.min()) >= -1 and float(x.max()) <= 1
    np.testing.assert_array_equal(dequantise.quantise(jnp.array([-3.0, 3.0]), 17), [0, 16])
