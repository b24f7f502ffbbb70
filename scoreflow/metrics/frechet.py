"""Frechet distance between Gaussians fitted to features, from streaming moments (Heusel et al. 2017)."""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Sufficient statistics of features [n, D]; they add, so shards and processes merge.

    Attributes:
      n: number of rows.
      total: sum of rows, [D].
      outer: sum of outer products of rows with themselves, [D, D]; both sums are relative to `origin`.
      origin: a fixed vector [D] near the mean, subtracted before summing so that the covariance keeps its digits.
    """

    n: int
    total: np.ndarray
    outer: np.ndarray
    origin: np.ndarray


def init(origin: np.ndarray) -> Moments:
    """No rows yet. `origin` [D]: any row of the features will do; statistics to be merged must share it."""
    origin = np.asarray(origin, np.float64)
    return Moments(0, np.zeros_like(origin), np.zeros((len(origin), len(origin))), origin)


def update(stats: Moments, features: np.ndarray) -> Moments:
    """Adds rows [B, D]."""
    x = np.asarray(features, np.float64) - stats.origin
    return Moments(stats.n + len(x), stats.total + x.sum(0), stats.outer + x.T @ x, stats.origin)


def merge(first: Moments, second: Moments) -> Moments:
    """The statistics of both samples together."""
    if not np.array_equal(first.origin, second.origin):
        raise ValueError("moments about different origins cannot be merged")
    return Moments(first.n + second.n, first.total + second.total, first.outer + second.outer, first.origin)


def mean_and_covariance(stats: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and unbiased covariance [D, D]."""
    if stats.n < 2:
        raise ValueError(f"a covariance needs 2 rows, not {stats.n}")
    shift = stats.total / stats.n
    return stats.origin + shift, (stats.outer - stats.n * np.outer(shift, shift)) / (stats.n - 1)


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


class Reference(NamedTuple):
    """A Gaussian to compare with, its work done once: `mean` [D], `trace` of its covariance and its `root` [D, D]."""

    mean: np.ndarray
    trace: float
    root: np.ndarray


def reference(mean: np.ndarray, covariance: np.ndarray) -> Reference:
    """Prepares N(mean, covariance) for `gaussian_distance`."""
    return Reference(mean, float(np.trace(covariance)), _root(covariance))


def gaussian_distance(mean: np.ndarray, covariance: np.ndarray, target: Reference) -> float:
    """Squared 2-Wasserstein (Bures) distance of two Gaussians, by symmetric eigendecompositions.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2)); rank-deficient covariances are fine.
    """
    cross = np.linalg.eigvalsh(target.root @ covariance @ target.root)
    trace = np.trace(covariance) + target.trace - 2 * np.sqrt(np.maximum(cross, 0.0)).sum()
    return float(((mean - target.mean) ** 2).sum() + trace)


def frechet_distance(stats: Moments, target: Reference) -> float:
    """Frechet distance (FID where the features are Inception's) of a sample's statistics to a reference."""
    return gaussian_distance(*mean_and_covariance(stats), target)
