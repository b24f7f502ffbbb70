"""A VAE's terms with a score model as prior: cross entropies in closed form, gradients, mixing, decoders."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import score as scores
from scoreflow.latent import decoders
from scoreflow.latent.kl import active, balance, kl_coefficient
from scoreflow.objectives import cross_entropy, times
from scoreflow.objectives.weights import likelihood_weight, noise_weight
from scoreflow.processes import sdes
from tests.truth import gaussian_score, integral, process64


def double(process):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), process)


# process, tau; mean and deviation of q, of p; match, constant, boundary
CASES = {
    "A": (sdes.vp_linear(), 0.01, (0.3, 0.5, 0.0, 1.0), (2.779704633, -1.690115748, 0.000007342)),
    "B": (sdes.vp_linear(), 0.01, (0.3, 0.5, -0.4, 0.6), (3.124847354, -1.690115748, 0.000015979)),
    "C": (sdes.vp_geometric(3e-5, 0.999), 0.0, (1.0, 0.2, -0.5, 0.8), (6.271893003, -3.788218055, 0.001145549)),
    "E": (sdes.sub_vp_linear(), 0.01, (1.0, 0.2, -0.5, 0.8), (7.282975654, -4.799170030, 0.000049451)),
}


def match(process, tau, mean, std, a, b):
    """1/2 int g^2/sigma^2 E (noise - best prediction)^2, by quadrature over log(sigma^2 / v), as in the table."""
    low, high = (float(times._excess(process, t)) for t in (tau, process.horizon))

    def integrand(level):
        t = times._at_excess(process, jnp.asarray(level))
        alpha2, var = process.alpha(t) ** 2, process.variance(t)
        v = alpha2 * b**2 + var
        error = (1 - var / v) ** 2 + var / v**2 * alpha2 * (std**2 + (mean - a) ** 2)
        return 0.5 * error / -jnp.expm1(jnp.asarray(level))

    return integral(integrand, low, high)


@pytest.mark.parametrize("name", CASES)
def test_the_cross_entropy_of_gaussians_is_the_analytic_one(x64, name):
    """Quadrature, and the estimator: match, constant and boundary as tabled; their sum is the closed form."""
    process, tau, (mean, std, a, b), (wanted, constant, boundary) = CASES[name]
    process = double(process)
    estimate = match(process, tau, mean, std, a, b)
    assert estimate == pytest.approx(wanted, abs=1e-8 if name != "E" else 1e-6)
    n = 100_000
    z0 = jnp.asarray(mean + std * np.random.default_rng(0).standard_normal((n, 1)))
    score = gaussian_score(process, np.array([a]), np.array([b**2]))
    t, inv_density = times.normal_likelihood(process, jax.random.key(0), n, t_min=tau)
    run = jax.jit(
        lambda z0: cross_entropy.cross_entropy(process, score, jax.random.key(1), z0, t, inv_density, t_min=tau)
    )
    terms = run(z0)
    each = np.asarray(terms.match)
    assert abs(each.mean() - wanted) < 4 * each.std() / np.sqrt(n)
    if name == "A":
        assert each.std() == pytest.approx(4.02, rel=0.02)  # against 13.3 with uniform times
    np.testing.assert_allclose(terms.constant, constant, atol=1e-8)
    # to p_T itself, which is what the closed form has: z measured from a
    end = jnp.sqrt(process.alpha(1.0) ** 2 * b**2 + process.variance(1.0))
    edge = np.asarray(cross_entropy.boundary_terms(process, z0 - a, tau, std=end)[1])
    assert edge.mean() == pytest.approx(boundary, rel=0.03)
    if a == 0:
        np.testing.assert_allclose(terms.boundary.mean(), edge.mean(), rtol=1e-3)
    alpha2, var = float(process.alpha(tau)) ** 2, float(process.variance(tau))
    v = alpha2 * b**2 + var
    analytic = 0.5 * (np.log(2 * np.pi * v) + (alpha2 * std**2 + var + alpha2 * (mean - a) ** 2) / v)
    assert estimate + constant + boundary == pytest.approx(analytic, abs=1e-6)


def test_under_a_variance_exploding_process_the_prior_at_the_end_is_wide(x64):
    """Case D: sigma^2 from 0.01 to 50 and p_T = N(a, b^2 + sigma_T^2), whose deviation is handed over."""
    process, (mean, std, a, b) = double(sdes.ve_geometric(0.1, 50.0**0.5)), (1.0, 0.2, -0.5, 0.8)
    assert match(process, 0.0, mean, std, a, b) == pytest.approx(3.333773549, abs=1e-6)
    z0 = jnp.asarray(mean - a + std * np.random.default_rng(0).standard_normal((200_000, 1)))  # measured from a
    constant, boundary = cross_entropy.boundary_terms(process, z0, 0.0, std=jnp.sqrt(b**2 + process.variance(1.0)))
    np.testing.assert_allclose(constant, -0.883646560, atol=1e-8)
    closed = 0.5 * (np.log(2 * np.pi * (b**2 + 0.01)) + (std**2 + 0.01 + (mean - a) ** 2) / (b**2 + 0.01))
    assert 3.333773549 + float(constant[0]) + float(boundary.mean()) == pytest.approx(closed, abs=1e-4)
    assert closed == pytest.approx(2.472777844, abs=1e-8)


@pytest.mark.slow
def test_the_encoder_s_gradient_comes_through_the_noised_latent(x64):
    """d match / d mean = (mean - a)(alpha_tau^2 / v_tau - alpha_1^2 / v_1), d match / d std in case A: 0.4989819015."""
    process, tau, n = process64("vp"), 0.01, 200_000
    noise = jnp.asarray(np.random.default_rng(1).standard_normal((n, 1)))
    t, inv_density = times.normal_likelihood(process, jax.random.key(0), n, t_min=tau)
    for mean, a, b, wanted in ((0.3, 0.0, 1.0, 0.2993891409), (0.3, -0.4, 0.6, 1.9336874982)):
        score = gaussian_score(process, np.array([a]), np.array([b**2]))

        def each(mean, std, score=score):
            terms = cross_entropy.cross_entropy(
                process, score, jax.random.key(1), mean + std * noise, t, inv_density, t_min=tau
            )
            return terms.match

        slopes = jax.jit(lambda m, s: jax.jvp(lambda m: each(m, s), (m,), (jnp.ones(()),))[1])(jnp.asarray(mean), 0.5)
        assert abs(float(slopes.mean()) - wanted) < 4 * float(slopes.std()) / np.sqrt(n)
        if b == 1.0:
            by_std = jax.jit(lambda m, s: jax.jvp(lambda s: each(m, s), (s,), (jnp.ones(()),))[1])(
                mean, jnp.asarray(0.5)
            )
            assert abs(float(by_std.mean()) - 0.4989819015) < 4 * float(by_std.std()) / np.sqrt(n)


@pytest.mark.parametrize("weight, shared", [(likelihood_weight, True), (noise_weight, True), (noise_weight, False)])
def test_every_network_gets_its_own_gradient(x64, weight, shared):
    """Algorithms 1, 3 and 2: the VAE's loss moves the encoder alone, the prior's the score alone; one pass is both."""
    process = process64("vp")
    z = lambda shift: shift + jnp.asarray(np.random.default_rng(0).standard_normal((64, 3)))
    score_of = lambda k: lambda x, t, cond=None: -k * x

    def losses(shift, k):
        sample_times = times.normal_likelihood if shared else times.importance
        return cross_entropy.joint_losses(
            process, score_of, k, jax.random.key(0), z(shift), sample_times=sample_times,
            prior_sample_times=times.uniform, weight=weight, t_min=0.01, shared=shared,
        )  # fmt: skip

    point = (jnp.asarray(0.3), jnp.asarray(0.8))
    by = jax.jacobian(lambda p: [loss.sum() for loss in losses(*p)])(point)
    assert by[0][0] != 0 and by[0][1] == 0  # vae: encoder, not score
    assert by[1][0] == 0 and by[1][1] != 0  # prior: score, not encoder
    at_point = losses(*point)
    if weight is likelihood_weight:
        np.testing.assert_array_equal(at_point.vae, at_point.prior)


def test_one_pass_of_the_network_serves_both_losses(x64):
    """In XLA's count the shared algorithm takes no more forward passes than one loss with both gradients."""
    process, width = process64("vp"), 64
    z0 = jnp.ones((32, 16))
    params = [jnp.ones((16, width)) / 16, jnp.ones((width, 16)) / width]
    score_of = lambda p: lambda x, t, cond=None: jnp.tanh(x @ p[0]) @ p[1]

    def operations(shared):
        def total(z0, params):
            samplers = {"sample_times": times.uniform, "prior_sample_times": times.uniform}
            losses = cross_entropy.joint_losses(
                process, score_of, params, jax.random.key(0), z0, t_min=0.01, shared=shared, **samplers
            )
            return sum(loss.sum() for loss in losses)

        compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(z0, params).compile()
        return compiled.cost_analysis()["flops"]

    with jax.numpy_rank_promotion("allow"):
        assert operations(True) < 0.85 * operations(False)


# ----------------------------------------------------------------------------------------------------------------------
# The mixed score.


@pytest.mark.parametrize("name", ["vp", "sub_vp_offset", "ve", "vp_geometric", "two_rates"])
def test_without_a_network_the_mixed_score_is_that_of_a_normal(x64, name):
    """Share 0: the score of N(0, 1), first noise included, under every process; share 1: the network."""
    process = process64(name)
    x, t = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2, 3))), jnp.array([0.01, 0.2, 0.3, 0.39])
    network = lambda x, t, cond=None: jnp.sin(x)
    normal = gaussian_score(process, 0.0, 1.0 - float(process.variance(0.0)))(x, t)
    mixture = scores.mixed(process, network, jnp.array([-800.0, 800.0, 0.0]))(x, t)
    np.testing.assert_allclose(mixture[..., 0], normal[..., 0], rtol=1e-9)
    np.testing.assert_allclose(mixture[..., 1], jnp.sin(x)[..., 1], rtol=1e-12)
    np.testing.assert_allclose(mixture[..., 2], 0.5 * (normal + jnp.sin(x))[..., 2], rtol=1e-9)


def test_where_the_variance_is_kept_a_normal_does_not_flow(x64):
    """Share 0 under VP: score -x at every t, velocity of the probability-flow ODE 0."""
    process = process64("vp")
    x, t = jnp.array([[1.0], [-2.0]]), jnp.array([0.01, 0.9])
    score = scores.mixed(process, lambda x, t, cond=None: 0 * x, jnp.array([-jnp.inf]))
    np.testing.assert_allclose(score(x, t), -x, rtol=1e-12)
    np.testing.assert_allclose(scores.probability_flow(process, score)(t, x), 0.0, atol=1e-12)


def test_a_product_of_normals(x64):
    """N(0, 1)^0.7 N(.5, .25)^0.3 has the score of N(0.3157894737, 0.5263157895)."""
    process = process64("ve_constant")
    component = lambda x, t, cond=None: -(x - 0.5) / 0.25
    x, t = jnp.array([[0.2], [1.0]]), jnp.full(2, 1e-9)
    product = scores.mixed(process, component, jnp.log(jnp.array([0.3 / 0.7])))(x, t)
    v = float(process.normal_variance(1e-9))
    np.testing.assert_allclose(product, -(x - 0.3157894737) / 0.5263157895 + 0.7 * x * (1 - 1 / v), rtol=1e-8)


@pytest.mark.parametrize("logit, excess", [(-3.0, 1.1300e-2), (-6.0, 3.0716e-5)])
def test_what_a_silent_network_costs_at_first(x64, logit, excess):
    """A zero noise prediction with share a: 1/2 a^2 int g^2 dt on the cross entropy of N(0, 1) data, per dimension."""
    process = process64("vp")
    a = float(jax.nn.sigmoid(logit))
    zero = scores.mixed(process, lambda x, t, cond=None: 0 * x, jnp.array([logit]))
    x = jnp.asarray(np.polynomial.hermite_e.hermegauss(20)[0])[:, None]
    weights = np.polynomial.hermite_e.hermegauss(20)[1] / np.sqrt(2 * np.pi)

    def rate(t):  # g^2 / 2 E |s - s_true|^2, x_t being standard normal
        apart = jax.vmap(lambda t: weights @ (zero(x, jnp.full(20, t))[:, 0] + x[:, 0]) ** 2)(jnp.ravel(t))
        return 0.5 * process.diffusion_sq(t) * apart.reshape(jnp.shape(t))

    cost = integral(lambda t: rate(jnp.asarray(t)), 0.01, 1.0)
    assert cost == pytest.approx(excess, rel=1e-4)
    assert cost == pytest.approx(0.5 * a**2 * float(process.beta.integral(0.01, 1.0)), rel=1e-9)


@pytest.mark.parametrize(
    "share, wanted", [(0.0, 2.779704633), (0.25, 2.763709570), (0.5, 2.815901669), (1.0, 3.124847354)]
)
def test_mixing_with_an_exact_component(x64, share, wanted):
    """The match of q = N(.3, .25) under a product of N(0, 1) and N(-.4, .36), tau = 0.01."""
    process, n = process64("vp"), 400_000
    logits = jnp.array([np.log(share / (1 - share)) if 0 < share < 1 else (np.inf if share else -np.inf)])
    score = scores.mixed(process, gaussian_score(process, np.array([-0.4]), np.array([0.36])), logits)
    z0 = jnp.asarray(0.3 + 0.5 * np.random.default_rng(0).standard_normal((n, 1)))
    t, inv_density = times.normal_likelihood(process, jax.random.key(0), n, t_min=0.01)
    errors = jax.jit(
        lambda z0: cross_entropy.cross_entropy(process, score, jax.random.key(1), z0, t, inv_density, t_min=0.01).match
    )(z0)
    assert abs(float(errors.mean()) - wanted) < 4 * float(errors.std()) / np.sqrt(n)


# ----------------------------------------------------------------------------------------------------------------------
# Divergences.


def test_balance_and_the_coefficient():
    kl = jnp.array([[1.0, 2.0, 5.0]])
    factors = balance(kl, jnp.full(3, 1 / 3))
    np.testing.assert_allclose(factors, (0.3773349938, 0.7509339975, 1.8717310087), rtol=1e-6)
    assert 0.7 * float((factors * kl[0]).sum()) == pytest.approx(7.8665006227, rel=1e-6)
    np.testing.assert_array_equal(jax.jacobian(lambda k: balance(k, jnp.ones(3)))(kl), 0.0)
    coefficient = [float(kl_coefficient(s, low=0.7, high=1.0, constant=0, ramp=100)) for s in (0, 50, 100, 900)]
    np.testing.assert_allclose(coefficient, (0.7, 0.85, 1.0, 1.0), rtol=1e-6)
    assert list(active(jnp.array([[0.0, 0.3], [0.1, 0.1]]))) == [False, True]


# ----------------------------------------------------------------------------------------------------------------------
# Decoders.


def logistic(mean, log_scale):
    return jnp.array([0.0, mean, log_scale]).reshape(1, 1, 1, 3)


def test_a_discretized_logistic(x64):
    decoder = decoders.logistic_mixture(256, components=1)
    every = lambda out, levels, decoder: jax.vmap(lambda k: decoder.log_prob(out, k.reshape(1, 1, 1, 1))[0])(
        jnp.arange(levels)
    )
    logp = every(logistic(0.1, -2.0), 256, decoder)
    assert float(jnp.exp(logp).sum()) == pytest.approx(1.0, abs=1e-12)
    assert (float(logp[140]), float(logp[0])) == pytest.approx((-4.234533159, -8.099288819), abs=1e-9)
    five_bits = every(logistic(0.1, -2.0), 32, decoders.logistic_mixture(32, components=1))
    assert float(jnp.exp(five_bits).sum()) == pytest.approx(1.0, abs=1e-12) and float(five_bits[20]) == pytest.approx(
        -2.585023396, abs=1e-9
    )
    assert np.isfinite(every(logistic(-1.0, -9.0), 256, decoder)).all()  # far bins of a narrow one
    assert float(decoder.mean(logistic(0.1, -2.0))[0, 0, 0, 0]) == pytest.approx(127.5 * 1.1)


def test_three_channels_depend_on_each_other_and_sum_to_one(x64):
    """Every pixel of 4 levels in three channels: probabilities over all 64 sum to 1, and draws follow them."""
    decoder = decoders.logistic_mixture(4, components=2)
    out = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, 1, decoder.outputs(3))))
    pixels = jnp.asarray(list(itertools.product(range(4), repeat=3))).reshape(64, 1, 1, 3)
    p = np.exp(np.asarray(decoder.log_prob(jnp.broadcast_to(out, (64, *out.shape[1:])), pixels)))
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    n = 40_000
    drawn = np.asarray(decoder.sample(jax.random.key(0), jnp.broadcast_to(out, (n, *out.shape[1:])))).reshape(n, 3)
    red = np.bincount(drawn[:, 0], minlength=4) / n
    np.testing.assert_allclose(red, p.reshape(4, 4, 4).sum((1, 2)), atol=4 * 0.5 / np.sqrt(n))
    apart = decoder.log_prob(out, jnp.array([[[[3, 0, 0]]]])) - decoder.log_prob(out, jnp.array([[[[0, 0, 0]]]]))
    moved = decoder.log_prob(out, jnp.array([[[[3, 3, 0]]]])) - decoder.log_prob(out, jnp.array([[[[0, 3, 0]]]]))
    assert abs(float(apart[0] - moved[0])) > 0.01  # green is not independent of red
    with pytest.raises(ValueError, match="1 or 3 channels"):
        decoder.outputs(2)


def test_a_single_component_s_mean_is_moved_by_the_channels_before():
    """Coefficients tanh(c): green = mean + c0 red, blue = mean + c1 red + c2 green, in [-1, 1]."""
    decoder = decoders.logistic_mixture(256, components=1)
    rows = np.array(
        [[0.2, -3.0, 0.5], [0.1, -3.0, -0.4], [-0.3, -3.0, 0.3]]
    )  # mean, log scale, coefficient of each channel
    out = jnp.asarray(np.concatenate([[0.0], rows.ravel()]), jnp.float32).reshape(1, 1, 1, 10)
    c = np.tanh(rows[:, 2])
    red = 0.2
    green = 0.1 + c[0] * red
    blue = -0.3 + c[1] * red + c[2] * green
    np.testing.assert_allclose(decoder.mean(out).ravel(), 127.5 * (1 + np.array([red, green, blue])), rtol=1e-5)


def test_bernoulli_and_categorical(x64):
    rng = np.random.default_rng(0)
    out, x = jnp.asarray(rng.standard_normal((3, 2, 2, 1))), jnp.asarray(rng.integers(0, 2, (3, 2, 2, 1)))
    p = 1 / (1 + np.exp(-np.asarray(out)))
    wanted = np.log(np.where(np.asarray(x) == 1, p, 1 - p)).sum((1, 2, 3))
    np.testing.assert_allclose(decoders.bernoulli().log_prob(out, x), wanted, rtol=1e-12)
    two = jnp.concatenate([jnp.zeros_like(out), out], axis=-1)  # two classes with those log-odds
    decoder = decoders.categorical(2)
    np.testing.assert_allclose(decoder.log_prob(two, x), wanted, rtol=1e-12)
    np.testing.assert_allclose(decoder.mean(two), p, rtol=1e-12)
    for family, given in ((decoders.bernoulli(), out), (decoder, two)):
        drawn = jax.vmap(lambda key, family=family, given=given: family.sample(key, given))(
            jax.random.split(jax.random.key(0), 4000)
        )
        np.testing.assert_allclose(np.asarray(drawn).mean(0), p, atol=4 * 0.5 / np.sqrt(4000))
