"""Precision and recall by k-nearest-neighbor balls (Kynkaanniemi et al. 2019)."""

import numpy as np
from scipy.spatial.distance import cdist

_CHUNK = 2000  # rows of a distance matrix in memory at once


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Distance from each row to its k-th nearest other row."""
    chunks = [x[i : i + _CHUNK] for i in range(0, len(x), _CHUNK)]
    return np.concatenate([np.partition(cdist(chunk, x), k, axis=1)[:, k] for chunk in chunks])


def covered(x: np.ndarray, reference: np.ndarray, k: int = 3) -> np.ndarray:
    """Whether each row of x lies in a ball around a row of `reference` up to its k-th nearest neighbor; [n] bool.

    Its mean is the precision where x are samples and `reference` data, the recall the other way round.
    """
    if len(reference) <= k:
        raise ValueError(f"k = {k} nearest neighbors need more than {len(reference)} reference rows")
    x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)
    radii = _radii(reference, k)
    chunks = [x[i : i + _CHUNK] for i in range(0, len(x), _CHUNK)]
    return np.concatenate([(cdist(chunk, reference) <= radii).any(axis=1) for chunk in chunks])
