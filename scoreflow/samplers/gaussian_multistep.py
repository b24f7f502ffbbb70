"""A multistep rule for the probability-flow ODE in which the Gaussian with the data's mean and covariance is exact.

If the data were normal with mean m and covariance S (see `gaussian`), then w = C^(-1/2) (x - alpha m) would not move,
where C = alpha^2 S + sigma^2. For any score, over q = log(sigma / alpha) = log rho,

    dw/dq = -(S + rho^2)^(-1/2) R,    R = E[x_0 | x] - m - alpha S C^(-1) (x - alpha m)

R is what the denoiser adds to the Gaussian's own. Adams' explicit rules extrapolate it in q and integrate its factor
exactly. Derived here; the same flow is `likelihood.multistep`'s. With `corrector` a prediction is corrected by the
evaluation that is made at it, as in UniPC (Zhao et al. 2023, arXiv 2302.04867).
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from scoreflow.gaussian import Gaussian, Spectral, spectral
from scoreflow.processes.sdes import Process
from scoreflow.samplers.adams import ORDER, adams
from scoreflow.samplers.loop import Field, Interval, Rule
from scoreflow.types import Check, Flag

Order = Annotated[int, Check(int, lambda v: 1 <= v <= ORDER, f"a whole number from 1 to {ORDER}")]


class GaussianMultistep(NamedTuple):
    """`gaussian_multistep`, but for the Gaussian, which the data give.

    Attributes:
      order: Order of the rule, 1 to 3; the higher, the more steps it needs to be of use.
      corrector: Correct each prediction by the evaluation that is made at it; helps order 2 from twelve evaluations on.
    """

    order: Order = 2
    corrector: Flag = False


def gaussian_multistep(gaussian: Gaussian, order: Order = 2, corrector: Flag = False) -> Rule:
    """Extrapolates what the denoiser adds to that of the data's Gaussian, which is followed exactly.

    One evaluation per interval; the state is R at the last times, [ORDER, B, d]. The first intervals have the orders
    that their number allows. With the data's own Gaussian, Gaussian data are exact on every grid.

    Args:
      gaussian: of x_0; with any other the limit of many steps is the same.
      order: of the rule, 1 to 3.
      corrector: whether each prediction is corrected by the evaluation that is made at it.
    """

    def coefficients(process: Process, grid: jax.Array) -> Any:
        q, alpha, sigma = -0.5 * process.log_snr(grid), process.alpha(grid), process.sigma(grid)

        def factor(variances: jax.Array) -> Any:
            expand = lambda s: s.reshape(*s.shape, *[1] * variances.ndim)
            return lambda s: -jax.lax.rsqrt(variances[(None,) * s.ndim] + jnp.exp(2.0 * expand(s)))

        both = (adams(q, order, factor(each)) for each in (gaussian.variances, gaussian.rest))
        predict, correct = (Spectral(*each) for each in zip(*both))
        at = lambda weights, ends: jax.tree.map(lambda leaf: leaf[ends], weights)
        here, there = slice(None, -1), slice(1, None)
        weights = at(correct, here), at(predict, here), at(predict, there)
        return (alpha[here], sigma[here]), (alpha[there], sigma[there]), weights

    def step(field: Field, x: jax.Array, before: jax.Array, interval: Interval) -> tuple[jax.Array, jax.Array]:
        (alpha, sigma), (alpha_s, sigma_s), weights = interval.coefficients
        of, basis = gaussian.of(field.cond, len(x)), gaussian.basis

        def summed(weights: Spectral, values: jax.Array) -> jax.Array:
            rows = Spectral(*(leaf[:, gaussian.row(field.cond, len(x))] for leaf in weights))
            terms = (Spectral(*(leaf[j] for leaf in rows)).apply(basis, values[j]) for j in range(order))
            return sum(terms, start=jnp.zeros_like(values[0]))

        def spread(alpha: jax.Array, sigma: jax.Array) -> Spectral:
            return spectral(of, lambda v: jnp.sqrt(alpha**2 * v + sigma**2))

        centered = x.reshape(len(x), -1) - alpha * of.mean
        known = spectral(of, lambda v: alpha * v / (alpha**2 * v + sigma**2)).apply(basis, centered)
        latest = field.denoised(interval.t, x).reshape(centered.shape) - of.mean - known
        values = jnp.concatenate([latest[None], before[:-1]])
        correct, predicted, predict = weights
        w = Spectral(*(1.0 / each for each in spread(alpha, sigma))).apply(basis, centered)
        if corrector:
            w = w + summed(correct, values) - summed(predicted, before)
        w = w + summed(predict, values)
        return (alpha_s * of.mean + spread(alpha_s, sigma_s).apply(basis, w)).reshape(x.shape), values

    def init(x: jax.Array) -> jax.Array:
        return jnp.zeros((ORDER, len(x), x[0].size), x.dtype)

    return Rule(step, 1, init=init, coefficients=coefficients)
