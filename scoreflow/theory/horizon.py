"""How long to diffuse, where everything is known: the two terms that a horizon T trades against each other.

With p_T the law of x_T, nu the terminal law and s the score (Franzese et al. 2022, arXiv 2206.05173)

    E log p >= E log p_data - G(s, T) - KL(p_T || nu),     G = 1/2 int_0^T g^2 E |s - grad log p_t|^2 dt            (1)

KL falls with T and G grows. Closed forms and their checks were derived here: the article's own were not at hand.
In double precision (`jax.enable_x64(True)`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize_scalar

from scoreflow.processes.rates import quadrature
from scoreflow.processes.sdes import Process
from scoreflow.theory.exact import Law, marginal

_POINTS, _REACH = 20_001, 12.0  # of the line: points, and standard deviations beyond the outermost means


def gaussian_kl(process: Process, data: Law, t: jax.Array, std: jax.Array | None = None) -> jax.Array:
    """KL(p_t || N(0, std^2 I)), nats, of Gaussian data; std is the process's own at t unless it is given. A scalar."""
    mean, spread = marginal(process, data, t)
    square = process.variance(t) if std is None else std**2
    ratio = spread / square
    return 0.5 * jnp.sum(ratio + mean**2 / square - 1.0 - jnp.log(ratio))


# ----------------------------------------------------------------------------------------------------------------------
# G for errors of a known size.


def gap(process: Process, error: Callable[[jax.Array], jax.Array], t: jax.Array, start: float = 0.0) -> jax.Array:
    """G for a mean squared error of the score, error(t [...]) -> [...], by quadrature from `start` on."""
    return quadrature(lambda s: 0.5 * process.diffusion_sq(s) * error(s), start, t, nodes=64)


def constant_error_gap(process: Process, delta: float, t: jax.Array) -> jax.Array:
    """G where the score is off by a constant vector of length delta: delta^2 / 2 int g^2."""
    return gap(process, lambda s: jnp.full_like(s, delta**2), t)


def noise_error_gap(process: Process, kappa: float, t: jax.Array, start: float) -> jax.Array:
    """G from `start` on where the predicted noise is off by kappa (rms): kappa^2 / 2 times the fall of log-SNR."""
    return 0.5 * kappa**2 * (process.log_snr(start) - process.log_snr(t))


def relative_error_gap(process: Process, eta: float, data: Law, t: jax.Array) -> jax.Array:
    """G where the score of Gaussian data is scaled by 1 + eta: eta^2 / 2 int g^2 sum 1 / V."""

    def error(s):
        alpha, added = process.alpha(s)[..., None], process.variance(s)[..., None]
        return eta**2 * jnp.sum(1.0 / (alpha**2 * data.variance[None] + added), axis=-1)

    return gap(process, error, t)


def best(loss: Callable[[float], float], low: float, high: float, points: int = 200) -> float:
    """Where loss(T) is least in [low, high], to about 1e-6; it may have several minima."""
    grid = np.linspace(low, high, points)
    values = [float(loss(t)) for t in grid]
    i = int(np.argmin(values))
    inside = (grid[max(i - 1, 0)], grid[min(i + 1, points - 1)])
    return float(minimize_scalar(loss, bounds=inside, method="bounded", options={"xatol": 1e-8}).x)


# ----------------------------------------------------------------------------------------------------------------------
# Mixtures on the line, by the trapezoid rule.


class Line(NamedTuple):
    """A Gaussian mixture on the line: `weights`, `means` and `variances`, [K] each."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def at(self, process: Process, t: float) -> "Line":
        """The law of x_t."""
        alpha, added = float(process.alpha(t)), float(process.variance(t))
        return Line(self.weights, alpha * self.means, alpha**2 * self.variances + added)

    def points(self) -> np.ndarray:
        """Where integrals are taken, [20001]."""
        reach = _REACH * np.sqrt(self.variances)
        return np.linspace((self.means - reach).min(), (self.means + reach).max(), _POINTS)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """At x [...]."""
        parts = -0.5 * (x[..., None] - self.means) ** 2 / self.variances - 0.5 * np.log(2 * np.pi * self.variances)
        return np.logaddexp.reduce(np.log(self.weights) + parts, axis=-1)

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
"""0.3 N(1, 0.1^2) + 0.7 N(3, 0.5^2), the toy of the line of work; entropy 0.851960."""


def line_kl(p: Line, q: Line) -> float:
    """KL(p || q), nats."""
    x = p.points()
    log_p = p.log_density(x)
    return float(np.trapezoid(np.exp(log_p) * (log_p - q.log_density(x)), x))


def line_entropy(p: Line) -> float:
    """Differential entropy, nats."""
    x = p.points()
    log_p = p.log_density(x)
    return float(-np.trapezoid(np.exp(log_p) * log_p, x))


class Generated(NamedTuple):
    """What the exact reverse SDE makes of a start that is not p_T: `mean`, `std` and `kl`, KL(data || it), nats."""

    mean: float
    std: float
    kl: float


def generated(process: Process, data: Line, start: Line, t: float, points: int = 3000) -> Generated:
    """The law q(x) = int p(x_0 = x | x_T = y) start(y) dy, with the exact score and no error of discretization.

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
    """KL of N(., covariance [d, d]) to the closest Gaussian of a class, nats.

    Diagonal where rank is None, else `rank` directions and one variance for the rest; 0 is isotropic.
    """
    log_det = float(np.linalg.slogdet(covariance)[1])
    if rank is None:
        return 0.5 * (float(np.log(np.diag(covariance)).sum()) - log_det)
    values = np.linalg.eigvalsh(covariance)[::-1]
    rest = values[rank:]
    return 0.5 * float(len(rest) * np.log(rest.mean()) - np.log(rest).sum()) if len(rest) else 0.0
