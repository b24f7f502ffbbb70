"""The Gaussian with the data's mean and covariance, whose diffusion is known in closed form.

If x_0 is normal with mean m and covariance S = U diag(v) U^T + r (I - U U^T), then x_t has the mean alpha m and the
covariance C_t = alpha^2 S + sigma^2, and everything about its probability flow is exact. With several classes, each has
a mean and variances of its own in common directions U, and a label chooses among them.

A function f of S acts by f(S) y = f(r) y + U (f(v) - f(r)) U^T y, so U may have all d columns or a few.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoreflow.types import Cond, Conditioning

FULL = 3072
"""Up to so many dimensions all directions are kept, where there are examples enough."""
RANK = 256
"""Directions that are kept of more dimensions."""
_EXAMPLES = 5  # for each dimension, without which all directions together would fit the examples and not the data
_EACH = 8  # examples for each direction, where these are not enough for all
_DRAWN = 30.0  # examples of the variance of all that each class is given
_PASSES = 2  # of subspace iteration, after the first

Rows = Callable[[], Iterable[tuple[np.ndarray, np.ndarray | None]]]
"""Begins a pass over data: batches of (x [B, d], labels [B] int or None)."""


class Gaussian(NamedTuple):
    """A Gaussian of x_0 for each of C classes, in d dimensions; C = 1 where there are none.

    Attributes:
      mean: [C, d].
      basis: U, orthonormal columns [d, k].
      variances: v, in the directions of U, [C, k].
      rest: r, the variance in all others, [C].
    """

    mean: jax.Array
    basis: jax.Array
    variances: jax.Array
    rest: jax.Array

    def of(self, cond: Cond, count: int) -> "Gaussian":
        """With a row for each of `count` examples in the place of classes, by their labels."""
        row = self.row(cond, count)
        return Gaussian(self.mean[row], self.basis, self.variances[row], self.rest[row])

    def row(self, cond: Cond, count: int) -> jax.Array:
        """The class of each of `count` examples, [count] int32.

        Raises:
          ValueError: if there are several classes and no labels.
        """
        label = cond.label if isinstance(cond, Conditioning) else cond
        if self.mean.shape[0] == 1:
            return jnp.zeros(count, jnp.int32)
        if label is None:
            raise ValueError("the Gaussian of the data was fitted with labels: give them, or fit it without")
        return label


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """A product in full float32, also where a device would use fewer bits."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def standard(d: int, variance: float = 1.0) -> Gaussian:
    """Mean 0 and covariance `variance` times the identity."""
    return Gaussian(jnp.zeros((1, d)), jnp.zeros((d, 0)), jnp.zeros((1, 0)), jnp.full(1, variance))


def fit(rows: Rows, d: int, *, classes: int = 1, rank: int | None = None, seed: int = 0) -> Gaussian:
    """The moments of data, a few passes over them without holding them.

    Args:
      rows: begins a pass; every pass must give the same data.
      d: dimensions.
      classes: number of labels; 1 leaves labels aside. Directions are those of the mean covariance within a class.
      rank: directions that are kept; None for all up to `FULL` dimensions and `RANK` of more, or fewer where there are
        few examples.
      seed: of the first directions of the subspace iteration, which finds those of largest variance (Halko et al. 2011,
        arXiv 0909.4061).

    Returns:
      float32 arrays, computed in float64.

    Raises:
      ValueError: if there are no data.
    """

    def one_hot() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for x, label in rows():
            label = np.zeros(len(x), int) if label is None or classes == 1 else label
            yield np.asarray(x, np.float64), np.eye(classes)[label]

    count, total = np.zeros(classes), np.zeros((classes, d))
    for x, member in one_hot():
        count += member.sum(0)
        total += member.T @ x
    if not count.sum():
        raise ValueError("a Gaussian of no data")
    rank = _rank(d, int(count.sum())) if rank is None else min(d, rank)
    mean = np.where(count[:, None] > 0, total / np.maximum(count, 1.0)[:, None], total.sum(0) / count.sum())

    def centered() -> Iterable[np.ndarray]:
        for x, member in one_hot():
            yield x - member @ mean

    basis = _directions(centered, d, rank, count.sum(), seed)
    along, whole = np.zeros((classes, rank)), np.zeros((classes, 1))
    for x, member in one_hot():
        x = x - member @ mean
        along += member.T @ (x @ basis) ** 2
        whole += member.T @ (x**2).sum(1, keepdims=True)
    variances = _pooled(along, count)
    if rank < d:
        rest = np.maximum(_pooled(whole, count)[:, 0] - variances.sum(1), 0.0) / (d - rank)
    else:  # nothing is left, so any number will do, and one near the variances loses the least to rounding
        rest = variances.mean(1)
    return Gaussian(*(jnp.asarray(each, jnp.float32) for each in (mean, basis, variances, rest)))


def _rank(d: int, count: int) -> int:
    """Directions that so many examples determine; variances along more would be far off for other examples."""
    most = d if d <= FULL else RANK
    return most if count >= _EXAMPLES * min(d, most) else max(1, min(most, count // _EACH))


def _pooled(sums: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Variances of classes from their sums of squares; a class of few examples is drawn to the variance of all."""
    common, weight = sums.sum(0) / count.sum(), _DRAWN * (len(count) > 1)
    return (sums + weight * common) / (count + weight)[:, None]


def _directions(centered: Callable[[], Iterable[np.ndarray]], d: int, rank: int, count: float, seed: int) -> np.ndarray:
    """Eigenvectors of the covariance, the largest variances first: the leading `rank`."""
    if d <= FULL:
        covariance = np.zeros((d, d))
        for x in centered():
            covariance += x.T @ x
        return np.linalg.eigh(covariance / count)[1][:, ::-1][:, :rank]
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, min(d, rank + 16))))[0]
    for _ in range(_PASSES + 1):
        image = np.zeros_like(basis)
        for x in centered():
            image += x.T @ (x @ basis)
        basis = np.linalg.qr(image)[0]
    inside = np.zeros((basis.shape[1],) * 2)
    for x in centered():
        projected = x @ basis
        inside += projected.T @ projected
    return basis @ np.linalg.eigh(inside)[1][:, ::-1][:, :rank]


def undiffused(gaussian: Gaussian, alpha: ArrayLike, sigma: ArrayLike) -> Gaussian:
    """The Gaussian of x_0 where the given one is that of x_t, at alpha(t) and sigma(t); variances end at 0."""
    clean = lambda variance: jnp.maximum(variance - jnp.square(sigma), 0.0) / jnp.square(alpha)
    return Gaussian(gaussian.mean / alpha, gaussian.basis, clean(gaussian.variances), clean(gaussian.rest))


class Spectral(NamedTuple):
    """A function f of S for each of B examples: its values on the directions of U, [B, k], and on the rest, [B]."""

    along: jax.Array
    rest: jax.Array

    def apply(self, basis: jax.Array, x: jax.Array) -> jax.Array:
        """f(S) x of examples [B, d]."""
        inside = matmul(x, basis)
        return self.rest[:, None] * x + matmul((self.along - self.rest[:, None]) * inside, basis.T)


def spectral(gaussian: Gaussian, f: Callable[[jax.Array], jax.Array]) -> Spectral:
    """f(S), from f of a number."""
    return Spectral(f(gaussian.variances), f(gaussian.rest))
