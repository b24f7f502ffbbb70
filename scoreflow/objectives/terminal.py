"""The objective of a terminal distribution that is learned by gradient, alone or together with the score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scoreflow.models import TERMINAL
from scoreflow.objectives.protocols import Objective
from scoreflow.processes.sdes import Process
from scoreflow.types import Key, Params


def with_terminal(
    process: Process,
    encode: Callable[[Params, Key, jax.Array], jax.Array],
    loss: Callable[[Params, jax.Array], jax.Array],
    objective: Objective | None = None,
) -> Objective:
    """`objective`, if there is one, plus nats per dimension of a terminal distribution on draws of x_T.

    The two share the batch and no parameters, so that they can be learned together or one after the other (Franzese et
    al. 2022, arXiv 2206.05173, section 3.2).

    Args:
      process: the forward SDE.
      encode: (params, key, data [B, ...] as stored) -> x [B, ...]; no gradient flows through it.
      loss: (params[TERMINAL], x_T [B, ...]) -> nats [B]; see `terminal.families`.
      objective: that of the score; None where the terminal distribution is learned alone.
    """

    def combined(params, key, batch, *, train, step=None):
        key_score, key_x, key_noise = jax.random.split(key, 3)
        x0 = jax.lax.stop_gradient(encode(params, key_x, batch["x"]))
        xt = process.perturb(key_noise, x0, jnp.full(x0.shape[0], process.horizon, x0.dtype)).xt
        nats = jnp.mean(loss(params[TERMINAL], xt)) / x0[0].size
        if objective is None:
            return nats, {"loss": nats, "terminal": nats}
        total, terms = objective(params, key_score, batch, train=train, step=step)
        return total + nats, {**terms, "loss": total + nats, "terminal": nats}

    return combined
