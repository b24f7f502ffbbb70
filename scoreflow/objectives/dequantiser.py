"""The objective of a flow for variational dequantization, on a finished score model."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import dequantise
from scoreflow.models import DEQUANTISER
from scoreflow.models.dequantiser import NoiseFlow
from scoreflow.objectives.protocols import Objective
from scoreflow.objectives.score_matching import UNLABELED, Labels
from scoreflow.score import Score


def variational_bound(
    bound: Callable[..., jax.Array],
    score_of: Callable[..., Score],
    flow: NoiseFlow,
    bins: dequantise.Bins,
    *,
    labels: Labels = UNLABELED,
) -> Objective:
    """Bits/dim of the SDE model's bound, as a function of the flow alone.

    The flow can improve the bound and pays for the entropy of its noise; no gradient reaches the score (Ho et al. 2019,
    arXiv 1902.00275, equation 12).

    Args:
      bound: (score, key, x [B, ...], cond) -> an upper bound on -log p in nats, [B]; one time for each example will do.
      score_of: (params) -> score function.
      flow: see `models.dequantiser`; its parameters are params[DEQUANTISER].
      bins: where the levels lie.
      labels: what the network is told of classes.
    """

    def objective(params, key, batch, *, train, step=None):
        del train, step
        key_noise, key_bound = jax.random.split(key)
        sample_flow = functools.partial(flow.apply, params[DEQUANTISER])
        x, log_q = dequantise.variational(key_noise, batch["x"], bins, flow=sample_flow)
        score, cond = score_of(jax.lax.stop_gradient(params)), labels.of(batch, key, train=False)
        nats = bound(score, key_bound, x, cond)
        size = x[0].size
        bits = jnp.mean(dequantise.bits_per_dim(-nats, log_q, size, bins))
        return bits, {"loss": bits, "noise": jnp.mean(log_q) / (size * np.log(2.0))}

    return objective
