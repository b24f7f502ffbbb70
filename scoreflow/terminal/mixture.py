"""Gaussian mixtures as terminal distributions: densities, draws, transport by the forward process, and fits.

One form serves all covariances. Component k has r orthonormal directions U_k [d, r] with variances of their own, and
the rest of the space has a diagonal covariance:

    cov_k = U_k diag(along_k) U_k^T + (I - U_k U_k^T) diag(rest_k)                                                  (1)

    isotropic   r = 0, rest_k constant           low rank   0 < r < d, rest_k constant
    diagonal    r = 0                            full       r = d (rest_k has no effect)

The forward process maps a mixture to a mixture with the means alpha mean and the variances alpha^2 variance + sigma^2.
In (1) this changes `along` and `rest` alone. One fit to clean data therefore serves every T, and KL(p_T || nu_T) cannot
grow with T (derived for this library; Franzese et al. 2022, arXiv 2206.05173, fit a density at each T).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.runs import report
from scoreflow.runs.errors import UserError
from scoreflow.types import Key

HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture with K components in d dimensions, see (1). Examples [B, ...] have d numbers each.

    Attributes:
      log_weights: [K], normalized.
      means: [K, d].
      basis: U, [K, d, r].
      along: variances in the directions of U, [K, r].
      rest: variances in all other directions, [K, d]; constant along d unless r = 0.
    """

    log_weights: jax.Array
    means: jax.Array
    basis: jax.Array
    along: jax.Array
    rest: jax.Array

    def sample(self, key: Key, shape: tuple[int, ...]) -> jax.Array:
        """Draws of the given shape [B, ...]."""
        n, d = shape[0], self.means.shape[1]
        key_k, key_x = jax.random.split(key)
        k = jax.random.categorical(key_k, self.log_weights, shape=(n,))
        noise = jax.random.normal(key_x, (n, d), self.means.dtype)

        def one(k: jax.Array, noise: jax.Array) -> jax.Array:  # mean + cov^(1/2) noise
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


def component_log_prob(mixture: Mixture, x: jax.Array) -> jax.Array:
    """Log-density of x [B, d] under each component in nats, [B, K]."""
    d, r = mixture.basis.shape[1:]

    def one(mean: jax.Array, basis: jax.Array, along: jax.Array, rest: jax.Array) -> jax.Array:
        apart = x - mean[None]
        inside = jnp.matmul(apart, basis, precision=HIGHEST)
        square = jnp.sum(inside**2 / along[None], axis=1)
        log_det = jnp.sum(jnp.log(along))
        if r < d:
            outside = apart - jnp.matmul(inside, basis.T, precision=HIGHEST)
            square += jnp.sum(outside**2 / rest[None], axis=1)
            log_det += (1 - r / d) * jnp.sum(jnp.log(rest))
        return -0.5 * (square + log_det + d * np.log(2 * np.pi))

    return jax.vmap(one, out_axes=1)(mixture.means, mixture.basis, mixture.along, mixture.rest)


def transported(mixture: Mixture, alpha: jax.Array, variance: jax.Array) -> Mixture:
    """The distribution of alpha x + noise of the given variance, for x from `mixture`."""
    spread = {name: alpha**2 * getattr(mixture, name) + variance for name in ("along", "rest")}
    return dataclasses.replace(mixture, means=alpha * mixture.means, **spread)


class Covariance(NamedTuple):
    """A restriction of (1).

    Attributes:
      rank: number r of directions with variances of their own; -1 for all d.
      diagonal: whether the variances of the rest may differ between dimensions.
    """

    rank: int
    diagonal: bool


ISOTROPIC, DIAGONAL, FULL = Covariance(0, False), Covariance(0, True), Covariance(-1, False)


def low_rank(rank: int) -> Covariance:
    """`rank` directions and one variance for the rest, as in probabilistic principal components."""
    return Covariance(rank, False)


def empty(components: int, d: int, covariance: Covariance) -> Mixture:
    """A mixture of the given form whose components are all standard normal; a fit replaces it."""
    r = d if covariance.rank < 0 else min(covariance.rank, d)
    basis = jnp.broadcast_to(jnp.eye(d, r), (components, d, r))
    weights = jnp.full(components, -np.log(components))
    return Mixture(weights, jnp.zeros((components, d)), basis, jnp.ones((components, r)), jnp.ones((components, d)))


def of_covariances(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> Mixture:
    """The mixture with weights [K], means [K, d] and full covariances [K, d, d]."""
    along, basis = jnp.linalg.eigh(jnp.asarray(covariances))
    return Mixture(jnp.log(jnp.asarray(weights)), jnp.asarray(means), basis, along, jnp.ones_like(along))


def _maximize(x: jax.Array, shares: jax.Array, covariance: Covariance, floor: float) -> Mixture:
    """The most likely mixture given the responsibilities `shares` [N, K], with no variance below `floor`."""
    n, d = x.shape
    r = d if covariance.rank < 0 else min(covariance.rank, d)

    def one(share: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
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


def _moved(mixture: Mixture, lost: np.ndarray, x: jax.Array, whole: Mixture) -> Mixture:
    """The mixture with its components `lost` [L] moved to x [L, d] and made as wide as `whole`, a fit to all data."""
    weights = mixture.log_weights.at[lost].set(-np.log(len(mixture.log_weights)))
    spread = {name: getattr(mixture, name).at[lost].set(getattr(whole, name)[0]) for name in ("basis", "along", "rest")}
    return Mixture(jax.nn.log_softmax(weights), mixture.means.at[lost].set(x), **spread)


class Fit(NamedTuple):
    """The result of a fit.

    Attributes:
      mixture: the fitted mixture.
      log_prob: its mean log-density on the data at each iteration, in nats.
      converged: whether the last iteration gained less than the tolerance.
    """

    mixture: Mixture
    log_prob: list[float]
    converged: bool


_LARGE = 256
_EMPTY = 1.5  # a component with fewer examples than this is moved


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
    """Maximum likelihood by expectation maximization, or in closed form for one component.

    The fit starts from k-means. A component that has lost its examples is moved to the example with the lowest density.

    Args:
      x: data [N, ...] float. Covariances with directions of their own, in more than 256 dimensions, are fitted to the
        first 20,000.
      components: number of components K.
      covariance: the form of their covariances.
      floor: lower bound of the eigenvalues of the covariances. For draws of x_T it should be sigma(T)^2, since no
        covariance of x_T has a smaller eigenvalue. For clean data it keeps components from shrinking onto an example.
      seed: seed of k-means.
      max_iter: the largest number of iterations.
      tol: the fit stops where an iteration gains less than this, in nats per example; in more than 64 dimensions, times
        d / 64.

    Raises:
      UserError: if there are fewer examples than components.
    """
    from sklearn.cluster import KMeans

    x = np.asarray(x).reshape(len(x), -1)
    if covariance.rank and x.shape[1] > _LARGE:  # each iteration takes N d^2 operations for each component
        x = x[:_MANY]
    if len(x) < components:
        raise UserError(f"terminal.components = {components} must not exceed the {len(x)} examples they are fitted to")
    if components == 1:
        start = np.zeros(len(x), int)
    else:
        start = KMeans(components, n_init=1, random_state=seed).fit(x).labels_  # pyright: ignore[reportArgumentType]
    data = jnp.asarray(x)

    @jax.jit
    def expect(mixture: Mixture) -> tuple[jax.Array, jax.Array]:
        joint = mixture.log_weights[None] + component_log_prob(mixture, data)
        total = jax.nn.logsumexp(joint, axis=1)
        return jnp.exp(joint - total[:, None]), total

    @jax.jit
    def maximize(shares: jax.Array) -> Mixture:
        return _maximize(data, shares, covariance, floor)

    least = tol * max(1.0, x.shape[1] / 64)
    whole = maximize(jnp.ones((len(x), 1), data.dtype))
    mixture, history = maximize(jax.nn.one_hot(start, components, dtype=data.dtype)), []
    for _ in report.progress(range(max_iter), total=None, unit="iteration"):
        shares, total = expect(mixture)
        history.append(float(total.mean()))
        lost = np.flatnonzero(np.asarray(shares.sum(0)) < _EMPTY)
        if components == 1 or (len(history) > 1 and not len(lost) and history[-1] - history[-2] < least):
            return Fit(mixture, history, True)
        worst = data[np.argsort(total)[: len(lost)]]
        mixture = _moved(mixture, lost, worst, whole) if len(lost) else maximize(shares)
    return Fit(mixture, history, False)


_MANY = 20_000  # examples of a fit that costs minutes with more


def fit_dirichlet(x: np.ndarray, *, components: int = 20, seed: int = 0, max_iter: int = 500) -> Mixture:
    """The point estimates of scikit-learn's variational Dirichlet-process mixture with full covariances.

    The density of the result is normalized. scikit-learn's own `score_samples` is not: it integrates to 0.95 for 50
    points. It is fitted to the first 20,000 examples, since it takes minutes for more.
    """
    from sklearn.mixture import BayesianGaussianMixture

    x = np.asarray(x[:_MANY], np.float64).reshape(len(x[:_MANY]), -1)
    estimate = BayesianGaussianMixture(
        n_components=components,
        covariance_type="full",
        weight_concentration_prior_type="dirichlet_process",
        max_iter=max_iter,
        random_state=seed,
    ).fit(x)
    return of_covariances(estimate.weights_, estimate.means_, estimate.covariances_)


def active(mixture: Mixture, least: float = 0.01) -> int:
    """The number of components with a weight above `least`."""
    return int(np.sum(np.exp(np.asarray(mixture.log_weights)) > least))
