"""Decoder likelihoods for discrete data: log-probabilities, draws and means. They involve no dequantization.

Each of them takes the outputs of a network for every pixel, [B, H, W, outputs], and data as integer levels 0 ... M,
[B, H, W, C].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scoreflow.types import Count, Key


class Decoder(NamedTuple):
    """A family of distributions of levels.

    Attributes:
      outputs: number of channels of the data -> number of outputs of the network for each pixel.
      log_prob: (out [B, H, W, outputs], x [B, H, W, C] levels) -> nats [B].
      sample: (key, out) -> levels [B, H, W, C] int32.
      mean: out -> mean levels [B, H, W, C], which are what is shown and evaluated.
    """

    outputs: Callable[[int], int]
    log_prob: Callable[[jax.Array, jax.Array], jax.Array]
    sample: Callable[[Key, jax.Array], jax.Array]
    mean: Callable[[jax.Array], jax.Array]


def _total(x: jax.Array) -> jax.Array:
    """Sums of the examples of x [B, ...]; [B]."""
    return x.reshape(len(x), -1).sum(1)


def bernoulli() -> Decoder:
    """A Bernoulli distribution for data with two levels, with one logit for each number."""

    def log_prob(out: jax.Array, x: jax.Array) -> jax.Array:
        return _total(x * jax.nn.log_sigmoid(out) + (1 - x) * jax.nn.log_sigmoid(-out))

    def sample(key: Key, out: jax.Array) -> jax.Array:
        return jax.random.bernoulli(key, jax.nn.sigmoid(out)).astype(jnp.int32)

    return Decoder(lambda channels: channels, log_prob, sample, jax.nn.sigmoid)


def categorical(num_levels: int) -> Decoder:
    """A categorical distribution, with one logit for every level, which assumes no order of the levels.

    Args:
      num_levels: number of levels of the data.
    """

    def split(out: jax.Array) -> jax.Array:
        return out.reshape(*out.shape[:-1], -1, num_levels)

    def log_prob(out: jax.Array, x: jax.Array) -> jax.Array:
        logp = jax.nn.log_softmax(split(out))
        return _total(jnp.take_along_axis(logp, x[..., None].astype(jnp.int32), axis=-1))

    def sample(key: Key, out: jax.Array) -> jax.Array:
        return jax.random.categorical(key, split(out)).astype(jnp.int32)

    def mean(out: jax.Array) -> jax.Array:
        return jax.nn.softmax(split(out)) @ jnp.arange(num_levels, dtype=out.dtype)

    return Decoder(lambda channels: channels * num_levels, log_prob, sample, mean)


class _Logistics(NamedTuple):
    """The parameters of a mixture of K logistic distributions.

    Attributes:
      logits: of the components, [..., K].
      means, log_scales: of each channel, [..., C, K].
      mixing: how the mean of a channel depends on the channels before it, [..., 3, K]; None unless C = 3.
    """

    logits: jax.Array
    means: jax.Array
    log_scales: jax.Array
    mixing: jax.Array | None

    def each(self, fn: Callable[[jax.Array], jax.Array]) -> "_Logistics":
        """The parameters with `fn` applied to all but the logits."""
        mixing = None if self.mixing is None else fn(self.mixing)
        return _Logistics(self.logits, fn(self.means), fn(self.log_scales), mixing)


_LEAST_LOG_SCALE = -7.0


def _logistics(out: jax.Array, components: int, channels: int) -> _Logistics:
    """The parameters in the outputs of a network."""
    logits, rest = out[..., :components], out[..., components:]
    rows = rest.reshape(*rest.shape[:-1], channels, -1, components)
    mixing = jnp.tanh(rows[..., 2, :]) if channels == 3 else None
    return _Logistics(logits, rows[..., 0, :], jnp.maximum(rows[..., 1, :], _LEAST_LOG_SCALE), mixing)


def _shifted(mixture: _Logistics, x: jax.Array) -> jax.Array:
    """Means of the channels given those before: green depends on red, blue on both. x [..., C, 1 or K]."""
    if mixture.mixing is None:
        return mixture.means
    red, green = x[..., 0, :], x[..., 1, :]
    c = mixture.mixing
    moved = (0.0 * red, c[..., 0, :] * red, c[..., 1, :] * red + c[..., 2, :] * green)
    return mixture.means + jnp.stack(jnp.broadcast_arrays(*moved), axis=-2)


def logistic_mixture(num_levels: int, components: Count = 10) -> Decoder:
    """A mixture of logistic distributions, whose mass in a level's bin is the probability of the level.

    Salimans et al. 2017, arXiv 1701.05517. The data have one channel, or red, green and blue. The levels are in
    [-1, 1], 2 / M apart, and the outermost ones include the tails. The mass of a bin (b, a) is computed as
    sigmoid(a) sigmoid(-b) (1 - e^(b - a)), which is exact, so that no small difference cancels.

    Args:
      num_levels: number of levels of the data.
      components: Number of logistic components of each pixel's mixture.
    """
    top = num_levels - 1

    def channels_of(outputs: int) -> int:
        return 3 if outputs == 10 * components else 1

    def outputs(channels: int) -> int:
        if channels not in (1, 3):
            raise ValueError(f"a mixture of logistics is of 1 or 3 channels, not {channels}")
        return components * (1 + (2 if channels == 1 else 9))

    def log_prob(out: jax.Array, x: jax.Array) -> jax.Array:
        mixture = _logistics(out, components, channels_of(out.shape[-1]))
        value = (2.0 * x.astype(out.dtype) / top - 1.0)[..., None]
        apart, inv_scale = value - _shifted(mixture, value), jnp.exp(-mixture.log_scales)
        above, below = (apart + 1.0 / top) * inv_scale, (apart - 1.0 / top) * inv_scale
        first, last = (x == 0)[..., None], (x == top)[..., None]
        mass = jnp.where(last, 0.0, jax.nn.log_sigmoid(above)) + jnp.where(first, 0.0, jax.nn.log_sigmoid(-below))
        width = jnp.log(-jnp.expm1(-2.0 / top * inv_scale))
        mass = mass + jnp.where(first | last, 0.0, width)
        return _total(jax.nn.logsumexp(jax.nn.log_softmax(mixture.logits) + mass.sum(-2), axis=-1))

    def in_turn(one: _Logistics, value_of: Callable[[jax.Array, int], jax.Array]) -> jax.Array:
        """Channels one after the other, each clipped to the range before the next depends on it."""
        values = []
        for channel in range(one.means.shape[-2]):
            x = jnp.stack([*values, *[jnp.zeros_like(one.means[..., 0, :])] * (3 - len(values))], axis=-2)
            values.append(jnp.clip(value_of(_shifted(one, x)[..., channel, :], channel), -1.0, 1.0))
        return jnp.stack(values, axis=-2)[..., 0]

    def sample(key: Key, out: jax.Array) -> jax.Array:
        mixture = _logistics(out, components, channels_of(out.shape[-1]))
        key_k, key_u = jax.random.split(key)
        k = jax.random.categorical(key_k, mixture.logits)[..., None]
        one = mixture.each(lambda leaf: jnp.take_along_axis(leaf, k[..., None], axis=-1))
        noise = jnp.exp(one.log_scales) * jax.random.logistic(key_u, one.means.shape, out.dtype)
        value = in_turn(one, lambda mean, channel: mean + noise[..., channel, :])
        return jnp.round(0.5 * top * (value + 1.0)).astype(jnp.int32)

    def mean(out: jax.Array) -> jax.Array:
        mixture = _logistics(out, components, channels_of(out.shape[-1]))
        share = jax.nn.softmax(mixture.logits)[..., None, :]
        one = mixture.each(lambda leaf: jnp.sum(share * leaf, axis=-1, keepdims=True))
        return 0.5 * top * (in_turn(one, lambda mean, channel: mean) + 1.0)

    return Decoder(outputs, log_prob, sample, mean)
