"""What is assumed about x_T: a law with `sample(key, shape)` and `log_prob(x)`.

Samplers start from a draw of it, likelihoods end at its density. `mixture` and `flow` have laws that are fitted to x_T,
and `families` says how each is fitted.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoreflow.processes.sdes import Process
from scoreflow.runs.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(0, std^2 I)."""

    std: ArrayLike

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws of the given shape [B, ...]."""
        return self.std * jax.random.normal(key, shape)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of x [B, ...] in nats, [B]."""
        x = x.reshape(x.shape[0], -1)
        log_norm = 0.5 * np.log(2 * np.pi) + jnp.log(self.std)
        return -0.5 * jnp.sum((x / self.std) ** 2, axis=1) - x.shape[1] * log_norm


def prior(process: Process) -> Gaussian:
    """The process's own Gaussian at its horizon."""
    return Gaussian(process.prior_std())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pushforward:
    """alpha x + sigma noise, x drawn from a `pool` [N, ...] of what any generator made: no density."""

    pool: jax.Array
    alpha: ArrayLike
    sigma: ArrayLike

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws of the given shape [B, ...]."""
        key_x, key_noise = jax.random.split(key)
        x = self.pool[jax.random.randint(key_x, shape[:1], 0, len(self.pool))]
        return self.alpha * x.reshape(shape) + self.sigma * jax.random.normal(key_noise, shape)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """There is none.

        Raises:
          UserError: always.
        """
        raise UserError(
            "terminal.name = pushforward has samples but no density, so no likelihood: set eval.likelihood = False"
        )
