"""What training minimizes in latent space, as rows of a table: the VAE alone, with its score prior, or the prior alone.

Stage one, `alone`: encoder and decoder under the prior N(0, I). Stage two starts from it: `joint` trains both with a
score model as prior, by one of the three published algorithms; `frozen` leaves the VAE as it is, and the score is
trained on latents as on any other data, with all that can be added to its loss.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.latent.space import Space, View
from scoreflow.models import LATENT, MAIN, MIXING
from scoreflow.models.vae import normal_log_prob
from scoreflow.objectives import latent, spectral
from scoreflow.objectives.times import normal_likelihood
from scoreflow.objectives.weights import Weight
from scoreflow.processes.sdes import Process
from scoreflow.runs import parallel


class Parts(NamedTuple):
    """What an objective in latent space is made of.

    Attributes:
      space: the latent space.
      process, score_of, t_min: as in `Experiment`.
      weight, law: of the prior's loss and of its times.
      of_score: the objective of the score alone, on any data.
    """

    space: Space
    process: Process
    score_of: Callable
    t_min: float
    weight: Weight
    law: Callable
    of_score: Callable


class Rates(NamedTuple):
    """How a VAE learns beside its prior: Adam with a cosine from the first to the last rate, decoupled decay."""

    learning_rate: float = 1e-4
    learning_rate_end: float = 1e-5
    eps: float = 1e-3
    weight_decay: float = 3e-4


class Latent(NamedTuple):
    """A row of the table.

    Attributes:
      objective: (Parts) -> objective.
      prior: whether there is a score network.
      rates: how the VAE learns beside it; None where it is alone, or does not.
      drop_inactive: whether channels that say nothing are found before training and left out of the prior.
    """

    objective: Callable
    prior: bool = True
    rates: Rates | None = None
    drop_inactive: bool = False


_INACTIVE = -15.0  # logit of a channel that is left out of the prior


def encoder(space: Space) -> Callable:
    """(params, key, data as stored) -> a draw of their latents."""

    def encode(params, key, data):
        return _view(space, params, key, {"x": data}).top.z

    return encode


def in_batches(function: Callable, params, key: jax.Array, data, size: int = 500) -> np.ndarray:
    """function(params, key, data [B, ...]) over all data, in batches with a key each, on the host."""
    run = parallel.jit(function, out_shardings=parallel.replicated())
    keys = jax.random.split(key, -(-len(data) // size))
    parts = [run(params, k, np.asarray(data[i * size : (i + 1) * size])) for i, k in enumerate(keys)]
    return np.concatenate(parallel.gather(parts))


def mask_inactive(space: Space, data, params, key: jax.Array) -> dict[str, jax.Array]:
    """The parameters of `score.mixed` with the channels left out whose divergence from N(0, I) is at most 0.1 nats."""

    def per_channel(params, key, data):
        top = _view(space, params, key, {"x": data}).top
        return latent.channel_sums(top.log_q - normal_log_prob(top.z))

    active = latent.active(in_batches(per_channel, params, key, data))
    mixing = params[MIXING]
    return {"logits": jnp.where(active, mixing["logits"], _INACTIVE), "active": active.astype(jnp.float32)}


def _view(space: Space, params, key, batch) -> View:
    key_read, key_infer = jax.random.split(key)
    return space.infer(params[LATENT], key_infer, space.levels.read(key_read, batch["x"]))


def _coefficient(low: float, high: float, hold: int, ramp: int) -> Callable:
    """step -> that of the divergence; 1 after training."""

    def at(step):
        if step is None:
            return 1.0
        return latent.kl_coefficient(step, low=low, high=high, constant=hold, ramp=ramp) if ramp else high

    return at


def alone(
    *,
    coefficient_min: float = 1e-4,
    coefficient_max: float = 1.0,
    hold: int = 0,
    ramp: int = 0,
    balance: bool = True,
    closed_entropy: bool = False,
    spectral_weight: float = 0.0,
) -> Latent:
    """Reconstruction + c (entropy and cross entropy with N(0, I)), balanced over groups while c < 1."""
    coefficient = _coefficient(coefficient_min, coefficient_max, hold, ramp)

    def make(parts: Parts) -> Callable:
        space = parts.space

        def objective(params, key, batch, *, train, step=None):
            view, c = _view(space, params, key, batch), coefficient(step)
            z, log_std, log_q = view.top
            each = latent.log_q_of(log_q, log_std, closed=closed_entropy) - normal_log_prob(z)
            kl = jnp.concatenate([latent.group_sums(each, space.groups), view.lower_kl], axis=1)
            factors = latent.balance(kl, jnp.asarray(space.sizes)) if balance else jnp.ones(kl.shape[1])
            factors = jnp.where(c < 1, factors, 1.0)
            terms = {"reconstruction": jnp.mean(view.reconstruction), "divergence": jnp.mean(kl.sum(1))}
            loss = terms["reconstruction"] + c * jnp.mean(kl @ factors)
            if kl.shape[1] > 1:
                terms |= {f"divergence_{g + 1}": share for g, share in enumerate(kl.mean(0))}
            if train and spectral_weight:
                terms["spectral"] = spectral.penalty(params[LATENT])
                loss = loss + spectral_weight * terms["spectral"]
            return loss, {"loss": loss, **terms}

        return objective

    return Latent(make, prior=False)


def joint(
    *,
    algorithm: int = 1,
    coefficient_min: float = 1.0,
    coefficient_max: float = 1.0,
    hold: int = 0,
    ramp: int = 0,
    closed_entropy: bool = False,
    spectral_weight: float = 0.0,
    spectral_score: float = 0.0,
    drop_inactive: bool = False,
    **rates,
) -> Latent:
    """The bound of a VAE under its score prior, and the prior's own loss; see `losses.latent.joint_losses`.

    The coefficient is on the VAE's divergence alone, in all three algorithms.
    """
    coefficient = _coefficient(coefficient_min, coefficient_max, hold, ramp)

    def make(parts: Parts) -> Callable:
        space, process, shared = parts.space, parts.process, algorithm != 2
        laws = {"law": parts.law if shared else normal_likelihood, "prior_law": parts.law}

        def objective(params, key, batch, *, train, step=None):
            key_view, key_score, key_network = jax.random.split(key, 3)
            view, c = _view(space, params, key_view, batch), coefficient(step)
            z = view.top.z
            score_of = lambda params: parts.score_of(params, train=train, key=key_network)
            options = {"weight": parts.weight, "t_min": parts.t_min, "shared": shared, **laws}
            losses = latent.joint_losses(process, score_of, params, key_score, z, **options)
            log_q = latent.log_q_of(view.top.log_q, view.top.log_std, closed=closed_entropy)
            terms = {
                "reconstruction": jnp.mean(view.reconstruction),
                "negative_entropy": jnp.mean(latent.example_sums(log_q)),
                "cross_entropy": jnp.mean(losses.vae + sum(latent.boundary_terms(process, z, parts.t_min))),
                "lower_divergence": jnp.mean(view.lower_kl.sum(1)),
            }
            divergence = terms["negative_entropy"] + terms["cross_entropy"] + terms["lower_divergence"]
            if not train:  # the bound is what is validated
                loss = terms["reconstruction"] + divergence
                return loss, {"loss": loss, **terms}
            terms["prior"] = jnp.mean(losses.prior)
            loss = terms["reconstruction"] + c * divergence + terms["prior"]
            for part, weight in ((LATENT, spectral_weight), (MAIN, spectral_score)):
                if weight:
                    terms[f"spectral_{part}"] = spectral.penalty(params[part])
                    loss = loss + weight * terms[f"spectral_{part}"]
            return loss, {"loss": loss, **terms}

        return objective

    return Latent(make, rates=Rates(**rates), drop_inactive=drop_inactive)


def frozen(*, drop_inactive: bool = False) -> Latent:
    """The score alone, on latents of a VAE that stays as it is."""
    return Latent(lambda parts: parts.of_score, drop_inactive=drop_inactive)
