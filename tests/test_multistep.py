"""The multistep likelihood: exact for Gaussian data, of its order for others, and nodes chosen by what a pilot meets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import multivariate_normal

from scoreflow import divergence, gaussian, likelihood, space, terminal, train
from scoreflow import score as score_fn
from scoreflow.likelihood import multistep, nodes, ode
from scoreflow.objectives.score_matching import score_matching
from tests.truth import PROCESSES, TOY, process64, slope

D = 5
RNG = np.random.default_rng(0)
_ROOT = RNG.normal(size=(D, D))
COVARIANCE, MEAN = _ROOT @ _ROOT.T / D + 0.1 * np.eye(D), RNG.normal(size=D)
STARTS = {"vp": 1e-3, "sub_vp": 1e-2, "ve": 1e-3, "edm": 2e-3, "straight": 1e-2, "vp_short": 1e-3, "two_rates": 1e-3}


def correlated_score(process):
    def score(x, t, cond=None):
        alpha, variance = process.alpha(t)[:, None, None], process.variance(t)[:, None, None]
        apart = x - process.alpha(t)[:, None] * jnp.asarray(MEAN[None], float)
        covariance = alpha**2 * jnp.asarray(COVARIANCE[None], float) + variance * jnp.eye(D)[None]
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
        apart = x - jnp.asarray(self.law.mean[None], float)
        square = jnp.sum(apart * jnp.linalg.solve(jnp.asarray(self.law.cov, float), apart.T).T, axis=1)
        return -0.5 * (square + np.linalg.slogdet(2 * np.pi * self.law.cov)[1])


def exact_gaussian():
    variances, basis = np.linalg.eigh(COVARIANCE)
    return gaussian.Gaussian(*(jnp.asarray(a, float) for a in (MEAN[None], basis, variances[None], np.ones(1))))


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


@pytest.mark.parametrize("name", STARTS)
def test_one_step_is_exact_for_gaussian_data_in_float64(x64, name):
    process, start = process64(name), STARTS[name]
    law = normal_at(process, start)
    x = law.rvs(6, random_state=0)
    options = {"gaussian": exact_gaussian(), "rule": rule_of(process, start, 1, 3)}
    found = multistep.log_prob(process, correlated_score(process), End(process), jax.random.key(0), x, **options)
    np.testing.assert_allclose(found.logp, law.logpdf(x), rtol=1e-10)


@pytest.mark.slow
def test_a_trained_network_has_the_density_of_an_adaptive_solve_at_a_tolerance_of_1e_7(x64):
    """In float64, with the exact divergence, on two blobs in the plane."""
    process, prior = process64("vp"), terminal.prior(process64("vp"))

    def score_of(params, **unused):
        def score(x, t, cond=None):
            log_snr = process.log_snr(t)[:, None]
            h = jnp.tanh(jnp.concatenate([x, 0.3 * log_snr], axis=1) @ params["in"] + params["bias"][None])
            return score_fn.convert(h @ params["out"], x, signal_noise(t), score_fn.V, score_fn.SCORE)

        return score

    def signal_noise(t):
        return score_fn.SignalNoise(process.alpha(t)[:, None], process.sigma(t)[:, None])

    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(3, 32)), "bias": rng.normal(size=32), "out": 0.1 * rng.normal(size=(32, 2))}
    data = rng.choice([-0.8, 0.8], (300, 64, 1)) + 0.3 * rng.normal(size=(300, 64, 2))
    objective = score_matching(process, score_of, space.continuous((2,)).encode, t_min=1e-3)
    batches, key = ({"x": each} for each in data), jax.random.key(0)
    trained = score_of(
        train.fit(objective, jax.tree.map(jnp.asarray, params), optax.adam(1e-2), batches, key=key).params
    )
    x = jnp.asarray(data[0, :12])
    options = {"t_min": 1e-3, "divergence": divergence.exact, "rtol": 1e-7, "atol": 1e-7, "max_steps": 10_000}
    wanted = jax.jit(lambda x: ode.log_prob(process, trained, prior, key, x, **options).logp)(x)
    moments = gaussian.Gaussian(jnp.zeros((1, 2)), jnp.eye(2), jnp.asarray([[0.73, 0.7]]), jnp.ones(1))
    known = {"gaussian": moments, "rule": rule_of(process, 1e-3, 1000, 3), "divergence": divergence.exact}
    found = jax.jit(lambda x: multistep.log_prob(process, trained, prior, key, x, **known).logp)(x)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert wanted.mean() > multivariate_normal(np.zeros(2), 0.73 * np.eye(2)).logpdf(x).mean()


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


@pytest.mark.parametrize("order", [2, 3])
def test_the_error_on_a_mixture_falls_with_the_order(x64, order):
    """By regression over five numbers of nodes, with the exact score of three Gaussians on the line."""
    process = process64("vp")
    mean = float(TOY.weights @ TOY.means)
    variance = float(TOY.weights @ (TOY.variances + TOY.means**2)) - mean**2
    fitted = gaussian.Gaussian(*map(jnp.asarray, ([[mean]], [[1.0]], [[variance]], [variance])))
    x = jnp.asarray(TOY.sample(np.random.default_rng(0), 40))[:, None]

    def log_prob(nodes, order):
        rule = rule_of(process, 0.05, nodes, order)
        known = {"gaussian": fitted, "rule": rule, "divergence": divergence.exact}
        score, end = TOY.score(process), terminal.prior(process)
        return np.asarray(multistep.log_prob(process, score, end, jax.random.key(0), x, **known).logp)

    counts, exact = (24, 32, 48, 64, 96), log_prob(1600, 3)
    errors = [np.abs(log_prob(count, order) - exact).mean() for count in counts]
    assert order - 0.2 < slope(errors, counts) < order + 0.7


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
    assert len(multistep.padded(rule).t) == 128 and len(multistep.padded(multistep.padded(rule)).t) == 128
    np.testing.assert_allclose(short.logp, long.logp, rtol=1e-6)
    np.testing.assert_array_equal(long.nfe, 13)
