"""The coefficient triples against exact laws for Gaussian data: the numbers are W2 distances to ten digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import sdes, transitions
from tests.truth import PROCESSES, process64

RULES = {
    "ei": transitions.exponential_sde,
    "em": transitions.euler_maruyama,
    "cm": transitions.conditional_mean,
    "anc": transitions.ancestral,
    "ode": transitions.exponential_ode,
    "ode_euler": transitions.euler_ode,
    "ddim": transitions.ddim,
}


def gaussian_law(process, grid, rule, lam, mu, start="prior"):
    """Mean and variance of the sampler's last state for data N(mu, diag(lam)) and the exact score."""
    lam, mu = np.asarray(lam, float), np.asarray(mu, float)

    def marginal(t):
        return float(process.alpha(t)), float(process.alpha(t)) ** 2 * lam + float(process.variance(t))

    alpha, spread = marginal(grid[0])
    mean, var = (0 * mu, 0 * lam + float(process.variance(grid[0]))) if start == "prior" else (alpha * mu, spread)
    for t, s in zip(grid[:-1], grid[1:]):
        scale, weight, noise = (float(v) for v in rule(process, s, t))
        alpha, spread = marginal(t)
        mean = (scale - weight / spread) * mean + weight * alpha * mu / spread
        var = (scale - weight / spread) ** 2 * var + noise
    return mean, var


def w2(mean, var, mu, lam):
    return np.sqrt(((mean - mu) ** 2).sum() + ((np.sqrt(var) - np.sqrt(lam)) ** 2).sum())


@pytest.mark.parametrize(
    "rule, wanted",
    [
        ("ei", 0.05073028182),
        ("em", 0.02899558942),
        ("cm", 0.1098472626),
        ("anc", 0.1324320664),
        ("ode", 0.01653818368),
        ("ode_euler", 0.01106257521),
        ("ddim", 0.06644703607),
    ],
)
def test_gaussian_w2_of_every_rule(x64, rule, wanted):
    lam, mu = np.array([0.5, 1, 2]), np.array([0.3, -1, 0.5])
    law = gaussian_law(process64("vp"), np.linspace(1, 0, 51), RULES[rule], lam, mu)
    assert w2(*law, mu, lam) == pytest.approx(wanted, rel=1e-8)


VE, VP = sdes.VE, sdes.VP
BY_PROCESS = [  # horizon; mean and variance of ei; W2 of ei, em, ode
    (VE(sdes.ExponentialRate(1.0, 2.0)), 1.5, 0.9502129316, 0.5132297699, 0.05064707888, 0.04775364403, 0.2258772171),
    (VE(sdes.LinearRate(4.0, 0.0)), 3.0, 0.96, 0.5638505087, 0.05931128427, 0.05931128427, 0.2059138986),
    (VE(sdes.LinearRate(0.0, 2.0)), 3.0, 0.9473684211, 0.5152372273, 0.05370692508, 0.04968713572, 0.2323919579),
    (VP(sdes.LinearRate(0.1, 19.9)), 1.0, 0.9999851137, 0.519329286, 0.01353827553, 0.008402059873, 0.006143270144),
    (VP(sdes.ExponentialRate(0.1, np.log(300))), 1, 0.9978909109, 0.5149494089, 0.01070283906, 0.005621184227, 0.05181153762),
]  # fmt: skip


@pytest.mark.parametrize("process, horizon, mean, var, ei, em, ode", BY_PROCESS)
def test_gaussian_values_by_process(x64, process, horizon, mean, var, ei, em, ode):
    grid, lam, mu = np.linspace(horizon, 0, 101), np.array([0.5]), np.array([1.0])
    law = gaussian_law(process, grid, RULES["ei"], lam, mu)
    np.testing.assert_allclose([law[0][0], law[1][0]], [mean, var], rtol=1e-9)
    found = [w2(*gaussian_law(process, grid, RULES[rule], lam, mu), mu, lam) for rule in ("ei", "em", "ode")]
    np.testing.assert_allclose(found, [ei, em, ode], rtol=1e-8)


def test_first_order_from_the_exact_start(x64):
    process = sdes.VE(sdes.ExponentialRate(1.0, 2.0))
    for k, var in ((10, 0.6662201816), (100, 0.514469146), (1000, 0.5014274595)):
        law = gaussian_law(process, np.linspace(1.5, 0, k + 1), RULES["ei"], [0.5], [1.0], start="exact")
        np.testing.assert_allclose([law[0][0], law[1][0]], [1.0, var], rtol=1e-9)


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_reverse_diffusion_reverses_the_forward_step(x64, name):
    process = process64(name)
    s, t = 0.4 * float(process.horizon), 0.43 * float(process.horizon)
    step = transitions.reverse_diffusion(process, s, t)
    forward_scale = float(process.alpha(t) / process.alpha(s))
    np.testing.assert_allclose(step.scale, 2 - forward_scale, rtol=1e-12)
    added = process.variance(t) - forward_scale**2 * process.variance(s)
    np.testing.assert_allclose([step.score_weight, step.noise_var], added, rtol=1e-9)


def test_ve_reverse_diffusion_is_the_exponential_integrator(x64):
    process = process64("ve")
    first, second = (rule(process, 0.3, 0.5) for rule in (transitions.reverse_diffusion, transitions.exponential_sde))
    np.testing.assert_allclose(np.array(first), np.array(second), rtol=1e-12)


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_ddim_moves_a_point_along_its_noise(x64, name):
    """With x_t = alpha_t x0 + sigma_t n and the score -n / sigma_t, DDIM lands on alpha_s x0 + sigma_s n."""
    process = process64(name)
    s, t = 0.2 * float(process.horizon), 0.7 * float(process.horizon)
    x0, n = 1.3, -0.4
    xt, score = process.alpha(t) * x0 + process.sigma(t) * n, -n / process.sigma(t)
    step = transitions.ddim(process, s, t)
    np.testing.assert_allclose(
        step.scale * xt + step.score_weight * score, process.alpha(s) * x0 + process.sigma(s) * n, rtol=1e-10
    )


def test_ddim_keeps_its_digits_in_short_steps():
    process = sdes.vp_linear()
    s, t = jnp.float32(1e-6), jnp.float32(1.1e-6)
    with jax.enable_x64(True):
        with_64 = float(transitions.ddim(process64("vp"), float(s), float(t)).score_weight)
    assert float(transitions.ddim(process, s, t).score_weight) == pytest.approx(with_64, rel=1e-5)


def test_ancestral_leaves_no_noise_at_zero_and_denoise_is_tweedie(x64):
    process = process64("vp")
    assert float(transitions.ancestral(process, 0.0, 0.1).noise_var) == 0.0
    last, tweedie = transitions.ancestral(process, 0.0, 0.1), transitions.denoise(process, 0.1)
    np.testing.assert_allclose(np.array(last), np.array([*tweedie[:2], 0.0]), rtol=1e-12)
