"""Second- and third-order score matching against closed forms, and its cost in operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import configure, divergence, models, score
from scoreflow.models.unet import UNet
from scoreflow.objectives import dsm, high_order, times, weights
from scoreflow.processes import sdes
from scoreflow.theory import exact as theory
from tests import tiny
from tests.test_exact import PLANE
from tests.test_exact import TOY as TOY_MIXTURE
from tests.truth import PROCESSES, TOY, gaussian_score


def slow(*row):
    """A row of parameters that the fast set leaves out."""
    return pytest.param(*row, marks=pytest.mark.slow)


RAW = {"power2": 0, "power2_trace": 0, "power3": 0}


def mean(values):
    """Mean and standard error."""
    values = np.asarray(values, np.float64)
    return values.mean(), values.std() / np.sqrt(len(values))


def near(values, wanted, errors=4.0):
    average, error = mean(values)
    assert abs(average - wanted) < errors * error, (average, error, wanted)


@pytest.mark.parametrize("name, t", [("vp", 0.1), ("ve", 0.4), slow("sub_vp", 0.3), slow("edm", 0.5)])
def test_minima_for_gaussian_data(name, t):
    """With rho = alpha^2 c^2 / (alpha^2 c^2 + sigma^2): d rho, d(d+1) rho^2, 2 d rho^2, 2 d(d+2) rho^3; projected as well
    2 d^2 rho^2 and 2 d^2 (d+2) rho^3."""
    process, c2, d, n = PROCESSES[name], 0.25, 4, 200_000
    x0 = 0.3 + np.sqrt(c2) * jax.random.normal(jax.random.key(0), (n, d))
    alpha, variance = float(process.alpha(t)), float(process.variance(t))
    rho = alpha**2 * c2 / (alpha**2 * c2 + variance)
    wanted = {
        high_order.exact: (d * rho, d * (d + 1) * rho**2, 2 * d * rho**2, 2 * d * (d + 2) * rho**3),
        high_order.projected: (d * rho, d * (d + 1) * rho**2, 2 * d**2 * rho**2, 2 * d**2 * (d + 2) * rho**3),
    }
    true = gaussian_score(process, 0.3, c2)
    for method, values in wanted.items():
        match = functools.partial(high_order.high_order, order=3, method=method, **RAW)
        terms = jax.jit(lambda key, m=match: m(process, true, key, x0, jnp.full(n, t)))(jax.random.key(1))
        for (key, samples), value in zip(terms.items(), values):
            near(samples, value / d if key == "order1" else value)


@pytest.mark.parametrize(
    "name, t, order1, order2, order3",
    [
        slow("ve", 0.1, 0.862296396, 1.50377968, 3.97868952),
        slow("ve", 0.3, 0.457114413, 1.54293395, 14.2900259),
        ("ve", 0.5, 0.414390465, 0.293545596, 0.392387856),
        slow("ve", 0.7, 0.0240555955, 3.23578e-4, 3.35768e-5),
        slow("vp", 0.1, 0.636135740, 1.13936842, 3.74875764),
        ("vp", 0.2, 0.406347205, 0.277484725, 0.359385174),
        slow("vp", 0.5, 0.0309347799, 5.54193e-4, 7.09026e-5),
    ],
)
def test_minima_for_the_toy_mixture(x64, name, t, order1, order2, order3):
    process, n = PROCESSES[name], 400_000
    x0 = jnp.asarray(TOY.sample(np.random.default_rng(0), n))[:, None]
    for method in (high_order.exact, high_order.projected):  # the same in one dimension, where v = -1 or 1
        match = functools.partial(high_order.high_order, order=3, method=method, **RAW)
        terms = jax.jit(lambda key, m=match: m(process, TOY.score(process), key, x0, jnp.full(n, t)))(jax.random.key(1))
        for key, value in (("order1", order1), ("order2", order2), ("order2_trace", order2), ("order3", order3)):
            near(terms[key], value)


@pytest.mark.parametrize("c2, rho2, rho3", [(1.0, 0.4819928283, 0.4526460174), (0.25, 0.4006451217, 0.3713159078)])
def test_published_coefficients_averaged_over_time(c2, rho2, rho3):
    """As coded for images: loss2 = rho^2 (3 + 1/d) and loss3 = 2 rho^3 (1 + 2/d), averaged over t ~ U[1e-5, 1], VE."""
    process, d, n = PROCESSES["ve"], 2, 400_000
    x0 = np.sqrt(c2) * jax.random.normal(jax.random.key(0), (n, d))
    t = times.stratified(process, jax.random.key(2), n, t_min=1e-5).t
    true = gaussian_score(process, 0.0, c2)
    terms = high_order.high_order(process, true, jax.random.key(1), x0, t, order=3)
    near(terms["order2"] + terms["order2_trace"], rho2 * (3 + 1 / d))
    near(terms["order3"], 2 * rho3 * (1 + 2 / d))


# ----------------------------------------------------------------------------------------------------------------------
# The minimum at one x: the noise is drawn from its distribution given x, the score is a cubic polynomial with free
# coefficients.


def posterior_noise(mixture, alpha, sigma, x, key, n):
    """noise [n, d] given x_t = x for x_0 from a mixture: component k has mean sigma C_k^-1 (x - alpha m_k) and
    covariance alpha^2 C_k^-1 S_k, C_k = alpha^2 S_k + sigma^2."""
    weights, means, covariances = (np.asarray(leaf, np.float64) for leaf in mixture)
    total = alpha**2 * covariances + sigma**2 * np.eye(len(x))[None]
    delta = np.asarray(x)[None] - alpha * means
    pull = np.linalg.solve(total, delta[..., None])[..., 0]
    log_joint = np.log(weights) - 0.5 * (pull * delta).sum(1) - 0.5 * np.linalg.slogdet(total)[1]
    chance = np.exp(log_joint - log_joint.max())
    rng = np.random.default_rng(key)
    k = rng.choice(len(weights), n, p=chance / chance.sum())
    roots = np.linalg.cholesky(alpha**2 * np.linalg.solve(total, covariances))
    return sigma * pull[k] + np.einsum("nij,nj->ni", roots[k], rng.standard_normal((n, len(x))))


def test_residuals_have_mean_zero_at_the_truth(x64):
    """E[F], E[R], E[G] given x are 0, for a fixed probe: the gradient of the mean loss by what it fits vanishes there."""
    alpha, sigma, n = 0.8, 0.6, 400_000
    x, v = jnp.array([0.3, -0.4]), jnp.array([1.0, -1.0])
    marginal = theory.Mixture(
        PLANE.weights, alpha * PLANE.means, alpha**2 * PLANE.covariances + sigma**2 * np.eye(2)[None]
    )
    true, third = theory.mixture_derivatives(marginal, x), theory.mixture_third(marginal, x, v)
    noise = posterior_noise(PLANE, alpha, sigma, x, 0, n)
    u = noise + sigma * np.asarray(true.score)
    moment = np.eye(2) + sigma**2 * np.asarray(true.hessian)
    w = u @ np.asarray(v)
    for component in u.T:
        near(component, 0.0)
    second = np.asarray(moment @ v)[None] - w[:, None] * u
    trace = float(v @ moment @ v) - w**2
    pull = (w**2 - float(v @ moment @ v))[:, None] * u - 2 * w[:, None] * np.asarray(moment @ v)[None]
    for component in (*second.T, trace, *(sigma**3 * np.asarray(third) + pull).T):
        near(component, 0.0)


def local(numbers, x):
    """The score value + jacobian (y - x) + third (y - x)^2 / 2 in one dimension, numbers = (value, jacobian, third)."""
    return lambda y: numbers[0] + numbers[1] * (y - x) + 0.5 * numbers[2] * (y - x) ** 2


@pytest.mark.parametrize("method", [high_order.exact, slow(high_order.projected)])
def test_what_a_wrong_score_does_to_the_orders_above(x64, method):
    """s1 wrong by 0.1 at x = 1, VE t = 0.5: the second order learns s2 + 0.01, not the s2 - 2 s1 0.1 - 0.01 of an
    uncorrected target; the third s3 - 0.001 with the exact s2, s3 + 0.002 on the second's own optimum."""
    process, t, x, n = PROCESSES["ve"], 0.5, 1.0, 400_000
    sigma = float(process.sigma(t))
    s1, s2, s3 = -1.146783826, -1.396636079, -0.73267883
    noise = jnp.asarray(posterior_noise(TOY_MIXTURE, 1.0, sigma, [x], 0, n))
    xs, sigmas = jnp.full((n, 1), x), jnp.full(n, sigma)

    def pulls(jacobian, third):
        """Per example, the derivatives of order2 by the Jacobian and of order3 by the third derivative."""
        numbers = jnp.array([s1 + 0.1, jacobian, third])

        def terms(numbers, noise):
            orders = method(local(numbers, x), jax.random.key(0), xs[:1], noise[None], sigmas[:1], third=True)
            return jnp.stack([orders["order2"][0], orders["order2_trace"][0], orders["order3"][0]])

        slopes = jax.vmap(jax.jacobian(terms), in_axes=(None, 0))(numbers, noise)
        assert not np.any(slopes[:, :2, 0]) and not np.any(slopes[:, 2, :2])  # targets carry no gradient
        return slopes[:, 0, 1], slopes[:, 1, 1], slopes[:, 2, 2]

    learned = s2 + 0.01
    assert learned == pytest.approx(-1.386636079, abs=1e-9)
    second, trace, third = pulls(learned, s3 + 0.002)
    for values in (second, trace, third):
        near(values, 0.0)
    naive = pulls(-1.177279314, s3)[0]
    assert abs(mean(naive)[0]) > 20 * mean(naive)[1]
    near(pulls(s2, -0.733678830)[2], 0.0)


@pytest.mark.parametrize(
    "name, t, wrong", [("ve", 0.5, 0.317169836), slow("vp", 0.2, 0.223010369), slow("vp", 0.1, 0.179488894)]
)
def test_the_truth_is_stationary_because_targets_carry_no_gradient(x64, name, t, wrong):
    """Along s1 + theta tanh every term is stationary at theta = 0; with gradients through the target, order2 is not:
    its derivative would be -4 sigma^4 E[h s3], the number here."""
    process, n = PROCESSES[name], 400_000
    x0 = jnp.asarray(TOY.sample(np.random.default_rng(0), n))[:, None]
    noise = jax.random.normal(jax.random.key(1), (n, 1))
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    xt, true = alpha * x0 + sigma * noise, TOY.score(process)

    def per_example(method):
        def terms(theta, x, noise):
            fn = lambda y: true(y, jnp.full(1, t)) + theta * jnp.tanh(y)
            return method(fn, jax.random.key(2), x[None], noise[None], jnp.full(1, sigma), third=True)

        return jax.jit(
            jax.vmap(jax.jacfwd(lambda th, x, e: {k: v[0] for k, v in terms(th, x, e).items()}), (None, 0, 0))
        )

    for method in (high_order.exact, high_order.projected):
        for values in per_example(method)(0.0, xt, noise).values():
            near(values, 0.0)

    def careless(fn, key, x, noise, sigma, *, third):
        value, product, _ = divergence.directional(fn, x, jnp.ones_like(x), third=False)
        residual = sigma[:, None] * value + noise
        return {"order2": jnp.sum((sigma[:, None] ** 2 * product + 1 - residual**2) ** 2, axis=1)}

    near(per_example(careless)(0.0, xt, noise)["order2"], wrong)


# ----------------------------------------------------------------------------------------------------------------------
# Derivatives and projections.


def field(x, t=None, cond=None):
    """A field on [B, 3] with a Jacobian that is not symmetric."""
    a, b, c = x.T
    return jnp.stack([jnp.sin(a * b) + c**3, jnp.exp(0.3 * c) * a, b**2 * c + jnp.tanh(a)], axis=1)


def test_directional_derivatives_are_those_of_the_full_tensors(x64):
    x, v = jnp.array([[0.3, -0.7, 1.1]]), jnp.array([[1.0, -1.0, 1.0]])
    one = lambda y: field(y[None])[0]
    jacobian, tensor = jax.jacfwd(one)(x[0]), jax.jacfwd(jax.jacfwd(one))(x[0])
    assert np.abs(jacobian - jacobian.T).max() > 0.1
    along = divergence.directional(field, x, v, third=True)
    np.testing.assert_allclose(along.value[0], one(x[0]), rtol=1e-12)
    np.testing.assert_allclose(along.product[0], jacobian @ v[0], rtol=1e-12)
    np.testing.assert_allclose(along.slope[0], jnp.einsum("i,ijk,j->k", v[0], tensor, v[0]), rtol=1e-12)
    np.testing.assert_allclose(divergence.directional(field, x, v, third=False).product, along.product, rtol=1e-12)


def test_the_mean_over_probes_is_what_the_exact_terms_say(x64):
    """All 2^3 probes: E|F|^2 is (2); E R^2 is (tr A)^2 + 2 sum_{i != j} S_ij^2, at least (3); E|G|^2 at least (4)."""
    x, noise, sigma = jnp.array([[0.3, -0.7, 1.1]]), jnp.array([[0.5, 0.2, -1.3]]), jnp.array([0.6])
    full = high_order.exact(field, None, x, noise, sigma, third=True)
    keys, seen = jax.random.split(jax.random.key(0), 400), {}
    for key in keys:
        v = tuple(np.asarray(jax.random.rademacher(key, x.shape, x.dtype)).ravel())
        if v not in seen:
            seen[v] = high_order.projected(field, key, x, noise, sigma, third=True)
    assert len(seen) == 8
    average = {name: np.mean([terms[name] for terms in seen.values()]) for name in full}
    np.testing.assert_allclose(average["order1"], full["order1"][0], rtol=1e-12)
    np.testing.assert_allclose(average["order2"], full["order2"][0], rtol=1e-12)
    residual = 0.6 * field(x)[0] + noise[0]
    a = 0.36 * jax.jacfwd(lambda y: field(y[None])[0])(x[0]) + jnp.eye(3) - jnp.outer(residual, residual)
    s = 0.5 * (a + a.T)
    off = jnp.sum(s**2) - jnp.sum(jnp.diag(s) ** 2)
    np.testing.assert_allclose(average["order2_trace"], jnp.trace(a) ** 2 + 2 * off, rtol=1e-12)
    assert average["order2_trace"] >= full["order2_trace"][0] and average["order3"] >= full["order3"][0]


def test_first_order_is_denoising_score_matching():
    """order1 with its weight, and the other terms with theirs and a quarter switched on, on the same noise."""
    process, x0, t = PROCESSES["vp"], jax.random.normal(jax.random.key(0), (64, 3)), jnp.linspace(0.1, 0.9, 64)
    key, weight = jax.random.key(1), weights.likelihood_weight
    run = functools.partial(high_order.high_order, process, field, key, x0, t, order=3)
    plain, first = run(), run(weight=weight, weighted=False)
    full = run(weight=weight, step=0, ramp=4)
    first_alone = dsm.dsm(process, field, jax.random.split(key)[0], x0, t, weight=weight)["order1"]
    np.testing.assert_allclose(full["order1"], first_alone, rtol=1e-6)
    for name in ("order2", "order2_trace", "order3"):
        np.testing.assert_allclose(full[name], 0.25 * weight(process, t) * plain[name], rtol=1e-5)
        np.testing.assert_allclose(first[name], plain[name], rtol=1e-5)
    np.testing.assert_allclose(first["order1"], first_alone, rtol=1e-5)


@pytest.mark.parametrize("method", [high_order.projected, high_order.trace])
def test_every_term_has_its_coefficient_and_power(method):
    process, x0, t = PROCESSES["vp"], jax.random.normal(jax.random.key(0), (8, 3)), jnp.linspace(0.1, 0.9, 8)
    order = 2 if method is high_order.trace else 3
    run = functools.partial(high_order.high_order, process, field, jax.random.key(1), x0, t, order=order, method=method)
    coefficients = {"order2": (2.0, 1), "order2_trace": (0.5, 0), "order3": (0.1, 2)}
    options = {}
    for name, (coefficient, power) in coefficients.items():
        suffix = name.removeprefix("order")
        options |= {f"coefficient{suffix}": coefficient, f"power{suffix}": power}
    raw, terms = run(**RAW), run(**options)
    assert terms.keys() == raw.keys()
    for name in raw.keys() - {"order1"}:
        coefficient, power = coefficients[name]
        np.testing.assert_allclose(terms[name], coefficient / 3**power * raw[name], rtol=1e-6)
    with pytest.raises(ValueError, match="no third order"):
        high_order.high_order(process, field, jax.random.key(1), x0, t, order=3, method=high_order.trace)


@pytest.mark.slow
def test_terms_above_the_first_are_switched_on_gradually():
    config = tiny.digits(
        loss={"name": "high_order", "order": 3, "begin": 10, "ramp": 4, "coefficient3": 0.5}, score__prediction="noise"
    )
    experiment = configure.experiment(config, "ramp")
    with jax.numpy_rank_promotion("allow"):
        params = experiment.init(jax.random.key(0))
        batch = {"x": experiment.data.train.x[:16]}
        run = jax.jit(lambda step: experiment.objective(params, jax.random.key(1), batch, train=False, step=step)[1])
        whole = experiment.objective(params, jax.random.key(1), batch, train=False)[1]
        for step, share in ((0, 0.0), (9, 0.0), (10, 0.25), (12, 0.75), (13, 1.0), (500, 1.0)):
            terms = run(jnp.int32(step))
            assert float(terms["order1"]) == pytest.approx(float(whole["order1"]), rel=1e-5)
            for name in ("order2", "order2_trace", "order3"):
                assert float(terms[name]) == pytest.approx(share * float(whole[name]), rel=1e-4, abs=1e-9)
            total = sum(terms[name] for name in ("order1", "order2", "order2_trace", "order3"))
            assert float(terms["loss"]) == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize("name", ["vp", "straight"])
def test_the_trace_method_is_the_residual_of_velocity_networks(x64, name):
    """(8) is (alpha r)^2 for VP and 2 (alpha r)^2 on the straight path, with the published residuals

    VP        r = sigma v^T(grad F)v - alpha (d - |F - F*|^2)
    straight  r = sigma v^T(grad F)v - d / sqrt(2) + sqrt(2) alpha |F - F*|^2
    """
    process, d, n = PROCESSES[name], 3, 5
    key = jax.random.key(0)
    x0, weights = jax.random.normal(key, (n, d)), jax.random.normal(jax.random.key(1), (d, d))
    t = jnp.linspace(0.1, 0.9, n)
    alpha, sigma = process.alpha(t), process.sigma(t)
    xt, noise, _ = process.perturb(jax.random.key(2), x0, t)
    network = lambda x: jnp.tanh(x @ weights)  # F
    prediction = score.V if name == "vp" else score.FLOW
    scales = score.SignalNoise(alpha[:, None], sigma[:, None])
    field = lambda x: score.convert(network(x), x, scales, prediction, score.SCORE)
    terms = high_order.trace(field, jax.random.key(3), xt, noise, sigma, third=False)
    v = jax.random.rademacher(jax.random.key(3), xt.shape, xt.dtype)
    slope = jnp.sum(v * jax.jvp(network, (xt,), (v,))[1], axis=1)
    apart = jnp.sum((network(xt) - prediction.encode(score.Clean(x0, noise), xt, scales)) ** 2, axis=1)
    if name == "vp":
        wanted = (alpha * (sigma * slope - alpha * (d - apart))) ** 2
        np.testing.assert_allclose(terms["order1"], alpha**2 * apart, rtol=1e-10)
    else:
        wanted = 2 * (alpha * (sigma * slope - d / np.sqrt(2) + np.sqrt(2) * alpha * apart)) ** 2
        np.testing.assert_allclose(terms["order1"], 2 * alpha**2 * apart, rtol=1e-10)
    np.testing.assert_allclose(terms["order2_trace"], wanted, rtol=1e-9)


def test_minimum_of_the_velocity_residual():
    """Gaussian data under VP: E |F - F*|^2 = d rho / alpha^2 and E r^2 / d = 2 rho^2 / alpha^2."""
    process, c2, d, n, t = PROCESSES["vp"], 0.25, 4, 200_000, 0.3
    x0 = np.sqrt(c2) * jax.random.normal(jax.random.key(0), (n, d))
    alpha, variance = float(process.alpha(t)), float(process.variance(t))
    rho = alpha**2 * c2 / (alpha**2 * c2 + variance)
    xt, noise, sigma = process.perturb(jax.random.key(1), x0, jnp.full(n, t))
    true = lambda x: gaussian_score(process, 0.0, c2)(x, jnp.full(n, t))
    terms = high_order.trace(true, jax.random.key(2), xt, noise, sigma, third=False)
    near(terms["order1"] / alpha**2, d * rho / alpha**2)
    near(terms["order2_trace"] / alpha**2 / d, 2 * rho**2 / alpha**2)


def test_the_trace_method_also_pulls_off_diagonal_curvature_to_zero(x64):
    """Its mean over probes is the exact trace term plus 2 sum over i != j of S_ij^2, S the symmetric part of M."""
    matrix = jnp.array([[-0.5, 0.3, 0.1], [0.2, -1.0, 0.4], [0.0, -0.2, 0.3]])
    x, noise, sigma = jnp.ones((1, 3)), jnp.array([[0.5, -1.0, 0.2]]), jnp.array([0.7])
    field = lambda x: x @ matrix.T
    probes = jnp.asarray(np.array(np.meshgrid(*3 * [[-1.0, 1.0]])).reshape(3, 8).T)
    squares = []
    for v in probes:
        moved = sigma[0] ** 2 * matrix @ v + v
        residual = sigma[0] * field(x)[0] + noise[0]
        squares.append((v @ moved - residual @ residual) ** 2)
    terms = jax.vmap(lambda key: high_order.trace(field, key, x, noise, sigma, third=False)["order2_trace"][0])(
        jax.random.split(jax.random.key(0), 2000)
    )
    near(terms, np.mean(squares))
    full = high_order.exact(field, None, x, noise, sigma, third=False)["order2_trace"][0]
    moment = sigma[0] ** 2 * matrix + jnp.eye(3)
    symmetric = 0.5 * (moment + moment.T)
    off = jnp.sum(symmetric**2) - jnp.sum(jnp.diag(symmetric) ** 2)
    assert np.mean(squares) == pytest.approx(float(full + 2 * off), rel=1e-10)


@pytest.mark.slow
def test_operations_of_a_step():
    """In XLA's own count, a training step of order 2 costs at most 2.2 of order 1, of order 3 at most 4.5."""
    net = models.network(UNet(channels=16, multipliers=(1, 2), blocks=1, attention=(), num_heads=1, dropout=0.0))
    process, x0, t = sdes.vp_linear(), jnp.zeros((8, 8, 8, 1)), jnp.full(8, 0.5)

    def operations(match):
        def loss(params):
            terms = match(process, score.score_fn(process, net.apply, params), jax.random.key(1), x0, t)
            return sum(term.mean() for term in terms.values())

        return jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]

    with jax.numpy_rank_promotion("allow"):  # Flax adds a bias [D] to [B, D]
        params = jax.jit(net.init, static_argnums=1)(jax.random.key(0), x0.shape)
        first = operations(dsm.dsm)
        second, third = (operations(functools.partial(high_order.high_order, order=order)) for order in (2, 3))
    assert 1.5 * first < second < 2.2 * first and second < third < 4.5 * first
