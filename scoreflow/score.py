"""From a network to a score function, and between the six things a network may predict.

With x_t = alpha x_0 + sigma noise, every prediction below determines, given x_t, both x_0 and the noise; that pair is
the common ground, and `convert` goes through it:

    noise   eps                                                                              Ho et al. 2020
    x0      x_0                                                                              the denoiser
    v       alpha eps - sigma x_0                                                            Salimans, Ho 2022
    score   -eps / sigma                                                                     Song et al. 2021
    flow    (eps - x_0) / sqrt(2), the velocity of the straight path                         Zheng et al. 2023
    edm     F, with x_0 = c_skip x_t / alpha + c_out F                                       Karras et al. 2022, table 1

where, with r = sigma / alpha and the data's root mean square s,
c_skip = s^2 / (r^2 + s^2) and c_out = r s / sqrt(r^2 + s^2).
Whatever the prediction, the network sees x_t / sqrt(alpha^2 s^2 + sigma^2), which has unit mean square at every t, and
log_snr(t) as its noise label.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scoreflow.processes.sdes import Process, expand

ScoreFn = Callable[..., jax.Array]
"""score(x [B, ...], t [B], cond [B] or None) -> [B, ...]."""


class SignalNoise(NamedTuple):
    """What a conversion needs besides x_t: alpha and sigma (broadcastable to x_t) and the data's root mean square."""

    alpha: jax.Array
    sigma: jax.Array
    sigma_data: float = 1.0


class Clean(NamedTuple):
    """The pair (x_0, noise) with x_t = alpha x_0 + sigma noise."""

    x0: jax.Array
    noise: jax.Array


class Prediction(NamedTuple):
    """What the network's output means.

    Attributes:
      decode: (output, xt, SignalNoise) -> Clean.
      encode: (Clean, xt, SignalNoise) -> the output that stands for it.
    """

    decode: Callable[[jax.Array, jax.Array, SignalNoise], Clean]
    encode: Callable[[Clean, jax.Array, SignalNoise], jax.Array]


def _from_noise(noise, xt, scales):
    return Clean((xt - scales.sigma * noise) / scales.alpha, noise)


def _from_x0(x0, xt, scales):
    return Clean(x0, (xt - scales.alpha * x0) / scales.sigma)


def _from_v(v, xt, scales):
    alpha, sigma, _ = scales
    square = alpha**2 + sigma**2
    return Clean((alpha * xt - sigma * v) / square, (sigma * xt + alpha * v) / square)


def _from_flow(flow, xt, scales):
    alpha, sigma, _ = scales
    apart, total = jnp.sqrt(2.0).astype(xt.dtype) * flow, alpha + sigma
    return Clean((xt - sigma * apart) / total, (xt + alpha * apart) / total)


def _from_score(score, xt, scales):
    return _from_noise(-scales.sigma * score, xt, scales)


def _from_edm(output, xt, scales):
    # Both members of the pair are written out: going through x0 would divide a difference by a small sigma.
    alpha, sigma, rms = scales
    square = alpha**2 * rms**2 + sigma**2
    root = jnp.sqrt(square)
    return Clean(
        alpha * rms**2 / square * xt + sigma * rms / root * output, sigma / square * xt - alpha * rms / root * output
    )


def _to_edm(clean, xt, scales):
    alpha, sigma, rms = scales
    return (sigma / rms * clean.x0 - alpha * rms * clean.noise) / jnp.sqrt(alpha**2 * rms**2 + sigma**2)


NOISE = Prediction(_from_noise, lambda clean, xt, scales: clean.noise)
X0 = Prediction(_from_x0, lambda clean, xt, scales: clean.x0)
V = Prediction(_from_v, lambda clean, xt, scales: scales.alpha * clean.noise - scales.sigma * clean.x0)
FLOW = Prediction(_from_flow, lambda clean, xt, scales: (clean.noise - clean.x0) * 0.5**0.5)
SCORE = Prediction(_from_score, lambda clean, xt, scales: -clean.noise / scales.sigma)
EDM = Prediction(_from_edm, _to_edm)


def convert(output: jax.Array, xt: jax.Array, scales: SignalNoise, source: Prediction, target: Prediction) -> jax.Array:
    """What a `target` network would have to say for it to mean the same as `output` [B, ...] of a `source` network."""
    return target.encode(source.decode(output, xt, scales), xt, scales)


def score_fn(
    process: Process, apply: Callable, params, prediction: Prediction = V, *, sigma_data: float = 1.0
) -> ScoreFn:
    """Makes a score function of a network.

    Args:
      process: the forward SDE.
      apply: apply(params, x [B, ...], log_snr [B], cond [B] or None) -> [B, ...].
      params: the network's parameters.
      prediction: what the network's output means.
      sigma_data: root mean square of the data, in the units of x.

    Returns:
      score(x, t, cond=None), the estimate of grad log p_t, [B, ...].
    """

    def score(x, t, cond=None):
        scales = SignalNoise(expand(process.alpha(t), x), expand(process.sigma(t), x), sigma_data)
        scale = jax.lax.rsqrt(scales.alpha**2 * sigma_data**2 + scales.sigma**2)
        output = apply(params, scale * x, process.log_snr(t), cond)
        return convert(output, x, scales, prediction, SCORE)

    return score


def energy_fn(process: Process, score: ScoreFn, power: int = 2) -> Callable[..., jax.Array]:
    """An energy made of any network: E(x, t) = sigma(t)^power |score(x, t)|^2 / 2, for `constrained`.

    Written with x - f = sigma score, power 1 is the published |x - f|^2 / (2 sigma) and -1 is what its image code has
    (Chao et al. 2023, arXiv 2209.12753); both leave it to the network to make up for a power of sigma. Power 2 does
    not, and is derived here: where noise drowns the data and the exact score is -x / sigma^2, so is the gradient's.

    Args:
      process: the forward SDE.
      score: an unconstrained score function, as `score_fn` makes it.
      power: of sigma.

    Returns:
      energy(x [B, ...], t [B], cond=None) -> [B]; the density is exp(-energy) up to a constant that is not known.
    """

    def energy(x, t, cond=None):
        square = score(x, t, cond).reshape(x.shape[0], -1) ** 2
        return 0.5 * process.sigma(t) ** power * jnp.sum(square, axis=1)

    return energy


def constrained(energy: Callable[..., jax.Array]) -> ScoreFn:
    """The score -dE/dx of an energy: a gradient field, at the price of a reverse pass in every evaluation."""
    return lambda x, t, cond=None: -jax.grad(lambda x: jnp.sum(energy(x, t, cond)))(x)


def denoised(process: Process, score: ScoreFn, x: jax.Array, t: jax.Array, cond=None) -> jax.Array:
    """E[x_0 | x_t = x] by Tweedie's formula, [B, ...]."""
    alpha, variance = expand(process.alpha(t), x), expand(process.variance(t), x)
    return (x + variance * score(x, t, cond)) / alpha


def probability_flow(process: Process, score: ScoreFn) -> Callable[..., jax.Array]:
    """The drift of the probability-flow ODE, f x - g^2 score / 2; the same in both directions of time.

    Returns:
      drift(t [B], x [B, ...], cond=None) -> [B, ...].
    """

    def drift(t, x, cond=None):
        f, g2 = expand(process.drift_coeff(t), x), expand(process.diffusion_sq(t), x)
        return f * x - 0.5 * g2 * score(x, t, cond)

    return drift


def normal(process: Process) -> ScoreFn:
    """The exact score of N(0, I), the first noise included, under the process."""
    return lambda x, t, cond=None: -x / expand(process.normal_variance(t), x)


def mixed(process: Process, score: ScoreFn, logits: jax.Array) -> ScoreFn:
    """The score of a product N(0, I)^(1 - a) p^a at every t, a = sigmoid(logits): -(1 - a) x / v + a score.

    Vahdat et al. 2021, arXiv 2106.05931, section 3.2. Where the data are close to N(0, I) a starts near 0, and at large
    t, where weights are largest, the Normal part is exact. v is the variance of x_t for x_0 of unit variance, the first
    noise included. The product need not be the law of any data under the process: this is a way to write a score.

    Args:
      process: the forward SDE.
      score: that of p.
      logits: [C], one for each channel, shared over pixels.
    """
    share, of_normal = jax.nn.sigmoid(logits), normal(process)

    def mixture(x, t, cond=None):
        a = share.reshape((1,) * (x.ndim - 1) + share.shape)
        return (1.0 - a) * of_normal(x, t) + a * score(x, t, cond)

    return mixture
