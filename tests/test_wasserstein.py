"""Bounds and planning against their printed digits, and against the exact distances that they must not undercut."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow.processes import sdes, transitions
from scoreflow.theory import exact, processes, wasserstein
from scoreflow.theory.wasserstein import Target
from tests.truth import integral

EI = transitions.exponential_sde
STOCHASTIC = (EI, transitions.euler_maruyama, transitions.conditional_mean, transitions.ancestral)
UNIT = Target(d=4, m0=1.0, L0=1.0, x0_l2=2.0)

# process, T: start, score, steps and total with orthogonal errors; steps and total with the sum of norms
FOUR_FOUR = [
    (processes.ve_exp(), 1.5, .1897034927, .02384220694, .03306952365, .2161854566, .3213258596, .5348715592),
    (processes.ve_const(2.0), 3.0, .1538461538, .02621525156, .1324601153, .2240064534, .5266835398, .7067449452),
    (processes.ve_sqrt(), 3.0, .2, .02331299318, .03889161026, .2267733044, .3334029513, .5567159445),
    (processes.ve_poly(1.0, 0.5, 2.0), 2.0, .09744214373, .03079175019, .04786293404, .1376098864, .4177054869, .5459393808),
    (processes.ou(), 3.0, .004518190394, .0190924972, .1318633417, .1449394365, .7319765829, .7555872705),
    (processes.vp_linear(19.9, 0.1), 1.0, 6.010676149e-05, .01990853539, .1342811018, .1504602676, .7917628947, .8117315369),
    (sdes.vp_power(), 1.0, .0105792481, .01865019963, .1236822028, .1422117764, .6814705317, .7106999794),
    (sdes.vp_exponential(), 1.0, .008491675109, .01883236096, .1547787855, .1729501976, .7577655549, .785089591),
]  # fmt: skip


def _bound(process, horizon, steps, target, **options):
    return wasserstein.bound(process, jnp.linspace(horizon, 0.0, steps + 1), target, **options)


@pytest.mark.parametrize("process, horizon, start, score, steps, total, tri_steps, tri_total", FOUR_FOUR)
def test_table_of_bounds(x64, process, horizon, start, score, steps, total, tri_steps, tri_total):
    target = Target(4, 1.0, 2.0, 2.0)
    bound, tri = (
        _bound(process, horizon, 100, target, score_error=0.01, orthogonal=orthogonal) for orthogonal in (True, False)
    )
    np.testing.assert_allclose(
        [bound.start, bound.score, bound.steps, bound.total], [start, score, steps, total], rtol=5e-10
    )
    np.testing.assert_allclose([tri.steps, tri.total], [tri_steps, tri_total], rtol=5e-10)
    # ten times as many steps: the orthogonal errors fall by 10, their norms' sum by sqrt(10)
    finer, tri_finer = (_bound(process, horizon, 1000, target, orthogonal=orthogonal) for orthogonal in (True, False))
    assert 9.69 < float(bound.steps / finer.steps) < 10.1
    assert 3.1 < float(tri.steps / tri_finer.steps) < 3.4


# T at eps = .4, .2, .1; fewest steps there with orthogonal errors, and at .4 with the sum of norms
SECTION_FIVE = [
    (processes.ve_exp(), (1.472219, 1.831781, 2.184724), (8, 19, 45), 141),
    (processes.ve_poly(), (2.036589, 2.870877, 3.904868), (9, 23, 61), 149),
    (processes.ve_sqrt(), (3, 4.358899, 6.244998), (9, 25, 70), 155),
    (processes.ve_const(), (9, 19, 39), (19, 77, 307), 246),
    (processes.ou(), (1.151293, 1.497866, 1.844440), (12, 33, 86), 157),
    (processes.vp_linear(), (1.367524, 1.644138, 1.894436), (11, 31, 78), 152),
    (processes.vp_poly(), (0.787558, 0.898205, 0.992316), (12, 33, 84), 160),
    (processes.vp_exp(), (1.194706, 1.385227, 1.545194), (12, 31, 79), 153),
]


@pytest.mark.parametrize(
    "process, horizons, steps, tri",
    [pytest.param(*row, marks=pytest.mark.slow) for row in SECTION_FIVE],
)
def test_table_of_plans(x64, process, horizons, steps, tri):
    for accuracy, horizon, k in zip((0.4, 0.2, 0.1), horizons, steps):
        plan = wasserstein.plan(process, accuracy, UNIT)
        assert plan.steps == k and plan.horizon == pytest.approx(horizon, abs=6e-7)
        assert plan.distance <= accuracy < float(_bound(process, plan.horizon, k - 1, UNIT).total)
        assert plan.distance == pytest.approx(float(_bound(process, plan.horizon, k, UNIT).total), rel=1e-12)
    assert wasserstein.plan(process, 0.4, UNIT, orthogonal=False).steps == tri


def test_ve_families_are_ordered_at_a_fixed_accuracy(x64):
    families = (processes.ve_exp(), processes.ve_poly(), processes.ve_sqrt(), processes.ve_const())
    steps = [wasserstein.plan(process, 0.1, UNIT).steps for process in families]
    assert steps == sorted(steps)


def test_steps_that_are_never_enough(x64):
    """A score error that alone exceeds the accuracy: None, and what was reached."""

    def total(times):
        return wasserstein.bound(processes.ou(), times, UNIT, score_error=1.0).total

    steps, value = wasserstein.fewest_steps(total, lambda progress: 2.0 * (1.0 - progress), 0.1, most=4096)
    assert steps is None
    assert value == pytest.approx(float(_bound(processes.ou(), 2.0, 4096, UNIT, score_error=1.0).total), rel=1e-12)


def test_fewest_steps_sees_through_a_dip():
    """A distance that is small at 8 steps by accident and for good from 100 on."""

    def distance(times):
        steps = jnp.sum(times[1:] < times[:-1])
        return jnp.where((steps == 8) | (steps >= 100), 0.0, 1.0)

    grid = lambda progress: 1.0 - progress
    assert wasserstein.fewest_steps(distance, grid, 0.5) == (8, 0.0)
    assert wasserstein.fewest_steps(distance, grid, 0.5, lasting=3) == (100, 0.0)


def test_padding_with_steps_of_no_length_changes_nothing(x64):
    grid = jnp.linspace(1.5, 0.0, 11)
    padded = jnp.concatenate([jnp.full(5, 1.5), grid])
    data = exact.Gaussian(jnp.array([1.0]), jnp.array([0.5]))
    for rule in STOCHASTIC:
        first, second = (wasserstein.bound(processes.ou(), g, UNIT, rule=rule, score_error=0.1) for g in (grid, padded))
        np.testing.assert_allclose(first, second, rtol=1e-12)
        first, second = (exact.gaussian_law(processes.ou(), g, rule, data) for g in (grid, padded))
        np.testing.assert_allclose(first, second, rtol=1e-12)


LAWS = [  # mean and variance by coordinate
    ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    ([1.0, 1.0, 1.0], [0.5, 0.5, 0.5]),
    ([0.3, -1.0, 0.5], [0.5, 1.0, 2.0]),
    ([0.0, 0.0, 0.0], [0.25, 0.3, 0.25]),
]


def _target(mean, var):
    mean, var = np.asarray(mean), np.asarray(var)
    return Target(len(mean), 1 / var.max(), 1 / var.min(), np.sqrt((mean**2 + var).sum()))


def _padded(horizon, steps, length=640):
    """A uniform grid, its first time repeated up to one length, so that one program serves all."""
    grid = np.linspace(horizon, 0.0, steps + 1)
    return jnp.asarray(np.concatenate([np.full(length - steps, horizon), grid]))


@pytest.mark.parametrize(
    "process, horizon",
    [pytest.param(*row[:2], marks=[pytest.mark.slow] * (i != 5)) for i, row in enumerate(FOUR_FOUR)],
)
def test_the_bound_holds_for_every_sampler_and_gaussian(x64, process, horizon):
    for (mean, var), steps, rule, bias in itertools.product(LAWS, (10, 80, 640), STOCHASTIC, (0.0, 0.05)):
        data, target = exact.Gaussian(jnp.array(mean), jnp.array(var)), _target(mean, var)
        grid = _padded(horizon, steps)
        distance = float(exact.w2(exact.gaussian_law(process, grid, rule, data, bias=bias), data))
        error = bias * np.sqrt(len(mean))
        bound = wasserstein.bound(process, grid, target, score_error=error, rule=rule)
        loose = wasserstein.bound(process, grid, target, score_error=error, rule=rule, orthogonal=False)
        assert distance <= float(bound.total) <= float(loose.total)


@pytest.mark.parametrize("process, horizon", [(sdes.vp_linear(), 1.0), (processes.ve_exp(), 1.5)])
def test_the_bound_grows_with_everything_that_is_bad(x64, process, horizon):
    base = Target(4, 1.0, 2.0, 2.0)
    total = lambda target, **options: float(_bound(process, horizon, 50, target, **options).total)
    middle = total(base, score_error=0.01)
    assert middle <= total(base, score_error=0.02)
    for worse in (base._replace(d=5), base._replace(L0=3.0), base._replace(x0_l2=3.0), base._replace(m0=0.8)):
        assert middle <= total(worse, score_error=0.01)
    assert middle <= total(base, score_error=0.01, smoothness=wasserstein.smoothness_min)
    assert middle <= total(base, score_error=0.01, prior_std=1.5 * float(process.sigma(horizon)))


def test_quadrature_of_the_frozen_score_has_its_closed_form(x64):
    """VE, one step: int = D - 2 A log1p(D/A) + A D/(A + D), A = 1/L0 + v(s), D = v(t) - v(s)."""
    process, target = processes.ve_const(1.3), Target(3, 1.0, 2.0, 0.0)
    grid = jnp.array([0.9, 0.5])
    bound = wasserstein.bound(process, grid, target)
    start, added = 0.5 + 1.69 * 0.5, 1.69 * 0.4
    area = added - 2 * start * np.log1p(added / start) + start * added / (start + added)
    assert float(bound.steps) == pytest.approx(np.sqrt(3 * area), rel=1e-8)


def test_start_and_score_tend_to_their_limits(x64):
    for process, horizon in ((processes.ve_exp(), 1.5), (sdes.vp_linear(), 1.0), (sdes.ve_geometric(0.1, 5.0), 1.0)):
        process = dataclasses.replace(process, horizon=horizon)
        for m0 in (0.7, 1.0, 1.6):
            target = Target(4, m0, 2.0, 2.0)
            bound = _bound(process, horizon, 20_000, target, score_error=0.3)
            assert float(bound.start) == pytest.approx(float(wasserstein.start_limit(process, target)), rel=3e-3)
            assert float(bound.score) == pytest.approx(float(wasserstein.score_limit(process, target, 0.3)), rel=3e-3)


def test_limits_in_closed_form(x64):
    """For VE M log1p(m0 v)/m0; for VP an arc tangent, a difference of inverses or a logarithm as m0 is below, at, above 1."""
    process = processes.ve_poly(1.0, 0.5, 2.0, horizon=2.0)
    target = Target(4, 0.7, 2.0, 2.0)
    v = float(process.variance(2.0))
    assert float(wasserstein.start_limit(process, target)) == pytest.approx(2 / (1 + 0.7 * v), rel=1e-12)
    assert float(wasserstein.score_limit(process, target, 0.3)) == pytest.approx(0.3 * np.log1p(0.7 * v) / 0.7)
    process = sdes.vp_linear()
    y = np.exp(10.05 / 2)
    k = np.sqrt(0.7 / 0.3), np.sqrt(1.6 / 0.6)
    wanted = {
        1.0: 2 * (1 - 1 / y),
        0.7: 2 * (np.arctan(k[0] * y) - np.arctan(k[0])) / np.sqrt(0.7 * 0.3),
        1.6: (np.log((k[1] * y - 1) / (k[1] * y + 1)) - np.log((k[1] - 1) / (k[1] + 1))) / np.sqrt(1.6 * 0.6),
    }
    for m0, value in wanted.items():
        target = Target(4, m0, 2.0, 2.0)
        assert float(wasserstein.score_limit(process, target, 1.0)) == pytest.approx(value, rel=1e-9)
        start = 2 / (1 + m0 * np.expm1(10.05))
        assert float(wasserstein.start_limit(process, target)) == pytest.approx(start, rel=1e-12)


def test_horizon_gives_the_accuracy_asked_of_the_start(x64):
    target = Target(64, 0.3, 50.0, 6.0)
    for process in (sdes.vp_linear(), sdes.ve_geometric(), sdes.vp_cosine(), sdes.edm(), sdes.sub_vp_linear()):
        horizon = wasserstein.horizon_for(process, target, 0.5)
        stopped = dataclasses.replace(process, horizon=horizon)
        assert float(wasserstein.start_limit(stopped, target)) == pytest.approx(0.5, rel=1e-9)
    assert float(wasserstein.horizon_for(sdes.vp_linear(), target, 7.0)) == 0.0  # close enough without any diffusion


def test_early_stopping_is_the_distance_it_adds(x64):
    """W2(p_t, data) for Gaussian data is below it, and equal for a point mass."""
    process = sdes.vp_linear()
    for mean, var in (*LAWS, ([1.5, 0.0], [0.0, 0.0])):
        data = exact.Gaussian(jnp.array(mean), jnp.array(var))
        target = Target(len(mean), 1.0, 1.0, np.sqrt((data.mean**2 + data.variance).sum()))
        moved = float(exact.w2(exact.marginal(process, data, 0.01), data))
        allowed = float(wasserstein.early_stopping(process, target, 0.01))
        assert moved <= allowed * (1 + 1e-12)
    assert moved == pytest.approx(allowed, rel=1e-12)


def test_data_without_smoothness_need_an_end_above_zero(x64):
    target = Target(2, 1.0, np.inf, 1.0)
    assert not np.isfinite(float(wasserstein.smoothness(sdes.vp_linear(), target, 0.0)))
    assert np.isfinite(float(wasserstein.bound(sdes.vp_linear(), jnp.linspace(1, 0.01, 21), target).total))


# ----------------------------------------------------------------------------------------------------------------------
# Data that are not Gaussian: half N(-1/2, .64), half N(1/2, .64).

MIXED = Target(1, 0.9521484375, 1.5625, 0.9433981132)


@pytest.mark.parametrize(
    "bias, distance, total, loose", [(0.0, 0.08808, 0.35612, 0.90122), (0.1, 0.19407, 0.51296, 1.09408)]
)
def test_a_mixture_against_grid_quadrature(x64, bias, distance, total, loose):
    """The sampler's density by its transition kernels on a grid, and W2 by quantiles."""
    process, grid = sdes.vp_linear(0.1, 2.0), np.linspace(2.0, 0.0, 11)
    x = np.linspace(-7, 7, 1401)
    normal = lambda x, var: np.exp(-0.5 * x**2 / var) / np.sqrt(2 * np.pi * var)
    density = normal(x, float(process.variance(2.0)))
    for t, s in zip(grid[:-1], grid[1:]):
        scale, weight, noise = (float(v) for v in EI(process, s, t))
        alpha, variance = float(process.alpha(t)), float(process.variance(t))
        spread, shift = 0.64 * alpha**2 + variance, 0.5 * alpha
        score = (-x + shift * np.tanh(shift * x / spread)) / spread + bias
        kernel = normal(x[:, None] - (scale * x + weight * score)[None], noise)
        density = kernel @ density * (x[1] - x[0])
    data = 0.5 * normal(x - 0.5, 0.64) + 0.5 * normal(x + 0.5, 0.64)
    levels = (np.arange(200_000) + 0.5) / 200_000
    quantiles = [np.interp(levels, np.cumsum(p) * (x[1] - x[0]), x + 0.5 * (x[1] - x[0])) for p in (density, data)]
    reached = np.sqrt(np.mean((quantiles[0] - quantiles[1]) ** 2))
    assert reached == pytest.approx(distance, abs=1e-4)
    for orthogonal, wanted in ((True, total), (False, loose)):
        value = wasserstein.bound(process, jnp.asarray(grid), MIXED, score_error=bias, orthogonal=orthogonal).total
        assert float(value) == pytest.approx(wanted, abs=6e-6)
        assert reached < float(value)


def test_the_constants_of_the_mixture(x64):
    """Its curvature 1/.64 - (.25/.64^2) sech^2 lies between m0 and L0, and E x^2 is .64 + .25."""
    x = np.linspace(-5, 5, 1001)
    curvature = 1 / 0.64 - 0.25 / 0.64**2 / np.cosh(0.5 * x / 0.64) ** 2
    assert curvature.min() == pytest.approx(MIXED.m0, rel=1e-9) and curvature.max() < MIXED.L0
    second = integral(lambda x: x**2 * np.exp(-0.5 * (x - 0.5) ** 2 / 0.64) / np.sqrt(2 * np.pi * 0.64), -8, 9)
    assert np.sqrt(second) == pytest.approx(MIXED.x0_l2, rel=1e-9)


# ----------------------------------------------------------------------------------------------------------------------
# The probability-flow ODE.

ODE_ROWS = [  # process, T, L1: exact distance; total, start, score, steps
    (processes.ou(0.5, 1.0), 5.0, 12.0, .07003352464, .2228925173, .02063355589, .07002580559, .1322331558),
    (sdes.vp_linear(0.1, 2.0), 2.5, 4.110266121, .08492787755, .1339347401, .0113599586, .08492517026, .03764961122),
]  # fmt: skip


@pytest.mark.parametrize("process, horizon, lipschitz, distance, total, start, score, steps", ODE_ROWS)
def test_ode_bound(x64, process, horizon, lipschitz, distance, total, start, score, steps):
    grid, data = jnp.linspace(horizon, 0.0, 641), exact.Gaussian(jnp.zeros(1), jnp.array([0.25]))
    end = exact.gaussian_law(process, grid, transitions.exponential_ode, data, bias=0.05)
    assert float(exact.w2(end, data)) == pytest.approx(distance, rel=1e-9)
    target = Target(1, 4.0, 4.0, 0.5)
    bound = wasserstein.ode_bound(process, grid, target, time_lipschitz=lipschitz, score_error=0.05)
    np.testing.assert_allclose(bound, [total, start, score, steps], rtol=5e-10)


def _lipschitz(process, horizon, var):
    """max |S'| / S^2 over time and coordinates."""
    t = np.linspace(0, horizon, 2001)[:, None]
    spread = np.asarray(process.alpha(t)) ** 2 * var + np.asarray(process.variance(t))
    slope = np.asarray(process.diffusion_sq(t)) + 2 * np.asarray(process.drift_coeff(t)) * spread
    return float((np.abs(slope) / spread**2).max())


@pytest.mark.parametrize(
    "process, horizon",
    [pytest.param(*row[:2], marks=[pytest.mark.slow] * (i != 5)) for i, row in enumerate(FOUR_FOUR)],
)
def test_the_ode_bound_holds(x64, process, horizon):
    for (mean, var), steps, bias in itertools.product(LAWS, (10, 160), (0.0, 0.05)):
        if any(mean):  # then the score also moves with alpha, which this constant does not cover
            continue
        data, target = exact.Gaussian(jnp.array(mean), jnp.array(var)), _target(mean, var)
        grid = _padded(horizon, steps, 160)
        end = exact.gaussian_law(process, grid, transitions.exponential_ode, data, bias=bias)
        bound = wasserstein.ode_bound(
            process, grid, target, time_lipschitz=_lipschitz(process, horizon, np.array(var)),
            score_error=bias * np.sqrt(len(mean)),
        )  # fmt: skip
        assert float(exact.w2(end, data)) <= float(bound.total)


@pytest.mark.slow
def test_the_ode_forgets_its_start_as_the_square_root(x64):
    """start tends to x0_l2 / sqrt(1 + m0 vt(T)), where the SDE's tends to x0_l2 / (1 + m0 vt(T)); first order in steps."""
    process, target = processes.ou(0.5, 1.0, horizon=5.0), Target(1, 4.0, 4.0, 0.5)
    bounds = [
        wasserstein.ode_bound(process, jnp.linspace(5.0, 0.0, k + 1), target, time_lipschitz=12.0)
        for k in (2000, 20_000)
    ]
    ratio = float(jnp.exp(-process.log_snr(5.0)))
    assert float(bounds[1].start) == pytest.approx(0.5 / np.sqrt(1 + 4 * ratio), rel=2e-3)
    assert 9.5 < float(bounds[0].steps / bounds[1].steps) < 10.5


@pytest.mark.slow
def test_bounds_have_gradients_by_the_schedule(x64):
    total = lambda b: wasserstein.bound(processes.ve_exp(1.0, b), jnp.linspace(1.5, 0, 21), UNIT, score_error=0.1).total
    assert float(jax.grad(total)(1.0)) == pytest.approx(float(total(1 + 1e-6) - total(1 - 1e-6)) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("rule", [transitions.euler_maruyama, transitions.reverse_diffusion])
def test_a_step_that_is_not_exact_costs_in_proportion_to_the_size_of_its_state(x64, rule):
    """Of one step by hand, with the sum of norms: rho has |a - scale| times the root mean square of x_t, and
    |c / a - weight| times that of the score."""
    process, d, t, s = sdes.vp_linear(), 9.0, 0.7, 0.5
    target, grid = Target(d, 1.0, 1.5, 2.0), jnp.array([t, s])
    a, _, c = (float(value) for value in process.reverse_integrals(jnp.asarray(s), jnp.asarray(t)))
    scale, weight, noise_var = (float(value[0]) for value in rule(process, grid[1:], grid[:-1]))
    alpha, variance = float(process.alpha(t)), float(process.variance(t))
    size, high = np.sqrt(alpha**2 * 2.0**2 + 9.0 * variance), 1.0 / (alpha**2 / 1.5 + variance)
    rho = abs(a - scale) * size + abs(c / a - weight) * np.sqrt(9.0 * high)
    of_step = lambda rule: float(wasserstein.bound(process, grid, target, rule=rule, orthogonal=False).steps)

    def exact_step(process, s, t):
        a, _, c = process.reverse_integrals(s, t)
        return transitions.Step(a, c / a, c)

    frozen = of_step(exact_step)  # the score that stands still is all that is left
    q = frozen + 3.0 * abs(np.sqrt(c) - np.sqrt(noise_var))
    np.testing.assert_allclose(of_step(rule), rho + q, rtol=1e-9)
    assert rho > 0.02 * q
