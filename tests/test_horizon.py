"""Diffusion times against the closed-form laboratory: divergences, gaps, optima and what the exact reverse process makes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow.processes import sdes, transitions
from scoreflow.theory import exact
from scoreflow.theory import horizon as hz
from scoreflow.theory.exact import Gaussian
from tests.truth import process64

# T: KL to N(0, 1), to the moment-matched Gaussian, G of an error of 0.3; of TWO_PEAKS
TABLE = {
    0.05: (3.144955, 0.349647, 0.001344),
    0.1: (2.746450, 0.165093, 0.004928),
    0.2: (1.920033, 0.0239147, 0.018810),
    0.3: (1.143738, 0.00228523, 0.041647),
    0.4: (0.563307, 1.536654e-4, 0.073440),
    0.5: (0.227712, 7.189e-6, 0.114187),
    0.6: (0.0754560, 2.2e-7, 0.163890),
    0.7: (0.0204922, 0.0, 0.222547),
    0.8: (0.00456102, 0.0, 0.290160),
    1.0: (1.24375e-4, 0.0, 0.452250),
}


def ends(mean, variance):
    return Gaussian(jnp.array([mean]), jnp.array([variance]))


def test_the_mixture_at_every_horizon(x64):
    process, data = process64("vp"), hz.TWO_PEAKS
    assert hz.line_entropy(data) == pytest.approx(0.851960, abs=1e-6)
    assert data.moments() == pytest.approx((2.4, 1.018))
    noise, gauss = [], []
    for t, (kl_noise, kl_gauss, gap) in TABLE.items():
        last = data.at(process, t)
        noise.append(hz.line_kl(last, hz.STANDARD))
        gauss.append(hz.line_kl(last, last.matched()))
        assert noise[-1] == pytest.approx(kl_noise, rel=3e-6)
        assert gauss[-1] == pytest.approx(kl_gauss, rel=3e-2 if kl_gauss < 1e-5 else 3e-6, abs=1e-8)
        assert hz.constant_error_gap(process, 0.3, t) == pytest.approx(gap, abs=6e-7)
    assert (np.diff(noise) < 0).all()


@pytest.mark.parametrize(
    "delta, wanted", [(0.3, 0.64151), (0.1, 0.79424), (0.5, 0.55652), (1.0, 0.41458)]
)  # fmt: skip
def test_the_best_horizon_of_the_mixture(x64, delta, wanted):
    """Without a bridge; there the divergence left is delta^2 / 2 (first-order condition, log-Sobolev nearly tight)."""
    process, data = process64("vp"), hz.TWO_PEAKS
    kl = lambda t: hz.line_kl(data.at(process, t), hz.STANDARD)
    best = hz.best(lambda t: kl(t) + float(hz.constant_error_gap(process, delta, t)), 0.3, 1.0, 30)
    assert best == pytest.approx(wanted, abs=1e-4)
    assert kl(best) == pytest.approx(delta**2 / 2, rel=2e-3)


def test_the_bridge_of_the_mixture_beats_its_best_unbridged_horizon_from_early_on(x64):
    process, data = process64("vp"), hz.TWO_PEAKS
    gap = lambda t: float(hz.constant_error_gap(process, 0.3, t))

    def bridged(t):
        last = data.at(process, t)
        return gap(t) + hz.line_kl(last, last.matched())

    best = hz.best(bridged, 0.05, 0.6, 30)
    assert best == pytest.approx(0.24113, abs=1e-4) and bridged(best) == pytest.approx(0.036629, abs=2e-6)
    unbridged = 0.851960 - 1.084110
    assert -bridged(0.07951) == pytest.approx(unbridged, abs=2e-5)


@pytest.mark.parametrize("kappa, wanted", [(0.1, 0.79413), (0.2, 0.70123), (0.5, 0.55234)])
def test_the_best_horizon_under_an_error_of_the_predicted_noise(x64, kappa, wanted):
    process, data = process64("vp"), hz.TWO_PEAKS
    loss = lambda t: hz.line_kl(data.at(process, t), hz.STANDARD) + float(hz.noise_error_gap(process, kappa, t, 1e-3))
    assert hz.best(loss, 0.3, 1.0, 30) == pytest.approx(wanted, abs=1e-4)


def test_gaussian_data(x64):
    """KL at five horizons; best T for each kind of error; closed forms of the gaps against quadrature."""
    process = process64("vp")
    for t, kl in {0.2: 0.7715879, 0.4: 0.1602750, 0.6: 0.01456798, 0.8: 7.974685e-4, 1.0: 2.159707e-5}.items():
        assert hz.gaussian_kl(process, ends(1.0, 4.0), t, 1.0) == pytest.approx(kl, rel=1e-6)
    loss = {
        "constant": lambda size, t: hz.constant_error_gap(process, size, t),
        "relative": lambda size, t: hz.relative_error_gap(process, size, ends(0.0, 4.0), t),
    }
    for kind, size, wanted in (
        ("constant", 0.05, 0.634510), ("constant", 0.1, 0.575346), ("constant", 0.3, 0.460186),
        ("relative", 0.1, 0.57966), ("relative", 0.3, 0.47606),
    ):  # fmt: skip
        total = jax.jit(
            lambda t, kind=kind, size=size: hz.gaussian_kl(process, ends(0.0, 4.0), t, 1.0) + loss[kind](size, t)
        )
        assert hz.best(total, 0.2, 1.0) == pytest.approx(wanted, abs=1e-5)
    area = 0.1 * 0.7 + 19.9 * 0.7**2 / 2
    assert hz.constant_error_gap(process, 0.3, 0.7) == pytest.approx(0.045 * area, rel=1e-10)
    spread = float(process.alpha(0.7)) ** 2 * 4 + float(process.variance(0.7))
    wanted = 0.5 * 0.3**2 * (np.log(spread / 4) + area)
    assert hz.relative_error_gap(process, 0.3, ends(0.0, 4.0), 0.7) == pytest.approx(wanted, rel=1e-10)


def test_gaussian_data_under_a_variance_exploding_process(x64):
    """sigma from 0.01 to 50, with sigma(0) = 0: KL to the process's own Gaussian, and the best T for an error of noise."""
    process = process64("ve")
    process = sdes.VE(process.g2, process.horizon, jnp.zeros(()))
    data = ends(0.5, 0.25)
    for t, kl in {0.4: 2.088621, 0.5: 0.2973341, 0.6: 0.04746972, 0.8: 1.510817e-3, 1.0: 5.000250e-5}.items():
        assert hz.gaussian_kl(process, data, t) == pytest.approx(kl, rel=2e-6)
    loss = jax.jit(lambda t: hz.gaussian_kl(process, data, t) + hz.noise_error_gap(process, 0.1, t, 1e-3))
    assert hz.best(loss, 0.3, 1.0) == pytest.approx(0.730228, abs=1e-5)


@pytest.mark.parametrize(
    "t, mean, std, kl", [(0.2, 1.16503, 0.55636, 1.1675), (0.3, 1.49274, 0.84718, 0.45098), (0.4, 1.91325, 1.00850, 0.11311),
                         (0.6, 2.33537, 1.01906, 0.00202)],
)  # fmt: skip
def test_what_the_exact_reverse_process_makes_of_noise(x64, t, mean, std, kl):
    generated = hz.generated(process64("vp"), hz.TWO_PEAKS, hz.STANDARD, t)
    assert generated == pytest.approx((mean, std, kl), abs=1e-5 if kl > 0.1 and kl < 1 else 6e-5)
    assert generated.kl < TABLE[t][0]


@pytest.mark.parametrize("t, mean, std, kl", [(0.1, 2.41326, 0.98057, 0.05466), (0.2, 2.39716, 1.00405, 0.00145)])
def test_what_the_exact_reverse_process_makes_of_a_bridge(x64, t, mean, std, kl):
    process = process64("vp")
    generated = hz.generated(process, hz.TWO_PEAKS, hz.TWO_PEAKS.at(process, t).matched(), t)
    assert generated == pytest.approx((mean, std, kl), abs=1e-5)


def test_what_the_exact_reverse_process_makes_of_gaussian_data(x64):
    """Against the closed form: mean mu (1 - u^2 c / V), variance c + (1 - V) u^2 c^2 / V^2, u = alpha(T)."""
    process, data = process64("vp"), hz.Line(np.ones(1), np.ones(1), np.array([4.0]))
    table = {
        0.2: (0.114833, 1.649438, 0.507116),
        0.4: (0.507031, 3.270943, 0.0479846),
        0.6: (0.902837, 3.971678, 1.201139e-3),
    }
    for t, (mean, var, kl) in table.items():
        generated = hz.generated(process, data, hz.STANDARD, t)
        assert (generated.mean, generated.std**2) == pytest.approx((mean, var), abs=2e-6)
        assert generated.kl == pytest.approx(kl, rel=2e-5)


# T: isotropic (and diagonal), then 1, 4 and 16 directions
CLASSES = {
    0.1: (23.68767, 8.88655, 2.59689, 0.19284),
    0.2: (7.11531, 1.63414, 0.28486, 0.01286),
    0.4: (0.57922, 0.06026, 0.00642, 0.00022),
}


def field():
    """Covariance of an 8x8 field of correlated pixels."""
    corr = 0.9 ** np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    return 0.25 * np.kron(corr, corr)


def test_gaussians_of_restricted_covariance(x64):
    process, mean = process64("vp"), -0.2
    values = np.linalg.eigvalsh(field())
    noise = {0.1: 39.01653, 0.2: 13.94188, 0.4: 1.21147, 0.6: 0.05441}
    for t, kl in noise.items():
        data = Gaussian(
            jnp.zeros(64).at[0].set(abs(mean) * 8), jnp.asarray(values)
        )  # the mean's length is all that counts
        assert hz.gaussian_kl(process, data, t, 1.0) == pytest.approx(kl, abs=6e-6)
    for t, wanted in CLASSES.items():
        cov = float(process.alpha(t)) ** 2 * field() + float(process.variance(t)) * np.eye(64)
        costs = [hz.class_kl(cov, rank) for rank in (0, 1, 4, 16)]
        np.testing.assert_allclose(costs, wanted, atol=6e-6)
        assert hz.class_kl(cov) == pytest.approx(wanted[0], abs=6e-6)


def test_a_wrong_mixture_carried_along_comes_no_further(x64):
    process = process64("vp")
    wrong = hz.Line(np.array([0.4, 0.6]), np.array([1.1, 2.9]), np.array([0.15, 0.45]) ** 2)
    table = {0.0: 0.148427, 0.05: 0.071052, 0.1: 0.041331, 0.2: 0.021125, 0.3: 0.010942, 0.5: 0.001951}
    costs = [hz.line_kl(hz.TWO_PEAKS.at(process, t), wrong.at(process, t)) for t in table]
    np.testing.assert_allclose(costs, list(table.values()), atol=6e-7)
    assert (np.diff(costs) < 0).all()


def test_quadrature_is_the_closed_form_where_there_is_one(x64):
    """One Gaussian: KL to N(0, 1) to 1e-8; and p_T itself as terminal distribution costs nothing."""
    process = process64("vp")
    data = hz.Line(np.ones(1), np.ones(1), np.array([4.0]))
    for t in (0.1, 0.4, 0.8):
        last = data.at(process, t)
        wanted = float(hz.gaussian_kl(process, ends(1.0, 4.0), t, 1.0))
        assert hz.line_kl(last, hz.STANDARD) == pytest.approx(wanted, abs=1e-8)
        assert abs(hz.line_kl(hz.TWO_PEAKS.at(process, t), hz.TWO_PEAKS.at(process, t))) < 1e-8


def test_bounds_on_the_divergence(x64):
    """VP: log-Sobolev, KL(p_data) exp(-B), and one that is finite for any data; VE: E|x_0|^2 / (2 sigma^2)."""
    process, data = process64("vp"), hz.TWO_PEAKS
    mean, var = data.moments()
    square = mean**2 + var
    first = hz.line_kl(data, hz.STANDARD)
    for t in (0.05, 0.2, 0.5, 0.9):
        kl, m2 = hz.line_kl(data.at(process, t), hz.STANDARD), float(process.alpha(t)) ** 2
        assert kl <= first * m2 * (1 + 1e-9)
        assert kl <= 0.5 * (m2 * (square - 1) - np.log(1 - m2))
    process = process64("ve")
    for t in (0.4, 0.7, 1.0):
        v = float(process.variance(t))
        start = hz.Line(np.ones(1), np.zeros(1), np.array([v]))
        assert hz.line_kl(data.at(process, t), start) <= square / (2 * v)


def test_only_the_log_snr_at_the_end_counts(x64):
    """VP with another clock: the same divergence and gap of the noise where log-SNR is the same; the usual clock's values."""
    usual, other, data = process64("vp"), process64("vp_constant"), hz.TWO_PEAKS
    for t, wanted in ((0.2, 0.656), (0.4, -1.414), (0.6, -3.615), (1.0, -10.05)):
        level = usual.log_snr(t)
        assert float(level) == pytest.approx(wanted, abs=6e-4 * max(1, abs(wanted)))
        when = float(other.inverse_log_snr(level))
        costs = [hz.line_kl(data.at(p, s), hz.STANDARD) for p, s in ((usual, t), (other, when))]
        assert costs[0] == pytest.approx(costs[1], rel=1e-7)
        starts = [float(p.inverse_log_snr(8.0)) for p in (usual, other)]
        gaps = [
            hz.noise_error_gap(p, 0.2, s, start) for p, s, start in ((usual, t, starts[0]), (other, when, starts[1]))
        ]
        assert float(gaps[0]) == pytest.approx(float(gaps[1]), rel=1e-9)


def test_the_entropy_at_the_cut_off(x64):
    """Bounds that begin at t = 1e-4 are of the distribution there; with the exact score they are -0.927575 and -0.854404."""
    process, data = process64("vp"), hz.TWO_PEAKS
    first = -hz.line_entropy(data.at(process, 1e-4))
    assert first == pytest.approx(-0.852119, abs=1e-6)
    assert first - hz.line_kl(data.at(process, 0.6), hz.STANDARD) == pytest.approx(-0.927575, abs=1e-6)
    last = data.at(process, 0.3)
    assert first - hz.line_kl(last, last.matched()) == pytest.approx(-0.854404, abs=1e-6)


@pytest.mark.parametrize(
    "t, true, bound", [(0.3, 0.093214, 0.244425), (0.4, 0.056303, 0.135946), (0.5, 0.089682, 0.126361), (0.6, 0.144763, 0.165358),
                       (1.0, 0.257499, 0.452250)],
)  # fmt: skip
def test_the_truth_and_the_bound_under_an_error_of_the_score(x64, t, true, bound):
    """N(0, 4), a score that is off by 0.3, reverse SDE from N(0, 1): what the sampler in fine steps really makes."""
    process = dataclasses.replace(process64("vp"), horizon=jnp.asarray(t))
    grid = jnp.linspace(t, 0.0, 4001)
    start = Gaussian(jnp.zeros(1), jnp.ones(1))
    reached = exact.gaussian_law(process, grid, transitions.euler_maruyama, ends(0.0, 4.0), bias=0.3, start=start)
    mean, variance = float(reached.mean[0]), float(reached.variance[0])
    assert 0.5 * (np.log(variance / 4) + (4 + mean**2) / variance - 1) == pytest.approx(true, rel=5e-3)
    total = hz.gaussian_kl(process, ends(0.0, 4.0), t, 1.0) + hz.constant_error_gap(process, 0.3, t)
    assert float(total) == pytest.approx(bound, abs=6e-7)


def test_the_slope_of_the_divergence_is_the_distance_of_the_scores(x64):
    """d KL / dT = -g^2 / 2 E |grad log p_T - grad log nu|^2, by differences and quadrature."""
    process, data, t, step = process64("vp"), hz.TWO_PEAKS, 0.4, 1e-4
    kl = lambda t: hz.line_kl(data.at(process, t), hz.STANDARD)
    last = data.at(process, t)
    x = last.points()
    log_p = last.log_density(x)
    apart = np.gradient(log_p, x) + x
    wanted = -0.5 * float(process.diffusion_sq(t)) * np.trapezoid(np.exp(log_p) * apart**2, x)
    assert (kl(t + step) - kl(t - step)) / (2 * step) == pytest.approx(wanted, rel=1e-4)
