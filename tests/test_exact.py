"""Exact distributions against their printed digits, their limits, other implementations and Monte Carlo."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from scoreflow.data import toy
from scoreflow.processes import sdes, transitions
from scoreflow.theory import exact, processes
from scoreflow.theory.exact import Gaussian
from tests.truth import PROCESSES, integral, process64

EI, EM, CM, ANC = (
    transitions.exponential_sde,
    transitions.euler_maruyama,
    transitions.conditional_mean,
    transitions.ancestral,
)
ODE, ODE_EULER, DDIM = transitions.exponential_ode, transitions.euler_ode, transitions.ddim


def _law(process, horizon, steps, rule, data, **options):
    return exact.gaussian_law(process, jnp.linspace(horizon, 0.0, steps + 1), rule, data, **options)


def _w2(process, horizon, steps, rule, data, **options):
    return float(exact.w2(_law(process, horizon, steps, rule, data, **options), data))


@pytest.fixture
def half(x64):
    """N(1, 0.5) in one dimension."""
    return Gaussian(jnp.array([1.0]), jnp.array([0.5]))


# process, T: the limits of W2 for SDE and ODE; mean and variance of ei with 100 steps; W2 of ei with 10, 100, 1000 steps,
# of em and of the ode with 100
SIX_THREE = [
    (processes.ve_exp(1.0, 1.0), 1.5, .04979479046, .2238411808, .9502129316, .5132297699, .1192473986, .05064707888, .04978724597, .04775364403, .2258772171),
    (processes.ve_const(2.0), 3.0, .040004003, .200509608, .96, .5638505087, .481336432, .05931128427, .04017024977, .05931128427, .2059138986),
    (processes.ve_sqrt(1.0), 3.0, .05264070291, .2301896233, .9473684211, .5152372273, .1348389571, .05370692508, .05263187672, .04968713572, .2323919579),
    (processes.ve_poly(1.0, 0.5, 2.0), 2.0, .02496976221, .1582646752, .975031211, .5177104881, .1423081484, .02788464767, .02499000717, .02258722206, .1612572937),
    (processes.ou(), 3.0, .001240914167, .0352293436, .9988816251, .5314546668, .2915063115, .0219311267, .002455757459, .01898362088, .03582419514),
    (processes.vp_linear(19.9, 0.1), 1.0, 2.159334079e-5, .004646869815, .9999851137, .519329286, .1564496821, .01353827553, .001334590264, .008402059873, .006143270144),
    (sdes.vp_power(), 1.0, .003080893851, .05551648711, .997367312, .513603562, .1105540667, .009910690331, .003177570734, .004557444512, .05578322227),
    (sdes.vp_exponential(), 1.0, .002651488341, .05150113727, .9978909109, .5149494089, .1272698009, .01070283906, .002792617847, .005621184227, .05181153762),
]  # fmt: skip


@pytest.mark.parametrize("process, horizon, sde, ode, mean, var, ei10, ei100, ei1000, em100, ode100", SIX_THREE)
def test_table_of_gaussian_laws(half, process, horizon, sde, ode, mean, var, ei10, ei100, ei1000, em100, ode100):
    process = dataclasses.replace(process, horizon=horizon)
    limits = [float(exact.w2(exact.continuous_limit(process, half, stochastic=s), half)) for s in (True, False)]
    np.testing.assert_allclose(limits, [sde, ode], rtol=2e-9)
    end = _law(process, horizon, 100, EI, half)
    np.testing.assert_allclose([end.mean[0], end.variance[0]], [mean, var], rtol=2e-10)
    distances = [_w2(process, horizon, k, EI, half) for k in (10, 100, 1000)]
    distances += [_w2(process, horizon, 100, rule, half) for rule in (EM, ODE)]
    np.testing.assert_allclose(distances, [ei10, ei100, ei1000, em100, ode100], rtol=2e-9)


def test_first_order_from_the_exact_start(half):
    process = processes.ve_exp(1.0, 1.0)
    start = exact.marginal(process, half, 1.5)
    rows = ((10, 0.6662201816, 0.1091163388), (100, 0.514469146, 0.01015826466), (1000, 0.5014274595, 0.001008646915))
    for steps, var, distance in rows:
        end = _law(process, 1.5, steps, EI, half, start=start)
        np.testing.assert_allclose([end.mean[0], end.variance[0]], [1.0, var], rtol=1e-9)
        assert float(exact.w2(end, half)) == pytest.approx(distance, rel=1e-8)


def test_every_rule_in_three_dimensions(x64):
    data = Gaussian(jnp.array([0.3, -1.0, 0.5]), jnp.array([0.5, 1.0, 2.0]))
    wanted = {
        EI: 0.05073028182, EM: 0.02899558942, CM: 0.1098472626, ANC: 0.1324320664, ODE: 0.01653818368,
        ODE_EULER: 0.01106257521, DDIM: 0.06644703607,
    }  # fmt: skip
    process = sdes.vp_linear()
    for rule, value in wanted.items():
        assert _w2(process, 1.0, 50, rule, data) == pytest.approx(value, rel=1e-9), rule.__name__
    for rule, value in (
        (EI, (0.5396641516, 1.058673779, 2.089541293)),
        (ANC, (0.4142235047, 0.8575524168, 1.754492705)),
    ):
        np.testing.assert_allclose(_law(process, 1.0, 50, rule, data).variance, value, rtol=1e-9)
    np.testing.assert_allclose(
        _law(process, 1.0, 50, ODE, data).mean, (0.2985901522, -0.9934284135, 0.4953923926), rtol=1e-9
    )


def test_full_covariance_by_axes_and_by_matrices(x64):
    """The recursion in principal axes against the same recursion with matrices, and against the printed distances."""
    mean, covariance = jnp.array([1.0, -0.5]), jnp.array([[1.0, 0.6], [0.6, 0.5]])
    process, grid = sdes.vp_linear(0.1, 2.0), jnp.linspace(2.0, 0.0, 21)
    data, axes = exact.principal_axes(mean, covariance)
    for rule, wanted in ((EI, 0.0632324469), (EM, 0.0310080019), (ODE, 0.1055179351), (ANC, 0.1376825241)):
        end = exact.gaussian_law(process, grid, rule, data)
        assert float(exact.w2(end, data)) == pytest.approx(wanted, rel=2e-9)
        m, p = np.zeros(2), float(process.variance(2.0)) * np.eye(2)
        for t, s in zip(grid[:-1], grid[1:]):
            scale, weight, noise = (float(v) for v in rule(process, s, t))
            alpha = float(process.alpha(t))
            precision = np.linalg.inv(alpha**2 * covariance + float(process.variance(t)) * np.eye(2))
            a = scale * np.eye(2) - weight * precision
            m, p = a @ m + weight * alpha * precision @ mean, a @ p @ a.T + noise * np.eye(2)
        np.testing.assert_allclose(axes @ end.mean, m, rtol=1e-9)
        np.testing.assert_allclose(axes @ jnp.diag(end.variance) @ axes.T, p, rtol=1e-9)
        assert float(exact.bures_w2(m, p, mean, covariance)) == pytest.approx(wanted, rel=1e-8)


def test_bures_distance(x64):
    first = jnp.array([1.0, 0.0]), jnp.array([[2.0, 0.5], [0.5, 1.0]])
    second = jnp.array([0.0, 1.0]), jnp.array([[1.0, -0.3], [-0.3, 2.0]])
    assert float(exact.bures_w2(*first, *second)) == pytest.approx(1.6048133515, rel=1e-10)
    assert float(exact.bures_w2(*second, *first)) == pytest.approx(1.6048133515, rel=1e-10)
    singular = jnp.diag(jnp.array([1.0, 0.0]))
    assert float(exact.bures_w2(jnp.zeros(2), singular, jnp.zeros(2), 4 * singular)) == pytest.approx(1.0, rel=1e-7)


# variance of ei with 100 and with 1000 steps, W2 of em with 1000; data N(0, 1/4)
EXPERIMENTS = [
    (sdes.ve_geometric(), 0.2726687156, 0.2522427213, 6.6994e-6),
    (sdes.ve_constant(), 25.00405513, 2.535859174, 1.092338132),
    (sdes.ve_linear(), 0.5254024987, 0.2705713387, 8.529404825e-4),
    (sdes.ve_power(rho=2.0), 0.2952191852, 0.2542478935, 3.354123e-5),
    (sdes.ve_power(rho=7.0), 0.2736752471, 0.2523407722, 7.763944e-6),
]


@pytest.mark.parametrize("process, var100, var1000, em1000", EXPERIMENTS)
def test_experiments_with_an_offset(x64, process, var100, var1000, em1000):
    """What is recovered at t = 0 is the data with sigma_min^2 added."""
    data, offset = Gaussian(jnp.zeros(1), jnp.array([0.25])), Gaussian(jnp.zeros(1), jnp.array([0.2501]))
    variances = [float(_law(process, 1.0, k, EI, data).variance[0]) for k in (100, 1000)]
    np.testing.assert_allclose(variances, [var100, var1000], rtol=1e-9)
    assert float(exact.w2(_law(process, 1.0, 1000, EM, data), offset)) == pytest.approx(em1000, rel=2e-5)


def test_the_exponential_integrator_is_not_always_the_better_one(x64):
    """On the geometric schedule with its offset, Euler-Maruyama's first-order term nearly vanishes."""
    process, offset = sdes.ve_geometric(), Gaussian(jnp.zeros(1), jnp.array([0.2501]))
    data = Gaussian(jnp.zeros(1), jnp.array([0.25]))
    em, ei = (float(exact.w2(_law(process, 1.0, 1000, rule, data), offset)) for rule in (EM, EI))
    assert em < ei / 100


def test_ve_identity_on_any_grid(x64):
    """VE with ei: mean mu (1 - r) exactly, variance lam (1 - r^2) + lam^2 sum (S - S')^2 / (S'^2 S)."""
    process, lam, mu = processes.ve_poly(1.3, 0.4, 1.5), 0.7, -1.2
    grid = np.sort(np.random.default_rng(0).uniform(0, 2, 40))[::-1]
    grid = np.concatenate([[2.0], grid, [0.0]])
    end = exact.gaussian_law(process, jnp.asarray(grid), EI, Gaussian(jnp.array([mu]), jnp.array([lam])))
    spread = lam + np.asarray(process.variance(grid))
    r = lam / spread[0]
    added = lam**2 * ((spread[:-1] - spread[1:]) ** 2 / (spread[1:] ** 2 * spread[:-1])).sum()
    np.testing.assert_allclose([end.mean[0], end.variance[0]], [mu * (1 - r), lam * (1 - r**2) + added], rtol=1e-12)


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve", "ou", "vp_offset", "vp_power"])
def test_short_steps_reach_the_limit(x64, name):
    process, data = process64(name), Gaussian(jnp.array([0.8]), jnp.array([0.6]))
    for rule in (EI, EM, CM, ANC, ODE, ODE_EULER, DDIM):
        limit = exact.continuous_limit(process, data, stochastic=rule in (EI, EM, CM, ANC))
        end = _law(process, process.horizon, 100_000, rule, data)
        np.testing.assert_allclose(end.mean, limit.mean, atol=5e-4)
        np.testing.assert_allclose(end.variance, limit.variance, atol=5e-4)


@pytest.mark.parametrize("rule", [EI, EM, CM, ODE])
@pytest.mark.parametrize("name", ["vp", "ve_poly_offset", "ou", "vp_power", "sub_vp"])
def test_first_order_coefficients(x64, name, rule):
    process, data, steps = process64(name), Gaussian(jnp.array([1.0]), jnp.array([0.5])), 20_000
    limit = exact.continuous_limit(process, data, stochastic=rule is not ODE)
    end, step = _law(process, process.horizon, steps, rule, data), float(process.horizon) / steps
    slope = float(exact.variance_slope(process, rule, 0.5))
    assert float((end.variance - limit.variance)[0]) / step == pytest.approx(slope, rel=1e-3, abs=2e-4)
    if rule is EI:
        r = float(1 - limit.mean[0])
        relative = ((1 - float(end.mean[0])) / r - 1) / step
        assert relative == pytest.approx(float(exact.mean_slope(process, 0.5)), rel=1e-3, abs=2e-4)


def test_a_rule_without_a_coefficient_is_refused():
    with pytest.raises(ValueError, match="ddim; known: exponential_sde, conditional_mean, euler_maruyama"):
        exact.variance_slope(PROCESSES["vp"], DDIM, 0.5)


def test_vp_on_unit_gaussians(x64):
    """The exponential ODE makes no error; one step of ei adds 2 expm1(x/2)^2 to the variance, em (beta h)^2 / 4."""
    process, unit = sdes.vp_linear(), Gaussian(jnp.zeros(1), jnp.ones(1))
    assert float(_law(process, 1.0, 7, ODE, unit, start=unit).variance[0]) == pytest.approx(1.0, rel=1e-12)
    grid = jnp.array([0.7, 0.6])
    area = float(process.beta.integral(0.6, 0.7))
    ei, em = (float(exact.gaussian_law(process, grid, rule, unit, start=unit).variance[0]) for rule in (EI, EM))
    assert ei - 1 == pytest.approx(2 * np.expm1(area / 2) ** 2, rel=1e-10)
    assert em - 1 == pytest.approx((float(process.beta(0.7)) * 0.1) ** 2 / 4, rel=1e-10)


def test_more_steps_may_be_worse_for_centred_data(x64):
    """The start makes the variance too small, the steps too large, and the two may cancel: no test asks for more here."""
    process, unit = processes.ve_const(2.0), Gaussian(jnp.zeros(4), jnp.ones(4))
    few, many = (_w2(process, 3.0, k, EI, unit) for k in (1024, 4096))
    assert few < 1e-4 < many
    start = exact.marginal(process, unit, 3.0)
    errors = [_w2(process, 3.0, k, EI, unit, start=start) for k in (64, 256, 1024, 4096)]
    assert errors == sorted(errors, reverse=True)


def test_a_biased_score_moves_the_mean(x64):
    """In the limit by bias S(0) alpha-weighted int g^2 / S for a VE process: mean += bias lam log(S_T / S_0)."""
    process, lam = processes.ve_const(1.0), 0.5
    data = Gaussian(jnp.zeros(1), jnp.array([lam]))
    end = _law(process, 2.0, 20_000, EI, data, bias=0.1)
    assert float(end.mean[0]) == pytest.approx(0.1 * lam * np.log((lam + 2.0) / lam), rel=1e-3)


def test_the_start_of_the_experiments_is_not_that_of_the_theory(x64):
    """VP code starts from N(0, 1); 1 - sigma(T)^2 is 6.4e-3 for the constant beta of the published config."""
    process = sdes.vp_constant(0.1, 10.0)
    assert 1 - float(process.variance(1.0)) == pytest.approx(6.4e-3, rel=0.01)
    data = Gaussian(jnp.zeros(1), jnp.array([0.3]))
    ends = [
        float(_law(process, 1.0, 200, ODE, data, start=start).variance[0])
        for start in (None, Gaussian(jnp.zeros(1), jnp.ones(1)))
    ]
    assert ends[1] / ends[0] == pytest.approx(1 / float(process.variance(1.0)), rel=1e-9)


def test_distributions_have_gradients_by_the_schedule(x64):
    """d W2 / d beta_max against a central difference."""
    data = Gaussian(jnp.array([0.3, -1.0]), jnp.array([0.5, 2.0]))
    distance = lambda beta_max: exact.w2(
        exact.gaussian_law(sdes.vp_linear(0.1, beta_max), jnp.linspace(1, 0, 21), EI, data), data
    )
    slope = (distance(8.0 + 1e-5) - distance(8.0 - 1e-5)) / 2e-5
    assert float(jax.grad(distance)(8.0)) == pytest.approx(float(slope), rel=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Mixtures.

TOY, PLANE = (exact.Mixture(*toy.MIXTURES[name]) for name in ("mixture_1d", "mixture"))


@pytest.mark.parametrize(
    "name, t, x, log_q, s1, s2, s3",
    [
        ("ve", 0.2, -0.25, 0.394399784, -7.06106698, -197.7095822, 0.0368856),
        ("ve", 0.5, -0.25, -0.9128316616, 0.07245807541, -0.8303582307, 0.4606794059),
        ("ve", 0.5, 1.0, -1.498690455, -1.146783826, -1.396636079, -0.73267883),
        ("vp", 0.2, -0.25, -0.717432687, 0.1532844436, -1.300262641, 0.9017831334),
        ("vp", 0.2, 0.5, -0.9510015758, -0.8173288521, -1.604552684, -1.40345671),
    ],
)
def test_mixture_in_one_dimension(x64, name, t, x, log_q, s1, s2, s3):
    derivatives = exact.mixture_derivatives(exact.mixture_marginal(process64(name), TOY, t), jnp.array([x]))
    flat = [float(leaf.reshape(())) for leaf in derivatives]
    np.testing.assert_allclose(flat, [log_q, s1, s2, s3], rtol=2e-8, atol=6e-8)


def _at(mixture, alpha, sigma):
    """The distribution of alpha x0 + sigma noise."""
    return exact.Mixture(
        mixture.weights, alpha * mixture.means, alpha**2 * mixture.covariances + sigma**2 * np.eye(2)[None]
    )


def test_mixture_in_the_plane(x64):
    x = jnp.array([0.3, -0.4])
    derivatives = exact.mixture_derivatives(_at(PLANE, 0.8, 0.6), x)
    assert float(derivatives.log_density) == pytest.approx(-2.1234332991, rel=1e-9)
    np.testing.assert_allclose(derivatives.score, [0.2519608529, 0.2826707687], rtol=1e-8)
    np.testing.assert_allclose(
        derivatives.hessian, [[-0.9412878202, 0.4080735048], [0.4080735048, -0.7420036610]], rtol=1e-8
    )
    np.testing.assert_allclose(derivatives.trace_gradient, [-1.6138145845, -0.9388253262], rtol=1e-8)
    third = exact.mixture_third(_at(PLANE, 0.8, 0.6), x, jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(third, [-2.7207533096, 0.9701698566], rtol=1e-8)
    derivatives = exact.mixture_derivatives(_at(PLANE, 1.0, 0.5), x)
    assert float(derivatives.log_density) == pytest.approx(-2.3904000777, rel=1e-9)
    np.testing.assert_allclose(derivatives.score, [0.5697248917, 0.2610851597], rtol=1e-8)
    assert float(jnp.trace(derivatives.hessian)) == pytest.approx(-1.836182015, rel=1e-8)
    np.testing.assert_allclose(derivatives.trace_gradient, [-2.4144507319, -1.0750336073], rtol=1e-8)


@pytest.mark.slow
def test_mixture_against_scipy_and_automatic_differentiation(x64):
    process, t = process64("sub_vp"), 0.3
    mixture, x = exact.mixture_marginal(process, PLANE, t), jnp.array([0.7, -1.1])
    density = sum(
        w * multivariate_normal(m, c).pdf(np.asarray(x))
        for w, m, c in zip(mixture.weights, np.asarray(mixture.means), np.asarray(mixture.covariances))
    )
    derivatives = exact.mixture_derivatives(mixture, x)
    log_q = lambda x: exact.mixture_derivatives(mixture, x).log_density
    assert float(derivatives.log_density) == pytest.approx(np.log(density), rel=1e-12)
    score, hessian, third = (
        jax.jit(f(log_q))(x) for f in (jax.grad, jax.hessian, lambda f: jax.jacfwd(jax.hessian(f)))
    )
    np.testing.assert_allclose(derivatives.score, score, rtol=1e-10)
    np.testing.assert_allclose(derivatives.hessian, hessian, rtol=1e-10)
    np.testing.assert_allclose(derivatives.trace_gradient, jnp.trace(third), rtol=1e-9)
    v = jnp.array([0.4, -2.0])
    np.testing.assert_allclose(exact.mixture_third(mixture, x, v), v @ (third.T @ v).T, rtol=1e-9)
    batch = exact.mixture_score(process, PLANE)(x[None].repeat(2, 0), jnp.array([t, 0.9]))
    np.testing.assert_allclose(batch[0], derivatives.score, rtol=1e-12)


def test_score_of_the_marginal_is_the_mean_noise(x64):
    """-sigma score(x) = E[noise | x], by quadrature over x0: no formula of mixtures in the oracle."""
    process, t, x = process64("vp"), 0.2, 0.5
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    density = lambda x0: sum(
        w * np.exp(-0.5 * (x0 - m) ** 2 / v) / np.sqrt(v)
        for w, m, v in zip((0.3, 0.3, 0.4), np.array([-2, -6, 4]) / 7, np.array([0.1, 0.1, 1]) / 49)
    )
    joint = lambda x0: density(x0) * np.exp(-0.5 * ((x - alpha * x0) / sigma) ** 2)
    noise = integral(lambda x0: joint(x0) * (x - alpha * x0) / sigma, -2, 2) / integral(joint, -2, 2)
    score = exact.mixture_score(process, TOY)(jnp.array([[x]]), jnp.array([t]))
    assert -sigma * float(score[0, 0]) == pytest.approx(noise, rel=1e-9)


# ----------------------------------------------------------------------------------------------------------------------
# The checkerboard.


@pytest.mark.slow
def test_checkerboard_under_noise(x64):
    """Noise 0.5 at (.3, .7): log q -3.8412971, score (.8014744, .1787067), Laplacian of log q -2.302681."""
    x, density = jnp.array([0.3, 0.7]), functools.partial(exact.checkerboard_log_density, alpha=1.0, sigma=0.5)
    assert float(density(x)) == pytest.approx(-3.8412971, abs=5e-8)
    np.testing.assert_allclose(jax.grad(density)(x), [0.8014744, 0.1787067], atol=5e-8)
    assert float(jnp.trace(jax.hessian(density)(x))) == pytest.approx(-2.302681, abs=5e-7)


@pytest.mark.parametrize("name, t", [("vp", 0.02), ("vp", 1.0), ("ve", 1e-5), ("ve", 1.0)])
def test_checkerboard_score_is_the_mean_noise_and_float32_keeps_it(name, t):
    """Against the integral over x_0 by quadrature in float64, also where the squares drown in noise."""
    process = PROCESSES[name]
    with jax.enable_x64(True):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    side = [(nodes + 1 + 2 * k, weights) for k in (-2, -1, 0, 1)]  # of a column or row of squares
    x = alpha * np.array([[0.3, 0.7], [-3.1, 1.9], [2.05, -0.02]]) + sigma * np.array(
        [[0.1, -0.5], [1.0, 0.2], [-0.7, 2]]
    )
    score = []
    for point in x:
        mass = np.array([[(w * norm.pdf(p, alpha * u, sigma)).sum() for u, w in side] for p in point])
        pull = np.array([[(w * norm.pdf(p, alpha * u, sigma) * (alpha * u - p)).sum() for u, w in side] for p in point])
        dark = np.add.outer(range(4), range(4)) % 2 == 0
        total = (np.outer(mass[0], mass[1]) * dark).sum()
        score.append([(np.outer(pull[0], mass[1]) * dark).sum(), (np.outer(mass[0], pull[1]) * dark).sum()] / total)
    computed = exact.score_of(process, exact.checkerboard_log_density)(
        jnp.asarray(x, jnp.float32), jnp.full(3, t, jnp.float32)
    )
    np.testing.assert_allclose(computed, np.array(score) / sigma**2, rtol=1e-3, atol=1e-3 / sigma)


@pytest.mark.slow
def test_checkerboard_entropies(x64):
    """VE at 1e-5: entropy 3.48373058 of the noised density, and what the clean one costs under it, 3.47527018."""
    process = process64("ve")
    density = jax.jit(jax.vmap(lambda x: exact.checkerboard_log_density(x, 1.0, process.sigma(1e-5))))
    cost = lambda points: np.concatenate([np.asarray(density(part)) for part in np.array_split(points, 20)])
    side = np.linspace(-4.1, 4.1, 1641)  # steps of half a sigma: exact to far more digits than are printed
    log_q = cost(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2))
    assert -(np.exp(log_q) * log_q).sum() * (side[1] - side[0]) ** 2 == pytest.approx(3.48373058, abs=2e-7)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    u = ((nodes + 1) / 40 + np.arange(-4, 4, 0.05)[:, None]).ravel()  # 40 panels on each side of a square
    points = np.stack(np.meshgrid(u, u), axis=-1).reshape(-1, 2)
    inside = np.isfinite(toy.checkerboard().log_prob(points))
    area = np.outer(*2 * [np.tile(weights / 40, 160)]).ravel()
    assert -(area[inside] * cost(points[inside])).sum() / 32 == pytest.approx(3.47527018, abs=2e-7)


def test_a_mixture_in_the_plane_has_the_density_of_its_components_under_noise(x64):
    weights, means = np.asarray([0.3, 0.7]), np.asarray([[1.0, -0.5], [-0.4, 0.8]])
    covariances = np.asarray([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.6]]])
    alpha, sigma, x = 0.7, 0.4, np.asarray([0.3, 0.2])
    found = exact.mixture_log_density(exact.Mixture(weights, means, covariances))(jnp.asarray(x), alpha, sigma)
    parts = [
        w * multivariate_normal(alpha * m, alpha**2 * c + sigma**2 * np.eye(2)).pdf(x)
        for w, m, c in zip(weights, means, covariances)
    ]
    assert float(found) == pytest.approx(np.log(sum(parts)), rel=1e-12)
