"""The objectives of latent models by themselves, on latents that are known."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import score as scores
from scoreflow.latent.space import Encoded
from scoreflow.models import LATENT, vae
from scoreflow.models.vae import normal_log_prob
from scoreflow.objectives import times, weights
from scoreflow.objectives.latent import joint, vae_alone
from scoreflow.processes import sdes


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("coefficient, balanced", [(0.5, True), (1.0, False)])
def test_groups_are_balanced_until_the_coefficient_is_1(coefficient, balanced):
    """Two groups of known divergences, weighted by hand: reconstruction + c sum_g factor_g divergence_g."""
    z, log_std = jnp.full((4, 2), 2.0), jnp.zeros((4, 2))
    top, lower = (vae.Posterior(scale * z, log_std, normal_log_prob(0.0 * z)) for scale in (1.0, 0.5))
    latent = SimpleNamespace(
        quantiser=SimpleNamespace(quantise=lambda key, x: x),
        infer=lambda params, key, x: Encoded(top, (lower,), jnp.full(4, 7.0), x),
        groups=1,
        sizes=(1.0, 1.0),
    )
    objective = vae_alone(latent, coefficient_max=coefficient)
    loss, _ = objective({LATENT: {}}, jax.random.key(0), {"x": z}, train=True, step=jnp.asarray(0))
    divergences = np.asarray([2 * 2.0**2 / 2, 2 * 1.0**2 / 2])  # log q - log N(z; 0, I) where q is at its mode 0
    factors = (divergences + 0.01) / (divergences + 0.01).mean() if balanced else 1.0
    assert float(loss) == pytest.approx(7.0 + coefficient * float((factors * divergences).sum()), rel=1e-5)


def test_the_cross_entropy_of_normal_latents_is_their_entropy():
    """With the exact score of N(0, I) it is d / 2 log(2 pi e), as a mean over latents, times and noise."""
    process, z = sdes.vp_linear(), jax.random.normal(jax.random.key(3), (20_000, 2))
    top = vae.Posterior(z, jnp.zeros_like(z), normal_log_prob(z))
    latent = SimpleNamespace(
        quantiser=SimpleNamespace(quantise=lambda key, x: x),
        infer=lambda params, key, x: Encoded(top, (), jnp.zeros(len(z)), x),
    )
    rule = {"weight": weights.likelihood_weight, "sample_times": times.normal_likelihood, "t_min": 1e-3}
    objective = joint(latent, process, lambda *args, **options: scores.normal(process), **rule)
    _, terms = objective({LATENT: {}}, jax.random.key(0), {"x": z}, train=True, step=jnp.asarray(0))
    assert float(terms["cross_entropy"]) == pytest.approx(np.log(2 * np.pi * np.e), abs=0.1)
