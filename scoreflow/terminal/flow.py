"""A flow on images as a terminal law."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flow:
    """x = mean + std y, where y is what an invertible map makes of standard normal noise.

    Attributes:
      params: of the map.
      mean, std: of the numbers of x_T: flows begin near the identity, and x_T may be of any size.
      forward: (params, y [B, ...]) -> (noise, a list of arrays with as many numbers, log |det d noise / d y| [B]).
      inverse: (params, noise) -> (y, log-determinant of that way).
      shapes: shape of x -> shapes of the noise.
    """

    params: dict
    mean: ArrayLike
    std: ArrayLike
    forward: Callable = dataclasses.field(metadata={"static": True})
    inverse: Callable = dataclasses.field(metadata={"static": True})
    shapes: Callable = dataclasses.field(metadata={"static": True})

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws of the given shape [B, ...]."""
        shapes = self.shapes(shape)
        noise = [jax.random.normal(k, s) for k, s in zip(jax.random.split(key, len(shapes)), shapes)]
        return self.mean + self.std * self.inverse(self.params, noise)[0]

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of x [B, ...] in nats, [B]."""
        noise, log_det = self.forward(self.params, (x - self.mean) / self.std)
        square = sum(jnp.sum(part.reshape(len(x), -1) ** 2, axis=1) for part in noise)
        size = x[0].size
        return -0.5 * (square + size * np.log(2 * np.pi)) + log_det - size * jnp.log(self.std)
