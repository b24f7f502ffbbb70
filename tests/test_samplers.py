import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import ks_1samp

from scoreflow.processes import transitions
from scoreflow.samplers import adaptive, affine, grids, ode
from scoreflow.theory import exact
from tests.truth import PROCESSES, TOY, gaussian_score, process64, slope

DETERMINISTIC = {
    "euler_ode": (functools.partial(affine.affine, transition=transitions.euler_ode), 1),
    "exponential_ode": (functools.partial(affine.affine, transition=transitions.exponential_ode), 1),
    "ddim": (functools.partial(affine.affine, transition=transitions.ddim), 1),
    "heun": (ode.heun, 2),
    "dpm_solver_pp_2m": (ode.dpm_solver_pp_2m, 2),
}
STOCHASTIC = {
    "euler_maruyama": transitions.euler_maruyama,
    "ancestral": transitions.ancestral,
    "reverse_diffusion": transitions.reverse_diffusion,
    "exponential_sde": transitions.exponential_sde,
    "conditional_mean": transitions.conditional_mean,
}
GRIDS = {"uniform": grids.uniform, "log_snr": grids.log_snr, "karras": grids.karras}


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("process_name", ["vp", *(pytest.param(p, marks=pytest.mark.slow) for p in ("sub_vp", "ve"))])
def test_order_on_a_gaussian(x64, name, process_name):
    """The flow of a Gaussian multiplies (x - alpha m) by std(t_min) / std(T)."""
    sampler, order = DETERMINISTIC[name]
    process, mean, var, t_min = process64(process_name), 0.4, 0.3, 0.05
    score = gaussian_score(process, mean, var)
    std_t, std_0 = (float(jnp.sqrt(process.alpha(t) ** 2 * var + process.variance(t))) for t in (1.0, t_min))
    x = jnp.linspace(-1.0, 2.0, 5)[:, None] * std_t
    exact = process.alpha(t_min) * mean + (x - process.alpha(1.0) * mean) * std_0 / std_t
    counts = (40, 80, 160, 320)
    errors = []
    for n in counts:
        grid = grids.log_snr(process, n, t_min=t_min)
        found = sampler(process, score, jax.random.key(0), x, grid, denoise=False).x
        errors.append(float(jnp.abs(found - exact).max()))
    assert abs(slope(errors, counts) - order) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_a_mixture(x64, name):
    """In one dimension the exact flow is the monotone map between marginals: no solver in the oracle."""
    sampler, order = DETERMINISTIC[name]
    process, t_min = process64("vp"), 0.05
    x = np.array([-1.5, -0.4, 0.3, 1.2])
    exact = np.array([TOY.transport(process, 1.0, t_min, value) for value in x])
    counts = (80, 160, 320, 640)
    errors = []
    for n in counts:
        grid = grids.log_snr(process, n, t_min=t_min)
        found = sampler(process, TOY.score(process), jax.random.key(0), jnp.asarray(x)[:, None], grid, denoise=False).x
        errors.append(np.abs(np.asarray(found)[:, 0] - exact).max())
    assert abs(slope(errors, counts) - order) < 0.3


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_rules_converge_with_weak_order_one(x64, name):
    """Error in the variance of the law they produce from an exact start, by its exact recursion."""
    process, counts, data = process64("vp"), (200, 400, 800, 1600), exact.Gaussian(jnp.zeros(1), jnp.array([0.5]))
    start, end = exact.marginal(process, data, 1.0), exact.marginal(process, data, 0.1)
    laws = [
        exact.gaussian_law(process, jnp.linspace(1, 0.1, n + 1), STOCHASTIC[name], data, start=start) for n in counts
    ]
    assert abs(slope([float(abs(law.variance - end.variance)[0]) for law in laws], counts) - 1) < 0.3


@pytest.mark.parametrize("name", [*STOCHASTIC, "ddim", "euler_ode"])
def test_sampler_code_has_the_law_of_its_coefficients(name):
    """100,000 samples against the recursion for Gaussian data: mean and variance within 5 standard errors."""
    process, n = PROCESSES["vp"], 100_000
    rule = {**STOCHASTIC, "ddim": transitions.ddim, "euler_ode": transitions.euler_ode}[name]
    mu, lam = np.array([0.3, -1.0]), np.array([0.5, 2.0])
    grid = np.linspace(1, 0.1, 21) ** 2
    with jax.enable_x64(True):
        law = exact.gaussian_law(process64("vp"), jnp.asarray(grid), rule, exact.Gaussian(mu, lam))
        mean, var = np.asarray(law.mean), np.asarray(law.variance)
        start = float(process64("vp").sigma(1.0))
    x_init = start * jax.random.normal(jax.random.key(0), (n, 2))
    run = functools.partial(affine.affine, process, gaussian_score(process, mu, lam), transition=rule)
    found = run(jax.random.key(1), x_init, jnp.asarray(grid, jnp.float32))
    x = np.asarray(run(jax.random.key(1), x_init, jnp.asarray(grid, jnp.float32), denoise=False).x)
    assert (np.abs(x.mean(0) - mean) < 5 * np.sqrt(var / n)).all()
    assert (np.abs(x.var(0) / var - 1) < 5 * np.sqrt(2 / n)).all()
    assert found.nfe.tolist()[:1] == [21]


@pytest.mark.parametrize("corrections, denoise, wanted", [(0, False, 8), (0, True, 9), (2, True, 25)])
def test_a_sampler_counts_the_evaluations_that_it_makes(corrections, denoise, wanted):
    """Counted at run time; a corrector that is left out costs nothing."""
    process, calls = PROCESSES["vp"], []

    def score(x, t, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return -x

    found = affine.predictor_corrector(
        process, score, jax.random.key(0), jnp.zeros((3, 2)), grids.uniform(process, 8, t_min=1e-3),
        corrector_steps=corrections, denoise=denoise,
    )  # fmt: skip
    jax.effects_barrier()
    assert len(calls) == int(found.nfe[0]) == wanted


@pytest.mark.parametrize("name", [*STOCHASTIC, "predictor_corrector"])
@pytest.mark.slow
def test_stochastic_samplers_reach_a_mixture(name):
    """Kolmogorov-Smirnov against the exact marginal at the last time, on a fine grid."""
    process, t_min, n = PROCESSES["vp"], 1e-3, 20_000
    grid = grids.log_snr(process, 600, t_min=t_min)
    options = {"transition": STOCHASTIC[name]} if name in STOCHASTIC else {"corrector_steps": 1}
    x_init = jax.random.normal(jax.random.key(0), (n, 1))
    x = affine.affine if name in STOCHASTIC else affine.predictor_corrector
    found = x(process, TOY.score(process), jax.random.key(1), x_init, grid, denoise=False, **options)
    law = np.vectorize(lambda value: TOY.cdf(process, t_min, value))
    distance = ks_1samp(np.asarray(found.x)[:4000, 0], law).statistic
    assert distance < 1.95 / np.sqrt(4000) + 0.01  # the 0.1 % point, and the step size's bias


def test_langevin_corrector_alone_keeps_and_restores_the_marginal():
    """Started from a law that is too wide, many corrector steps at one time bring p_t back."""
    process, n = PROCESSES["vp"], 50_000
    score, t = gaussian_score(process, 0.0, 0.5), jnp.full(n, 0.3)
    wanted = float(process.alpha(0.3) ** 2 * 0.5 + process.variance(0.3))
    x = 2.0 * jax.random.normal(jax.random.key(0), (n, 1))

    def body(x, key):
        return affine.langevin(process, score, key, x, t, snr=0.16), None

    x, _ = jax.lax.scan(body, x, jax.random.split(jax.random.key(1), 400))
    # the unadjusted chain's own stationary variance: v / (1 - step / (2 v))
    step = 2 * 0.16**2 * float(process.variance(0.3))
    stationary = wanted / (1 - step / (2 * wanted))
    assert abs(float(x.var()) / stationary - 1) < 5 * np.sqrt(2 / n)


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve", "vp_exponential"])
@pytest.mark.parametrize("grid", GRIDS)
def test_grids_are_even_in_what_they_say(x64, name, grid):
    process = process64(name)
    t = GRIDS[grid](process, 20, t_min=1e-3)
    assert float(t[0]) == float(process.horizon) and float(t[-1]) == 1e-3
    measure = {
        "uniform": lambda t: t,
        "log_snr": process.log_snr,
        "karras": lambda t: jnp.exp(-0.5 * process.log_snr(t) / 7.0),
    }[grid](t)
    steps = np.diff(np.asarray(measure))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert (np.diff(t) < 0).all()


def test_karras_grid_is_that_of_edm(x64):
    """For sigma = t the published formula (max^(1/7) + i/n (min^(1/7) - max^(1/7)))^7."""
    process = process64("edm")
    found = grids.karras(process, 17, t_min=0.002)
    ramp = 3.0 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 3.0 ** (1 / 7))
    np.testing.assert_allclose(found, ramp**7, rtol=1e-9)


def test_the_last_step_leaves_no_noise():
    """Data at a point: the posterior mean is that point, whatever noise the grid ends with."""
    process = PROCESSES["vp"]
    score = gaussian_score(process, 0.7, 0.0)
    x_init = jax.random.normal(jax.random.key(0), (1000, 3))
    grid = grids.log_snr(process, 10, t_min=1e-2)
    for sampler in (functools.partial(affine.affine, transition=transitions.ancestral), ode.heun, ode.dpm_solver_pp_2m):
        np.testing.assert_allclose(sampler(process, score, jax.random.key(1), x_init, grid).x, 0.7, atol=2e-5)
    noisy = affine.affine(
        process, score, jax.random.key(1), x_init, grid, transition=transitions.exponential_sde, denoise=False
    )
    assert float(noisy.x.std()) > 0.01


def test_ddim_is_first_order_dpm_solver(x64):
    """On a grid of one step both move along the frozen x_0 estimate."""
    process = process64("vp")
    x = jnp.array([[0.3], [-1.0]])
    grid = jnp.array([0.8, 0.4])
    first = affine.affine(
        process, TOY.score(process), jax.random.key(0), x, grid, transition=transitions.ddim, denoise=False
    )
    second = ode.dpm_solver_pp_2m(process, TOY.score(process), jax.random.key(0), x, grid, denoise=False)
    np.testing.assert_allclose(first.x, second.x, rtol=1e-10)


def test_trajectory_begins_with_noise_and_ends_before_the_denoising():
    process, grid = PROCESSES["vp"], grids.uniform(PROCESSES["vp"], 5, t_min=0.1)
    score, x_init = gaussian_score(process, 0.0, 1.0), jax.random.normal(jax.random.key(0), (4, 2))
    run = functools.partial(ode.heun, process, score, None, x_init, grid)
    path = run(trajectory=True).trajectory
    np.testing.assert_array_equal(path[0], x_init)
    np.testing.assert_allclose(path[-1], run(denoise=False).x)
    assert path.shape == (6, 4, 2)


# ----------------------------------------------------------------------------------------------------------------------
# Adaptive.


def test_adaptive_solver_counts_its_evaluations():
    """The reported number against a counter inside the drift, with rejected steps among them."""
    calls = []

    def drift(t, y, args):
        jax.debug.callback(lambda _: calls.append(1), t[0])
        return -50.0 * t[:, None] * y + jnp.sin(40.0 * t)[:, None]

    found = jax.jit(lambda y: adaptive.integrate(drift, y, 0.0, 1.0, rtol=1e-5, atol=1e-5))(jnp.ones((1, 3)))
    jax.effects_barrier()
    assert int(found.n_rejected[0]) > 0
    assert int(found.nfe[0]) == len(calls)


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)])
def test_adaptive_solver_against_scipy(x64, ends):
    def field(t, y):
        return np.array([y[1], -np.sin(y[0]) - 0.1 * y[1] + np.sin(t)])

    y0 = np.array([[1.0, 0.5], [2.0, -1.0]])

    def drift(t, y, args):
        return jnp.stack([y[:, 1], -jnp.sin(y[:, 0]) - 0.1 * y[:, 1] + jnp.sin(t)], axis=1)

    found = adaptive.integrate(drift, jnp.asarray(y0), *ends, rtol=1e-9, atol=1e-9)
    wanted = [solve_ivp(field, ends, y, rtol=1e-11, atol=1e-11).y[:, -1] for y in y0]
    np.testing.assert_allclose(found.y, wanted, atol=1e-7)


@pytest.mark.slow
def test_adaptive_error_follows_the_tolerance(x64):
    process = process64("vp")
    x = np.array([-1.5, 0.3, 1.2])
    exact = np.array([TOY.transport(process, 1.0, 1e-3, value) for value in x])
    errors, nfe = [], []
    for tol in (1e-3, 1e-5, 1e-7):
        start = jnp.asarray(x)[:, None]
        found = adaptive.adaptive_ode(process, TOY.score(process), start, t_min=1e-3, rtol=tol, atol=tol, denoise=False)
        errors.append(np.abs(np.asarray(found.x)[:, 0] - exact).max())
        nfe.append(int(found.nfe.max()))
    assert errors[0] < 0.1 and errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10
    assert nfe[0] < nfe[1] < nfe[2]


@pytest.mark.slow
def test_an_example_does_not_depend_on_its_batch_mates():
    process = PROCESSES["vp"]
    x = jnp.array([[-1.5], [0.3], [1.2]])
    whole = adaptive.adaptive_ode(process, TOY.score(process), x, t_min=1e-3)
    alone = adaptive.adaptive_ode(process, TOY.score(process), x[1:2], t_min=1e-3)
    np.testing.assert_allclose(whole.x[1], alone.x[0], rtol=1e-5)
    assert int(whole.nfe[1]) == int(alone.nfe[0]) and len(set(whole.nfe.tolist())) > 1


def test_a_failed_solve_is_nan_not_a_silent_value():
    process = PROCESSES["vp"]
    found = adaptive.adaptive_ode(process, TOY.score(process), jnp.array([[0.3]]), t_min=1e-5, max_steps=2)
    assert np.isnan(found.x).all()
