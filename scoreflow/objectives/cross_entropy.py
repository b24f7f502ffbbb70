"""Terms of a VAE whose prior is a score model (Vahdat et al. 2021, arXiv 2106.05931).

With encoder q(z|x), decoder p(x|z) and the prior p(z) of a score s under a linear SDE, nats for each example,

    -log p(x) <= E[-log p(x|z)] + E[log q(z|x)] + CE(q(z|x) || p(z))                                                (1)

The cross entropy needs conditional scores alone. At the cut-off tau, with z_t = alpha z + sigma noise, it is

    CE = 1/2 int_tau^T g^2/sigma^2 E |sigma s + noise|^2 dt + d/2 log(2 pi e sigma_tau^2) + E KL(q(z_T|z) || p_T)   (2)

(the last term, which the article drops, is derived here): an equality where s is the score of diffused data, and a
bound for the SDE sampler otherwise. Encoder and decoder learn by (1) with (2) as it stands; the prior may learn by
other weights on the squared error. `joint_losses` cuts the gradients accordingly.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.objectives.times import TimeSampler
from scoreflow.objectives.weights import Weight, likelihood_weight
from scoreflow.processes.sdes import Process, expand
from scoreflow.score import Score
from scoreflow.types import Key, Params


class CrossEntropy(NamedTuple):
    """(2) in nats, [B] each: `match`, estimated at one time, `constant` and `boundary`, of the first and last noise."""

    match: jax.Array
    constant: jax.Array
    boundary: jax.Array

    @property
    def total(self) -> jax.Array:
        """Their sum, [B]."""
        return self.match + self.constant + self.boundary


def squared_error(
    process: Process, score: Score, key: Key, z0: jax.Array, t: jax.Array, cond: jax.Array | None = None
) -> jax.Array:
    """|sigma s(z_t, t) + noise|^2, [B], differentiable in z0 through z_t. See `dsm` for the arguments."""
    zt, noise, sigma = process.perturb(key, z0, t)
    error = expand(sigma, zt) * score(zt, t, cond) + noise
    return jnp.sum(error.reshape(len(z0), -1) ** 2, axis=1)


def boundary_terms(
    process: Process, z0: jax.Array, t_min: float, std: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The constant and the boundary term of (2) for z0 [B, ...], [B] each.

    The distribution at T is N(0, std^2 I), by default the process's own.
    """
    size = z0[0].size
    first, last = process.variance(jnp.asarray(t_min, z0.dtype)), process.variance(process.horizon)
    square = (process.prior_std() if std is None else std) ** 2
    constant = jnp.full(len(z0), 0.5 * size * jnp.log(2 * np.pi * np.e * first), z0.dtype)
    length = process.alpha(process.horizon) ** 2 * jnp.sum(z0.reshape(len(z0), -1) ** 2, axis=1)
    boundary = 0.5 * (length / square + size * (last / square - 1.0 - jnp.log(last / square)))
    return constant, boundary


def cross_entropy(
    process: Process,
    score: Score,
    key: Key,
    z0: jax.Array,
    t: jax.Array,
    inv_density: jax.Array,
    cond: jax.Array | None = None,
    *,
    t_min: float,
) -> CrossEntropy:
    """(2) by one time t [B] for each example, drawn from a distribution of `times` with its `inv_density` [B]."""
    error = squared_error(process, score, key, z0, t, cond)
    match = 0.5 * inv_density * likelihood_weight(process, t) * error
    return CrossEntropy(match, *boundary_terms(process, z0, t_min))


class JointLosses(NamedTuple):
    """Losses [B] with gradients cut: `vae` moves encoder and decoder, `prior` the score.

    `vae` is (2) without its constant and boundary, which is what (1) adds to the reconstruction and the entropy.
    """

    vae: jax.Array
    prior: jax.Array


def joint_losses(
    process: Process,
    score_of: Callable[[Params], Score],
    params: Params,
    key: Key,
    z0: jax.Array,
    *,
    sample_times: TimeSampler,
    prior_sample_times: TimeSampler | None,
    weight: Weight = likelihood_weight,
    t_min: float,
    shared: bool = True,
) -> JointLosses:
    """The two losses of the published algorithms, as one expression to be summed and differentiated once.

    Algorithm 1: weight = `likelihood_weight`, shared. Algorithm 2: another weight, not shared, each with the times that
    suit it. Algorithm 3: another weight, shared, one pass of the network.

    Args:
      process: the forward SDE.
      score_of: params -> score function.
      params: of the score.
      key: PRNG key of times and noise.
      z0: latents [B, ...], a function of the encoder's parameters.
      sample_times: distribution of the times of the VAE's loss, and of both losses where they share them.
      prior_sample_times: distribution of the times of the prior's loss; unused, and may be None, where they are shared.
      weight: of the prior's loss, on the squared noise error.
      t_min: the cut-off.
      shared: whether both read one pass of the network.
    """
    stopped_params, stopped_z0 = jax.lax.stop_gradient(params), jax.lax.stop_gradient(z0)
    key_t, key_noise, key_prior = jax.random.split(key, 3)
    t, inv_density = sample_times(process, key_t, len(z0), t_min=t_min)
    error = squared_error(process, score_of(stopped_params), key_noise, z0, t)
    vae = 0.5 * inv_density * likelihood_weight(process, t) * error
    if not shared:
        assert prior_sample_times is not None
        key_t, key_noise = jax.random.split(key_prior)
        t, inv_density = prior_sample_times(process, key_t, len(z0), t_min=t_min)
    error = squared_error(process, score_of(params), key_noise, stopped_z0, t)
    return JointLosses(vae, 0.5 * inv_density * weight(process, t) * error)
