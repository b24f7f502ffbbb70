import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import ks_1samp

from scoreflow import gaussian
from scoreflow.processes import transitions
from scoreflow.samplers import adaptive, fold, grids, rules, sample, sampler
from scoreflow.samplers.gaussian_multistep import gaussian_multistep
from scoreflow.theory import exact
from tests.truth import PROCESSES, TOY, gaussian_score, process64, slope


def midpoint(field, x, t, s, key):
    """A rule of a user's own."""
    h = s - t
    return x + h * field.drift(t + 0.5 * h, x + 0.5 * h * field.drift(t, x))


DETERMINISTIC = {
    "euler_ode": (rules.affine(transitions.euler_ode), 1),
    "exponential_ode": (rules.affine(transitions.exponential_ode), 1),
    "ddim": (rules.affine(transitions.ddim), 1),
    "heun": (rules.HEUN, 2),
    "dpm_solver_pp_2m": (rules.DPM_SOLVER_PP_2M, 2),
    "midpoint": (rules.one_step(midpoint, evaluations=2), 2),
}
STOCHASTIC = ("euler_maruyama", "ancestral", "reverse_diffusion", "exponential", "conditional_mean")
RULES = {
    **{name: rules.affine(transition) for name, transition in transitions.TRANSITIONS.items()},
    **{name: rule for name, (rule, _) in DETERMINISTIC.items()},
    "gaussian_multistep": gaussian_multistep(gaussian.standard(2, 0.7)),
    "predictor_corrector": rules.predictor_corrector(),
    "two_corrector_steps": rules.predictor_corrector(transitions.ancestral, corrector_steps=2),
    "no_corrector_step": rules.predictor_corrector(corrector_steps=0),
}
GRIDS = {"uniform": grids.uniform, "log_snr": grids.log_snr, "karras": grids.karras}
ENDS = (1.0, 1e-3)  # all that an adaptive solve reads of a grid


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("process_name", ["vp", *(pytest.param(p, marks=pytest.mark.slow) for p in ("sub_vp", "ve"))])
def test_order_on_a_gaussian(x64, name, process_name):
    """The flow of a Gaussian multiplies (x - alpha m) by std(t_min) / std(T)."""
    rule, order = DETERMINISTIC[name]
    process, mean, var, t_min = process64(process_name), 0.4, 0.3, 0.05
    score = gaussian_score(process, mean, var)
    std_t, std_0 = (float(jnp.sqrt(process.alpha(t) ** 2 * var + process.variance(t))) for t in (1.0, t_min))
    x = jnp.linspace(-1.0, 2.0, 5)[:, None] * std_t
    exact = process.alpha(t_min) * mean + (x - process.alpha(1.0) * mean) * std_0 / std_t
    counts = (40, 80, 160, 320)
    errors = []
    for n in counts:
        grid = grids.log_snr(process, n, t_min=t_min)
        result = sample(rule, process, score, jax.random.key(0), x, grid, denoise=False)
        errors.append(float(jnp.abs(result.x - exact).max()))
    assert abs(slope(errors, counts) - order) < 0.3


def test_dpm_solver_is_of_second_order_on_steps_that_are_not_even(x64):
    """Steps in log-SNR that grow by a factor of 8 along the way; the extrapolation must know each step before."""
    process, mean, var, t_min = process64("vp"), 0.4, 0.3, 0.05
    std_t, std_0 = (float(jnp.sqrt(process.alpha(t) ** 2 * var + process.variance(t))) for t in (1.0, t_min))
    x = jnp.linspace(-1.0, 2.0, 5)[:, None] * std_t
    exact = process.alpha(t_min) * mean + (x - process.alpha(1.0) * mean) * std_0 / std_t
    ends, counts, errors = process.log_snr(jnp.asarray([1.0, t_min])), (40, 80, 160), []
    for n in counts:
        share = (8.0 ** jnp.linspace(0.0, 1.0, n + 1) - 1.0) / 7.0
        grid = process.inverse_log_snr(ends[0] + share * (ends[1] - ends[0]))
        score, rule = gaussian_score(process, mean, var), rules.DPM_SOLVER_PP_2M
        result = sample(rule, process, score, jax.random.key(0), x, grid, denoise=False)
        errors.append(float(jnp.abs(result.x - exact).max()))
    assert errors[1] / errors[2] > 3.4 and errors[2] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_a_mixture(x64, name):
    """In one dimension the exact flow is the monotone map between marginals: no solver in the oracle."""
    rule, order = DETERMINISTIC[name]
    process, t_min = process64("vp"), 0.05
    x = np.array([-1.5, -0.4, 0.3, 1.2])
    exact = np.array([TOY.transport(process, 1.0, t_min, value) for value in x])
    counts = (80, 160, 320, 640)
    errors = []
    for n in counts:
        grid = grids.log_snr(process, n, t_min=t_min)
        x_init = jnp.asarray(x)[:, None]
        result = sample(rule, process, TOY.score(process), jax.random.key(0), x_init, grid, denoise=False)
        errors.append(np.abs(np.asarray(result.x)[:, 0] - exact).max())
    assert abs(slope(errors, counts) - order) < 0.3


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_rules_converge_with_weak_order_one(x64, name):
    """Error in the variance of the distribution they produce from an exact start, by its exact recursion."""
    process, counts, data = process64("vp"), (200, 400, 800, 1600), exact.Gaussian(jnp.zeros(1), jnp.array([0.5]))
    start, end = exact.marginal(process, data, 1.0), exact.marginal(process, data, 0.1)
    rule = transitions.TRANSITIONS[name]
    ends = [exact.gaussian_law(process, jnp.linspace(1, 0.1, n + 1), rule, data, start=start) for n in counts]
    assert abs(slope([float(abs(reached.variance - end.variance)[0]) for reached in ends], counts) - 1) < 0.3


def corrected(predictor, corrector_steps, snr):
    """Predictor-corrector as one rule, and a grid of it: Langevin steps are affine too, and stay at their time."""

    def transition(process, s, t):
        size = 2.0 * snr**2 * process.variance(t)
        stay = transitions.Step(jnp.ones_like(size), size, 2.0 * size)
        return jax.tree.map(lambda stay, move: jnp.where(s == t, stay, move), stay, predictor(process, s, t))

    return transition, lambda grid: np.concatenate([grid[:1], np.repeat(grid[1:], 1 + corrector_steps)])


LAWS = {
    **{name: (rules.affine(rule), (rule, lambda grid: grid)) for name, rule in transitions.TRANSITIONS.items()},
    **{
        f"predictor_corrector_{name}": (rules.predictor_corrector(rule, *options), corrected(rule, *options))
        for name, rule, options in (("stochastic", transitions.reverse_diffusion, (1, 0.4)), ("ddim", transitions.ddim, (3, 0.3)))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_rule_has_the_distribution_of_its_coefficients(name):
    """100,000 samples against the recursion for Gaussian data: mean and variance within 5 standard errors."""
    process, n = PROCESSES["vp"], 100_000
    rule, (transition, repeated) = LAWS[name]
    mu, lam = np.array([0.3, -1.0]), np.array([0.5, 2.0])
    grid = np.linspace(1, 0.1, 21) ** 2
    with jax.enable_x64(True):
        predicted = exact.gaussian_law(
            process64("vp"), jnp.asarray(repeated(grid)), transition, exact.Gaussian(mu, lam)
        )
        mean, var = np.asarray(predicted.mean), np.asarray(predicted.variance)
        start = float(process64("vp").sigma(1.0))
    x_init = start * jax.random.normal(jax.random.key(0), (n, 2))
    score, times = gaussian_score(process, mu, lam), jnp.asarray(grid, jnp.float32)
    x = np.asarray(sample(rule, process, score, jax.random.key(1), x_init, times, denoise=False).x)
    assert (np.abs(x.mean(0) - mean) < 5 * np.sqrt(var / n)).all()
    assert (np.abs(x.var(0) / var - 1) < 5 * np.sqrt(2 / n)).all()


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_nfe_is_the_number_of_evaluations_made(name, denoise):
    """Counted at run time by the score itself; a corrector that is left out costs nothing."""
    process, calls = PROCESSES["vp"], []

    def score(x, t, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return -x

    grid = grids.uniform(process, 8, t_min=1e-3)
    result = sample(RULES[name], process, score, jax.random.key(0), jnp.zeros((3, 2)), grid, denoise=denoise)
    jax.effects_barrier()
    assert result.nfe.tolist() == [len(calls)] * 3
    assert len(calls) == 8 * RULES[name].evaluations + denoise


def test_predictor_corrector_against_a_plain_loop():
    """One Python loop over times with the keys written out: fold_in of the step, then 0 for noise, 1 + k for Langevin."""
    process, key = PROCESSES["vp"], jax.random.key(3)
    score, grid = gaussian_score(process, 0.3, 0.5), grids.log_snr(process, 6, t_min=0.01)
    x_init = jax.random.normal(jax.random.key(0), (4, 2))
    rule = rules.predictor_corrector(transitions.ancestral, corrector_steps=2, snr=0.2)
    result = sample(rule, process, score, key, x_init, grid)
    x = x_init
    for i, (t, s) in enumerate(zip(grid[:-1], grid[1:])):
        scale, weight, noise_var = transitions.ancestral(process, s, t)
        draws = [jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), k), x.shape) for k in range(3)]
        x = scale * x + weight * score(x, jnp.full(4, t)) + jnp.sqrt(noise_var) * draws[0]
        size = 2 * 0.2**2 * process.variance(s)
        for draw in draws[1:]:
            x = x + size * score(x, jnp.full(4, s)) + jnp.sqrt(2 * size) * draw
    x = (x + process.variance(s) * score(x, jnp.full(4, s))) / process.alpha(s)
    np.testing.assert_allclose(result.x, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_sample_with_its_own_key_does_not_depend_on_its_batch(name):
    process, keys = PROCESSES["vp"], jax.random.split(jax.random.key(1), 5)
    score, grid = gaussian_score(process, 0.3, 0.5), grids.log_snr(process, 6, t_min=0.01)
    x_init = jax.random.normal(jax.random.key(0), (5, 2))
    whole = sample(RULES[name], process, score, keys, x_init, grid).x
    alone = sample(RULES[name], process, score, keys[3:4], x_init[3:4], grid).x
    np.testing.assert_allclose(whole[3:4], alone, rtol=1e-5, atol=1e-6)


def test_rule_receives_labels_and_a_key_of_its_own_in_every_interval():
    process, grid = PROCESSES["vp"], grids.uniform(PROCESSES["vp"], 4, t_min=0.1)
    labels, key, x_init = jnp.array([2.0, 5.0]), jax.random.key(7), jnp.zeros((2, 1))
    rule = rules.one_step(lambda field, x, t, s, key: x + field.score_at(t, x) + jax.random.uniform(key), 1)
    score = lambda x, t, cond: cond[:, None]
    result = sample(rule, process, score, key, x_init, grid, labels, denoise=False)
    drawn = sum(jax.random.uniform(fold(key, i)) for i in range(4))
    np.testing.assert_allclose(result.x[:, 0], 4 * labels + drawn, rtol=1e-6)


@pytest.mark.parametrize("name", [*STOCHASTIC, "predictor_corrector"])
@pytest.mark.slow
def test_stochastic_samplers_reach_a_mixture(name):
    """Kolmogorov-Smirnov against the exact marginal at the last time, on a fine grid."""
    process, t_min, n = PROCESSES["vp"], 1e-3, 20_000
    grid = grids.log_snr(process, 600, t_min=t_min)
    x_init = jax.random.normal(jax.random.key(0), (n, 1))
    result = sample(RULES[name], process, TOY.score(process), jax.random.key(1), x_init, grid, denoise=False)
    cdf = np.vectorize(lambda value: TOY.cdf(process, t_min, value))
    distance = ks_1samp(np.asarray(result.x)[:4000, 0], cdf).statistic
    assert distance < 1.95 / np.sqrt(4000) + 0.01  # the 0.1 % point, and the step size's bias


def test_langevin_corrector_alone_keeps_and_restores_the_marginal():
    """Started from a distribution that is too wide, many corrector steps at one time bring p_t back."""
    process, n = PROCESSES["vp"], 50_000
    score, t = gaussian_score(process, 0.0, 0.5), jnp.full(n, 0.3)
    wanted = float(process.alpha(0.3) ** 2 * 0.5 + process.variance(0.3))
    x = 2.0 * jax.random.normal(jax.random.key(0), (n, 1))

    def body(x, key):
        return rules.langevin(process, score, key, x, t, snr=0.16), None

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
    grid = grids.karras(process, 17, t_min=0.002)
    ramp = 3.0 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 3.0 ** (1 / 7))
    np.testing.assert_allclose(grid, ramp**7, rtol=1e-9)


@pytest.mark.parametrize(
    "horizon, usual, scale_steps, steps",
    [(0.25, 1.0, True, 10), (0.25, 1.0, False, 40), (0.25, None, True, 40), (2.0, 1.0, True, 80), (0.01, 1.0, True, 1)],
)
def test_a_shorter_horizon_takes_its_share_of_the_steps(horizon, usual, scale_steps, steps):
    process = dataclasses.replace(PROCESSES["vp"], horizon=horizon)
    options = {"steps": 40, "t_min": 2e-3, "scale_steps": scale_steps, "usual_horizon": usual}
    fixed = sampler.sampler(rules.HEUN, process, grids.log_snr, **options)
    np.testing.assert_array_equal(fixed.grid, grids.log_snr(process, steps, t_min=2e-3))
    assert not fixed.data_dependent
    for method in (adaptive.Adaptive(), adaptive.Adaptive(rtol=1e-2)):  # reads the ends alone
        solver = sampler.sampler(method, process, grids.log_snr, **options)
        np.testing.assert_allclose(solver.grid, [horizon, 2e-3], rtol=1e-6)
        assert solver.data_dependent


def test_the_last_step_leaves_no_noise():
    """Data at a point: the posterior mean is that point, whatever noise the grid ends with."""
    process = PROCESSES["vp"]
    score = gaussian_score(process, 0.7, 0.0)
    x_init = jax.random.normal(jax.random.key(0), (1000, 3))
    grid = grids.log_snr(process, 10, t_min=1e-2)
    for rule in (rules.affine(transitions.ancestral), rules.HEUN, rules.DPM_SOLVER_PP_2M):
        result = sample(rule, process, score, jax.random.key(1), x_init, grid)
        np.testing.assert_allclose(result.x, 0.7, atol=2e-5)
    rule = rules.affine(transitions.exponential_sde)
    noisy = sample(rule, process, score, jax.random.key(1), x_init, grid, denoise=False)
    assert float(noisy.x.std()) > 0.01


def test_ddim_is_first_order_dpm_solver(x64):
    """On a grid of one step both move along the frozen x_0 estimate."""
    process = process64("vp")
    x = jnp.array([[0.3], [-1.0]])
    grid = jnp.array([0.8, 0.4])
    first, second = (
        sample(rule, process, TOY.score(process), jax.random.key(0), x, grid, denoise=False).x
        for rule in (rules.affine(transitions.ddim), rules.DPM_SOLVER_PP_2M)
    )
    np.testing.assert_allclose(first, second, rtol=1e-10)


def test_trajectory_begins_with_noise_and_ends_before_the_denoising():
    process, grid = PROCESSES["vp"], grids.uniform(PROCESSES["vp"], 5, t_min=0.1)
    score, x_init = gaussian_score(process, 0.0, 1.0), jax.random.normal(jax.random.key(0), (4, 2))
    run = functools.partial(sample, rules.HEUN, process, score, jax.random.key(1), x_init, grid)
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

    solution = jax.jit(lambda y: adaptive.integrate(drift, y, 0.0, 1.0, rtol=1e-5, atol=1e-5))(jnp.ones((1, 3)))
    jax.effects_barrier()
    assert int(solution.n_rejected[0]) > 0
    assert int(solution.nfe[0]) == len(calls)


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)])
def test_adaptive_solver_against_scipy(x64, ends):
    def field(t, y):
        return np.array([y[1], -np.sin(y[0]) - 0.1 * y[1] + np.sin(t)])

    y0 = np.array([[1.0, 0.5], [2.0, -1.0]])

    def drift(t, y, args):
        return jnp.stack([y[:, 1], -jnp.sin(y[:, 0]) - 0.1 * y[:, 1] + jnp.sin(t)], axis=1)

    solution = adaptive.integrate(drift, jnp.asarray(y0), *ends, rtol=1e-9, atol=1e-9)
    wanted = [solve_ivp(field, ends, y, rtol=1e-11, atol=1e-11).y[:, -1] for y in y0]
    np.testing.assert_allclose(solution.y, wanted, atol=1e-7)


@pytest.mark.slow
def test_adaptive_error_follows_the_tolerance(x64):
    process = process64("vp")
    x = np.array([-1.5, 0.3, 1.2])
    exact = np.array([TOY.transport(process, 1.0, 1e-3, value) for value in x])
    errors, nfe = [], []
    for tol in (1e-3, 1e-5, 1e-7):
        start = jnp.asarray(x)[:, None]
        run = adaptive.Adaptive(rtol=tol, atol=tol)
        result = run(process, TOY.score(process), jax.random.key(0), start, jnp.array(ENDS), denoise=False)
        errors.append(np.abs(np.asarray(result.x)[:, 0] - exact).max())
        nfe.append(int(result.nfe.max()))
    assert errors[0] < 0.1 and errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10
    assert nfe[0] < nfe[1] < nfe[2]


@pytest.mark.slow
def test_an_adaptive_solve_does_not_depend_on_its_batch_mates():
    process = PROCESSES["vp"]
    x = jnp.array([[-1.5], [0.3], [1.2]])
    whole = adaptive.Adaptive()(process, TOY.score(process), jax.random.key(0), x, jnp.array(ENDS))
    alone = adaptive.Adaptive()(process, TOY.score(process), jax.random.key(0), x[1:2], jnp.array(ENDS))
    np.testing.assert_allclose(whole.x[1], alone.x[0], rtol=1e-5)
    assert int(whole.nfe[1]) == int(alone.nfe[0]) and len(set(whole.nfe.tolist())) > 1


def test_a_failed_solve_is_nan_not_a_silent_value():
    process = PROCESSES["vp"]
    x, grid = jnp.array([[0.3]]), jnp.array([1.0, 1e-5])
    result = adaptive.Adaptive(max_steps=2)(process, TOY.score(process), jax.random.key(0), x, grid)
    assert np.isnan(result.x).all()


def test_adaptive_sampler_reads_the_ends_of_the_grid_alone():
    process, x = PROCESSES["vp_short"], jnp.array([[0.3], [-0.2]])
    score, grid = gaussian_score(process, 0.3, 0.5), grids.karras(process, 9, t_min=0.02)
    whole, ends = (
        adaptive.Adaptive()(process, score, jax.random.key(0), x, times, denoise=False) for times in (grid, grid[::9])
    )
    np.testing.assert_array_equal(whole.x, ends.x)
    first, last = (jnp.sqrt(process.alpha(t) ** 2 * 0.5 + process.variance(t)) for t in (0.4, 0.02))
    wanted = process.alpha(0.02) * 0.3 + (x - process.alpha(0.4) * 0.3) * last / first
    np.testing.assert_allclose(whole.x, wanted, atol=2e-3)


def test_adaptive_sampler_keeps_no_trajectory():
    process = PROCESSES["vp"]
    with pytest.raises(ValueError, match="trajectory"):
        x = jnp.zeros((1, 1))
        adaptive.Adaptive()(process, TOY.score(process), jax.random.key(0), x, jnp.array(ENDS), trajectory=True)
