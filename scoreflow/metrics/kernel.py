"""Kernel distance: unbiased squared maximum mean discrepancy with a cubic kernel (Binkowski et al. 2018, KID)."""

import numpy as np

from scoreflow.metrics import Estimate, mean_estimate

MIN_SAMPLES = 16  # on each side, for eight subsets of two


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of MMD^2 between samples x [m, D] and y [n, D] with the kernel (x.y / D + 1)^3."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    m, n = len(x), len(y)

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    kxx, kyy, kxy = kernel(x, x), kernel(y, y), kernel(x, y)
    same = (kxx.sum() - np.trace(kxx)) / (m * (m - 1)) + (kyy.sum() - np.trace(kyy)) / (n * (n - 1))
    return float(same - 2 * kxy.mean())


def kernel_distance(
    x: np.ndarray, y: np.ndarray, *, subset: int = 1000, max_subsets: int = 100, seed: int = 0
) -> Estimate:
    """MMD^2 over disjoint subsets of both samples: its mean, and the standard error over subsets.

    The subsets have `subset` rows, or an eighth of the smaller sample where that is less: so there are eight or more,
    and the standard error is that of independent values.
    """
    rng = np.random.default_rng(seed)
    n = min(len(x), len(y))
    if n < MIN_SAMPLES:
        raise ValueError(f"the kernel distance needs {MIN_SAMPLES} samples on each side, not {n}")
    size = min(subset, n // 8)
    count = min(n // size, max_subsets)
    rows, columns = (rng.permutation(len(a))[: count * size].reshape(count, size) for a in (x, y))
    return mean_estimate(np.array([mmd2(x[i], y[j]) for i, j in zip(rows, columns)]))
