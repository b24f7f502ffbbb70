"""Exact 2-Wasserstein distance between equally large samples."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist


def wasserstein2(x: np.ndarray, y: np.ndarray) -> float:
    """W2 between the empirical distributions of x and y, [n, D] each, by optimal assignment; time grows as n^3.

    The distance between two samples of one distribution is not 0: report it too, as a reference.
    """
    if len(x) != len(y):
        raise ValueError(f"the samples must be equally large, not {len(x)} and {len(y)}")
    cost = cdist(np.asarray(x, np.float64), np.asarray(y, np.float64), "sqeuclidean")
    rows, columns = linear_sum_assignment(cost)
    return float(np.sqrt(cost[rows, columns].mean()))
