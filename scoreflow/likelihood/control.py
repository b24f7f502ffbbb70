"""What the bound would be for the Gaussian of the data, under given noise and on average over it.

With y = x - m and C = alpha^2 S + sigma^2 (see `gaussian`), the score of the Gaussian at x_t = alpha x + sigma noise is
-C^(-1) (alpha y + sigma noise). So the two quantities that the bound is the mean of have counterparts

    error      sigma score + noise = C^(-1) (alpha^2 S noise - alpha sigma y)                                       (1)
    whitened   w = C^(-1/2) (x_t - alpha m) = C^(-1/2) (alpha y + sigma noise)                                      (2)

whose mean squares over the noise, and the integral of that of (1) over q = log(sigma / alpha), are known. Under the
same noise they follow what the network gives, so that the differences have a much smaller variance: control variates.
With u = (sigma / alpha)^2 a direction of variance v adds to the mean square of (1) and to its integral

    (v / (v + u))^2 + u y^2 / (v + u)^2,      (log(u / (v + u)) + v / (v + u) - y^2 / (v + u)) / 2                  (3)

Derived here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scoreflow.gaussian import Gaussian, Spectral, matmul


def error(gaussian: Gaussian, x: jax.Array, noise: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """(1) for a row of the Gaussian, x, noise [B, d] and alpha, sigma [B] of each example, [B, d]."""
    of_noise = _spectral(gaussian, lambda v, a, s: a**2 * v / (a**2 * v + s**2), alpha, sigma)
    of_place = _spectral(gaussian, lambda v, a, s: a * s / (a**2 * v + s**2), alpha, sigma)
    return of_noise.apply(gaussian.basis, noise) - of_place.apply(gaussian.basis, x - gaussian.mean)


def whitened(gaussian: Gaussian, x: jax.Array, noise: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """(2), [B, d]."""
    root = _spectral(gaussian, lambda v, a, s: 1.0 / jnp.sqrt(a**2 * v + s**2), alpha, sigma)
    return root.apply(gaussian.basis, alpha[:, None] * (x - gaussian.mean) + sigma[:, None] * noise)


def mean_error(gaussian: Gaussian, x: jax.Array, u: jax.Array) -> jax.Array:
    """The mean square of (1) over the noise at u = (sigma / alpha)^2, [B]."""
    return _total(gaussian, x, lambda v, square: (v / (v + u)) ** 2 + u * square / (v + u) ** 2)


def error_area(gaussian: Gaussian, x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The integral of `mean_error` over q from u = low to u = high, [B]."""

    def before(u: jax.Array) -> jax.Array:
        part = lambda v, square: 0.5 * (v / (v + u) - jnp.log1p(v / u) - square / (v + u))
        return _total(gaussian, x, part)

    return before(high) - before(low)


def mean_whitened(gaussian: Gaussian, x: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """The mean square of (2) over the noise, [B]."""
    return _total(gaussian, x, lambda v, square: (alpha**2 * square + sigma**2) / (alpha**2 * v + sigma**2))


def _spectral(gaussian: Gaussian, f: Callable, alpha: jax.Array, sigma: jax.Array) -> Spectral:
    return Spectral(f(gaussian.variances, alpha[:, None], sigma[:, None]), f(gaussian.rest, alpha, sigma))


def _total(gaussian: Gaussian, x: jax.Array, part: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """The sum over directions of part(variance, squared coordinate of x - m), which is linear in the second."""
    away = x - gaussian.mean
    along = matmul(away, gaussian.basis) ** 2
    d, k = gaussian.basis.shape
    rest = jnp.maximum(jnp.sum(away**2, axis=1) - jnp.sum(along, axis=1), 0.0)
    return jnp.sum(part(gaussian.variances, along), axis=1) + (
        (d - k) * part(gaussian.rest, rest / max(d - k, 1)) if d > k else 0.0
    )
