"""Terminal distributions: normalized densities, draws, transport, fits, flows, and where they enter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from scoreflow import likelihood, terminal
from scoreflow.likelihood.horizon import elbo_profile
from scoreflow.processes import sdes
from scoreflow.processes.transitions import exponential_sde
from scoreflow.runs.errors import UserError
from scoreflow.samplers import grids, rules, sample
from scoreflow.terminal import families, mixture
from scoreflow.theory import horizon as hz
from tests.test_horizon import field
from tests.truth import Mixture as LineScore
from tests.truth import process64

FORMS = {
    "isotropic": mixture.ISOTROPIC,
    "diagonal": mixture.DIAGONAL,
    "low_rank": mixture.low_rank(2),
    "full": mixture.FULL,
}
RNG = np.random.default_rng(0)


def blobs(n=300, d=4, k=3, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * 0.5 + 5 * rng.standard_normal(d) for _ in range(k)]
    )


def covariances(fitted):
    """[K, d, d], by the definition."""
    out = []
    for basis, along, rest in zip(*(np.asarray(a) for a in (fitted.basis, fitted.along, fitted.rest))):
        beside = np.eye(len(rest)) - basis @ basis.T
        out.append(basis @ np.diag(along) @ basis.T + beside @ np.diag(rest))
    return np.array(out)


@pytest.mark.parametrize("form", FORMS)
def test_density_and_draws_of_a_mixture(x64, form):
    """Against SciPy's multivariate normal; draws have the moments of the mixture."""
    fitted = mixture.fit(blobs(), components=3, covariance=FORMS[form], floor=1e-3).mixture
    x, covs, weights = blobs(20, seed=1), covariances(fitted), np.exp(np.asarray(fitted.log_weights))
    wanted = sum(w * multivariate_normal(m, c).pdf(x) for w, m, c in zip(weights, np.asarray(fitted.means), covs))
    np.testing.assert_allclose(fitted.log_prob(jnp.asarray(x)), np.log(wanted), rtol=1e-8)
    n = 100_000
    draws = np.asarray(fitted.sample(jax.random.key(0), (n, 2, 2))).reshape(n, 4)
    mean = weights @ np.asarray(fitted.means)
    apart = np.asarray(fitted.means) - mean
    cov = np.einsum("k,kij->ij", weights, covs + apart[:, :, None] * apart[:, None])
    assert (np.abs(draws.mean(0) - mean) < 4 * np.sqrt(np.diag(cov) / n)).all()
    np.testing.assert_allclose(np.cov(draws.T), cov, atol=0.05 * np.abs(cov).max())


@pytest.mark.parametrize("form, name", [("full", "full"), ("diagonal", "diag"), ("isotropic", "spherical")])
def test_a_fit_is_as_likely_as_that_of_scikit_learn(x64, form, name):
    x = blobs()
    fit = mixture.fit(x, components=3, covariance=FORMS[form], floor=1e-9, tol=1e-9)
    other = GaussianMixture(3, covariance_type=name, reg_covar=0.0, tol=1e-9, max_iter=1000, random_state=0).fit(x)
    assert fit.converged and fit.log_prob[-1] == pytest.approx(other.score(x), abs=1e-6)
    assert (np.diff(fit.log_prob) > -1e-9).all()


def test_one_component_is_the_best_gaussian_of_its_class(x64):
    """KL to the true Gaussian of each class (section of restricted covariances), in place of a fit to endless data."""
    cov = float(process64("vp").alpha(0.2)) ** 2 * field() + float(process64("vp").variance(0.2)) * np.eye(64)
    root = np.linalg.cholesky(cov)
    x = RNG.standard_normal((400, 64))
    x = (
        (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True))).T @ root.T
    )  # exactly that covariance
    for form, wanted in (
        (mixture.ISOTROPIC, 7.11531),
        (mixture.DIAGONAL, 7.11531),
        (mixture.low_rank(4), 0.28486),
        (mixture.FULL, 0.0),
    ):
        fitted = mixture.fit(x, covariance=form, floor=1e-9).mixture
        fitted_cov = covariances(fitted)[0]
        kl = 0.5 * (
            np.trace(np.linalg.solve(fitted_cov, cov))
            - 64
            + np.linalg.slogdet(fitted_cov)[1]
            - np.linalg.slogdet(cov)[1]
        )
        assert kl == pytest.approx(wanted, abs=6e-6)
        entropy = 0.5 * (64 * np.log(2 * np.pi * np.e) + np.linalg.slogdet(cov)[1])
        assert -float(fitted.log_prob(jnp.asarray(x)).mean()) == pytest.approx(entropy + kl, abs=1e-8)
    assert entropy == pytest.approx(61.91220, abs=1e-5)


@pytest.mark.slow
def test_no_variance_falls_below_the_floor_and_no_component_stays_empty(x64):
    """Thirty copies of two points and a far one: without a floor the likelihood has no bound."""
    x = np.concatenate([np.zeros((30, 3)), np.ones((30, 3)), [[50.0, 50.0, 50.0]]])
    fit = mixture.fit(x, components=3, covariance=mixture.FULL, floor=0.01)
    assert min(np.linalg.eigvalsh(c).min() for c in covariances(fit.mixture)) >= 0.01 - 1e-12
    assert np.isfinite(fit.log_prob).all()
    spread = blobs(200, 2, 2, seed=3)
    fitted = mixture.fit(spread, components=6, covariance=mixture.FULL, floor=1e-3).mixture
    shares = jax.nn.softmax(
        fitted.log_weights[None] + mixture.component_log_prob(fitted, jnp.asarray(spread)), axis=1
    ).sum(0)
    assert (np.asarray(shares) > 1.0).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["vp", "ve", "sub_vp"])
def test_transport_is_what_the_forward_process_does(x64, form, name):
    """Mean and covariance of every component: alpha mean and alpha^2 cov + sigma^2."""
    process, t = process64(name), 0.3
    fitted = mixture.fit(blobs(), components=2, covariance=FORMS[form], floor=1e-3).mixture
    later = mixture.transported(fitted, process.alpha(t), process.variance(t))
    np.testing.assert_allclose(later.means, float(process.alpha(t)) * np.asarray(fitted.means))
    wanted = float(process.alpha(t)) ** 2 * covariances(fitted) + float(process.variance(t)) * np.eye(4)
    np.testing.assert_allclose(covariances(later), wanted, atol=1e-9 * np.abs(wanted).max())


def test_the_dirichlet_mixture_integrates_to_one_and_its_own_score_does_not(x64):
    from sklearn.mixture import BayesianGaussianMixture

    x = np.random.default_rng(0).standard_normal((50, 1))
    fitted = mixture.fit_dirichlet(x, components=5)
    line = np.linspace(-30, 30, 6001)
    assert np.trapezoid(np.exp(np.asarray(fitted.log_prob(jnp.asarray(line[:, None])))), line) == pytest.approx(
        1, abs=1e-9
    )
    theirs = BayesianGaussianMixture(
        n_components=5, weight_concentration_prior_type="dirichlet_process", random_state=0
    ).fit(x)
    assert np.trapezoid(np.exp(theirs.score_samples(line[:, None])), line) < 0.98
    two = np.concatenate([x - 8, x + 8])
    assert mixture.active(mixture.fit_dirichlet(two, components=8)) == 2


def test_a_pushforward_has_draws_and_no_density():
    distribution = terminal.Pushforward(jnp.full((5, 2, 2, 1), 3.0), 0.5, 0.1)
    draws = np.asarray(distribution.sample(jax.random.key(0), (20_000, 2, 2, 1)))
    assert draws.mean() == pytest.approx(1.5, abs=4 * 0.1 / np.sqrt(80_000)) and draws.std() == pytest.approx(
        0.1, rel=0.02
    )
    with pytest.raises(UserError, match="density"):
        distribution.log_prob(jnp.zeros((1, 2, 2, 1)))


def test_families_of_mixtures_have_the_form_that_is_named():
    """A rank counts for low_rank alone; data or x_T are fitted, and only a fit of data is carried to other times."""
    for name, rank in (("isotropic", 0), ("diagonal", 0), ("low_rank", 3), ("full", 4)):
        family = families.gaussian_mixture(2, families.COVARIANCES[name], rank=3)
        params = family.init(jax.random.key(0), (1, 2, 2, 1))
        assert params["basis"].shape == (2, 4, rank), name
    assert families.gaussian_mixture(1, mixture.low_rank(2)).init(jax.random.key(0), (1, 4))["basis"].shape == (1, 4, 2)
    assert families.gaussian_mixture().anywhere and not families.gaussian_mixture(fitted_to="end").anywhere
    assert not families.dirichlet().anywhere and families.dirichlet(fitted_to="data").anywhere
    assert families.glow().learning_rate == 1e-3 and families.gaussian_mixture().learning_rate is None


def test_a_family_fitted_to_the_end_is_that_of_noised_data():
    """Of a Gaussian: mean alpha m and variance alpha^2 v + sigma^2, by either fit."""
    process = dataclasses.replace(sdes.vp_linear(), horizon=0.3)
    clean = lambda key: 2.0 + 0.5 * np.asarray(jax.random.normal(jax.random.key(5), (4000, 3)))
    alpha, variance = float(process.alpha(0.3)), float(process.variance(0.3))
    for fitted_to in ("data", "end"):
        family = families.gaussian_mixture(covariance=mixture.ISOTROPIC, fitted_to=fitted_to)
        fitted = family.at(family.fit(jax.random.key(0), clean, process), process, 0.3)
        np.testing.assert_allclose(fitted.means, 2.0 * alpha, atol=0.05)
        np.testing.assert_allclose(fitted.rest, alpha**2 * 0.25 + variance, rtol=0.05)


def test_a_pushforward_reads_its_pool_once():
    calls = []

    def read(path):
        calls.append(path)
        return jnp.full((5, 2, 2, 1), 3.0)

    family, process = families.pushforward(read, "images.npy"), sdes.vp_linear()
    for t in (0.1, 0.5):
        distribution = family.at(None, process, t)
        assert float(distribution.sigma) == pytest.approx(float(process.sigma(t)))
    assert calls == ["images.npy"]


def test_two_components_are_fitted_to_two_blobs():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(c, 1.0, (400, 2)) for c in (-2.0, 2.0)])
    fitted = mixture.fit(x, components=2, floor=1e-6).mixture
    np.testing.assert_allclose(np.sort(np.asarray(fitted.means)[:, 0]), [-2.0, 2.0], atol=0.25)
    theirs = GaussianMixture(2, random_state=0).fit(x).score(x)
    assert float(fitted.log_prob(jnp.asarray(x, jnp.float32)).mean()) == pytest.approx(theirs, abs=1e-3)


# ----------------------------------------------------------------------------------------------------------------------
# The bound over horizons.


def line_terminal(process, line):
    """t -> the transported mixture of the line as a terminal distribution."""
    clean = mixture.of_covariances(line.weights, line.means[:, None], line.variances[:, None, None])
    return lambda t: mixture.transported(clean, process.alpha(t), process.variance(t))


@pytest.mark.slow
def test_the_profile_is_the_laboratory_s(x64):
    """TWO_PEAKS, score off by 0.3: bound = entropy of p_eps + KL + G for both terminal distributions at every T, gain and slopes too."""
    process, data, delta, eps, n = process64("vp"), hz.TWO_PEAKS, 0.3, 1e-3, 40_000
    true = LineScore(data.weights, data.means, data.variances).score(process)
    score = lambda x, t, cond=None: true(x, t) + delta
    matched = lambda t: line_terminal(process, data.matched())(t)
    terminals = {"prior": lambda t: terminal.prior(dataclasses.replace(process, horizon=t)), "bridge": matched}
    rng = np.random.default_rng(0)
    k = rng.choice(2, n, p=data.weights)
    x0 = (data.means[k] + np.sqrt(data.variances[k]) * rng.standard_normal(n))[:, None]
    horizons = np.array([0.1, 0.2, 0.4, 0.6, 1.0])
    run = jax.jit(
        lambda key, x: elbo_profile(
            process, score, terminals, key, x, t_min=eps, horizons=jnp.asarray(horizons), num_times=50
        )
    )
    profile = run(jax.random.key(0), jnp.asarray(x0))
    first = data.at(process, eps)
    for name, start in (("prior", hz.STANDARD), ("bridge", None)):

        def kl(t, start=start):
            last = data.at(process, t)
            return hz.line_kl(last, last.matched() if start is None else start)

        for i, t in enumerate(horizons):
            gap = float(hz.constant_error_gap(process, delta, t) - hz.constant_error_gap(process, delta, eps))
            total = np.asarray(profile.end[name][:, i] + profile.path[:, i])
            assert abs(total.mean() - hz.line_entropy(first) - gap - kl(t)) < 4 * total.std() / np.sqrt(n), (name, t)
            slope, step = np.asarray(profile.slope[name][:, i]), 1e-3
            wanted = (kl(t + step) - kl(t - step)) / (2 * step) + 0.5 * float(process.diffusion_sq(t)) * delta**2
            assert abs(slope.mean() - wanted) < 4 * slope.std() / np.sqrt(n) + 1e-3 * abs(wanted), (name, t)
    gain = np.asarray(profile.end["prior"] - profile.end["bridge"])
    wanted = [
        hz.line_kl(data.at(process, t), hz.STANDARD) - hz.line_kl(data.at(process, t), data.at(process, t).matched())
        for t in horizons
    ]
    assert (np.abs(gain.mean(0) - wanted) < 4 * gain.std(0) / np.sqrt(n)).all()


@pytest.mark.slow
def test_one_pass_gives_what_a_pass_for_each_horizon_gives(x64):
    """At every T the bound of the process cut off there; two estimates, each with its error."""
    process, data, n = process64("vp"), hz.TWO_PEAKS, 4000
    true = LineScore(data.weights, data.means, data.variances).score(process)
    score = lambda x, t, cond=None: 0.9 * true(x, t)
    rng = np.random.default_rng(0)
    k = rng.choice(2, n, p=data.weights)
    x = jnp.asarray((data.means[k] + np.sqrt(data.variances[k]) * rng.standard_normal(n))[:, None])
    cut = lambda t: dataclasses.replace(process, horizon=t)
    terminals, horizons = {"prior": lambda t: terminal.prior(cut(t))}, jnp.array([0.2, 0.5, 1.0])
    run = jax.jit(
        lambda x: elbo_profile(process, score, terminals, jax.random.key(0), x, t_min=1e-3, horizons=horizons)
    )
    each = jax.jit(
        lambda x, t: likelihood.bound(cut(t), score, terminal.prior(cut(t)), jax.random.key(1), x, t_min=1e-3).total
    )
    profile = run(x)
    for i, t in enumerate(horizons):
        apart = np.asarray(profile.end["prior"][:, i] + profile.path[:, i] + profile.offset - each(x, t))
        assert abs(apart.mean()) < 4 * apart.std() / np.sqrt(n)


@pytest.mark.slow
def test_a_bridge_in_the_likelihood_and_in_the_sampler(x64):
    """TWO_PEAKS at T = 0.6 and its exact score. The ODE's divergence from the data is that of p_T from the terminal distribution,
    0.0755, and none with p_T itself; the SDE from the matched Gaussian at T = 0.2 makes 2.39716 +- 1.00405."""
    data, n = hz.TWO_PEAKS, 4000
    process = dataclasses.replace(process64("vp"), horizon=jnp.asarray(0.6))
    score = LineScore(data.weights, data.means, data.variances).score(process)
    rng = np.random.default_rng(0)
    k = rng.choice(2, n, p=data.weights)
    x = jnp.asarray((data.means[k] + np.sqrt(data.variances[k]) * rng.standard_normal(n))[:, None])
    known = data.at(process, 1e-6).log_density(np.asarray(x)[:, 0])
    for end, kl in ((terminal.prior(process), 0.0755), (line_terminal(process, data)(0.6), 0.0)):
        run = jax.jit(
            lambda x, end=end: (
                likelihood.log_prob(process, score, end, jax.random.key(0), x, t_min=1e-6, rtol=1e-7, atol=1e-7).logp
            )
        )
        apart = known - np.asarray(run(x))
        assert abs(apart.mean() - kl) < 4 * apart.std() / np.sqrt(n) + 1e-4
    assert np.abs(apart).max() < 1e-3  # p_T itself: point by point
    short = dataclasses.replace(process64("vp"), horizon=jnp.asarray(0.2))
    start = line_terminal(short, data.matched())(0.2).sample(jax.random.key(1), (40_000, 1))
    grid = grids.uniform(short, 400, t_min=1e-4)
    rule = rules.affine(exponential_sde)
    drawn = jax.jit(lambda x: sample(rule, short, score, jax.random.key(2), x, grid, denoise=False).x)(start)
    assert abs(float(drawn.mean()) - 2.39716) < 4 * 1.004 / 200 + 2e-3 and abs(float(drawn.std()) - 1.00405) < 0.015
