"""Gaussian mixtures as terminal laws: densities, draws, transport by the forward process, and their fit.

One form holds all covariances. Component k has r directions U_k [d, r], orthonormal, with variances of their own, and
what is left has a diagonal:

    cov_k = U_k diag(along_k) U_k^T + (I - U_k U_k^T) diag(rest_k)                                                  (1)

    isotropic   r = 0, rest_k constant           low rank   0 < r < d, rest_k constant
    diagonal    r = 0                            full       r = d (rest_k counts nothing)

The forward kernel takes a mixture to a mixture: means alpha mean, variances alpha^2 variance + sigma^2, and in (1) that
touches `along` and `rest` alone. So one fit on clean data serves every T, and KL(p_T || nu_T) cannot grow with T
(derived here; Franzese et al. 2022, arXiv 2206.05173, fit a density at each T).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture with K components in d dimensions, see (1). Examples [B, ...] of d numbers in all.

    Attributes:
      log_weights: [K], normalized.
      means: [K, d].
      basis: U, [K, d, r].
      along: variances in the directions of U, [K, r].
      rest: variances beside them, [K, d]; constant along d unless r = 0.
    """

    log_weights: jax.Array
    means: jax.Array
    basis: jax.Array
    along: jax.Array
    rest: jax.Array

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws of the given shape [B, ...]."""
        n, d = shape[0], self.means.shape[1]
        key_k, key_x = jax.random.split(key)
        k = jax.random.categorical(key_k, self.log_weights, shape=(n,))
        noise = jax.random.normal(key_x, (n, d), self.means.dtype)

        def one(k, noise):  # cov^(1/2) noise
            basis, along, rest = self.basis[k], self.along[k], self.rest[k]
            inside = jnp.matmul(noise, basis, precision=HIGHEST)
            outside = noise - jnp.matmul(basis, inside, precision=HIGHEST)
            scaled = jnp.matmul(basis, jnp.sqrt(along) * inside, precision=HIGHEST)
            return self.means[k] + scaled + jnp.sqrt(rest) * outside

        return jax.vmap(one)(k, noise).reshape(shape)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of x [B, ...] in nats, [B]."""
        flat = x.reshape(x.shape[0], -1)
        return jax.nn.logsumexp(self.log_weights[None] + component_log_prob(self, flat), axis=1)


def component_log_prob(law: Mixture, x: jax.Array) -> jax.Array:
    """Log-density of x [B, d] under each component, [B, K]."""
    d, r = law.basis.shape[1:]

    def one(mean, basis, along, rest):
        apart = x - mean[None]
        inside = jnp.matmul(apart, basis, precision=HIGHEST)
        square = jnp.sum(inside**2 / along[None], axis=1)
        log_det = jnp.sum(jnp.log(along))
        if r < d:
            outside = apart - jnp.matmul(inside, basis.T, precision=HIGHEST)
            square += jnp.sum(outside**2 / rest[None], axis=1)
            log_det += (1 - r / d) * jnp.sum(jnp.log(rest))
        return -0.5 * (square + log_det + d * np.log(2 * np.pi))

    return jax.vmap(one, out_axes=1)(law.means, law.basis, law.along, law.rest)


def transported(law: Mixture, alpha: jax.Array, variance: jax.Array) -> Mixture:
    """The law of alpha x + noise with that variance, for x of `law`: the same mixture later."""
    spread = {name: alpha**2 * getattr(law, name) + variance for name in ("along", "rest")}
    return dataclasses.replace(law, means=alpha * law.means, **spread)


class Covariance(NamedTuple):
    """What (1) may be: `rank` directions (-1 for all d), and whether what is left may vary among dimensions."""

    rank: int
    diagonal: bool


ISOTROPIC, DIAGONAL, FULL = Covariance(0, False), Covariance(0, True), Covariance(-1, False)


def low_rank(rank: int) -> Covariance:
    """`rank` directions and one variance for the rest: probabilistic principal components."""
    return Covariance(rank, False)


def empty(components: int, d: int, covariance: Covariance) -> Mixture:
    """A mixture of that form, standard normal; what a fit replaces."""
    r = d if covariance.rank < 0 else min(covariance.rank, d)
    basis = jnp.broadcast_to(jnp.eye(d, r), (components, d, r))
    weights = jnp.full(components, -np.log(components))
    return Mixture(weights, jnp.zeros((components, d)), basis, jnp.ones((components, r)), jnp.ones((components, d)))


def of_covariances(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> Mixture:
    """A mixture of full covariances [K, d, d], means [K, d] and weights [K]."""
    along, basis = jnp.linalg.eigh(jnp.asarray(covariances))
    return Mixture(jnp.log(jnp.asarray(weights)), jnp.asarray(means), basis, along, jnp.ones_like(along))


def _maximize(x: jax.Array, shares: jax.Array, covariance: Covariance, floor: float) -> Mixture:
    """The most likely mixture of responsibilities `shares` [N, K], with no variance below `floor`."""
    n, d = x.shape
    r = d if covariance.rank < 0 else min(covariance.rank, d)

    def one(share):
        mass = jnp.maximum(share.sum(), 1e-12)
        mean = jnp.matmul(share, x, precision=HIGHEST) / mass
        apart = x - mean[None]
        variances = jnp.matmul(share, apart**2, precision=HIGHEST) / mass
        if r == 0:
            along, basis = jnp.zeros(0, x.dtype), jnp.zeros((d, 0), x.dtype)
            rest = variances if covariance.diagonal else jnp.full(d, variances.mean())
        else:
            outer = jnp.matmul((share[:, None] * apart).T, apart, precision=HIGHEST) / mass
            values, vectors = jnp.linalg.eigh(outer)
            along, basis = values[d - r :], vectors[:, d - r :]
            rest = jnp.full(d, values[: d - r].mean() if r < d else floor)
        return mass / n, mean, basis, jnp.maximum(along, floor), jnp.maximum(rest, floor)

    weights, means, basis, along, rest = jax.lax.map(one, shares.T)
    return Mixture(jnp.log(weights / weights.sum()), means, basis, along, rest)


def _moved(law: Mixture, lost: np.ndarray, x: jax.Array, whole: Mixture) -> Mixture:
    """The mixture with its components `lost` [L] at x [L, d], as wide as all of the data, one Gaussian `whole`."""
    weights = law.log_weights.at[lost].set(-np.log(len(law.log_weights)))
    spread = {name: getattr(law, name).at[lost].set(getattr(whole, name)[0]) for name in ("basis", "along", "rest")}
    return Mixture(jax.nn.log_softmax(weights), law.means.at[lost].set(x), **spread)


class Fit(NamedTuple):
    """A fitted `law`, its mean `log_prob` on the data at each iteration (nats), and whether it stopped moving."""

    law: Mixture
    log_prob: list[float]
    converged: bool


_EMPTY = 1.5  # examples: a component with less than that is put elsewhere


def fit(
    x: np.ndarray,
    *,
    components: int = 1,
    covariance: Covariance = FULL,
    floor: float,
    seed: int = 0,
    max_iter: int = 200,
    tol: float = 1e-5,
) -> Fit:
    """Maximum likelihood by expectation maximization; of one component in closed form.

    Starts from k-means. A component that has lost its examples is put on the one that is explained worst.

    Args:
      x: [N, ...] float.
      components: K.
      covariance: the form.
      floor: below which no eigenvalue of a covariance may fall. For draws of x_T the exact bound is sigma(T)^2: a
        covariance of x_T cannot have less. For clean data it is what keeps a component from shrinking onto an example.
      seed: of k-means.
      max_iter, tol: it stops where an iteration gains less than `tol` nats per example.

    Raises:
      ValueError: if there are fewer examples than components.
    """
    from sklearn.cluster import KMeans

    x = np.asarray(x).reshape(len(x), -1)
    if len(x) < components:
        raise ValueError(f"{len(x)} examples cannot hold {components} components")
    if components == 1:
        start = np.zeros(len(x), int)
    else:
        start = KMeans(components, n_init=1, random_state=seed).fit(x).labels_
    data = jnp.asarray(x)

    @jax.jit
    def expect(law):
        joint = law.log_weights[None] + component_log_prob(law, data)
        total = jax.nn.logsumexp(joint, axis=1)
        return jnp.exp(joint - total[:, None]), total

    @jax.jit
    def maximize(shares):
        return _maximize(data, shares, covariance, floor)

    whole = maximize(jnp.ones((len(x), 1), data.dtype))
    law, history = maximize(jax.nn.one_hot(start, components, dtype=data.dtype)), []
    for _ in range(max_iter):
        shares, total = expect(law)
        history.append(float(total.mean()))
        lost = np.flatnonzero(np.asarray(shares.sum(0)) < _EMPTY)
        if components == 1 or (len(history) > 1 and not len(lost) and history[-1] - history[-2] < tol):
            return Fit(law, history, True)
        law = _moved(law, lost, data[np.argsort(total)[: len(lost)]], whole) if len(lost) else maximize(shares)
    return Fit(law, history, False)


def fit_dirichlet(x: np.ndarray, *, components: int = 20, seed: int = 0, max_iter: int = 500) -> Mixture:
    """scikit-learn's variational Dirichlet-process mixture, full covariances, as the mixture of its point estimates.

    Its own predictive `score_samples` is not a normalized density (it integrates to 0.95 for 50 points); this is.
    """
    from sklearn.mixture import BayesianGaussianMixture

    x = np.asarray(x, np.float64).reshape(len(x), -1)
    found = BayesianGaussianMixture(
        n_components=components,
        covariance_type="full",
        weight_concentration_prior_type="dirichlet_process",
        max_iter=max_iter,
        random_state=seed,
    ).fit(x)
    return of_covariances(found.weights_, found.means_, found.covariances_)


def active(law: Mixture, least: float = 0.01) -> int:
    """Components with a weight above `least`: how complex the fit found the data to be."""
    return int(np.sum(np.exp(np.asarray(law.log_weights)) > least))
