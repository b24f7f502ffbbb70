"""A flow on images as a terminal distribution."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.processes.rates import Scalar
from scoreflow.types import Key, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flow:
    """The distribution of x = mean + std y, where an invertible map turns standard normal noise into y.

    Attributes:
      params: parameters of the map.
      mean, std: mean and standard deviation of the numbers of x_T. A flow starts near the identity, while x_T may have
        any scale.
      forward: (params, y [B, ...]) -> (noise, a list of arrays with as many numbers, log |det d noise / d y| [B]).
      inverse: (params, noise) -> (y, log-determinant of the inverse map).
      shapes: shape of x -> shapes of the noise.
    """

    params: Params
    mean: Scalar
    std: Scalar
    forward: Callable[[Params, jax.Array], tuple[list[jax.Array], jax.Array]] = dataclasses.field(
        metadata={"static": True}
    )
    inverse: Callable[[Params, list[jax.Array]], tuple[jax.Array, jax.Array]] = dataclasses.field(
        metadata={"static": True}
    )
    shapes: Callable[[tuple[int, ...]], list[tuple[int, ...]]] = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key, shape: tuple[int, ...]) -> jax.Array:
        """Draws of the given shape [B, ...]."""
        shapes = self.shapes(shape)
        noise = [jax.random.normal(k, s) for k, s in zip(jax.random.split(key, len(shapes)), shapes)]
        return self.mean + self.std * self.inverse(self.params, noise)[0]

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of x [B, ...] in nats, [B]."""
        noise, log_det = self.forward(self.params, (x - self.mean) / self.std)
        square = sum(jnp.sum(z.reshape(len(x), -1) ** 2, axis=1) for z in noise)
        size = x[0].size
        return -0.5 * (square + size * np.log(2 * np.pi)) + log_det - size * jnp.log(self.std)
