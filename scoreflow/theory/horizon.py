"""The two terms that a horizon T trades against each other, for data whose distribution is known.

With p_T the distribution of x_T, nu the terminal distribution and s the score (Franzese et al. 2022, arXiv 2206.05173),

    E log p >= E log p_data - G(s, T) - KL(p_T || nu),     G = 1/2 int_0^T g^2 E |s - grad log p_t|^2 dt            (1)

KL falls with T and G grows. The closed forms and their checks were derived independently for this library. Use double
precision (`jax.enable_x64(True)`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.optimize import minimize_scalar

from scoreflow.processes.rates import Scalar, quadrature
from scoreflow.processes.sdes import Process
from scoreflow.theory.exact import Gaussian, marginal

_POINTS, _REACH = 20_001, 12.0  # points on the line, and how many standard deviations it extends beyond the means


def gaussian_kl(process: Process, data: Gaussian, t: ArrayLike, std: Scalar | None = None) -> jax.Array:
    """KL(p_t || N(0, std^2 I)) in nats for Gaussian data; std is sigma(t) unless it is given. A scalar."""
    mean, spread = marginal(process, data, t)
    square = process.variance(t) if std is None else std**2
    ratio = spread / square
    return 0.5 * jnp.sum(ratio + mean**2 / square - 1.0 - jnp.log(ratio))


# ----------------------------------------------------------------------------------------------------------------------
# G for errors of the score whose size is known.


def gap(process: Process, error: Callable[[jax.Array], jax.Array], t: ArrayLike, start: ArrayLike = 0.0) -> jax.Array:
    """G from `start` to t by quadrature, for a mean squared error of the score, error(t [...]) -> [...]."""
    return quadrature(lambda s: 0.5 * process.diffusion_sq(s) * error(s), start, t, nodes=64)


def constant_error_gap(process: Process, delta: float, t: ArrayLike) -> jax.Array:
    """G where the error of the score is a constant vector of length delta: delta^2 / 2 int g^2."""
    return gap(process, lambda s: jnp.full_like(s, delta**2), t)


def noise_error_gap(process: Process, kappa: float, t: ArrayLike, start: ArrayLike) -> jax.Array:
    """G from `start` where the predicted noise has the rms error kappa: kappa^2 / 2 times the decrease of log-SNR."""
    return 0.5 * kappa**2 * (process.log_snr(start) - process.log_snr(t))


def relative_error_gap(process: Process, eta: float, data: Gaussian, t: ArrayLike) -> jax.Array:
    """G where the score of Gaussian data is scaled by 1 + eta: eta^2 / 2 int g^2 sum 1 / V."""

    def error(s: jax.Array) -> jax.Array:
        alpha, added = process.alpha(s)[..., None], process.variance(s)[..., None]
        return eta**2 * jnp.sum(1.0 / (alpha**2 * data.variance[None] + added), axis=-1)

    return gap(process, error, t)


def best(loss: Callable[[float], float], low: float, high: float, points: int = 200) -> float:
    """The T in [low, high] where loss(T) is least, to about 1e-6; the loss may have several minima."""
    grid = np.linspace(low, high, points)
    values = [float(loss(t)) for t in grid]
    i = int(np.argmin(values))
    inside = (grid[max(i - 1, 0)], grid[min(i + 1, points - 1)])
    minimum: Any = minimize_scalar(loss, bounds=inside, method="bounded", options={"xatol": 1e-8})
    return float(minimum.x)


# ----------------------------------------------------------------------------------------------------------------------
# Mixtures on the line, by the trapezoid rule.


class Line(NamedTuple):
    """A Gaussian mixture on the line: `weights`, `means` and `variances`, [K] each."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def at(self, process: Process, t: float) -> "Line":
        """The distribution of x_t."""
        alpha, added = float(process.alpha(t)), float(process.variance(t))
        return Line(self.weights, alpha * self.means, alpha**2 * self.variances + added)

    def points(self) -> np.ndarray:
        """The points of the trapezoid rule, [20001]."""
        reach = _REACH * np.sqrt(self.variances)
        return np.linspace((self.means - reach).min(), (self.means + reach).max(), _POINTS)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Log-density at x [...], in nats."""
        components = -0.5 * (x[..., None] - self.means) ** 2 / self.variances - 0.5 * np.log(2 * np.pi * self.variances)
        return np.logaddexp.reduce(np.log(self.weights) + components, axis=-1)

    def moments(self) -> tuple[float, float]:
        """Mean and variance."""
        mean = float(self.weights @ self.means)
        return mean, float(self.weights @ (self.variances + self.means**2) - mean**2)

    def matched(self) -> "Line":
        """The Gaussian with its mean and variance."""
        mean, variance = self.moments()
        return Line(np.ones(1), np.array([mean]), np.array([variance]))


STANDARD = Line(np.ones(1), np.zeros(1), np.ones(1))
TWO_PEAKS = Line(np.array([0.3, 0.7]), np.array([1.0, 3.0]), np.array([0.01, 0.25]))
"""0.3 N(1, 0.1^2) + 0.7 N(3, 0.5^2), the toy distribution of Franzese et al. 2022; its entropy is 0.851960 nats."""


def line_kl(p: Line, q: Line) -> float:
    """KL(p || q) in nats."""
    x = p.points()
    log_p = p.log_density(x)
    return float(np.trapezoid(np.exp(log_p) * (log_p - q.log_density(x)), x))


def line_entropy(p: Line) -> float:
    """Differential entropy in nats."""
    x = p.points()
    log_p = p.log_density(x)
    return float(-np.trapezoid(np.exp(log_p) * log_p, x))


class Generated(NamedTuple):
    """The distribution that the exact reverse SDE generates from a start other than p_T.

    Attributes:
      mean: its mean.
      std: its standard deviation.
      kl: KL(data || it) in nats.
    """

    mean: float
    std: float
    kl: float


def generated(process: Process, data: Line, start: Line, t: float, points: int = 3000) -> Generated:
    """q(x) = int p(x_0 = x | x_T = y) start(y) dy, for the exact score and without error of discretization.

    Its divergence from the data is at most KL(p_T || start), and usually much less.
    """
    last = data.at(process, t)
    alpha, added = float(process.alpha(t)), float(process.variance(t))
    x = np.linspace(data.points()[0], data.points()[-1], points)
    ends = np.array([last.points()[[0, -1]], start.points()[[0, -1]]])
    y = np.linspace(ends[:, 0].min(), ends[:, 1].max(), 2 * points)
    kernel = -0.5 * (y[None] - alpha * x[:, None]) ** 2 / added - 0.5 * np.log(2 * np.pi * added)
    ratio = np.trapezoid(np.exp(kernel + (start.log_density(y) - last.log_density(y))[None]), y, axis=1)
    p = np.exp(data.log_density(x))
    q = p * ratio
    mean = float(np.trapezoid(q * x, x))
    std = float(np.sqrt(np.trapezoid(q * (x - mean) ** 2, x)))
    return Generated(mean, std, float(-np.trapezoid(p * np.log(ratio), x)))


# ----------------------------------------------------------------------------------------------------------------------
# Gaussians of a restricted covariance, fitted to a Gaussian p_T.


def class_kl(covariance: np.ndarray, rank: int | None = None) -> float:
    """KL from N(., covariance [d, d]) to the closest Gaussian of a restricted class, in nats.

    The class is diagonal covariances where `rank` is None. Else it has `rank` directions with variances of their own
    and one variance for all others, so that a rank of 0 is isotropic.
    """
    log_det = float(np.linalg.slogdet(covariance)[1])
    if rank is None:
        return 0.5 * (float(np.log(np.diag(covariance)).sum()) - log_det)
    values = np.linalg.eigvalsh(covariance)[::-1]
    rest = values[rank:]
    return 0.5 * float(len(rest) * np.log(rest.mean()) - np.log(rest).sum()) if len(rest) else 0.0
