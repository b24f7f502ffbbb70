"""The terminal distribution, the assumed distribution of x_T: objects with `sample(key, shape)` and `log_prob(x)`.

Samplers start from a draw of it, and likelihoods end with its log-density. `mixture` and `flow` hold distributions that
are fitted to x_T, and `families` how each of them is fitted.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.processes.rates import Scalar
from scoreflow.processes.sdes import Process
from scoreflow.runs.errors import UserError
from scoreflow.types import Key


class Terminal(Protocol):
    """The interface of every terminal distribution."""

    def sample(self, key: Key, shape: tuple[int, ...]) -> jax.Array:
        """Draws of the given shape [B, ...]."""
        ...

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of x [B, ...] in nats, [B]."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(0, std^2 I)."""

    std: Scalar

    def sample(self, key: Key, shape: tuple[int, ...]) -> jax.Array:
        """Draws of the given shape [B, ...]."""
        return self.std * jax.random.normal(key, shape)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of x [B, ...] in nats, [B]."""
        x = x.reshape(x.shape[0], -1)
        log_norm = 0.5 * np.log(2 * np.pi) + jnp.log(self.std)
        return -0.5 * jnp.sum((x / self.std) ** 2, axis=1) - x.shape[1] * log_norm


def prior(process: Process) -> Gaussian:
    """The process's own Gaussian at its horizon, N(0, I) for VP and N(0, sigma(T)^2 I) for VE.

    Args:
      process: the forward SDE.

    Examples:
      >>> import jax, scoreflow
      >>> end = scoreflow.prior(scoreflow.ve_geometric(sigma_max=50.0))
      >>> x = end.sample(jax.random.key(0), (1000, 2))
      >>> x.shape, end.log_prob(x).shape
      ((1000, 2), (1000,))
    """
    return Gaussian(process.prior_std())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pushforward:
    """The distribution of alpha x + sigma noise, where x is drawn from a pool of samples; it has no density.

    Attributes:
      pool: samples of any generator, [N, ...].
      alpha, sigma: the scales of the signal and of the noise.
    """

    pool: jax.Array
    alpha: Scalar
    sigma: Scalar

    def sample(self, key: Key, shape: tuple[int, ...]) -> jax.Array:
        """Draws of the given shape [B, ...]."""
        key_x, key_noise = jax.random.split(key)
        x = self.pool[jax.random.randint(key_x, shape[:1], 0, len(self.pool))]
        return self.alpha * x.reshape(shape) + self.sigma * jax.random.normal(key_noise, shape)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Always fails, because there is no density.

        Raises:
          UserError: always.
        """
        raise UserError(
            "terminal.name = pushforward has samples but no density, so no likelihood: set eval.likelihood = False"
        )
