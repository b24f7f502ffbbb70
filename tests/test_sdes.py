import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow.processes import sdes
from scoreflow.processes.rates import LinearRate, NumericalRate
from scoreflow.theory import processes
from tests.truth import PROCESSES, integral, process64

NAMES = sorted(PROCESSES)
TIMES = (0.003, 0.1, 0.37, 0.9)

# g^2(.8), alpha(.8), v(.8) and a, b, c of the step .7 -> .6
REFERENCE = [
    (processes.ve_exp(0.5, 1.2), (1.705239617, 1, 0.6063498406, 1, 0.1192562661, 0.1192562661)),
    (processes.ve_const(1.5), (2.25, 1, 1.8, 1, 0.225, 0.225)),
    (processes.ve_sqrt(2.0), (3.2, 1, 1.28, 1, 0.26, 0.26)),
    (processes.ve_poly(2.0, 0.1, 1.5), (4.913, 1, 1.044, 1, 0.2758, 0.2758)),
    (processes.ou(0.5, 1.5), (2.25, 0.670320046, 1.239009831, 1.051271096, 0.2307199337, 0.2366345657)),
    (processes.ou(1.5, 3**0.5), (3, 0.3011942119, 0.9092820467, 1.161834243, 0.3236684855, 0.3498588076)),
    (sdes.vp_constant(3.0, 3.0), (3, 0.3011942119, 0.9092820467, 1.161834243, 0.3236684855, 0.3498588076)),
    (sdes.vp_linear(0.1, 20.0), (16.02, 0.03979555724, 0.9984163136, 1.91889596, 1.837791921, 2.682161707)),
    (processes.vp_linear(19.9, 0.1), (16.02, 0.03979555724, 0.9984163136, 1.91889596, 1.837791921, 2.682161707)),
    (processes.vp_poly(1.5, 0.2, 3.0), (2.744, 0.7261490371, 0.472707576, 1.084850498, 0.1697009957, 0.1769006027)),
    (sdes.vp_power(0.1, 20.0, 5.0), (9.929207226, 0.3340745422, 0.8883942002, 1.316011014, 0.6320220286, 0.7318849898)),
    (sdes.vp_exponential(0.1, 30.0), (9.587315155, 0.4353222407, 0.8104945467, 1.229396936, 0.4587938713, 0.5114168254)),
    (sdes.sub_vp_linear(0.1, 20.0), (16.01995982, 0.03979555724, 0.9968351353, 1.91889596, 1.837399065, 2.681661694)),
    (processes.sub_vp(19.9, 0.1), (16.01995982, 0.03979555724, 0.9968351353, 1.91889596, 1.837399065, 2.681661694)),
]  # fmt: skip


@pytest.mark.parametrize("process, wanted", REFERENCE)
def test_reference_values(x64, process, wanted):
    step = process.reverse_integrals(0.6, 0.7)
    values = [process.diffusion_sq(0.8), process.alpha(0.8), process.variance(0.8), *step]
    np.testing.assert_allclose(np.array(values, float), wanted, rtol=1e-9)


def test_reference_values_of_the_experiments(x64):
    """int_0^1 beta, alpha(1) and sigma(1/2) with the ends of the published configs."""
    areas = {
        sdes.vp_linear: (10.05, 0.006571586),
        lambda: sdes.vp_constant(0.1, 10.0): (5.05, 0.08005831),
        lambda: sdes.vp_power(0.1, 20.0, 2.0): (7.171404521, 0.02771720),
        lambda: sdes.vp_power(0.1, 20.0, 5.0): (5.092465081, 0.07837639),
        sdes.vp_exponential: (5.242135396, 0.07272517),
    }
    for make, (area, alpha) in areas.items():
        assert float(make().beta.integral(0.0, 1.0)) == pytest.approx(area, rel=1e-9)
        assert float(make().alpha(1.0)) == pytest.approx(alpha, rel=1e-6)
    middle = {
        sdes.ve_geometric: 0.7071067812,
        sdes.ve_constant: 35.35534,
        sdes.ve_linear: 25.000001,
        lambda: sdes.ve_power(rho=2.0): 12.856053,
        sdes.ve_power: 2.4013154,
    }
    for make, sigma in middle.items():
        assert float(make().sigma(0.5)) == pytest.approx(sigma, rel=1e-7)


@pytest.mark.parametrize("name", ["ve", "ve_constant", "ve_linear", "ve_power"])
def test_experiments_start_at_sigma_min_and_end_at_sigma_max(x64, name):
    process = process64(name)
    np.testing.assert_allclose([process.sigma(0.0), process.sigma(1.0), process.prior_std()], [0.01, 50, 50], rtol=1e-9)


def test_the_diffusion_of_one_schedule_is_not_that_of_another(x64):
    """sigma sqrt(2 log(max/min)) is g for the geometric schedule alone; at t = 1 it would give 206, not 50."""
    published = 50.0 * np.sqrt(2 * np.log(5000.0))
    assert published == pytest.approx(206.36, rel=1e-4)
    assert float(sdes.ve_geometric().diffusion_sq(1.0)) ** 0.5 == pytest.approx(published, rel=1e-9)
    assert float(sdes.ve_constant().diffusion_sq(1.0)) ** 0.5 == pytest.approx(50.0, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_variance_and_log_snr_obey_their_differential_equations(x64, name):
    process = process64(name)
    t = np.array(TIMES) * float(process.horizon)
    slope = jax.vmap(jax.grad(process.variance))(t)
    right_side = 2 * process.drift_coeff(t) * process.variance(t) + process.diffusion_sq(t)
    np.testing.assert_allclose(slope, right_side, rtol=1e-9)
    np.testing.assert_allclose(jax.vmap(jax.grad(process.log_alpha))(t), process.drift_coeff(t), rtol=1e-11, atol=1e-15)
    likelihood_weight = process.diffusion_sq(t) / process.variance(t)
    np.testing.assert_allclose(-jax.vmap(jax.grad(process.log_snr))(t), likelihood_weight, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_alpha_and_variance_are_the_integrals_of_f_and_g2(x64, name):
    process = process64(name)
    t = 0.6 * float(process.horizon)
    np.testing.assert_allclose(process.log_alpha(t), integral(process.drift_coeff, 0, t), rtol=1e-12)

    def decayed(u):
        return jnp.exp(2 * (process.log_alpha(t) - process.log_alpha(u))) * process.diffusion_sq(u)

    start = float(process.initial_variance) * float(process.alpha(t)) ** 2
    np.testing.assert_allclose(process.variance(t), start + integral(decayed, 0, t), rtol=1e-11)
    np.testing.assert_allclose(process.variance(0.0), process.initial_variance, rtol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_reverse_integrals_against_quadrature_and_composition(x64, name):
    process = process64(name)
    r, s, t = np.array([0.11, 0.42, 0.73]) * float(process.horizon)

    def ratio(u, power):
        return jnp.exp(power * (process.log_alpha(s) - process.log_alpha(u))) * process.diffusion_sq(u)

    a, b, c = process.reverse_integrals(s, t)
    np.testing.assert_allclose(b, integral(lambda u: ratio(u, 1), s, t), rtol=1e-11)
    np.testing.assert_allclose(c, integral(lambda u: ratio(u, 2), s, t), rtol=1e-11)
    np.testing.assert_allclose(c, a**2 * process.variance(t) - process.variance(s), rtol=1e-9)
    first, whole = process.reverse_integrals(r, s), process.reverse_integrals(r, t)
    np.testing.assert_allclose(whole.a, first.a * a, rtol=1e-12)
    np.testing.assert_allclose(whole.c, first.c + first.a**2 * c, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_float32_keeps_its_digits_near_zero(name):
    """Only sigma^2 of the quadratic families is as small as the rounding of 1 there; nothing is lost in any."""
    single = PROCESSES[name]
    with jax.enable_x64(True):
        exact = process64(name)
        wanted = [float(v) for v in (exact.sigma(1e-6), exact.log_snr(1e-6), *exact.reverse_integrals(0.0, 1e-6))]
    t = jnp.float32(1e-6)
    values = [float(v) for v in (single.sigma(t), single.log_snr(t), *single.reverse_integrals(jnp.float32(0.0), t))]
    np.testing.assert_allclose(values, wanted, rtol=4e-6)


def test_float32_variance_of_a_power_schedule():
    assert float(sdes.vp_power(0.1, 20.0, 5.0).variance(jnp.float32(1e-4))) == pytest.approx(1.00046644e-5, rel=1e-5)


def test_naive_sigma_would_fail_where_ours_does_not():
    alpha = sdes.vp_linear().alpha(jnp.float32(1e-6))
    naive = float(jnp.sqrt(1 - alpha**2))
    exact = np.sqrt(-np.expm1(-(0.1e-6 + 9.95e-12)))
    assert abs(naive / exact - 1) > 0.05
    assert abs(float(sdes.vp_linear().sigma(jnp.float32(1e-6))) / exact - 1) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_log_snr_round_trip(x64, name):
    process = process64(name)
    t = jnp.linspace(0.01, 1.0, 50) * process.horizon
    np.testing.assert_allclose(process.inverse_log_snr(process.log_snr(t)), t, rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_log_snr_round_trip_in_float32(name):
    """A rounding error of the log-SNR, 1e-6, is a time error of 1e-6 / its slope."""
    process = PROCESSES[name]
    t = jnp.linspace(0.01, 0.99, 50) * process.horizon
    allowed = 1e-5 * (1 + jnp.abs(process.log_snr(t))) * process.variance(t) / process.diffusion_sq(t)
    assert (jnp.abs(process.inverse_log_snr(process.log_snr(t)) - t) < allowed + 1e-6 * t).all()


@pytest.mark.parametrize("name", NAMES)
def test_bisection_agrees_with_the_closed_inverse(x64, name):
    process = process64(name)
    log_snr = process.log_snr(jnp.linspace(0.02, 0.98, 9) * process.horizon)
    by_bisection = sdes.Process.inverse_log_snr(process, log_snr)
    np.testing.assert_allclose(by_bisection, process.inverse_log_snr(log_snr), rtol=1e-8)


def test_closed_forms_of_the_standard_processes(x64):
    t = np.linspace(0.0, 1.0, 11)
    for name in ("vp", "vp_constant", "vp_power", "vp_exponential", "vp_geometric"):
        process = process64(name)
        kept = (1 - np.asarray(process.initial_variance)) * np.asarray(process.alpha(t)) ** 2
        np.testing.assert_allclose(kept + process.variance(t), 1.0, rtol=1e-14)
    sub, ve, cosine, geometric = (process64(name) for name in ("sub_vp", "ve", "vp_cosine", "vp_geometric"))
    np.testing.assert_allclose(sub.sigma(t), 1.0 - np.asarray(sub.alpha(t)) ** 2, atol=1e-15)
    np.testing.assert_allclose(ve.sigma(t), 0.01 * 5000.0**t, rtol=1e-12)
    angle = np.pi / 2 * (t[:-1] + 0.008) / 1.008
    np.testing.assert_allclose(cosine.alpha(t[:-1]), np.cos(angle) / np.cos(np.pi / 2 * 0.008 / 1.008), rtol=1e-12)
    np.testing.assert_allclose(geometric.variance(t), 3e-5 * (0.999 / 3e-5) ** t, rtol=1e-11)
    np.testing.assert_allclose(sdes.edm().sigma(t), t, rtol=1e-14)
    np.testing.assert_allclose(sdes.edm().prior_std(), 80.0)


def test_geometric_vp_has_the_published_values(x64):
    """beta(0), beta(1/2), beta(1), sigma^2(1/2) and alpha(1)^2 for variances from 3e-5 to 0.999."""
    process = sdes.vp_geometric()
    values = [*process.diffusion_sq(np.array([0.0, 0.5, 1.0])), process.variance(0.5), process.alpha(1.0) ** 2]
    wanted = [3.1240875e-4, 0.0573213422, 10402.89936, 0.0054744863, 1.00003e-3]
    np.testing.assert_allclose(values, wanted, rtol=3e-7)


def test_families_meet_where_they_should(x64):
    """A power of 1 is a line, of 0 a constant; the theory's letters give what the ends of beta and sigma give."""
    t = np.linspace(0.05, 1.0, 7)
    smin, smax = 0.01, 50.0
    base, power = smin**0.5, smax**0.5 - smin**0.5
    pairs = [
        (processes.vp_poly(1.7, 0.4, 1.0), processes.vp_linear(1.7, 0.4)),
        (processes.vp_linear(0.0, 3.0), processes.ou(1.5, 3.0**0.5)),
        (processes.ve_poly(0.7, 2.0, 0.0), processes.ve_const(1.0)),
        (processes.ve_poly(2 * 1.3, 0.0, 0.5), processes.ve_sqrt(1.3)),
        (processes.ve_exp(smin * (2 * np.log(smax / smin)) ** 0.5, np.log(smax / smin), smin**2), sdes.ve_geometric()),
        (processes.ve_const((smax**2 - smin**2) ** 0.5, smin**2), sdes.ve_constant()),
        (processes.ve_sqrt(smax**2 - smin**2, smin**2), sdes.ve_linear()),
        (processes.ve_poly(power, base, 1.5, (4 * power) ** 0.5, smin**2), sdes.ve_power(rho=2.0)),
        (processes.vp_exp(0.1, np.log(300.0)), sdes.vp_exponential()),
        (processes.vp_linear(19.9, 0.1), sdes.vp_linear()),
        (processes.ve_sqrt(1.0), sdes.edm(1.0)),
        (sdes.vp_power(2.0, 2.0), sdes.vp_constant(2.0, 2.0)),
        (sdes.vp_exponential(2.0, 2.0), sdes.vp_constant(2.0, 2.0)),
    ]  # fmt: skip
    for first, second in pairs:
        for name in ("log_alpha", "variance", "diffusion_sq", "drift_coeff"):
            np.testing.assert_allclose(getattr(first, name)(t), getattr(second, name)(t), rtol=1e-11, atol=1e-15)


def test_the_straight_path_is_its_own_linear_sde(x64):
    """f = -1 / (1 - t), g^2 = 2 t / (1 - t) integrate to alpha = 1 - t, sigma = t, and so do its steps, long and short."""
    general = sdes.LinearSDE(
        NumericalRate(lambda _, t: 1 / (1 - t), 0.0), NumericalRate(lambda _, t: 2 * t / (1 - t), 0.0), 0.8
    )
    path, t = sdes.straight(0.8), np.array([1e-4, 0.05, 0.3, 0.6, 0.8])
    for name in ("log_alpha", "variance", "diffusion_sq", "drift_coeff"):
        np.testing.assert_allclose(getattr(path, name)(t), getattr(general, name)(t), rtol=1e-10)
    for s in (0.0, t - 1e-5, 0.9 * t, 0.2 * t):
        for value, wanted in zip(path.reverse_integrals(s, t), general.reverse_integrals(s, t)):
            np.testing.assert_allclose(value, wanted, rtol=1e-9)


def test_two_rates_make_any_linear_sde(x64):
    """Quadrature against the closed forms of the families that have them, and against a rate that is only a function."""
    t, s = np.linspace(0.05, 1.0, 7), 0.03
    vp = sdes.vp_linear()
    general = sdes.LinearSDE(LinearRate(0.05, 9.95), LinearRate(0.1, 19.9))
    numerical = sdes.VP(NumericalRate(lambda p, t: p["low"] + p["slope"] * t**2, {"low": 0.1, "slope": 9.0}))
    wiggly = sdes.VP(NumericalRate(lambda p, t: 1.0 + p * jnp.sin(6.0 * t) ** 2, 2.0))
    for name in ("log_alpha", "variance", "diffusion_sq", "drift_coeff", "log_snr"):
        np.testing.assert_allclose(getattr(general, name)(t), getattr(vp, name)(t), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(general.reverse_integrals(s, t), vp.reverse_integrals(s, t), rtol=1e-10)
    np.testing.assert_allclose(numerical.log_alpha(t), -0.5 * (0.1 * t + 3.0 * t**3), rtol=1e-12)
    np.testing.assert_allclose(wiggly.log_alpha(t), -0.5 * (t + t - np.sin(12.0 * t) / 12.0), rtol=1e-12)
    for process in (general, numerical, wiggly):
        np.testing.assert_allclose(process.inverse_log_snr(process.log_snr(t)), t, rtol=1e-8)
    slope = jax.grad(lambda p: sdes.VP(NumericalRate(lambda p, t: p * t, p)).log_alpha(1.0))(2.0)
    assert float(slope) == pytest.approx(-0.25)


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


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_schedule_has_a_finite_gradient(x64, name):
    """Against central differences, of a quantity that uses every integral; no branch that is not taken leaks NaN."""
    leaves, structure = jax.tree.flatten(process64(name))

    @jax.jit
    def quantity(leaves):
        process = jax.tree.unflatten(structure, leaves)
        step = process.reverse_integrals(0.2 * process.horizon, 0.7 * process.horizon)
        return process.log_snr(0.5 * process.horizon) + sum(step) + process.diffusion_sq(0.9 * process.horizon)

    for i, gradient in enumerate(jax.grad(quantity)(leaves)):
        h = 1e-6 * max(abs(float(leaves[i])), 1e-3)
        up, down = (quantity([leaf + sign * h * (i == j) for j, leaf in enumerate(leaves)]) for sign in (1, -1))
        if float(leaves[i]) == 0.0:  # at the edge of what is allowed: one-sided
            up, down, h = up, quantity(leaves), h / 2
        np.testing.assert_allclose(gradient, (up - down) / (2 * h), rtol=3e-4, atol=1e-5 * abs(float(up)))


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve"])
def test_perturbed_data_have_the_marginal_distribution(name):
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
