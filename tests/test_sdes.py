import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from scoreflow import sdes
from tests.truth import PROCESSES, process64

NAMES = sorted(PROCESSES)
TIMES = (0.003, 0.1, 0.37, 0.9)

# g^2(.8), alpha(.8), v(.8) and a, b, c of the step .7 -> .6
REFERENCE = {
    "vp": (16.02, 0.03979555724, 0.9984163136, 1.91889596, 1.837791921, 2.682161707),
    "sub_vp": (16.01995982, 0.03979555724, 0.9968351353, 1.91889596, 1.837399065, 2.681661694),
    "vp_exponential": (9.587315155, 0.4353222407, 0.8104945467, 1.229396936, 0.4587938713, 0.5114168254),
    "vp_constant": (3, 0.3011942119, 0.9092820467, 1.161834243, 0.3236684855, 0.3498588076),
    "ve_exponential": (1.705239617, 1, 0.6063498406, 1, 0.1192562661, 0.1192562661),
    "ve_constant": (2.25, 1, 1.8, 1, 0.225, 0.225),
    "ve_square_root": (3.2, 1, 1.28, 1, 0.26, 0.26),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_values(x64, name):
    process = {
        "vp": lambda: sdes.vp_linear(0.1, 20.0),
        "sub_vp": lambda: sdes.sub_vp_linear(0.1, 20.0),
        "vp_exponential": lambda: sdes.VP(sdes.ExponentialRate(0.1, np.log(300.0))),
        "vp_constant": lambda: sdes.VP(sdes.LinearRate(3.0, 0.0)),
        "ve_exponential": lambda: sdes.VE(sdes.ExponentialRate(0.25, 2.4)),
        "ve_constant": lambda: sdes.VE(sdes.LinearRate(2.25, 0.0)),
        "ve_square_root": lambda: sdes.VE(sdes.LinearRate(0.0, 4.0)),
    }[name]()
    step = process.reverse_integrals(0.6, 0.7)
    found = [process.diffusion_sq(0.8), process.alpha(0.8), process.variance(0.8), *step]
    np.testing.assert_allclose(np.array(found, float), REFERENCE[name], rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_variance_and_log_snr_obey_their_differential_equations(x64, name):
    process = process64(name)
    for t in np.array(TIMES) * float(process.horizon):
        variance_slope = jax.grad(process.variance)(t)
        law = 2 * process.drift_coeff(t) * process.variance(t) + process.diffusion_sq(t)
        np.testing.assert_allclose(variance_slope, law, rtol=1e-10)
        np.testing.assert_allclose(jax.grad(process.log_alpha)(t), process.drift_coeff(t), rtol=1e-12, atol=1e-15)
        likelihood_weight = process.diffusion_sq(t) / process.variance(t)
        np.testing.assert_allclose(-jax.grad(process.log_snr)(t), likelihood_weight, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_alpha_and_variance_are_the_integrals_of_f_and_g2(x64, name):
    process = process64(name)
    t = 0.6 * float(process.horizon)
    log_alpha = quad(lambda u: float(process.drift_coeff(u)), 0, t, epsabs=1e-12)[0]
    np.testing.assert_allclose(process.log_alpha(t), log_alpha, atol=1e-9)

    def decayed(u):
        return float(jnp.exp(2 * (process.log_alpha(t) - process.log_alpha(u))) * process.diffusion_sq(u))

    start = float(process.variance(0.0)) * float(process.alpha(t)) ** 2
    np.testing.assert_allclose(process.variance(t), start + quad(decayed, 0, t, epsabs=1e-12)[0], rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_reverse_integrals_against_quadrature_and_composition(x64, name):
    process = process64(name)
    r, s, t = np.array([0.11, 0.42, 0.73]) * float(process.horizon)

    def ratio(u, power):
        return float(jnp.exp(power * (process.log_alpha(s) - process.log_alpha(u))) * process.diffusion_sq(u))

    a, b, c = process.reverse_integrals(s, t)
    np.testing.assert_allclose(b, quad(lambda u: ratio(u, 1), s, t, epsabs=1e-13)[0], rtol=1e-9)
    np.testing.assert_allclose(c, quad(lambda u: ratio(u, 2), s, t, epsabs=1e-13)[0], rtol=1e-9)
    np.testing.assert_allclose(c, a**2 * process.variance(t) - process.variance(s), rtol=1e-9)
    first, whole = process.reverse_integrals(r, s), process.reverse_integrals(r, t)
    np.testing.assert_allclose(whole.a, first.a * a, rtol=1e-12)
    np.testing.assert_allclose(whole.c, first.c + first.a**2 * c, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_float32_keeps_its_digits_near_zero(name):
    single = PROCESSES[name]
    with jax.enable_x64(True):
        exact = process64(name)
        wanted = [float(v) for v in (exact.sigma(1e-6), exact.log_snr(1e-6), *exact.reverse_integrals(0.0, 1e-6))]
    t = jnp.float32(1e-6)
    found = [float(v) for v in (single.sigma(t), single.log_snr(t), *single.reverse_integrals(jnp.float32(0.0), t))]
    np.testing.assert_allclose(found, wanted, rtol=3e-6)


def test_naive_sigma_would_fail_where_ours_does_not():
    alpha = sdes.vp_linear().alpha(jnp.float32(1e-6))
    naive = float(jnp.sqrt(1 - alpha**2))
    exact = np.sqrt(-np.expm1(-(0.1e-6 + 9.95e-12)))
    assert abs(naive / exact - 1) > 0.05
    assert abs(float(sdes.vp_linear().sigma(jnp.float32(1e-6))) / exact - 1) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_log_snr_round_trip(name):
    process = PROCESSES[name]
    t = jnp.linspace(0.01, 1.0, 50) * process.horizon
    np.testing.assert_allclose(process.inverse_log_snr(process.log_snr(t)), t, rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bisection_agrees_with_the_closed_inverse(x64, name):
    process = process64(name)
    log_snr = process.log_snr(jnp.linspace(0.02, 0.98, 9) * process.horizon)
    by_bisection = sdes.Process.inverse_log_snr(process, log_snr)
    np.testing.assert_allclose(by_bisection, process.inverse_log_snr(log_snr), rtol=1e-9)


def test_closed_forms_of_the_standard_processes(x64):
    t = np.linspace(0.0, 1.0, 11)
    vp, sub, ve = process64("vp"), process64("sub_vp"), process64("ve")
    np.testing.assert_allclose(vp.alpha(t) ** 2 + vp.variance(t), 1.0, rtol=1e-14)
    np.testing.assert_allclose(sub.sigma(t), 1.0 - np.asarray(sub.alpha(t)) ** 2, atol=1e-15)
    np.testing.assert_allclose(ve.sigma(t), 0.01 * 5000.0**t, rtol=1e-12)
    np.testing.assert_allclose(ve.prior_std(), 50.0, rtol=1e-12)
    np.testing.assert_allclose(vp.alpha(1.0), 0.006571586, rtol=1e-6)


def test_horizon_truncates_and_does_not_rescale():
    long = sdes.vp_linear()
    short = dataclasses.replace(long, horizon=0.3)
    t = jnp.linspace(0, 0.3, 7)
    np.testing.assert_array_equal(short.log_snr(t), long.log_snr(t))
    assert float(sdes.ve_geometric(horizon=0.5).prior_std()) == pytest.approx(0.70710678, rel=1e-6)


def test_two_values_of_beta_share_one_trace_and_have_gradients():
    traces = []

    @jax.jit
    def terminal_alpha(process):
        traces.append(1)
        return process.alpha(1.0)

    for beta_max in (10.0, 20.0):
        terminal_alpha(sdes.vp_linear(0.1, beta_max))
    assert len(traces) == 1
    gradient = jax.grad(lambda beta_max: sdes.vp_linear(0.1, beta_max).log_alpha(1.0))(20.0)
    assert float(gradient) == pytest.approx(-0.25)


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve"])
def test_perturbed_data_have_the_marginal_law(name):
    process = PROCESSES[name]
    n = 200_000
    x0 = 0.5 + 2.0 * jax.random.normal(jax.random.key(1), (n, 1))
    t = jnp.full(n, 0.3)
    xt, noise, sigma = process.perturb(jax.random.key(0), x0, t)
    alpha, variance = float(process.alpha(0.3)), float(process.variance(0.3))
    std = np.sqrt(alpha**2 * 4.0 + variance)
    assert abs(float(xt.mean()) - 0.5 * alpha) < 4 * std / np.sqrt(n)
    assert abs(float(xt.var()) / std**2 - 1) < 4 * np.sqrt(2 / n)
    np.testing.assert_allclose(xt, alpha * x0 + sigma[:, None] * noise, rtol=1e-5, atol=1e-5)
