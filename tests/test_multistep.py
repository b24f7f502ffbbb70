"""The multistep likelihood: exact for Gaussian data, of its order for others, and nodes chosen by what a pilot meets."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import multivariate_normal

from scoreflow import divergence, likelihood, terminal
from scoreflow.likelihood import gaussian, multistep, nodes, ode
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.processes import sdes
from tests.truth import PROCESSES, TOY

D = 5
RNG = np.random.default_rng(0)
_ROOT = RNG.normal(size=(D, D))
COVARIANCE, MEAN = _ROOT @ _ROOT.T / D + 0.1 * np.eye(D), RNG.normal(size=D)
STARTS = {"vp": 1e-3, "sub_vp": 1e-2, "ve": 1e-3, "edm": 2e-3, "straight": 1e-2, "vp_short": 1e-3, "two_rates": 1e-3}


def correlated_score(process):
    def score(x, t, cond=None):
        alpha, variance = process.alpha(t)[:, None, None], process.variance(t)[:, None, None]
        apart = x - process.alpha(t)[:, None] * jnp.asarray(MEAN[None], jnp.float32)
        covariance = alpha**2 * COVARIANCE[None].astype(np.float32) + variance * jnp.eye(D)[None]
        return -jnp.linalg.solve(covariance, apart[..., None])[..., 0]

    return score


def normal_at(process, t):
    """The distribution of x_t."""
    alpha, variance = float(process.alpha(t)), float(process.variance(t))
    return multivariate_normal(alpha * MEAN, alpha**2 * COVARIANCE + variance * np.eye(D))


class End:
    """The marginal distribution at the horizon as a terminal distribution."""

    def __init__(self, process):
        self.law = normal_at(process, process.horizon)

    def log_prob(self, x):
        apart = x - self.law.mean[None].astype(np.float32)
        square = jnp.sum(apart * jnp.linalg.solve(self.law.cov, apart.T).T, axis=1)
        return -0.5 * (square + np.linalg.slogdet(2 * np.pi * self.law.cov)[1])


def exact_gaussian():
    variances, basis = np.linalg.eigh(COVARIANCE)
    return gaussian.Gaussian(*(jnp.asarray(a, jnp.float32) for a in (MEAN[None], basis, variances[None], np.ones(1))))


def rule_of(process, start, steps, order):
    return multistep.rule_at(process, nodes.even(process, start, process.horizon, steps + 1), order)


@pytest.mark.parametrize("kind", [divergence.hutchinson, divergence.exact])
@pytest.mark.parametrize("name", STARTS)
def test_one_step_is_exact_for_gaussian_data(name, kind):
    process, start = PROCESSES[name], STARTS[name]
    law = normal_at(process, start)
    x = law.rvs(6, random_state=0).astype(np.float32)
    options = {"gaussian": exact_gaussian(), "rule": rule_of(process, start, 1, 3), "divergence": kind}
    found = multistep.log_prob(process, correlated_score(process), End(process), jax.random.key(0), x, **options)
    np.testing.assert_allclose(found.logp, law.logpdf(x), atol=5e-5)
    assert np.all(found.ok) and np.all(np.asarray(found.nfe) == 2)
    np.testing.assert_allclose(found.logp, found.prior + found.integral, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["vp", "edm"])
def test_the_error_with_another_gaussian_falls_with_the_order(name, order):
    process, start = PROCESSES[name], STARTS[name]
    law, end = normal_at(process, start), End(process)
    x = law.rvs(8, random_state=1).astype(np.float32)
    run = jax.jit(
        lambda rule: (
            multistep.log_prob(
                process,
                correlated_score(process),
                end,
                jax.random.key(0),
                x,
                gaussian=gaussian.standard(D),
                rule=rule,
                divergence=divergence.exact,
            ).logp
        )
    )
    counts = (24, 48) if order == 3 else (48, 96)  # more steps of order 3 are better than float32
    few, many = (np.abs(run(rule_of(process, start, steps, order)) - law.logpdf(x)).max() for steps in counts)
    assert few / many > 0.85 * 2**order and many < (0.2, 3e-3, 5e-4)[order - 1]


def test_it_agrees_with_the_adaptive_solve_but_for_the_probe_s_noise_of_the_gaussian_part():
    """With the same probe u the difference is sum_i ((U^T u)_i^2 - 1) log growth_i, known in closed form."""
    process, start = PROCESSES["vp"], 1e-3
    x = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    score = lambda x, t, cond=None: TOY.score(process)(x.reshape(-1, 1), jnp.repeat(t, 3)).reshape(x.shape) * 0.9
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    turned = lambda x, t, cond=None: score(x @ rotation.astype(np.float32), t) @ rotation.T.astype(np.float32)
    rough = gaussian.Gaussian(
        jnp.zeros((1, 3)), jnp.asarray(rotation, jnp.float32), jnp.asarray([[0.3, 1.0, 2.0]]), jnp.ones(1)
    )
    end, key, rule = terminal.prior(process), jax.random.key(1), rule_of(process, start, 200, 3)
    ours = multistep.log_prob(process, turned, end, key, x, gaussian=rough, rule=rule)
    theirs = likelihood.log_prob(process, turned, end, key, jnp.asarray(x), t_min=start, rtol=1e-6, atol=1e-6)
    share = (np.asarray(ode.probes(key, x)) @ rotation) ** 2
    alpha, sigma = np.asarray(rule.alpha)[[0, -1], None], np.asarray(rule.sigma)[[0, -1], None]
    growth = 0.5 * np.diff(np.log(alpha**2 * np.asarray(rough.variances) + sigma**2), axis=0)
    np.testing.assert_allclose(ours.logp + ((share - 1) * growth).sum(1), theirs.logp, atol=2e-3)
    np.testing.assert_allclose(ours.last, theirs.last, atol=2e-4)


def test_the_mean_over_all_signs_is_the_exact_trace():
    process, start = PROCESSES["vp"], 1e-2
    x = np.tile(np.asarray([[0.4, -0.3, 0.8]], np.float32), (8, 1))
    signs = np.asarray(list(itertools.product([-1.0, 1.0], repeat=3)), np.float32)
    mix = jnp.asarray(np.random.default_rng(4).normal(size=(3, 3)), jnp.float32)
    score = lambda x, t, cond=None: -x + 0.3 * jnp.tanh(x @ mix)
    rule, around = rule_of(process, start, 12, 2), gaussian.standard(3, 0.5)
    follow = lambda **options: multistep.follow(process, score, around, rule, x, probe=signs, **options)
    probed, exact = follow().integral, follow(divergence=divergence.exact).integral
    # the path does not depend on the probe, so that the mean over all signs has no other error
    assert np.std(probed) > 1e-2 and np.mean(probed) == pytest.approx(float(exact[0]), abs=2e-5)


def test_a_path_leads_back_to_where_it_began():
    process, start = PROCESSES["vp"], 1e-3
    x = normal_at(process, start).rvs(6, random_state=2).astype(np.float32)
    t, score = nodes.even(process, start, process.horizon, 400), correlated_score(process)
    go = lambda x, t: multistep.follow(process, score, gaussian.standard(D), multistep.rule_at(process, t, 3), x).last
    noise = go(x, t)
    assert np.abs(noise - x).max() > 0.1
    np.testing.assert_allclose(go(noise, t[::-1]), x, atol=1e-3)


def test_labels_choose_the_gaussian_of_their_class():
    process, start = PROCESSES["vp"], 1e-3
    means, stds = np.asarray([[-1.0, 0.5], [2.0, 0.0]], np.float32), np.asarray([0.3, 0.8], np.float32)

    def score(x, t, cond=None):
        alpha, variance = process.alpha(t)[:, None], process.variance(t)[:, None]
        return -(x - alpha * means[cond]) / (alpha**2 * stds[cond][:, None] ** 2 + variance)

    each = gaussian.Gaussian(
        jnp.asarray(means), jnp.eye(2), jnp.repeat(jnp.asarray(stds)[:, None] ** 2, 2, 1), jnp.ones(2)
    )
    cond = jnp.asarray([0, 1, 1])
    x = means[np.asarray(cond)] + 0.1
    rule, end = rule_of(process, start, 1, 2), terminal.prior(process)
    path = multistep.follow(process, score, each, rule, x, cond, probe=jnp.ones_like(x))
    growth = multistep.log_volume(each.of(cond, 3), rule)
    alpha, variance = np.asarray(rule.alpha) ** 2, np.asarray(rule.sigma) ** 2
    wanted = [np.diff(np.log(alpha * stds[c] ** 2 + variance)[[0, -1]])[0] for c in (0, 1, 1)]
    np.testing.assert_allclose(growth, wanted, rtol=1e-5)
    np.testing.assert_allclose(path.integral, 0.0, atol=1e-4)
    assert np.all(np.isfinite(multistep.density_of(path, end, each.of(cond, 3), rule).logp))


def test_a_padded_rule_gives_the_same_with_the_same_evaluations():
    process = PROCESSES["vp"]
    x = jnp.asarray(np.random.default_rng(6).normal(size=(3, 1)), jnp.float32)
    rule, end = rule_of(process, 1e-3, 12, 3), terminal.prior(process)
    options = {"gaussian": gaussian.standard(1, 0.5)}
    run = lambda rule: multistep.log_prob(process, TOY.score(process), end, jax.random.key(0), x, rule=rule, **options)
    short, long = run(rule), run(multistep.padded(rule))
    assert len(multistep.padded(rule).t) == 64 and len(multistep.padded(multistep.padded(rule)).t) == 64
    np.testing.assert_allclose(short.logp, long.logp, rtol=1e-6)
    np.testing.assert_array_equal(long.nfe, 13)


def test_weights_integrate_polynomials_of_the_degree_of_their_nodes():
    q = np.asarray([-1.0, -0.3, 0.1, 0.9, 1.4])
    for begin, at in ((2, [2, 1]), (2, [3, 2, 1]), (3, [4, 3, 2, 1]), (0, [0])):
        for degree in range(len(at)):
            area = (q[begin + 1] ** (degree + 1) - q[begin] ** (degree + 1)) / (degree + 1)
            assert multistep.weights(q, begin, np.asarray(at)) @ q[at] ** degree == pytest.approx(area, abs=1e-14)


# ----------------------------------------------------------------------------------------------------------------------
# The Gaussian.


def batches(x, label=None, size=70):
    def rows():
        for i in range(0, len(x), size):
            yield x[i : i + size], None if label is None else label[i : i + size]

    return rows


def dense(fitted, c=0):
    """The covariance [d, d] of a class."""
    basis, d = np.asarray(fitted.basis, np.float64), fitted.mean.shape[1]
    rest = float(fitted.rest[c])
    return rest * np.eye(d) + basis @ np.diag(np.asarray(fitted.variances[c], np.float64) - rest) @ basis.T


def test_all_directions_give_the_covariance_of_the_data():
    x = RNG.normal(size=(300, D)) @ _ROOT + 3.0
    fitted = gaussian.fit(batches(x), D)
    np.testing.assert_allclose(fitted.mean[0], x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(dense(fitted), np.cov(x.T, bias=True), rtol=1e-5, atol=1e-6)


def test_few_directions_are_those_of_largest_variance_and_keep_the_total():
    d, rank = 40, 4
    axes = np.linalg.qr(RNG.normal(size=(d, rank)))[0]
    x = RNG.normal(size=(2000, rank)) * [9.0, 7.0, 5.0, 4.0] @ axes.T + 0.5 * RNG.normal(size=(2000, d))
    fitted = gaussian.fit(batches(x), d, rank=rank)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    overlap = np.linalg.svd(np.asarray(fitted.basis).T @ vectors[:, -rank:])[1]
    np.testing.assert_allclose(overlap, 1.0, atol=1e-4)
    np.testing.assert_allclose(fitted.variances[0], values[::-1][:rank], rtol=1e-4)
    assert float(fitted.rest[0]) == pytest.approx(values[:-rank].mean(), rel=1e-4)


def test_classes_have_means_and_variances_of_their_own():
    label = np.arange(4000) % 2
    scale, shift = np.asarray([[1.0, 2.0], [3.0, 0.5]]), np.asarray([[5.0, 0.0], [-1.0, 2.0]])
    x = RNG.normal(size=(4000, 2)) * scale[label] + shift[label]
    fitted = gaussian.fit(batches(x, label), 2, classes=2)
    for c in range(2):
        np.testing.assert_allclose(fitted.mean[c], x[label == c].mean(0), rtol=1e-5)
        np.testing.assert_allclose(np.diag(dense(fitted, c)), scale[c] ** 2, rtol=0.12)
    # one example of a class has the variance of all
    rare = gaussian.fit(batches(x, np.where(np.arange(4000) == 0, 1, 0)), 2, classes=2)
    np.testing.assert_allclose(rare.variances[1], rare.variances[0] * 30 / 31, rtol=0.02)


def test_functions_of_the_covariance_act_as_matrices():
    x, v = RNG.normal(size=(500, 6)) @ np.diag([3.0, 2.0, 1.0, 0.5, 0.5, 0.5]), RNG.normal(size=(3, 6))
    for rank in (2, 6):
        fitted = gaussian.fit(batches(x), 6, rank=rank)
        root = gaussian.spectral(fitted.of(None, 3), jnp.sqrt)
        wanted = v @ np.real(sqrtm(dense(fitted)))
        np.testing.assert_allclose(root.apply(fitted.basis, jnp.asarray(v, jnp.float32)), wanted, atol=2e-5)


def test_the_gaussian_of_clean_data_is_found_from_that_of_noisy_ones():
    fitted = exact_gaussian()
    alpha, sigma = 0.8, 0.3
    noisy = fitted._replace(mean=alpha * fitted.mean, variances=alpha**2 * fitted.variances + sigma**2)
    clean = gaussian.undiffused(noisy, alpha, sigma)
    np.testing.assert_allclose(clean.variances, fitted.variances, rtol=1e-5)
    np.testing.assert_allclose(clean.mean, fitted.mean, rtol=1e-5)
    assert np.all(np.asarray(gaussian.undiffused(fitted, 1.0, 100.0).variances) == 0)


def test_a_gaussian_of_no_data_is_refused():
    with pytest.raises(ValueError, match="no data"):
        gaussian.fit(batches(np.zeros((0, 2))), 2)


# ----------------------------------------------------------------------------------------------------------------------
# The nodes.


def met(q, rate, slope=None, pull=None):
    """What a pilot of len(rate[0]) examples would have met, in one dimension."""
    rate = np.asarray(rate)
    zeros = np.zeros((*rate.shape, 1))
    slope, pull = (zeros if each is None else each for each in (slope, pull))
    return multistep.Nodes(slope, rate, pull, np.zeros_like(pull))


def bumps(q):
    """Smooth functions of q for three examples, [len(q), 3], and their integrals over all q."""
    return np.stack([np.exp(-((q - c) ** 2) / s) for c, s in ((0.0, 0.5), (1.0, 0.8), (-1.5, 0.3))], 1)


def plans(q, met, order, most):
    """Of nodes of the pilot alone."""
    return nodes.plans(q, *nodes.integrands(q, met, q), order, most)


@pytest.mark.parametrize("order", [2, 3])
def test_the_expected_error_is_that_of_the_rule_on_the_integrand(order):
    """Of a known integrand: the exact integral minus the rule's, the sum of all its steps."""
    q = np.linspace(-4.0, 4.0, 41)
    found = plans(q, met(q, bumps(q)), order, 12)[10]
    at = q[found.nodes]
    rule = np.zeros(3)
    for n in range(1, len(at)):
        around = np.arange(n, max(n - order, -1), -1)
        rule += multistep.weights(at, n - 1, around) @ bumps(at[around])
    fine = np.linspace(-4.0, 4.0, 20001)
    np.testing.assert_allclose(found.error, rule - np.trapezoid(bumps(fine), fine, axis=0), atol=2e-5)


def test_an_error_of_the_place_counts_by_the_gradient_of_the_density():
    """With a constant gradient, slopes have the effect of rates: the sum is what (1) says."""
    q = np.linspace(-4.0, 4.0, 31)
    slope, pull = bumps(q)[..., None] * [1.0, -0.5], np.broadcast_to([2.0, 1.0], (31, 3, 2))
    alone = plans(q, met(q, 1.5 * bumps(q)), 3, 8)[8]
    both = plans(q, met(q, 0 * bumps(q), slope, pull), 3, 8)[8]
    np.testing.assert_array_equal(alone.nodes, both.nodes)
    np.testing.assert_allclose(alone.error, both.error, atol=1e-12)


def bent(q):
    """Values of a pilot of three examples in one dimension where the place matters too."""
    values = bumps(q)
    slope, pull, bend = 0.3 * values[..., ::-1], 1.0 + 0.1 * values, 0.5 + values
    return multistep.Nodes(slope[..., None], values, pull[..., None], bend[..., None])


@pytest.mark.parametrize("order", [2, 3])
def test_the_local_error_is_that_of_corrector_and_predictor(order):
    q = np.sort(np.random.default_rng(0).uniform(-3, 3, 12))
    end, place = nodes.integrands(q, bent(q), q)
    for i, j, k in ((0, 1, 2), (0, 4, 6), (3, 5, 9), (5, 8, 11), (2, 3, 4)):
        m = max(2 * i - j, 0)
        before = [j, i, m][: 2 if m == i else order]
        at = np.sort([*before, k])
        step = np.searchsorted(at, j)
        wanted = 0.0
        for of, used, factor in ((end, [k, *before[: order - 1]], 1.0), (place, before, q[k] - q[j])):
            rule = multistep.weights(q[at], step, np.searchsorted(at, used)) @ of.value[k, used]
            wanted = wanted + factor * (rule - of.area[k, k] + of.area[k, j])
        np.testing.assert_allclose(nodes.local_errors(q, end, place, order, k)[i, j], wanted, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_no_other_nodes_have_a_smaller_sum_of_errors(order):
    q = np.linspace(-3.0, 3.0, 11)
    values = bent(q)
    both = nodes.integrands(q, values, q)
    first, size = nodes.first_errors(q, *both), lambda error: np.sqrt(np.mean(error**2))

    def cost(path):
        steps = zip(path, path[1:], path[2:])
        later = (size(nodes.local_errors(q, *both, order, k)[i, j]) for i, j, k in steps)
        return size(first[path[1]]) + sum(later)

    found = plans(q, values, order, 5)
    for steps in (2, 4, 5):
        best = min(cost((0, *inner, 10)) for inner in itertools.combinations(range(1, 10), steps - 1))
        assert len(found[steps].nodes) == steps + 1 and cost(found[steps].nodes.tolist()) == pytest.approx(best)


@pytest.mark.parametrize("order", [2, 3])
def test_the_expected_error_is_the_one_that_is_measured(order):
    """Of a mixture with its exact score, by the rule on few nodes and on many."""
    process, start, around = PROCESSES["vp"], 1e-3, gaussian.standard(1, 0.5)
    score, end = TOY.score(process), terminal.prior(process)
    x = jnp.asarray(TOY.sample(np.random.default_rng(5), 200), jnp.float32).reshape(-1, 1)
    t = nodes.even(process, start, process.horizon, 97)

    @functools.partial(jax.jit, static_argnames="keep")
    def run(rule, keep=False):
        path = multistep.follow(process, score, around, rule, x, probe=jnp.ones_like(x), keep=keep)
        return multistep.density_of(path, end, around.of(None, len(x)), rule).logp, path.nodes

    _, pilot = run(multistep.rule_at(process, t, 3), keep=True)
    truth, _ = run(rule_of(process, start, 400, 3))
    q = multistep.q_at(process, t)
    plan = plans(q, pilot, order, 31)[31]
    measured = run(multistep.rule_at(process, t[plan.nodes], order))[0] - truth
    assert np.std(plan.error - measured) < 0.15 * np.std(measured)
    straight = nodes.integrands(q, pilot._replace(bend=0 * pilot.bend), q)
    of_correctors = nodes.expected(q, *straight, plan.nodes, order)
    assert np.std(of_correctors - measured) > 0.5 * np.std(measured)


def test_a_pilot_of_half_the_nodes_expects_nearly_the_same():
    """Interpolated onto nodes in between, it is the integral of a smooth function all the same."""
    q = np.linspace(-4.0, 4.0, 65)
    fine = nodes.halved(q)
    np.testing.assert_allclose(fine, np.linspace(-4.0, 4.0, 129), atol=1e-12)
    path = np.asarray([0, 13, 31, 44, 61, 70, 77, 90, 101, 115, 128])
    few, many = (nodes.expected(fine, *nodes.integrands(at, bent(at), fine), path, 3) for at in (q, fine))
    np.testing.assert_allclose(few, many, atol=1e-4)
    assert np.abs(many).min() > 1e-2


def test_the_fewest_nodes_are_chosen_whose_measured_error_is_small_enough():
    """Nothing is expected to be left, and what is measured falls with the fourth power of the number of nodes."""
    q = np.linspace(-4.0, 4.0, nodes.PILOT)
    values, tried = met(q, 0 * bumps(q)), []

    def measure(nodes, order):
        tried.append((len(nodes), order))
        return Estimate((10 / len(nodes)) ** 4 * (1.0 if order == 2 else 1.2), 0.02)

    choice = nodes.choose(q, values, measure, 0.15)
    assert len(choice.q) == 17 and choice.order == 2 and choice.error.value == pytest.approx((10 / 17) ** 4)
    assert choice.tried == tuple(count for count, _ in tried)
    # of order p an error e at K nodes is taken to fall below 0.15 at K (e / 0.15)^(1 / 2p) nodes
    assert tried == [(8, 2), (8, 3), (14, 3), (16, 3), (17, 2), (17, 3)]
    assert choice.q[0] == -4.0 and choice.q[-1] == 4.0
    never = nodes.choose(q, values, lambda nodes, order: Estimate(1.0, 0.0), 0.15)
    assert len(never.q) == nodes.PILOT and never.order == multistep.ORDER and np.isnan(never.error.value)


def test_plans_that_promise_too_little_are_not_tried():
    q = np.linspace(-4.0, 4.0, nodes.PILOT)
    values, tried = met(q, bumps(q)), []
    grid = nodes.halved(q)
    both = nodes.integrands(q, values, grid)
    promised = [mean_estimate(nodes.plans(grid, *both, order, 7)[7].error) for order in (2, 3)]
    asked = min(max(abs(error.value), error.stderr) for error in promised) / 1.1
    nodes.choose(q, values, lambda nodes, order: tried.append(len(nodes)) or Estimate(0.0, 0.0), asked)
    assert tried and min(tried) > 8


@pytest.mark.parametrize("name", ["vp", "edm", "straight"])
def test_nodes_are_even_in_log_snr_and_halved_there(name):
    process, start = PROCESSES[name], STARTS[name]
    t = nodes.even(process, start, process.horizon, 9)
    assert (t[0], t[-1]) == (start, process.horizon)
    np.testing.assert_allclose(np.diff(multistep.q_at(process, t)), np.diff(multistep.q_at(process, t))[0], rtol=1e-6)
    np.testing.assert_allclose(nodes.refined(process, t), nodes.even(process, start, process.horizon, 17), rtol=1e-6)


def test_processes_of_jax_arrays_are_taken_too():
    process = sdes.vp_linear(jnp.float32(0.1), jnp.float32(20.0))
    rule = rule_of(process, 1e-3, 4, 2)
    np.testing.assert_allclose(rule.alpha, process.alpha(rule.t), rtol=1e-5)
