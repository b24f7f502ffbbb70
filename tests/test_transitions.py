"""The coefficient triples against what they are made for. Their exact results for Gaussian data are in `test_exact`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow.processes import sdes, transitions
from tests.truth import PROCESSES, process64


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
