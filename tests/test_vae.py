"""Encoders and decoders as networks, the penalty on their layers, and a VAE whose every term is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import divergence, likelihood, terminal
from scoreflow.latent import kl, space
from scoreflow.models import vae
from scoreflow.models.hierarchical import HierarchicalVAE, NormedConv, ResidualCell
from scoreflow.objectives import cross_entropy, spectral, times
from scoreflow.processes import sdes
from tests.truth import gaussian_score, integral


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


CONV = vae.ConvVAE(outputs=3, channels=4, multipliers=(1, 2), blocks=1, latents=2)
MLP = vae.MLPVAE(outputs=3, shape=(8, 8, 1), width=8, depth=1, latents=5)
DEEP = HierarchicalVAE(
    outputs=3, shape=(8, 8, 1), channels=4, multipliers=(1, 1, 2), scales=2, per_scale=2, latents=3, cells=1, pad=2
)
INVERTED = HierarchicalVAE(
    outputs=3, shape=(8, 8, 1), channels=4, multipliers=(1, 2), scales=1, per_scale=2, latents=3, inverted=True
)


@pytest.mark.parametrize(
    "module",
    [CONV, MLP, pytest.param(DEEP, marks=pytest.mark.slow), pytest.param(INVERTED, marks=pytest.mark.slow)],
    ids=["conv", "mlp", "scales", "inverted"],
)
def test_draws_have_the_density_that_is_said_of_them(module):
    """log q + log std + log(2 pi) / 2 = -noise^2 / 2, with mean -1/2 and deviation sqrt(1/2) over many draws."""
    functions = vae.vae(module)
    params = functions.init(jax.random.key(0), (1, 8, 8, 1))
    x = jax.random.uniform(jax.random.key(1), (1, 8, 8, 1), minval=-1.0)

    @jax.jit
    def draw(keys):
        return jax.vmap(lambda key: functions.infer(params, key, x))(keys)

    inferred = draw(jax.random.split(jax.random.key(2), 2000))
    for posterior in (inferred.top, *inferred.lower):
        rest = np.asarray(posterior.log_q + posterior.log_std).reshape(2000, -1) + 0.5 * np.log(2 * np.pi)
        n = rest.size
        assert abs(rest.mean() + 0.5) < 4 * np.sqrt(0.5 / n)
        assert rest.std() == pytest.approx(np.sqrt(0.5), rel=0.1)
        if (
            posterior is inferred.top and module is not DEEP and module is not INVERTED
        ):  # the first two moments of z itself
            z, std = np.asarray(posterior.z).reshape(2000, -1), np.exp(np.asarray(posterior.log_std)[0].ravel())
            np.testing.assert_allclose(z.std(0), std, rtol=0.1)
    assert inferred.out.shape == (2000, 1, 8, 8, 3)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(CONV, id="conv"),
        pytest.param(MLP, id="mlp"),
        pytest.param(INVERTED, id="inverted", marks=pytest.mark.slow),
    ],
)
def test_the_decoder_is_one_function_of_all_latents(module):
    """With one scale, what is inferred with a draw is what is generated from it."""
    functions = vae.vae(module)
    params = functions.init(jax.random.key(0), (1, 8, 8, 1))
    x = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1), minval=-1.0)
    inferred = functions.infer(params, jax.random.key(2), x)
    np.testing.assert_allclose(
        functions.generate(params, jax.random.key(3), inferred.top.z), inferred.out, rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("module", [CONV, INVERTED], ids=["conv", "inverted"])
def test_half_precision_inside_changes_little_and_nothing_at_the_ends(module):
    """Same parameters, which stay float32, as does what comes out; and the same draw to the precision of the inside."""
    whole, half = vae.vae(module), vae.vae(module.clone(dtype=jnp.bfloat16))
    params = half.init(jax.random.key(0), (1, 8, 8, 1))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    x = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1), minval=-1.0)
    one, two = (m.infer(params, jax.random.key(2), x) for m in (whole, half))
    assert two.out.dtype == two.top.log_std.dtype == jnp.float32
    scale = float(jnp.abs(one.out).max())
    assert 0 < float(jnp.abs(one.out - two.out).max()) < 0.05 * scale
    np.testing.assert_allclose(one.top.log_std, two.top.log_std, atol=0.05)


@pytest.mark.slow
def test_groups_are_drawn_one_after_the_other():
    """The second group's distribution depends on what was drawn of the first, and lower scales on both; not the reverse."""
    functions = vae.vae(DEEP)
    params = functions.init(jax.random.key(0), (1, 8, 8, 1))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(3), leaf.shape), params)
    x = jnp.zeros((1, 8, 8, 1))
    first, second = (functions.infer(params, jax.random.key(i), x) for i in (0, 1))
    assert functions.groups == 2 and functions.sizes == (0.5, 0.5, 2.0, 2.0)
    assert first.top.z.shape == (1, 3, 3, 6) and first.lower[0].z.shape == (1, 6, 6, 3)
    one, two = np.asarray(first.top.log_std), np.asarray(second.top.log_std)
    np.testing.assert_array_equal(one[..., :3], two[..., :3])
    assert np.abs(one[..., 3:] - two[..., 3:]).max() > 1e-4
    assert np.abs(first.lower[0].log_std - second.lower[0].log_std).max() > 1e-4


def test_finer_latents_are_drawn_from_a_normal():
    """From one z, other keys give other images where there are finer scales."""
    functions = vae.vae(DEEP)
    params = functions.init(jax.random.key(0), (1, 8, 8, 1))
    z = jax.random.normal(jax.random.key(1), (1, 3, 3, 6))
    one, two = (functions.generate(params, jax.random.key(i), z) for i in (0, 1))
    assert one.shape == (1, 8, 8, 3) and np.abs(one - two).max() > 1e-3


def test_padding_is_of_the_lowest_level():
    """An image whose border is black is seen as the same image with less of a border and more of padding."""
    x = jnp.full((1, 8, 8, 1), -1.0).at[:, 2:6, 2:6].set(jax.random.uniform(jax.random.key(1), (1, 4, 4, 1)))
    options = {"outputs": 3, "channels": 4, "multipliers": (1, 1), "per_scale": 1, "latents": 2}
    whole, cut = (vae.vae(HierarchicalVAE(shape=(side, side, 1), pad=(8 - side) // 2, **options)) for side in (8, 4))
    params = whole.init(jax.random.key(0), x.shape)
    one, two = whole.infer(params, jax.random.key(2), x), cut.infer(params, jax.random.key(2), x[:, 2:6, 2:6])
    np.testing.assert_array_equal(one.top.z, two.top.z)
    np.testing.assert_array_equal(one.out[:, 2:6, 2:6], two.out)


def test_a_normed_convolution_has_the_norm_that_is_learned():
    """Whatever the kernel's length, only its direction counts; depthwise, a channel sees itself alone."""
    conv = NormedConv(5)
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    params = conv.init(jax.random.key(1), x)["params"]
    scaled = params | {"kernel": 7.0 * params["kernel"]}
    np.testing.assert_allclose(
        conv.apply({"params": scaled}, x), conv.apply({"params": params}, x), rtol=1e-5, atol=1e-5
    )
    louder = params | {"log_norm": params["log_norm"] + np.log(3.0)}
    np.testing.assert_allclose(
        conv.apply({"params": louder}, x), 3.0 * conv.apply({"params": params}, x), rtol=1e-5, atol=1e-5
    )
    single = NormedConv(3, size=5, depthwise=True)
    params = single.init(jax.random.key(1), x)["params"]
    moved = single.apply({"params": params}, x.at[..., 0].add(1.0)) - single.apply({"params": params}, x)
    assert np.abs(moved[..., 0]).max() > 0.1 and np.abs(moved[..., 1:]).max() < 1e-5


@pytest.mark.parametrize("resize, side", [(-1, 4), (0, 8), (1, 16)])
def test_cells_resize_and_start_near_their_skip(resize, side):
    """With the branch's last convolution silenced the skip is left: x itself, or one map of every pixel."""
    cell = ResidualCell(8, resize)
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 8))
    x = x if resize == 0 else jnp.broadcast_to(x[:, :1, :1], x.shape)
    params = cell.init(jax.random.key(1), x)["params"]
    quiet = {**params, "NormedConv_1": params["NormedConv_1"] | {"log_norm": jnp.full(8, -50.0)}}
    silent = cell.apply({"params": quiet}, x)
    np.testing.assert_allclose(
        silent, x if resize == 0 else jnp.broadcast_to(silent[:, :1, :1], (1, side, side, 8)), atol=1e-5
    )
    loud = cell.apply({"params": params}, x)
    assert 1e-4 < np.abs(loud - silent).max() < 1.0


def test_entropy_of_diagonal_gaussians_and_its_gradient(x64):
    """Tabled: stds 0.1, 0.2, 0.5, 1 have mean log-density -1.0705839468; its gradient is -1 in each log std, 0 in means."""
    std = jnp.asarray([0.1, 0.2, 0.5, 1.0])

    def of(stats, key, closed):
        drawn = vae.draw(key, jnp.broadcast_to(stats, (50_000, 8)))
        return kl.example_sums(kl.log_q_of(drawn.log_q, drawn.log_std, closed=closed))

    # draw clamps by 5 tanh(. / 5)
    stats = 5.0 * jnp.arctanh(jnp.concatenate([jnp.asarray([0.3, -1.0, 0.0, 2.0]), jnp.log(std)]) / 5.0)
    key = jax.random.key(0)
    assert float(of(stats, key, True)[0]) == pytest.approx(-1.0705839468, abs=1e-9)
    sampled = np.asarray(of(stats, key, False))
    assert abs(sampled.mean() + 1.0705839468) < 4 * sampled.std() / np.sqrt(len(sampled))
    for closed in (True, False):
        slope = jax.grad(lambda stats: of(stats, key, closed).mean())(stats)  # noqa: B023
        inner = 1.0 - jnp.tanh(stats / 5.0) ** 2
        np.testing.assert_allclose(slope / inner, [0, 0, 0, 0, -1, -1, -1, -1], atol=1e-9)


def test_sums_over_groups_and_channels():
    """Both add up to the sum over everything; groups are neighboring channels."""
    each = jnp.asarray(np.arange(2 * 2 * 2 * 6, dtype=np.float32).reshape(2, 2, 2, 6))
    groups, channels = kl.group_sums(each, 3), kl.channel_sums(each)
    np.testing.assert_allclose(groups.sum(1), kl.example_sums(each))
    np.testing.assert_allclose(channels[:, :2].sum(1), groups[:, 0])


def test_the_spectral_penalty(x64):
    """The tabled matrix; any matrix against its singular values; the gradient is the product of the singular vectors."""
    assert float(spectral.largest_singular_value(jnp.asarray([[3.0, 0.0], [4.0, 5.0]]))) == pytest.approx(6.7082039325)
    rng = np.random.default_rng(0)
    for shape in ((27, 8), (8, 27), (5, 5)):
        matrix = rng.standard_normal(shape)
        left, values, right = np.linalg.svd(matrix)
        largest, slope = jax.value_and_grad(spectral.largest_singular_value)(jnp.asarray(matrix))
        assert float(largest) == pytest.approx(values[0], rel=1e-3)
        assert np.abs(slope - np.outer(left[:, 0], right[0])).max() < 0.1
    assert float(spectral.largest_singular_value(jnp.zeros((3, 4)))) < 1e-10


def test_the_penalty_sees_normed_kernels_as_they_act_and_scales_by_their_largest(x64):
    kernel = np.random.default_rng(0).standard_normal((3, 3, 2, 4))
    unit = kernel.reshape(18, 4) / np.linalg.norm(kernel.reshape(18, 4), axis=0)
    log_norm = np.log([1.0, 2.0, 3.0, 4.0])
    tree = {
        "a": {"kernel": jnp.asarray(kernel), "log_norm": jnp.asarray(log_norm), "bias": jnp.ones(4)},
        "b": {"c": {"scale": jnp.asarray([0.5, -2.0]), "bias": jnp.ones(2)}},
    }
    wanted = np.linalg.norm(unit * np.exp(log_norm), 2) + 2.0
    assert float(spectral.penalty(tree)) == pytest.approx(wanted, rel=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# A linear-Gaussian VAE: x = W z + noise, z ~ N(a, diag(b)), so that q(z|x), p(x) and every score are known.

LOADINGS = np.array([[1.0, 0.5], [-0.3, 0.8], [0.2, -1.1]])
CENTER, SPREAD, NOISE = np.array([0.4, -0.2]), np.array([0.7, 1.3]), 0.3


def linear_terms(process, t_min, n=6):
    """x [n, 3], posterior draws z [n, 2], log q(z|x), log p(x|z), and the exact log p(x)."""
    rng = np.random.default_rng(0)
    z = CENTER + np.sqrt(SPREAD) * rng.standard_normal((n, 2))
    x = z @ LOADINGS.T + NOISE * rng.standard_normal((n, 3))
    precision = np.diag(1 / SPREAD) + LOADINGS.T @ LOADINGS / NOISE**2
    covariance = np.linalg.inv(precision)
    mean = (CENTER / SPREAD + x @ LOADINGS / NOISE**2) @ covariance
    draws = mean + rng.standard_normal((n, 2)) @ np.linalg.cholesky(covariance).T
    from scipy.stats import multivariate_normal as normal

    log_q = np.array([normal.logpdf(d, m, covariance) for d, m in zip(draws, mean)])
    log_lik = np.array([normal.logpdf(v, LOADINGS @ d, NOISE**2 * np.eye(3)) for v, d in zip(x, draws)])
    marginal = normal(LOADINGS @ CENTER, LOADINGS @ np.diag(SPREAD) @ LOADINGS.T + NOISE**2 * np.eye(3))
    return x, draws, log_q, log_lik, marginal.logpdf(x), mean, covariance


@pytest.mark.parametrize("t_min, tolerance", [(1e-3, 2e-2), (1e-5, 2e-4)])
def test_with_the_exact_posterior_and_prior_the_bound_is_the_likelihood(x64, t_min, tolerance):
    """-log p(x|z) + log q(z|x) - log p(z) by the ODE is -log p(x) at every draw, up to the cut-off's error."""
    process = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), sdes.vp_linear())
    _, z, log_q, log_lik, log_p, _, _ = linear_terms(process, t_min)
    score = gaussian_score(process, CENTER, SPREAD)
    prior = terminal.prior(process)
    options = {"t_min": t_min, "divergence": divergence.exact, "rtol": 1e-8, "atol": 1e-8}
    solution = likelihood.log_prob(process, score, prior, jax.random.key(0), jnp.asarray(z), **options)
    bound = -log_lik + log_q - np.asarray(solution.logp)
    # at T the path ends in N(m a, .), not N(0, I): an error of its own, below 1e-2 here
    np.testing.assert_allclose(bound, -log_p, atol=tolerance + 1.2e-2)


def test_the_training_bound_is_the_likelihood_too(x64):
    """Reconstruction, entropy and the estimated cross entropy add up, in the mean over draws, to -log p of one x."""
    process = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), sdes.vp_linear())
    t_min, n = 1e-4, 200_000
    x, _, _, _, log_p, mean, covariance = linear_terms(process, t_min)
    rng = np.random.default_rng(1)
    z = mean[0] + rng.standard_normal((n, 2)) @ np.linalg.cholesky(covariance).T
    score = gaussian_score(process, CENTER, SPREAD)
    t, inv_density = times.normal_likelihood(process, jax.random.key(0), n, t_min=t_min)
    entropies = jax.jit(
        lambda z: cross_entropy.cross_entropy(process, score, jax.random.key(1), z, t, inv_density, t_min=t_min).total
    )(jnp.asarray(z))
    negative_entropy = -0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
    residual = x[0] - z @ LOADINGS.T
    reconstruction = 0.5 * (residual**2).sum(1) / NOISE**2 + 1.5 * np.log(2 * np.pi * NOISE**2)
    total = reconstruction + negative_entropy + np.asarray(entropies)
    assert abs(total.mean() + log_p[0]) < 4 * total.std() / np.sqrt(n) + 5e-3


def test_the_divergence_from_a_normal_prior_by_score_matching(x64):
    """Case A of the table: match + constant - entropy at three cut-offs, against the true 0.363147181."""
    process = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), sdes.vp_linear())
    mean, std = 0.3, 0.5
    for t_min, wanted in ((0.01, 0.363797532), (1e-3, 0.363176120), (1e-5, 0.363140169)):
        low, high = (float(times._excess(process, t)) for t in (t_min, process.horizon))

        def integrand(level):
            t = times._at_excess(process, jnp.asarray(level))
            alpha2, var = process.alpha(t) ** 2, process.variance(t)
            return 0.5 * ((1 - var) ** 2 + var * alpha2 * (std**2 + mean**2)) / -jnp.expm1(jnp.asarray(level))

        constant, _ = cross_entropy.boundary_terms(process, jnp.zeros((1, 1)), t_min)
        entropy = 0.5 * np.log(2 * np.pi * np.e * std**2)
        assert integral(integrand, low, high) + float(constant[0]) - entropy == pytest.approx(wanted, abs=2e-8)


def test_the_ode_s_density_has_the_tabled_parts(x64):
    """p0 = N(0.5, 0.25), z = 1: where the path ends, the divergence along it, and the gap that the base leaves."""
    process = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), sdes.vp_linear())
    score = gaussian_score(process, np.array([0.5]), np.array([0.25]))
    options = {"t_min": 1e-5, "divergence": divergence.exact, "rtol": 1e-10, "atol": 1e-10}
    prior = terminal.Gaussian(jnp.ones(()))
    solution = likelihood.log_prob(process, score, prior, jax.random.key(0), jnp.ones((1, 1)), **options)
    assert float(solution.last[0, 0]) == pytest.approx(1.003268597, abs=1e-7)
    assert float(solution.logp[0]) == pytest.approx(-0.729082988, abs=1e-7)
    assert float(solution.integral[0]) == pytest.approx(0.693129484, abs=1e-7)


def test_a_probe_of_signs_is_exact_for_a_score_that_acts_on_each_number_alone(x64):
    scales = jnp.asarray([0.5, -2.0, 3.0])
    probe = divergence.rademacher(jax.random.key(0), (4, 3), jnp.float64)
    _, trace = divergence.hutchinson(lambda x: scales[None] * x, jnp.ones((4, 3)), probe)
    np.testing.assert_allclose(trace, 1.5, rtol=1e-12)


def test_the_geometric_process_spends_its_time_evenly(x64):
    """g^2 / sigma^2 (1 - sigma^2) / 2 is the same at all t, 5.2066563380, and t comes back from its log-SNR."""
    process = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), sdes.vp_geometric(3e-5, 0.999))
    t = jnp.linspace(0.0, 1.0, 11)
    rate = 0.5 * process.diffusion_sq(t) / process.variance(t) * (1 - process.variance(t))
    np.testing.assert_allclose(rate, 5.2066563380, rtol=1e-9)
    np.testing.assert_allclose(process.inverse_log_snr(process.log_snr(t)), t, atol=1e-9)


# ----------------------------------------------------------------------------------------------------------------------
# Between stored and modeled levels.


def test_levels_are_read_and_written():
    """All kept; three bits of 256; and binary by chance, with the stored level's share as mean."""
    data = np.arange(17, dtype=np.uint8).reshape(1, 17)
    same = space.Quantiser(17, 17)
    np.testing.assert_array_equal(same.quantise(jax.random.key(0), data), data)
    np.testing.assert_array_equal(same.to_stored(jnp.asarray(data, jnp.float32)), data)
    fewer = space.Quantiser(256, 32)
    np.testing.assert_array_equal(
        fewer.quantise(jax.random.key(0), np.array([0, 7, 8, 200, 255], np.uint8)), [0, 0, 1, 25, 31]
    )
    np.testing.assert_array_equal(fewer.to_stored(jnp.asarray([0.0, 31.0])), [0, 255])
    assert 25 / 31 * 2 - 1 == pytest.approx(0.6129032258, abs=1e-10)  # where the decoder sees level 200 at 5 bits
    binary = space.Quantiser(17, 2, binarized=True)
    drawn = np.asarray(binary.quantise(jax.random.key(0), np.full(20_000, 4, np.uint8)))
    assert set(drawn) == {0, 1} and abs(drawn.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 20_000)
    np.testing.assert_array_equal(binary.to_stored(jnp.asarray([0.0, 0.5, 1.0])), [0, 8, 16])
