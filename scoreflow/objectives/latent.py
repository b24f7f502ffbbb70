"""Objectives in latent space: the VAE alone, or the VAE together with its score prior.

Stage one, `vae_alone`: encoder and decoder under the prior N(0, I). Stage two starts from it: `joint` trains both with
a score model as prior, by one of the three published algorithms. (With a VAE that stays as it is, the score is trained
on latents as on any other data: `score_matching`.) Vahdat et al. 2021, arXiv 2106.05931.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from scoreflow.latent import kl
from scoreflow.latent.space import LatentSpace
from scoreflow.models import LATENT, MAIN
from scoreflow.models.vae import normal_log_prob
from scoreflow.objectives import spectral
from scoreflow.objectives.cross_entropy import boundary_terms, joint_losses
from scoreflow.objectives.protocols import Objective
from scoreflow.objectives.times import TimeSampler, normal_likelihood
from scoreflow.objectives.weights import Weight
from scoreflow.processes.sdes import Process
from scoreflow.score import Score
from scoreflow.space import infer
from scoreflow.types import CountOrZero, Flag, NonNegative, Positive


def _coefficient(low: float, high: float, hold: int, ramp: int) -> Callable:
    """step -> the coefficient of the divergence; 1 after training."""

    def at(step):
        if step is None:
            return 1.0
        return kl.kl_coefficient(step, low=low, high=high, constant=hold, ramp=ramp) if ramp else high

    return at


def vae_alone(
    latent: LatentSpace,
    *,
    coefficient_min: NonNegative = 1e-4,
    coefficient_max: Positive = 1.0,
    hold: CountOrZero = 0,
    ramp: CountOrZero = 0,
    balance: Flag = True,
    closed_entropy: Flag = False,
    spectral_weight: NonNegative = 0.0,
) -> Objective:
    """Reconstruction + c (entropy and cross entropy with N(0, I)), balanced over groups while c < 1.

    Args:
      latent: the latent space.
      coefficient_min: Coefficient of the divergence at the beginning.
      coefficient_max: Coefficient of the divergence at the end of its ramp.
      hold: Steps before the coefficient begins to grow.
      ramp: Steps over which the coefficient grows along a line.
      balance: Weight the groups of latents so that none becomes inactive while the coefficient is below 1.
      closed_entropy: Use the encoder's entropy in closed form instead of its log-density at the draw.
      spectral_weight: Weight of the penalty on the largest singular values of the VAE's layers.
    """
    coefficient = _coefficient(coefficient_min, coefficient_max, hold, ramp)

    def objective(params, key, batch, *, train, step=None):
        encoded, c = infer(latent, params, key, batch["x"]), coefficient(step)
        z, log_std, log_q = encoded.top
        each = kl.log_q_of(log_q, log_std, closed=closed_entropy) - normal_log_prob(z)
        divergences = jnp.concatenate([kl.group_sums(each, latent.groups), encoded.lower_kl], axis=1)
        groups = divergences.shape[1]
        factors = kl.balance(divergences, jnp.asarray(latent.sizes)) if balance else jnp.ones(groups)
        factors = jnp.where(c < 1, factors, 1.0)
        terms = {"reconstruction": jnp.mean(encoded.reconstruction), "divergence": jnp.mean(divergences.sum(1))}
        loss = terms["reconstruction"] + c * jnp.mean(divergences @ factors)
        if groups > 1:
            terms |= {f"divergence_{g + 1}": share for g, share in enumerate(divergences.mean(0))}
        if train and spectral_weight:
            terms["spectral"] = spectral.penalty(params[LATENT])
            loss = loss + spectral_weight * terms["spectral"]
        return loss, {"loss": loss, **terms}

    return objective


def joint(
    latent: LatentSpace,
    process: Process,
    score_of: Callable[..., Score],
    *,
    weight: Weight,
    sample_times: TimeSampler,
    t_min: float,
    algorithm: Literal[1, 2, 3] = 1,
    coefficient_min: NonNegative = 1.0,
    coefficient_max: Positive = 1.0,
    hold: CountOrZero = 0,
    ramp: CountOrZero = 0,
    closed_entropy: Flag = False,
    spectral_weight: NonNegative = 0.0,
    spectral_score: NonNegative = 0.0,
) -> Objective:
    """The bound of a VAE under its score prior, and the prior's own loss; see `cross_entropy.joint_losses`.

    The coefficient is on the VAE's divergence alone, in all three algorithms.

    Args:
      latent: the latent space.
      process: the forward SDE of the prior.
      score_of: (params, *, train, key) -> score function of the prior.
      weight: of the prior's loss.
      sample_times: times of the prior's loss, and of both losses where they share them.
      t_min: the cut-off.
      algorithm: Published algorithm: 1 trains both by the bound, 2 and 3 give the prior another weight, with times of
        its own (2) or shared ones (3).
      coefficient_min: Coefficient of the divergence at the beginning.
      coefficient_max: Coefficient of the divergence at the end of its ramp.
      hold: Steps before the coefficient begins to grow.
      ramp: Steps over which the coefficient grows along a line.
      closed_entropy: Use the encoder's entropy in closed form instead of its log-density at the draw.
      spectral_weight: Weight of the penalty on the largest singular values of the VAE's layers.
      spectral_score: Weight of the penalty on the largest singular values of the score network's layers.
    """
    coefficient = _coefficient(coefficient_min, coefficient_max, hold, ramp)
    shared = algorithm != 2
    options = {"weight": weight, "t_min": t_min, "shared": shared, "prior_sample_times": sample_times}
    options["sample_times"] = sample_times if shared else normal_likelihood

    def objective(params, key, batch, *, train, step=None):
        key_encode, key_score, key_network = jax.random.split(key, 3)
        encoded, c = infer(latent, params, key_encode, batch["x"]), coefficient(step)
        z = encoded.top.z
        network_score = lambda params: score_of(params, train=train, key=key_network)
        losses = joint_losses(process, network_score, params, key_score, z, **options)
        log_q = kl.log_q_of(encoded.top.log_q, encoded.top.log_std, closed=closed_entropy)
        terms = {
            "reconstruction": jnp.mean(encoded.reconstruction),
            "negative_entropy": jnp.mean(kl.example_sums(log_q)),
            "cross_entropy": jnp.mean(losses.vae + sum(boundary_terms(process, z, t_min))),
            "lower_divergence": jnp.mean(encoded.lower_kl.sum(1)),
        }
        divergence = terms["negative_entropy"] + terms["cross_entropy"] + terms["lower_divergence"]
        if not train:  # the bound is what is validated
            loss = terms["reconstruction"] + divergence
            return loss, {"loss": loss, **terms}
        terms["prior"] = jnp.mean(losses.prior)
        loss = terms["reconstruction"] + c * divergence + terms["prior"]
        for group, strength in ((LATENT, spectral_weight), (MAIN, spectral_score)):
            if strength:
                terms[f"spectral_{group}"] = spectral.penalty(params[group])
                loss = loss + strength * terms[f"spectral_{group}"]
        return loss, {"loss": loss, **terms}

    return objective
