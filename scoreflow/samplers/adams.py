"""Weights of Adams' multistep rules on nodes that are not even (Hairer, Norsett, Wanner 1993, section III.5)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ORDER = 3
"""The highest order of a rule, which is the number of nodes that a step looks at."""
_POINTS = 6  # of the quadrature in each step

Array = Any  # of NumPy or JAX


def adams(q: Array, order: int, kernel: Callable[[Array], Array] | None = None) -> tuple[Array, Array]:
    """Weights with which a step to each node sums the values of f at nodes before it, or at the node itself and before.

    They integrate kernel(q) f(q) over the step, for the polynomial f through these nodes. The first steps look at the
    nodes that there are, with a lower order.

    Args:
      q: nodes [K + 1], which rise or fall; NumPy's in float64 or JAX's, also while a program is traced.
      order: of the rule, 1 to `ORDER`.
      kernel: q [K, points] -> [K, points, ...], a factor that is integrated with f; None for 1.

    Returns:
      the predictor's and the corrector's weights, [K + 1, ORDER, ...] each, the nearest node first; 0 for the first
      node.
    """
    steps, back = np.arange(1, len(q)), np.arange(ORDER)

    def to_nodes(first: np.ndarray) -> Array:
        at = first[:, None] - back[None]
        inner = _weights(q, steps, np.where((at >= 0) & (back[None] < order), at, -1), kernel)
        return _namespace(q).concatenate([_namespace(q).zeros_like(inner[:1]), inner])

    return to_nodes(steps - 1), to_nodes(steps)


def _namespace(q: Array) -> Any:
    return jnp if isinstance(q, jax.Array) else np


def _weights(q: Array, step: np.ndarray, nodes: np.ndarray, kernel: Callable[[Array], Array] | None) -> Array:
    """The integrals over steps [N] of the Lagrange polynomials through their nodes [N, ORDER]; -1 for no node."""
    xp = _namespace(q)
    low, high, at = q[step - 1], q[step], q[nodes]
    points, gauss = np.polynomial.legendre.leggauss(_POINTS)
    s = low[:, None] + (high - low)[:, None] * (points[None] + 1.0) / 2.0  # [N, points]
    apart = at[:, :, None] - at[:, None, :]  # [N, polynomial, other node]
    passed_over = np.eye(ORDER, dtype=bool)[None] | (nodes < 0)[:, None, :] | (nodes < 0)[:, :, None]
    ratios = (s[:, :, None, None] - at[:, None, None, :]) / xp.where(passed_over, 1.0, apart)[:, None]
    values = xp.where(passed_over[:, None], 1.0, ratios).prod(-1)  # [N, points, polynomial]
    values = xp.where(nodes[:, None] < 0, 0.0, values) * (gauss[None] * (high - low)[:, None] / 2.0)[:, :, None]
    return values.sum(1) if kernel is None else xp.einsum("npj,np...->nj...", values, kernel(s))
