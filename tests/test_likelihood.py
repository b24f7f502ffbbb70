import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from scoreflow import dequantise, divergence, likelihood, terminal
from scoreflow.objectives import times
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
    solution = _solve(
        process, gaussian_score(process, 0.0, 0.25), jnp.full((1, 2), 0.7), t_min, divergence=rule, rtol=1e-9, atol=1e-9
    )
    assert float(solution.logp[0]) / 2 == pytest.approx(wanted, abs=2e-8)
    assert bool(solution.ok[0]) and float(solution.prior[0] + solution.integral[0]) == pytest.approx(
        float(solution.logp[0])
    )


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
    solution = _solve(process, TOY.score(process), x, 1e-5, divergence=divergence.exact, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(solution.logp, [values[column] for values in wanted.values()], atol=3e-7)


def test_default_tolerance_in_float32_is_good_to_a_thousandth():
    for name, wanted in (("ve", -1.205647400), ("vp", -1.205774365)):
        process = PROCESSES[name]
        solution = _solve(process, gaussian_score(process, 0.0, 0.25), jnp.full((1, 8), 0.7), 1e-5)
        assert float(solution.logp[0]) / 8 == pytest.approx(wanted, abs=1e-3)


def test_the_flow_is_invertible_and_runs_from_data_to_noise(x64):
    """log p falls with |x| of a Gaussian: the reversed integral would make it rise."""
    process = process64("vp")
    logp = _solve(process, gaussian_score(process, 0.0, 0.25), jnp.array([[0.0], [1.0], [2.0]]), 1e-5).logp
    np.testing.assert_allclose(np.diff(logp), [-2.0, -6.0], rtol=1e-2)


def test_hutchinson_is_unbiased_and_exact_is_exact(x64):
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)))

    def field(x):
        return jnp.tanh(x @ matrix)

    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3)))
    jacobians = jax.vmap(jax.jacfwd(lambda x: field(x[None])[0]))(x)
    traces = jnp.trace(jacobians, axis1=1, axis2=2)
    value, trace = divergence.exact(field, x)
    np.testing.assert_allclose(trace, traces, rtol=1e-12)
    np.testing.assert_allclose(value, field(x), rtol=1e-12)
    # all 8 sign patterns: their mean is the trace exactly
    signs = jnp.asarray(np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, 8).T)
    draws = [divergence.hutchinson(field, x, jnp.broadcast_to(s, x.shape))[1] for s in signs]
    np.testing.assert_allclose(np.mean(draws, axis=0), traces, rtol=1e-12)


@pytest.mark.slow
def test_one_probe_per_solve_and_one_per_example():
    """With a non-diagonal Jacobian the estimate depends on the probe; the same key gives the same numbers."""
    process = PROCESSES["vp"]
    covariance = jnp.array([[1.0, 0.9], [0.9, 1.0]])

    def score(x, t, cond=None):
        alpha, variance = process.alpha(t)[:, None, None], process.variance(t)[:, None, None]
        marginal = alpha**2 * covariance[None] + variance * jnp.eye(2)[None]
        return -jnp.linalg.solve(marginal, x[..., None])[..., 0]

    x = jnp.tile(jnp.array([[0.5, -0.3]]), (16, 1))
    prior = terminal.prior(process)
    first = likelihood.log_prob(process, score, prior, jax.random.key(1), x, t_min=1e-3)
    again = likelihood.log_prob(process, score, prior, jax.random.key(1), x, t_min=1e-3)
    assert len(np.unique(np.round(np.asarray(first.logp), 3))) > 1
    np.testing.assert_array_equal(first.logp, again.logp)
    keys = jax.random.split(jax.random.key(1), 16)
    two = likelihood.log_prob(process, score, prior, keys[5:7], x[5:7], t_min=1e-3)
    np.testing.assert_allclose(two.logp, first.logp[5:7], rtol=1e-5)


def test_integer_data_are_refused():
    process = PROCESSES["vp"]
    with pytest.raises(TypeError, match="uint8.*dequantization"):
        likelihood.log_prob(
            process, None, terminal.prior(process), jax.random.key(0), jnp.zeros((2, 3), jnp.uint8), t_min=1e-3
        )


def test_a_solve_that_cannot_finish_says_so():
    process = PROCESSES["vp"]
    solution = _solve(process, gaussian_score(process, 0.0, 0.25), jnp.full((2, 2), 0.7), 1e-5, max_steps=3)
    assert not np.asarray(solution.ok).any() and np.isnan(np.asarray(solution.logp)).all()


# ----------------------------------------------------------------------------------------------------------------------
# Units.


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_a_uniform_density_scores_log2_levels(levels):
    size = 12
    log_p = -size * np.log(2.0)  # uniform on [-1, 1]^12
    assert dequantise.bits_per_dim(np.array([log_p]), np.zeros(1), size, dequantise.Bins(levels))[0] == pytest.approx(
        np.log2(levels)
    )


def test_the_interval_of_the_data_is_a_change_of_units():
    """A uniform density on [0, 1]^d scores log2(levels) too; for 256 levels the shift is 7 centered and 8 not. The same
    noise lands on the same place of the other interval, and a density carried there scores the same."""
    centered, unit = dequantise.Bins(256), dequantise.Bins(256, 0.0, 1.0)
    zero = np.zeros(1)
    assert (
        dequantise.bits_per_dim(zero, zero, 12, unit)[0]
        == 8.0
        == dequantise.bits_per_dim(zero, zero, 12, centered)[0] + 1
    )
    image, size = jnp.arange(256, dtype=jnp.uint8).reshape(64, 2, 2), 4
    (a, _), (b, _) = (dequantise.uniform(jax.random.key(0), image, bins) for bins in (centered, unit))
    np.testing.assert_allclose(a, 2 * b - 1, atol=1e-6)
    np.testing.assert_array_equal(dequantise.quantise(b, unit), image)
    log_p = lambda x, mean, std: np.asarray(jax.scipy.stats.norm.logpdf(x, mean, std).reshape(len(x), -1).sum(1))
    bits = dequantise.bits_per_dim(log_p(a, 0.2, 0.6), 0.0, size, centered)
    np.testing.assert_allclose(dequantise.bits_per_dim(log_p(b, 0.6, 0.3), 0.0, size, unit), bits, atol=1e-5)


def test_uniform_dequantization_bounds_the_discrete_model():
    """y ~ N(.1, .3^2), 256 levels, pixel 100: exact 7.38327520 bits, uniform bound 7.38332010."""
    pixel = jnp.full((200_000, 1), 100, jnp.uint8)
    x, log_q = dequantise.uniform(jax.random.key(0), pixel, dequantise.Bins(256))
    log_p = -0.5 * (x[:, 0] - 0.1) ** 2 / 0.09 - np.log(0.3 * np.sqrt(2 * np.pi))
    bits = np.asarray(dequantise.bits_per_dim(log_p, log_q, 1, dequantise.Bins(256)), np.float64)
    assert abs(bits.mean() - 7.38332010) < 4 * bits.std() / np.sqrt(len(bits)) + 2e-6
    assert bits.mean() > 7.38327520


def test_dequantised_levels_come_back():
    levels, bins = jnp.arange(17, dtype=jnp.uint8).repeat(100)[:, None], dequantise.Bins(17)
    x = dequantise.uniform(jax.random.key(0), levels, bins).x
    np.testing.assert_array_equal(dequantise.quantise(x, bins), levels)
    assert float(x.min()) >= -1 and float(x.max()) <= 1
    np.testing.assert_array_equal(dequantise.quantise(jnp.array([-3.0, 3.0]), bins), [0, 16])


@pytest.mark.parametrize("name, wanted", [("ve", -1.205647400), ("vp", -1.205774365)])
def test_log_snr_as_the_clock_gives_the_same_density(x64, name, wanted):
    process = process64(name)
    solution = _solve(
        process, gaussian_score(process, 0.0, 0.25), jnp.full((1, 2), 0.7), 1e-5, rtol=1e-9, atol=1e-9, in_log_snr=True
    )
    assert float(solution.logp[0]) / 2 == pytest.approx(wanted, abs=2e-8)


# ----------------------------------------------------------------------------------------------------------------------
# The bound of the SDE model.


def _bound(process, score, n, d, c2, num_times=20, **options):
    x = np.sqrt(c2) * jax.random.normal(jax.random.key(3), (n, d), jnp.float64)
    run = jax.jit(
        lambda key, x: likelihood.bound(
            process, score, terminal.prior(process), key, x, t_min=1e-5, num_times=num_times, **options
        )
    )
    return run(jax.random.key(4), x)


def _near(values, wanted):
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - wanted) < 4 * error + 1e-9, (np.mean(values), error, wanted)


@pytest.mark.parametrize("sample_times", [times.importance, times.uniform])
def test_the_bound_of_the_true_score_is_the_entropy(x64, sample_times):
    """VP, N(0, 0.25), per dimension: the terms one by one, and a total of .7257913529 against .7257913526."""
    process, d = process64("vp"), 2
    bound = _bound(process, gaussian_score(process, 0.0, 0.25), 40_000, d, 0.25, sample_times=sample_times)
    np.testing.assert_allclose(bound.total, bound.prior + bound.diffusion + bound.offset, rtol=1e-12)
    _near(bound.prior / d, 1.4189223385)
    _near(bound.diffusion / d, -0.6931294842)
    _near(bound.offset / d, -0.0000015015)
    _near(bound.total / d, 0.7257913529)


@pytest.mark.parametrize("k, j_sm", [(0.95, 0.00978043242), (1.05, 0.00978043242)])
def test_a_wrong_score_costs_the_bound_its_score_matching_error(x64, k, j_sm):
    """VE, N(0, 1), score scaled by k: the bound rises by J_SM, while the ODE's divergence rises by 3 times as much."""
    process = process64("ve")
    true = gaussian_score(process, 0.0, 1.0)
    exact, wrong = (_bound(process, lambda x, t, cond=None, s=s: s * true(x, t), 40_000, 1, 1.0) for s in (1.0, k))
    _near(wrong.total - exact.total, j_sm)  # the same noise and times in both


def test_an_example_has_the_same_bound_in_any_batch(x64):
    process = process64("vp")
    keys, x = jax.random.split(jax.random.key(0), 6), jax.random.normal(jax.random.key(1), (6, 2))
    score, prior = gaussian_score(process, 0.0, 1.0), terminal.prior(process)
    run = jax.jit(lambda keys, x: likelihood.bound(process, score, prior, keys, x, t_min=1e-4, num_times=5))
    np.testing.assert_allclose(run(keys[2:4], x[2:4]).total, run(keys, x).total[2:4], rtol=1e-12)
    with pytest.raises(TypeError, match="choose a dequantization"):
        run(keys, jnp.zeros((6, 2), jnp.uint8))


# ----------------------------------------------------------------------------------------------------------------------
# Truncated-normal dequantization at log-SNR 13.3, 256 levels.

ALPHA, SIGMA = float(np.sqrt(1 / (1 + np.exp(-13.3)))), float(np.sqrt(1 / (1 + np.exp(13.3))))


def _bits(log_density, pixels, key=0):
    """Bits per dimension of one-pixel images under a density at that noise level."""
    image = jnp.asarray(pixels, jnp.uint8)[:, None]
    point = dequantise.truncated_normal(jax.random.key(key), image, dequantise.Bins(256), alpha=ALPHA, sigma=SIGMA)
    return dequantise.bits_per_dim(
        log_density(np.asarray(point.x, np.float64)[:, 0]), point.log_q, 1, dequantise.Bins(256)
    )


def test_truncated_normal_against_a_matched_discrete_model(x64):
    """p = mean over levels of N(alpha c_k, sigma^2): 8.000479581 bits, where a uniform distribution of pixels costs 8."""
    centers = ALPHA * (2 * (np.arange(256) + 0.5) / 256 - 1)

    def log_p(x):
        near = np.abs(centers[None] - x[:, None]).argsort(1)[:, :5]
        return logsumexp(norm.logpdf(x[:, None], centers[near], SIGMA), axis=1) - np.log(256)

    # pixels at the ends have one neighbor only: all levels in proportion
    bits = _bits(log_p, np.tile(np.arange(256), 400))
    _near(bits, 8.000479581)


def test_truncated_normal_is_expensive_for_a_smooth_model(x64):
    """y ~ N(.1, .3^2), pixel 100: exactly 7.38327520 bits; uniform noise costs 7.38332010, truncated normal 7.95207654."""
    pixels = np.full(100_000, 100)
    _near(_bits(lambda x: norm.logpdf(x, 0.1 * ALPHA, np.sqrt(0.09 * ALPHA**2 + SIGMA**2)), pixels), 7.95207654)
    point = dequantise.uniform(jax.random.key(0), jnp.asarray(pixels, jnp.uint8)[:, None], dequantise.Bins(256))
    logp = norm.logpdf(np.asarray(point.x, np.float64)[:, 0], 0.1, 0.3)
    _near(dequantise.bits_per_dim(logp, point.log_q, 1, dequantise.Bins(256)), 7.38332010)


def test_truncated_normal_has_its_entropy_and_stays_in_its_bin(x64):
    """Per dimension -7.568786695 bits, the cut at 3.018688772 standard deviations."""
    assert ALPHA / (256 * SIGMA) == pytest.approx(3.018688772, rel=1e-8)
    image = jnp.full((100_000, 1), 37, jnp.uint8)
    point = dequantise.truncated_normal(jax.random.key(0), image, dequantise.Bins(256), alpha=ALPHA, sigma=SIGMA)
    _near((point.log_q - np.log(2 / 256)) / np.log(2), 7.568786695)
    assert (np.asarray(dequantise.quantise(point.x / ALPHA, dequantise.Bins(256))) == 37).all()
