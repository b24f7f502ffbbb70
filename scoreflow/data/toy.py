"""Densities on the line and in the plane that are known exactly, as pairs (sample, log_prob) in NumPy, float64."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import i0e, logsumexp


class Toy(NamedTuple):
    """A density.

    Attributes:
      sample: (rng, n) -> [n, d].
      log_prob: x [B, d] -> [B], nats; -inf outside the support.
    """

    sample: Callable[[np.random.Generator, int], np.ndarray]
    log_prob: Callable[[np.ndarray], np.ndarray]


def gaussian_mixture(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> Toy:
    """Mixture with weights [K], means [K, d], covariances [K, d, d]."""
    weights, means, covariances = (np.asarray(a, np.float64) for a in (weights, means, covariances))
    factors = np.linalg.cholesky(covariances)
    precisions = np.linalg.inv(covariances)
    log_norm = np.log(weights) - 0.5 * np.linalg.slogdet(2 * np.pi * covariances)[1]

    def sample(rng, n):
        k = rng.choice(len(weights), n, p=weights)
        return means[k] + np.einsum("nij,nj->ni", factors[k], rng.standard_normal((n, means.shape[1])))

    def log_prob(x):
        delta = np.asarray(x, np.float64)[:, None] - means
        return np.asarray(logsumexp(log_norm - 0.5 * np.einsum("bki,kij,bkj->bk", delta, precisions, delta), axis=1))

    return Toy(sample, log_prob)


def _ring_of_gaussians(radius: float, std: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    angles = np.arange(8) * np.pi / 4
    means = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.full(8, 1 / 8), means, np.broadcast_to(std**2 * np.eye(2), (8, 2, 2))


MIXTURES = {
    # three unequal, correlated Gaussians
    "mixture": (
        np.array([0.5, 0.3, 0.2]),
        np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -2.0]]),
        np.array([[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.6]], [[0.2, -0.1], [-0.1, 0.3]]]),
    ),
    # three narrow Gaussians on the line, the usual trial of high-order score matching; entropy -0.12885 nats
    "mixture_1d": (
        np.array([0.3, 0.3, 0.4]),
        np.array([[-2.0], [-6.0], [4.0]]) / 7,
        np.array([0.1, 0.1, 1.0])[:, None, None] / 49,
    ),
    # eight round Gaussians evenly spaced on a circle
    "eight_gaussians": _ring_of_gaussians(2 * np.sqrt(2), 0.25 * np.sqrt(2)),
}
"""Weights [K], means [K, d] and covariances [K, d, d] by name."""


def checkerboard() -> Toy:
    """Uniform on 8 of the 16 squares of side 2 that tile [-4, 4)^2; entropy log 32."""

    def sample(rng, n):
        a = rng.uniform(-2, 2, n)
        b = rng.uniform(0, 1, n) - 2 * rng.integers(0, 2, n) + np.floor(a) % 2
        return 2 * np.stack([a, b], axis=1)

    def log_prob(x):
        a, b = np.floor(np.asarray(x, np.float64) / 2).T
        inside = (np.abs(x) <= 4).all(axis=1) & ((a + b) % 2 == 0)
        return np.where(inside, -np.log(32.0), -np.inf)

    return Toy(sample, log_prob)


def rings(radii: tuple[float, ...] = (1.0, 2.0, 3.0), std: float = 0.15) -> Toy:
    """Circles, equally likely, blurred by N(0, std^2 I): a Bessel function of the radius."""
    circles = np.asarray(radii)

    def sample(rng, n):
        angle, radius = rng.uniform(0, 2 * np.pi, n), rng.choice(circles, n)
        points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return points + std * rng.standard_normal((n, 2))

    def log_prob(x):
        r = np.linalg.norm(np.asarray(x, np.float64), axis=1)[:, None]
        log_ring = -0.5 * (r - circles) ** 2 / std**2 + np.log(i0e(r * circles / std**2))
        return logsumexp(log_ring, axis=1) - np.log(len(circles) * 2 * np.pi * std**2)

    return Toy(sample, log_prob)


def spirals(turns: float = 1.5, radius: float = 3.0, std: float = 0.1, nodes: int = 600) -> Toy:
    """Two interleaved spirals, blurred by N(0, std^2 I).

    The point at u ~ U[0, 1] of an arm has radius `radius` sqrt(u) and angle 2 pi `turns` sqrt(u). log_prob integrates
    over sqrt(u) by Gauss-Legendre with `nodes` points per arm: exact to rounding where they are closer than std.
    """

    def arm(root):
        angle = 2 * np.pi * turns * root
        return radius * root[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    abscissae, weights = np.polynomial.legendre.leggauss(nodes)
    roots, weights = 0.5 * (abscissae + 1), 0.5 * weights
    curve = np.concatenate([arm(roots), -arm(roots)])
    log_weight = np.tile(np.log(roots * weights), 2) - np.log(2 * np.pi * std**2)

    def sample(rng, n):
        points = arm(np.sqrt(rng.uniform(0, 1, n))) * rng.choice([-1.0, 1.0], n)[:, None]
        return points + std * rng.standard_normal((n, 2))

    def log_prob(x):
        chunks = np.array_split(np.asarray(x, np.float64), len(x) // 500 + 1)

        def one(chunk):
            square = ((chunk[:, None] - curve) ** 2).sum(-1)
            return np.asarray(logsumexp(log_weight - 0.5 * square / std**2, axis=1))

        return np.concatenate([one(chunk) for chunk in chunks])

    return Toy(sample, log_prob)
