"""What a decoder's numbers say of discrete data: log-probabilities, draws and means. No dequantization is involved.

Each takes what a network puts out for every pixel, [B, H, W, outputs], and data as stored: levels 0 ... M,
[B, H, W, C].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Decoder(NamedTuple):
    """A family of distributions of levels.

    Attributes:
      outputs: channels of the data -> numbers that the network puts out for each pixel.
      log_prob: (out [B, H, W, outputs], x [B, H, W, C] levels) -> nats [B].
      sample: (key, out) -> levels [B, H, W, C] int32.
      mean: out -> [B, H, W, C] in units of levels: what is shown and measured.
    """

    outputs: Callable[[int], int]
    log_prob: Callable[[jax.Array, jax.Array], jax.Array]
    sample: Callable[[jax.Array, jax.Array], jax.Array]
    mean: Callable[[jax.Array], jax.Array]


def _total(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1).sum(1)


def bernoulli() -> Decoder:
    """Two levels, a logit for each."""

    def log_prob(out, x):
        return _total(x * jax.nn.log_sigmoid(out) + (1 - x) * jax.nn.log_sigmoid(-out))

    def sample(key, out):
        return jax.random.bernoulli(key, jax.nn.sigmoid(out)).astype(jnp.int32)

    return Decoder(lambda channels: channels, log_prob, sample, jax.nn.sigmoid)


def categorical(num_levels: int) -> Decoder:
    """A logit for every level: for data whose levels have no order, too."""

    def split(out):
        return out.reshape(*out.shape[:-1], -1, num_levels)

    def log_prob(out, x):
        logp = jax.nn.log_softmax(split(out))
        return _total(jnp.take_along_axis(logp, x[..., None].astype(jnp.int32), axis=-1))

    def sample(key, out):
        return jax.random.categorical(key, split(out)).astype(jnp.int32)

    def mean(out):
        return jax.nn.softmax(split(out)) @ jnp.arange(num_levels, dtype=out.dtype)

    return Decoder(lambda channels: channels * num_levels, log_prob, sample, mean)


class _Logistics(NamedTuple):
    """Of a mixture: `logits` [..., K]; `means`, `log_scales` [..., C, K]; `mixing` [..., 3, K] where C = 3, or None."""

    logits: jax.Array
    means: jax.Array
    log_scales: jax.Array
    mixing: jax.Array | None


_LEAST_LOG_SCALE = -7.0


def _logistics(out: jax.Array, components: int, channels: int) -> _Logistics:
    logits, rest = out[..., :components], out[..., components:]
    parts = rest.reshape(*rest.shape[:-1], channels, -1, components)
    mixing = jnp.tanh(parts[..., 2, :]) if channels == 3 else None
    return _Logistics(logits, parts[..., 0, :], jnp.maximum(parts[..., 1, :], _LEAST_LOG_SCALE), mixing)


def _shifted(found: _Logistics, x: jax.Array) -> jax.Array:
    """Means of the channels given those before: green moves with red, blue with both. x [..., C, 1 or K]."""
    if found.mixing is None:
        return found.means
    red, green = x[..., 0, :], x[..., 1, :]
    c = found.mixing
    moved = (0.0 * red, c[..., 0, :] * red, c[..., 1, :] * red + c[..., 2, :] * green)
    return found.means + jnp.stack(jnp.broadcast_arrays(*moved), axis=-2)


def logistic_mixture(num_levels: int, components: int = 10) -> Decoder:
    """A mixture of logistic distributions, each level the mass of its bin; of one channel, or of red, green and blue.

    Salimans et al. 2017, arXiv 1701.05517. Levels lie in [-1, 1], 2 / M apart; the outermost take the tails. The mass
    of a bin (b, a) is sigmoid(a) sigmoid(-b) (1 - e^(b - a)), exactly, so that no small difference is taken.
    """
    top = num_levels - 1

    def channels_of(outputs: int) -> int:
        return 3 if outputs == 10 * components else 1

    def outputs(channels):
        if channels not in (1, 3):
            raise ValueError(f"a mixture of logistics is of 1 or 3 channels, not {channels}")
        return components * (1 + (2 if channels == 1 else 9))

    def log_prob(out, x):
        found = _logistics(out, components, channels_of(out.shape[-1]))
        value = (2.0 * x.astype(out.dtype) / top - 1.0)[..., None]
        apart, inv_scale = value - _shifted(found, value), jnp.exp(-found.log_scales)
        above, below = (apart + 1.0 / top) * inv_scale, (apart - 1.0 / top) * inv_scale
        first, last = (x == 0)[..., None], (x == top)[..., None]
        mass = jnp.where(last, 0.0, jax.nn.log_sigmoid(above)) + jnp.where(first, 0.0, jax.nn.log_sigmoid(-below))
        width = jnp.log(-jnp.expm1(-2.0 / top * inv_scale))
        mass = mass + jnp.where(first | last, 0.0, width)
        return _total(jax.nn.logsumexp(jax.nn.log_softmax(found.logits) + mass.sum(-2), axis=-1))

    def in_turn(found, value_of):
        """Channels one after the other, each clipped to the range before the next depends on it."""
        picked = []
        for channel in range(found.means.shape[-2]):
            x = jnp.stack([*picked, *[jnp.zeros_like(found.means[..., 0, :])] * (3 - len(picked))], axis=-2)
            picked.append(jnp.clip(value_of(_shifted(found, x)[..., channel, :], channel), -1.0, 1.0))
        return jnp.stack(picked, axis=-2)[..., 0]

    def sample(key, out):
        channels = channels_of(out.shape[-1])
        found = _logistics(out, components, channels)
        key_k, key_u = jax.random.split(key)
        k = jax.random.categorical(key_k, found.logits)[..., None]
        pick = lambda leaf: None if leaf is None else jnp.take_along_axis(leaf, k[..., None], axis=-1)
        one = _Logistics(found.logits, *(pick(leaf) for leaf in found[1:]))
        noise = jnp.exp(one.log_scales) * jax.random.logistic(key_u, one.means.shape, out.dtype)
        value = in_turn(one, lambda mean, channel: mean + noise[..., channel, :])
        return jnp.round(0.5 * top * (value + 1.0)).astype(jnp.int32)

    def mean(out):
        found = _logistics(out, components, channels_of(out.shape[-1]))
        share = jax.nn.softmax(found.logits)[..., None, :]
        average = lambda leaf: None if leaf is None else jnp.sum(share * leaf, axis=-1, keepdims=True)
        one = _Logistics(found.logits, *(average(leaf) for leaf in found[1:]))
        return 0.5 * top * (in_turn(one, lambda mean, channel: mean) + 1.0)

    return Decoder(outputs, log_prob, sample, mean)
