import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow.objectives import times
from scoreflow.processes import sdes
from tests.truth import PROCESSES, process64

SAMPLERS = {
    "uniform": times.uniform,
    "stratified": times.stratified,
    "importance": times.importance,
    "log_normal": times.log_normal,
    "velocity": times.velocity,
}

# Z = int g^2 / sigma^2 and the quantiles .25, .5, .75 of its distribution, for beta from 0.1 to 20
QUANTILES = {
    ("vp", 1e-5): (23.86447237, (0.0030047005, 0.11442145, 0.63695614)),
    ("vp", 1e-3): (19.16538668, (0.031686418, 0.30463141, 0.72233331)),
    ("vp", 1e-2): (16.26607038, (0.10034716, 0.44936431, 0.77062227)),
    ("sub_vp", 1e-5): (37.67894573, (0.0010099835, 0.030550228, 0.35381652)),
    ("sub_vp", 1e-3): (28.28088331, (0.015081143, 0.10906172, 0.55085609)),
    ("sub_vp", 1e-2): (22.48413575, (0.052915813, 0.22890112, 0.66392521)),
}


@pytest.mark.parametrize("name, t_min", QUANTILES)
def test_importance_has_the_published_quantiles(x64, name, t_min):
    process = process64(name)
    z, quantiles = QUANTILES[name, t_min]
    top, bottom = process.log_snr(t_min), process.log_snr(1.0)
    assert float(top - bottom) == pytest.approx(z, rel=1e-9)
    drawn = times.importance(process, jax.random.key(0), 4000, t_min=t_min).t
    quartiles = np.quantile(drawn, [0.25, 0.5, 0.75])
    # stratified in 4000 cells: an empirical quantile is within one cell of the true one
    quartiles_u = (top - process.log_snr(quartiles)) / z
    np.testing.assert_allclose(quartiles_u, [0.25, 0.5, 0.75], atol=1.1 / 4000)
    np.testing.assert_allclose(process.inverse_log_snr(top - z * jnp.array([0.25, 0.5, 0.75])), quantiles, rtol=1e-7)


# Log-SNR from 13.3 to -5: the normalizer int alpha^2 d(-log_snr), and the log-SNR of the quantiles .25, .5, .75.
VELOCITY = {
    "vp": (sdes.vp_linear, 13.29328633, (9.9766336, 6.6520680, 3.2935889)),
    "straight": (sdes.straight, 11.29910796, None),
}


def _straight_mass(log_snr):
    """The antiderivative for the straight path, by hand: 2 c(g), c = ln(1 + e^{-g/2}) + 1 / (1 + e^{-g/2}), g = -log_snr."""
    return 2 * (np.logaddexp(0, log_snr / 2) + 1 / (1 + np.exp(log_snr / 2)))


@pytest.mark.parametrize("name", VELOCITY)
def test_velocity_has_the_published_quantiles(x64, name):
    make, z, quantiles = VELOCITY[name]
    whole = make()
    t_min, horizon = (float(whole.inverse_log_snr(s)) for s in (13.3, -5.0))
    process = make(horizon=horizon)
    t, inv_density = times.velocity(process, jax.random.key(0), 4000, t_min=t_min)
    # the likelihood weight times alpha^2 times the velocity error is Z times that error, whatever t
    pace = process.diffusion_sq(t) / process.variance(t)
    np.testing.assert_allclose(inv_density * pace * process.alpha(t) ** 2, z, rtol=2e-2)
    assert float(jnp.mean(inv_density * pace * process.alpha(t) ** 2)) == pytest.approx(z, rel=1e-5)
    u = np.array([0.25, 0.5, 0.75])
    log_snr = np.quantile(process.log_snr(t), 1 - u)
    if quantiles is None:
        total = _straight_mass(13.3) - _straight_mass(-5.0)
        assert total == pytest.approx(z, rel=1e-8)
        np.testing.assert_allclose((_straight_mass(13.3) - _straight_mass(log_snr)) / total, u, atol=1.1 / 4000)
    else:
        mass = lambda s: np.logaddexp(0, s)  # int sigmoid
        assert mass(13.3) - mass(-5.0) == pytest.approx(z, rel=1e-8)
        np.testing.assert_allclose((mass(13.3) - mass(log_snr)) / z, u, atol=1.1 / 4000)
        np.testing.assert_allclose((mass(13.3) - mass(np.array(quantiles))) / z, u, atol=1e-8)


def test_geometric_ve_needs_no_importance(x64):
    process = process64("ve")
    assert float(process.log_snr(1e-5) - process.log_snr(1.0)) == pytest.approx(17.03421604, rel=1e-9)
    t, inv_density = times.importance(process, jax.random.key(0), 64, t_min=1e-5)
    np.testing.assert_allclose(inv_density, 1 - 1e-5, rtol=1e-9)
    np.testing.assert_allclose(np.sort(t), np.sort(t)[0] + np.arange(64) / 64 * (1 - 1e-5), atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve", "vp_short"])
def test_every_distribution_integrates_without_bias(sampler, name):
    """E[inv_density h(t)] = int h, for an h whose integral is known by quadrature."""
    process, t_min, n = PROCESSES[name], 1e-2, 200_000
    t, inv_density = SAMPLERS[sampler](process, jax.random.key(3), n, t_min=t_min)
    assert float(t.min()) >= t_min * (1 - 1e-6) and float(t.max()) <= float(process.horizon) * (1 + 1e-6)

    def h(t):  # vanishes where a distribution may have almost no mass, so that the estimate has a finite variance
        weight = process.diffusion_sq(t) / process.variance(t)
        return weight * jnp.exp(-0.5 * (0.5 * process.log_snr(t) - 1.0) ** 2)

    samples = np.asarray(inv_density * h(t), np.float64)
    fine = np.exp(np.linspace(np.log(t_min), np.log(float(process.horizon)), 20_001))
    wanted = np.trapezoid(np.asarray(h(jnp.asarray(fine, jnp.float32)), np.float64), fine)
    assert abs(samples.mean() - wanted) < 4 * samples.std() / np.sqrt(n) + 1e-4 * wanted


def test_importance_works_for_a_process_without_a_closed_inverse():
    """A schedule with a wiggle: the numerical inverse serves, and the likelihood integrand is flat."""

    class Wiggle(sdes.Process):
        horizon = 1.0

        def log_alpha(self, t):
            t = jnp.asarray(t)
            return -0.5 * (0.1 * t + 5 * t**2 + 0.05 * jnp.sin(8 * t) ** 2)

        def variance(self, t):
            return -jnp.expm1(2 * self.log_alpha(t))

        def drift_coeff(self, t):
            return jax.vmap(jax.grad(self.log_alpha))(jnp.atleast_1d(t)).reshape(jnp.shape(t))

        def diffusion_sq(self, t):
            return -2 * self.drift_coeff(t)

        def reverse_integrals(self, s, t):
            raise AssertionError("not needed to draw times")

        def prior_std(self):
            return 1.0

    process = Wiggle()
    t, inv_density = times.importance(process, jax.random.key(0), 500, t_min=1e-3)
    z = float(process.log_snr(1e-3) - process.log_snr(1.0))
    np.testing.assert_allclose(inv_density * process.diffusion_sq(t) / process.variance(t), z, rtol=1e-4)
    u = np.sort((process.log_snr(1e-3) - process.log_snr(t)) / z)
    np.testing.assert_allclose(np.diff(u), 1 / 500, atol=2e-5)


def test_stratified_batches_are_evenly_spread():
    t = np.sort(times.stratified(PROCESSES["vp"], jax.random.key(5), 100, t_min=0.0).t)
    np.testing.assert_allclose(np.diff(t), 0.01, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Near N(0, I).

NORMAL = {"ll": times.normal_likelihood, "re": times.variance_uniform, "un": times.normal_unweighted}
WEIGHTS = {
    "ll": lambda p, t: p.diffusion_sq(t) / p.variance(t),
    "re": lambda p, t: p.diffusion_sq(t),
    "un": lambda p, t: jnp.ones_like(t),
}
# linear VP from t = 0.01: t at levels .1, .25, .5, .75, .9 of the distribution; int weight / 2 (1 - sigma^2) dt
PUBLISHED = {
    "ll": ((0.0149490408, 0.0262437553, 0.0629096614, 0.1495038986, 0.2731910446), 3.1090326881),
    "re": ((0.0989665458, 0.1656707322, 0.2593315251, 0.3685237666, 0.4762255458), 0.4989819015),
    "un": ((0.0368242708, 0.0783564235, 0.1557359729, 0.2602579844, 0.3696264231), 0.1330018511),
}


def quantiles(monkeypatch, sample_times, process, levels, t_min=0.01):
    """t and inverse density at given levels of a distribution."""
    monkeypatch.setattr(times, "_unit_cells", lambda key, n: jnp.asarray(levels))
    return sample_times(process, jax.random.key(0), len(levels), t_min=t_min)


@pytest.mark.parametrize("name", NORMAL)
def test_distributions_near_a_normal_have_the_tabled_quantiles_and_totals(x64, monkeypatch, name):
    """The weighted error of the best prediction has no variance left: every draw gives the total."""
    process = process64("vp")
    wanted, total = PUBLISHED[name]
    drawn = quantiles(monkeypatch, NORMAL[name], process, [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(drawn.t, wanted, rtol=4e-9)
    each = 0.5 * WEIGHTS[name](process, drawn.t) * (1 - process.variance(drawn.t)) * drawn.inv_density
    np.testing.assert_allclose(each, total, rtol=1e-9)
    density = {"ll": 2.9045731008, "re": 1.8770517708, "un": 3.3694349239}[name]
    fine = quantiles(monkeypatch, NORMAL[name], process, np.linspace(0, 1, 20001))
    assert np.interp(0.1, fine.t, 1 / np.asarray(fine.inv_density)) == pytest.approx(density, rel=1e-6)


def test_the_rule_for_sub_vp(x64, monkeypatch):
    process = process64("sub_vp")
    drawn = quantiles(monkeypatch, times.normal_likelihood, process, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(drawn.t, (0.0149401164, 0.0621931509, 0.2459146343), rtol=1e-8)
    weight = 0.5 * drawn.inv_density * process.diffusion_sq(drawn.t) / process.variance(drawn.t)
    np.testing.assert_allclose(weight, (6.2171772585, 6.2295190580, 8.7365849826), rtol=1e-9)
    share = 1 - process.variance(drawn.t) / process.normal_variance(drawn.t)
    np.testing.assert_allclose(weight * share, 6.2170914585, rtol=1e-9)


def test_the_geometric_process_needs_no_importance_sampling(x64, monkeypatch):
    """There log sigma^2 is linear in t, so that the best distribution for the likelihood weight is uniform; and a linear VP
    under its own has the same noise levels and weights."""
    growth = float(np.log(0.999 / 3e-5))
    process = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), sdes.vp_geometric(3e-5, 0.999))
    levels = np.array([0.0, 0.3, 0.8])
    drawn = quantiles(monkeypatch, times.normal_likelihood, process, levels, t_min=0.0)
    np.testing.assert_allclose(drawn.t, levels, atol=1e-9)
    each = 0.5 * process.diffusion_sq(drawn.t) / process.variance(drawn.t) * (1 - process.variance(drawn.t))
    np.testing.assert_allclose(each, growth / 2, rtol=1e-6)
    linear = process64("vp")
    ends = [float(linear.variance(t)) for t in (0.01, 1.0)]
    other = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), sdes.vp_geometric(*ends))
    levels = np.array([0.1, 0.5, 0.9])
    first = quantiles(monkeypatch, times.normal_likelihood, linear, levels)
    second = quantiles(monkeypatch, times.uniform, other, levels, t_min=0.0)
    np.testing.assert_allclose(linear.variance(first.t), other.variance(jnp.asarray(levels)), rtol=1e-9)
    weight = lambda p, t, inv: 0.5 * inv * p.diffusion_sq(t) / p.variance(t)
    np.testing.assert_allclose(
        weight(linear, first.t, first.inv_density), weight(other, jnp.asarray(levels), second.inv_density), rtol=1e-7
    )


@pytest.mark.parametrize("process", ["vp", "sub_vp", "ve", "vp_geometric"])
@pytest.mark.parametrize("name", ["ll", "re"])
def test_distributions_near_a_normal_are_unbiased_under_every_process(x64, name, process):
    """E[inv_density f(t)] = int f, in 100,000 strata."""
    process = process64(process)
    drawn = NORMAL[name](process, jax.random.key(0), 100_000, t_min=1e-2)
    grid = np.linspace(1e-2, 1.0, 200_001)
    share = lambda t: 1 - process.variance(t) / process.normal_variance(t)
    rates = {
        "ll": lambda t: process.diffusion_sq(t) / process.variance(t) * share(t),
        "re": lambda t: 2 * process.drift_coeff(t) * process.variance(t) + process.diffusion_sq(t),
    }
    f = lambda t: rates[name](t) * jnp.cos(3 * t)
    wanted = np.trapezoid(np.asarray(f(jnp.asarray(grid))), grid)
    assert float(jnp.mean(drawn.inv_density * f(drawn.t))) == pytest.approx(wanted, rel=2e-3)


def test_normal_unweighted_is_for_a_linear_beta_alone():
    for process in (PROCESSES["ve"], sdes.vp_cosine()):
        with pytest.raises(TypeError, match="linear beta alone"):
            times.normal_unweighted(process, jax.random.key(0), 4, t_min=1e-3)
