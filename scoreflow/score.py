"""From a network to a score function, and conversions between the seven things a network may predict.

With x_t = alpha x_0 + sigma noise, each prediction below determines both x_0 and the noise, given x_t. `convert` goes
through that pair:

    noise    eps                                                                        Ho et al. 2020
    x0       x_0                                                                        the denoiser
    v        alpha eps - sigma x_0                                                      Salimans, Ho 2022
    score    -eps / sigma                                                               Song et al. 2021
    velocity eps - x_0, dx_t/dt on the straight path                                    Lipman et al. 2023
    flow     (eps - x_0) / sqrt(2), the same with unit mean square                      Zheng et al. 2023
    edm      F, with x_0 = c_skip x_t / alpha + c_out F                                 Karras et al. 2022, table 1

where, with r = sigma / alpha and the data's root mean square s,
c_skip = s^2 / (r^2 + s^2) and c_out = r s / sqrt(r^2 + s^2).
For every prediction, the input of the network is x_t / sqrt(alpha^2 s^2 + sigma^2), which has unit mean square at every
t, and its noise label is log_snr(t).
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from scoreflow.processes.sdes import Process, expand
from scoreflow.types import Cond, OneOf, Params


class Score(Protocol):
    """A score function, an estimate of grad log p_t."""

    def __call__(self, x: jax.Array, t: jax.Array, /, cond: Cond = None) -> jax.Array:
        """The score at x [B, ...] and times t [B], given cond (see `types.Cond`); [B, ...]."""
        ...


class Energy(Protocol):
    """An energy, whose negative gradient is a score; the density is exp(-energy) up to an unknown constant."""

    def __call__(self, x: jax.Array, t: jax.Array, /, cond: Cond = None) -> jax.Array:
        """The energy at x [B, ...] and times t [B], given cond (see `types.Cond`); [B]."""
        ...


class SignalNoise(NamedTuple):
    """The scales that a conversion needs: alpha and sigma, broadcastable to x_t, and the data's root mean square."""

    alpha: jax.Array
    sigma: jax.Array
    sigma_data: float = 1.0


class Clean(NamedTuple):
    """The pair (x_0, noise) with x_t = alpha x_0 + sigma noise."""

    x0: jax.Array
    noise: jax.Array


class Prediction(NamedTuple):
    """The meaning of a network's output.

    Attributes:
      decode: (output, xt, SignalNoise) -> Clean.
      encode: (Clean, xt, SignalNoise) -> the output that means it.
    """

    decode: Callable[[jax.Array, jax.Array, SignalNoise], Clean]
    encode: Callable[[Clean, jax.Array, SignalNoise], jax.Array]


def _from_noise(noise: jax.Array, xt: jax.Array, scales: SignalNoise) -> Clean:
    return Clean((xt - scales.sigma * noise) / scales.alpha, noise)


def _from_x0(x0: jax.Array, xt: jax.Array, scales: SignalNoise) -> Clean:
    return Clean(x0, (xt - scales.alpha * x0) / scales.sigma)


def _from_v(v: jax.Array, xt: jax.Array, scales: SignalNoise) -> Clean:
    alpha, sigma, _ = scales
    square = alpha**2 + sigma**2
    return Clean((alpha * xt - sigma * v) / square, (sigma * xt + alpha * v) / square)


def _from_velocity(velocity: jax.Array, xt: jax.Array, scales: SignalNoise) -> Clean:
    alpha, sigma, _ = scales
    return Clean((xt - sigma * velocity) / (alpha + sigma), (xt + alpha * velocity) / (alpha + sigma))


def _from_flow(flow: jax.Array, xt: jax.Array, scales: SignalNoise) -> Clean:
    return _from_velocity(jnp.sqrt(2.0).astype(xt.dtype) * flow, xt, scales)


def _from_score(score: jax.Array, xt: jax.Array, scales: SignalNoise) -> Clean:
    return _from_noise(-scales.sigma * score, xt, scales)


def _from_edm(output: jax.Array, xt: jax.Array, scales: SignalNoise) -> Clean:
    # Both members of the pair are written out: going through x0 would divide a difference by a small sigma.
    alpha, sigma, rms = scales
    square = alpha**2 * rms**2 + sigma**2
    root = jnp.sqrt(square)
    return Clean(
        alpha * rms**2 / square * xt + sigma * rms / root * output, sigma / square * xt - alpha * rms / root * output
    )


def _to_edm(clean: Clean, xt: jax.Array, scales: SignalNoise) -> jax.Array:
    alpha, sigma, rms = scales
    return (sigma / rms * clean.x0 - alpha * rms * clean.noise) / jnp.sqrt(alpha**2 * rms**2 + sigma**2)


NOISE = Prediction(_from_noise, lambda clean, xt, scales: clean.noise)
X0 = Prediction(_from_x0, lambda clean, xt, scales: clean.x0)
V = Prediction(_from_v, lambda clean, xt, scales: scales.alpha * clean.noise - scales.sigma * clean.x0)
VELOCITY = Prediction(_from_velocity, lambda clean, xt, scales: clean.noise - clean.x0)
FLOW = Prediction(_from_flow, lambda clean, xt, scales: (clean.noise - clean.x0) * 0.5**0.5)
SCORE = Prediction(_from_score, lambda clean, xt, scales: -clean.noise / scales.sigma)
EDM = Prediction(_from_edm, _to_edm)

PREDICTIONS = {"noise": NOISE, "x0": X0, "v": V, "velocity": VELOCITY, "flow": FLOW, "score": SCORE, "edm": EDM}
PredictionName = Annotated[Prediction, OneOf(PREDICTIONS)]
"""What the network predicts, by its name in a config."""


def convert(output: jax.Array, xt: jax.Array, scales: SignalNoise, source: Prediction, target: Prediction) -> jax.Array:
    """The output of a `target` network that means the same as `output` [B, ...] of a `source` network; like it."""
    return target.encode(source.decode(output, xt, scales), xt, scales)


def score_fn(
    process: Process,
    apply: Callable[..., jax.Array],
    params: Params,
    prediction: Prediction = V,
    *,
    sigma_data: float = 1.0,
) -> Score:
    """Turns a network into a score function.

    Args:
      process: the forward SDE.
      apply: (params, x [B, ...], log_snr [B], cond) -> [B, ...], see `models.Network`.
      params: the network's parameters.
      prediction: the meaning of the network's output.
      sigma_data: root mean square of the data, in the units of x.

    Returns:
      score(x, t, cond=None), the estimate of grad log p_t, [B, ...].

    Examples:
      >>> import jax.numpy as jnp, scoreflow
      >>> def apply(params, x, log_snr, cond=None):  # predicts v = 0, which is right for data from N(0, I)
      ...     return jnp.zeros_like(x)
      >>> score = scoreflow.score_fn(scoreflow.vp_linear(), apply, params=None)
      >>> print(score(jnp.asarray([[2.0, -1.0]]), jnp.asarray([0.3])).round(3))
      [[-2.  1.]]
    """

    def score(x: jax.Array, t: jax.Array, cond: Cond = None) -> jax.Array:
        scales = SignalNoise(expand(process.alpha(t), x), expand(process.sigma(t), x), sigma_data)
        scale = jax.lax.rsqrt(scales.alpha**2 * sigma_data**2 + scales.sigma**2)
        output = apply(params, scale * x, process.log_snr(t), cond)
        return convert(output, x, scales, prediction, SCORE)

    return score


def energy_fn(process: Process, score: Score, power: int = 2) -> Energy:
    """An energy from any network: E(x, t) = sigma(t)^power |score(x, t)|^2 / 2, for `constrained`.

    With x - f = sigma score, power 1 is the published |x - f|^2 / (2 sigma), and -1 is the energy of the published code
    for images (Chao et al. 2023, arXiv 2209.12753). With both of them the network has to compensate for a power of
    sigma. With power 2, which was derived for this library, it does not: where noise dominates the data and the exact
    score is -x / sigma^2, the negative gradient of the energy is -x / sigma^2 too.

    Args:
      process: the forward SDE.
      score: an unconstrained score function, such as that of `score_fn`.
      power: the power of sigma.
    """

    def energy(x: jax.Array, t: jax.Array, cond: Cond = None) -> jax.Array:
        square = score(x, t, cond).reshape(x.shape[0], -1) ** 2
        return 0.5 * process.sigma(t) ** power * jnp.sum(square, axis=1)

    return energy


def constrained(energy: Energy) -> Score:
    """The score -dE/dx of an energy. It is a gradient field, and every evaluation costs a reverse pass."""
    return lambda x, t, cond=None: -jax.grad(lambda x: jnp.sum(energy(x, t, cond)))(x)


def denoised(process: Process, score: Score, x: jax.Array, t: jax.Array, cond: Cond = None) -> jax.Array:
    """E[x_0 | x_t = x] by Tweedie's formula, [B, ...]."""
    alpha, variance = expand(process.alpha(t), x), expand(process.variance(t), x)
    return (x + variance * score(x, t, cond)) / alpha


def probability_flow(process: Process, score: Score) -> Callable[..., jax.Array]:
    """The drift of the probability-flow ODE, f x - g^2 score / 2, which is the same in both directions of time.

    Returns:
      drift(t [B], x [B, ...], cond=None) -> [B, ...].
    """

    def drift(t: jax.Array, x: jax.Array, cond: Cond = None) -> jax.Array:
        f, g2 = expand(process.drift_coeff(t), x), expand(process.diffusion_sq(t), x)
        return f * x - 0.5 * g2 * score(x, t, cond)

    return drift


def normal(process: Process) -> Score:
    """The exact score under the process of data from N(0, I), the noise at t = 0 included."""
    return lambda x, t, cond=None: -x / expand(process.normal_variance(t), x)


def mixed(process: Process, score: Score, logits: jax.Array) -> Score:
    """The score of a product N(0, I)^(1 - a) p^a at every t, a = sigmoid(logits): -(1 - a) x / v + a score.

    Vahdat et al. 2021, arXiv 2106.05931, section 3.2. Where the data are close to N(0, I), a starts near 0, and at
    large t, where weights are largest, the score of the normal distribution is exact. v is the variance of x_t for x_0
    of unit variance, the noise at t = 0 included. The product need not be the distribution of any data under the
    process; it is a parameterization of the score.

    Args:
      process: the forward SDE.
      score: the score of p.
      logits: [C], one for each channel, shared over pixels.
    """
    share, normal_score = jax.nn.sigmoid(logits), normal(process)

    def mixture(x: jax.Array, t: jax.Array, cond: Cond = None) -> jax.Array:
        a = share.reshape((1,) * (x.ndim - 1) + share.shape)
        return (1.0 - a) * normal_score(x, t) + a * score(x, t, cond)

    return mixture
