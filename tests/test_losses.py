import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from scoreflow.objectives import combine, dsm, times, weights
from tests.truth import PROCESSES, TOY, gaussian_score

N = 400_000


def _mean(values):
    values = np.asarray(values, np.float64)
    return values.mean(), values.std() / np.sqrt(len(values))


@pytest.mark.parametrize("name, t", [("vp", 0.1), ("vp", 0.5), ("sub_vp", 0.3), ("ve", 0.4)])
def test_minimum_for_gaussian_data_is_rho(name, t):
    """rho = alpha^2 c^2 / (alpha^2 c^2 + sigma^2), reached by the exact score and exceeded by others by their error."""
    process, c2 = PROCESSES[name], 0.25
    x0 = 0.3 + np.sqrt(c2) * jax.random.normal(jax.random.key(0), (N // 4, 4))
    alpha, variance = float(process.alpha(t)), float(process.variance(t))
    rho = alpha**2 * c2 / (alpha**2 * c2 + variance)
    exact, ts = gaussian_score(process, 0.3, c2), jnp.full(N // 4, t)
    loss, error = _mean(dsm.dsm(process, exact, jax.random.key(1), x0, ts)["order1"])
    assert abs(loss - rho) < 4 * error

    def wrong(x, t, cond=None):
        return exact(x, t) + 0.2

    loss, error = _mean(dsm.dsm(process, wrong, jax.random.key(1), x0, ts)["order1"])
    assert abs(loss - (rho + 0.04 * variance)) < 4 * error


@pytest.mark.parametrize(
    "name, t, minimum",
    [
        ("ve", 0.1, 0.862296396),
        ("ve", 0.3, 0.457114413),
        ("ve", 0.5, 0.414390465),
        ("ve", 0.7, 0.0240555955),
        ("vp", 0.1, 0.636135740),
        ("vp", 0.2, 0.406347205),
        ("vp", 0.5, 0.0309347799),
    ],
)
def test_minimum_for_the_toy_mixture(name, t, minimum):
    process = PROCESSES[name]
    x0 = jnp.asarray(TOY.sample(np.random.default_rng(0), N), jnp.float32)[:, None]
    terms = dsm.dsm(process, TOY.score(process), jax.random.key(1), x0, jnp.full(N, t))
    loss, error = _mean(terms["order1"])
    assert abs(loss - minimum) < 4 * error


@pytest.mark.parametrize(
    "name, c2, average",
    [("ve", 1.0, 0.5406688573), ("ve", 0.25, 0.4593211476), ("vp", 1.0, 0.2759881506), ("vp", 0.25, 0.1733073163)],
)
def test_average_over_uniform_time(name, c2, average):
    """E rho over t ~ U[1e-5, 1]."""
    process = PROCESSES[name]
    x0 = np.sqrt(c2) * jax.random.normal(jax.random.key(0), (N, 1))
    t = times.stratified(process, jax.random.key(2), N, t_min=1e-5).t
    loss, error = _mean(dsm.dsm(process, gaussian_score(process, 0.0, c2), jax.random.key(1), x0, t)["order1"])
    assert abs(loss - average) < 4 * error


@pytest.mark.parametrize("sample_times", [times.uniform, times.importance])
def test_likelihood_weight_is_the_same_integral_under_any_distribution(sample_times):
    """int g^2 / sigma^2 rho dt for c = 1 VP data, where rho = alpha^2, by quadrature."""
    process, t_min = PROCESSES["vp"], 1e-2
    x0 = jax.random.normal(jax.random.key(0), (N, 1))
    t, inv_density = sample_times(process, jax.random.key(2), N, t_min=t_min)
    terms = dsm.dsm(
        process, gaussian_score(process, 0.0, 1.0), jax.random.key(1), x0, t, weight=weights.likelihood_weight
    )
    estimate, error = _mean(inv_density * terms["order1"])

    def integrand(t):
        t = jnp.float32(t)
        return float(process.diffusion_sq(t) / process.variance(t) * process.alpha(t) ** 2)

    assert abs(estimate - quad(integrand, t_min, 1, limit=200)[0]) < 4 * error


def test_weights_by_their_formulas(x64):
    process, t = PROCESSES["vp"], jnp.array([0.1, 0.6])
    snr = process.alpha(t) ** 2 / process.variance(t)
    np.testing.assert_allclose(weights.noise_weight(process, t), 1.0)
    np.testing.assert_allclose(weights.likelihood_weight(process, t), process.diffusion_sq(t) / process.variance(t))
    np.testing.assert_allclose(weights.snr_weight(lambda s: jnp.exp(s))(process, t), snr, rtol=1e-6)
    # EDM: weight (r^2 + s^2) / (r s)^2 on the x0 error, which is r times the noise error
    r, s = 1 / np.sqrt(snr), 0.5
    wanted = (r**2 + s**2) / (r * s) ** 2 * r**2
    np.testing.assert_allclose(weights.edm_weight(process, t, sigma_data=s), wanted, rtol=1e-6)
    np.testing.assert_allclose(weights.min_snr_weight(process, t, gamma=2.0), np.minimum(snr, 2.0) / snr, rtol=1e-6)
    sigmoid = 1 / (1 + np.exp(np.log(snr) - 0.5))
    np.testing.assert_allclose(weights.sigmoid_weight(process, t, bias=0.5), sigmoid, rtol=1e-6)


def test_the_loss_is_one_number_per_example_that_depends_on_that_example_alone():
    process = PROCESSES["vp"]
    score = gaussian_score(process, 0.0, 1.0)
    x0, t = jax.random.normal(jax.random.key(0), (6, 3, 2)), jnp.linspace(0.1, 0.9, 6)
    first = dsm.dsm(process, score, jax.random.key(1), x0, t)["order1"]
    second = dsm.dsm(process, score, jax.random.key(1), x0.at[2].add(1.0), t)["order1"]
    changed = np.flatnonzero(np.asarray(first != second))
    assert first.shape == (6,) and changed.tolist() == [2]


def test_a_ramp_is_a_line_between_its_ends():
    shares = [combine.ramp(step, 10, 4) for step in (0, 9, 10, 12, 13, 500)]
    np.testing.assert_allclose(shares, [0.0, 0.0, 0.25, 0.75, 1.0, 1.0])
    assert combine.ramp(None, 10, 4) == 1.0
    np.testing.assert_allclose([combine.ramp(step, 3, 0) for step in (1, 2, 3)], [0.0, 0.0, 1.0])


def test_a_term_at_every_third_step_is_three_times_as_large():
    term, nothing = (lambda scale: scale * jnp.ones(2)), (lambda: jnp.zeros(2))
    run = jax.jit(lambda step: combine.every(step, 3, term, nothing))
    np.testing.assert_array_equal([run(step)[0] for step in range(4)], [3, 0, 0, 3])
    np.testing.assert_array_equal(np.mean([run(step) for step in range(6)], axis=0), term(1))
    np.testing.assert_array_equal(combine.every(None, 3, term, nothing), 1)
    np.testing.assert_array_equal(combine.every(5, 1, term, nothing), 1)


def test_first_order_does_not_depend_on_the_step():
    process, x0, t = PROCESSES["vp"], jax.random.normal(jax.random.key(0), (4, 3)), jnp.linspace(0.1, 0.9, 4)
    run = lambda **options: dsm.dsm(process, gaussian_score(process, 0.0, 1.0), jax.random.key(1), x0, t, **options)
    np.testing.assert_array_equal(run(step=7)["order1"], run()["order1"])
