"""A penalty on the steepness of a network's layers (Vahdat, Kautz 2020, arXiv 2007.03898, section 3.2).

    sum over kernels [inputs, outputs] of their largest singular value + sum over norms of the largest |scale|

It is added to a loss as it is. The published code keeps the vectors of a power iteration from step to step. This one
computes a power of the smaller Gram matrix by repeated squaring, which converges faster and leaves nothing to keep.
"""

import jax
import jax.numpy as jnp

from scoreflow.types import Params

_SQUARINGS = 6  # the 64th power


def largest_singular_value(matrix: jax.Array) -> jax.Array:
    """Of [m, n], by 64 steps of a power iteration; its gradient is the product of the two singular vectors."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    stopped = jax.lax.stop_gradient(wide)
    power = stopped @ stopped.T
    for _ in range(_SQUARINGS):
        power = power / jnp.maximum(jnp.trace(power), 1e-30)
        power = power @ power
    # all columns of a high power are multiples of the first singular vector; the longest is the most accurate
    column = power[:, jnp.argmax(jnp.sum(power**2, axis=0))]
    left = column / jnp.maximum(jnp.linalg.norm(column), 1e-30)
    return jnp.sqrt(jnp.sum((left @ wide) ** 2) + 1e-30)


def penalty(params: Params) -> jax.Array:
    """The sum above over a tree of parameters by Flax's names: kernel (with log_norm, where it is normed) and scale."""
    total = jnp.zeros(())
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            total = total + penalty(leaf)
        elif name == "kernel":
            matrix = leaf.reshape(-1, leaf.shape[-1])
            if "log_norm" in params:
                matrix = matrix * (jnp.exp(params["log_norm"]) / jnp.linalg.norm(matrix, axis=0))[None]
            total = total + largest_singular_value(matrix)
        elif name == "scale":
            total = total + jnp.max(jnp.abs(leaf))
    return total
