"""Mean and covariance of features in a file, as programs for the FID exchange them.

An `.npz` file with `mu` [D] and `sigma` [D, D], the unbiased covariance, is what pytorch-fid, clean-fid and EDM write
and read. Further arrays in it, such as those of guided-diffusion, are left alone.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from scoreflow.data import DataError, load_arrays
from scoreflow.runs import files

_TOLERANCE = 1e-4  # of the largest entry of sigma: asymmetry, and negative eigenvalues, of float32 sums


def write(path: Path, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Writes `mu` [D] and `sigma` [D, D] in float64, whole or not at all; from one process."""
    with files.replacing(path) as scratch:
        np.savez(scratch, mu=np.asarray(mean, np.float64), sigma=np.asarray(covariance, np.float64))


def read(path: Path, size: int, name: str = "eval.reference") -> tuple[np.ndarray, np.ndarray]:
    """Mean [size] and covariance [size, size] in float64.

    Args:
      path: an `.npz` file.
      size: length of a feature vector.
      name: of the setting that gives the path, for messages.

    Raises:
      DataError: if the file is missing, of another form, or its content is no mean and covariance of that size.
    """
    what = f"{name} = {path}"
    arrays = _arrays(path, what)
    if missing := [key for key in ("mu", "sigma") if key not in arrays]:
        words = f"{what} has no {' and no '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}"
        samples = arrays.keys() & {"arr_0", "samples", "images"}
        raise DataError(words + ("; samples are given as eval.samples" if samples else ""))
    mu, sigma = arrays["mu"], arrays["sigma"]
    for key, value, shape in (("mu", mu, (size,)), ("sigma", sigma, (size, size))):
        if value.shape != shape:
            raise DataError(f"{what}: {key} has shape {value.shape}, and features of this run need {shape}")
        if not (np.issubdtype(value.dtype, np.floating) or np.issubdtype(value.dtype, np.integer)):
            raise DataError(f"{what}: {key} holds {value.dtype}, not real numbers")
        if not np.isfinite(value).all():
            raise DataError(f"{what}: {key} holds NaN or infinity")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    scale = float(np.abs(sigma).max())
    if np.abs(sigma - sigma.T).max() > _TOLERANCE * scale:
        raise DataError(f"{what}: sigma is not symmetric, so it is no covariance")
    sigma = 0.5 * (sigma + sigma.T)
    try:
        np.linalg.cholesky(sigma + _TOLERANCE * max(scale, 1e-300) * np.eye(size))
    except np.linalg.LinAlgError:
        raise DataError(f"{what}: sigma has negative eigenvalues, so it is no covariance") from None
    return mu, sigma


def _arrays(path: Path, what: str) -> Mapping[str, np.ndarray]:
    """The arrays in a file that is no pickle."""
    if not path.is_file():
        raise DataError(f"{what}: there is no such file")
    with open(path, "rb") as file:
        pickled = file.read(1) == b"\x80"
    if pickled or path.suffix.lower() in (".pkl", ".pickle"):
        raise DataError(
            f"{what} is a pickle, which could run code when it is read: write its mean and covariance with "
            "numpy.savez(path, mu=..., sigma=...) and give that file (EDM2 keeps them under 'fid')"
        )
    held = load_arrays(path, what, ".npz")
    if isinstance(held, np.ndarray):
        raise DataError(f"{what} is a single array; an .npz file with mu and sigma is needed")
    return held
