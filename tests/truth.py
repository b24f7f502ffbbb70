"""Distributions that are known exactly: Gaussians and one-dimensional mixtures under any process."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from scoreflow.experiment import Experiment, Model
from scoreflow.processes import sdes
from scoreflow.processes.rates import ExponentialRate, LinearRate
from scoreflow.theory import processes

PROCESSES = {
    "vp": sdes.vp_linear(),
    "vp_constant": sdes.vp_constant(),
    "vp_power": sdes.vp_power(),
    "vp_exponential": sdes.vp_exponential(),
    "vp_cosine": sdes.vp_cosine(),
    "vp_geometric": sdes.vp_geometric(),
    "sub_vp": sdes.sub_vp_linear(),
    "ve": sdes.ve_geometric(),
    "ve_constant": sdes.ve_constant(),
    "ve_linear": sdes.ve_linear(),
    "ve_power": sdes.ve_power(),
    "edm": sdes.edm(3.0),
    "straight": sdes.straight(0.95),
    "ou": processes.ou(0.5, 1.5, horizon=2.0),
    "ve_poly_offset": processes.ve_poly(2.0, 0.1, 1.5, v0=0.3),
    "vp_offset": sdes.VP(LinearRate(0.1, 19.9), initial_variance=0.2),
    "sub_vp_offset": sdes.SubVP(LinearRate(0.1, 19.9), initial_variance=0.2),
    "vp_short": sdes.vp_linear(horizon=0.4),
    "two_rates": sdes.LinearSDE(LinearRate(0.3, 1.0), ExponentialRate(0.2, 1.5), initial_variance=0.1),
}
"""By name; made of Python floats, so that they serve in either precision."""


def process64(name: str):
    """A process of `PROCESSES` with float64 leaves; call with x64 on."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), PROCESSES[name])


def integral(function, low, high):
    """int_low^high of a smooth function of an array of times: 16-point Gauss-Legendre on each of 40 panels, in NumPy."""
    abscissae, weights = np.polynomial.legendre.leggauss(16)
    edges = np.linspace(low, high, 41)
    half = 0.5 * np.diff(edges)[:, None]
    t = edges[:-1, None] + half * (1 + abscissae)
    return float((half * weights * np.asarray(function(t))).sum())


def gaussian_score(process, mean, var):
    """Exact score of data N(mean, diag(var)); mean and var broadcast against one example."""

    def score(x, t, cond=None):
        alpha, variance = sdes.expand(process.alpha(t), x), sdes.expand(process.variance(t), x)
        shape = (1,) * (x.ndim - np.ndim(mean)) + np.shape(mean)
        m, v = jnp.reshape(jnp.asarray(mean, x.dtype), shape), jnp.reshape(jnp.asarray(var, x.dtype), shape)
        return -(x - alpha * m) / (alpha**2 * v + variance)

    return score


def with_score(experiment: Experiment, score) -> Experiment:
    """The experiment with a known score function in the place of its network, whatever the parameters."""

    class Known(Model):
        __slots__ = ()

        def score(self, params, *, train=False, key=None):
            return score

    return experiment._replace(model=Known(*experiment.model))


class Mixture(NamedTuple):
    """One-dimensional Gaussian mixture: weights, means, variances."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def score(self, process):
        """Exact score function on x [B, 1]."""
        w, m, v = (jnp.asarray(a) for a in self)

        def log_density(x, t):
            alpha, variance = process.alpha(t), process.variance(t)
            c = alpha**2 * v + variance
            return jax.nn.logsumexp(jnp.log(w) - 0.5 * (x - alpha * m) ** 2 / c - 0.5 * jnp.log(2 * np.pi * c))

        slope = jax.vmap(jax.grad(log_density))
        return lambda x, t, cond=None: slope(x[:, 0], t)[:, None]

    def cdf(self, process, t, x):
        """P(x_t <= x)."""
        alpha, variance = float(process.alpha(t)), float(process.variance(t))
        scale = np.sqrt(alpha**2 * self.variances + variance)
        return float((self.weights * ndtr((x - alpha * self.means) / scale)).sum())

    def transport(self, process, t_from, t_to, x):
        """Where the exact probability-flow ODE takes x: the monotone map between the two marginals."""
        level = self.cdf(process, t_from, x)
        return brentq(lambda y: self.cdf(process, t_to, y) - level, -1e3, 1e3, xtol=1e-13, rtol=1e-14)

    def sample(self, rng, n):
        k = rng.choice(len(self.weights), n, p=self.weights)
        return self.means[k] + np.sqrt(self.variances[k]) * rng.standard_normal(n)


TOY = Mixture(np.array([0.3, 0.3, 0.4]), np.array([-2.0, -6.0, 4.0]) / 7.0, np.array([0.1, 0.1, 1.0]) / 49.0)
"""The one-dimensional mixture that high-order score matching is usually tried on; entropy -0.128854075 nats."""


def slope(errors, counts) -> float:
    """Order of convergence: minus the slope of log error against log number of steps."""
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


def lagrange_weights(q, begin, nodes):
    """The integral from q[begin] to q[begin + 1] of each Lagrange polynomial through q[nodes], by fitted coefficients."""
    areas = []
    for unit in np.eye(len(nodes)):
        area = np.polynomial.Polynomial.fit(q[np.asarray(nodes)], unit, len(nodes) - 1).integ()
        areas.append(area(q[begin + 1]) - area(q[begin]))
    return np.asarray(areas)
