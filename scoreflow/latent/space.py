"""The latent space of a VAE: what a score model diffuses instead of x, and the likelihood of x given the latents."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scoreflow.latent.decoders import Decoder
from scoreflow.models.vae import VAE, Posterior, normal_log_prob
from scoreflow.types import Key, Params


class Quantiser(NamedTuple):
    """Conversion between the levels of stored data, 0 to `stored` - 1, and those of the model, 0 to `count` - 1.

    Attributes:
      stored: number of levels of the data set.
      count: number of levels of the model: as many, fewer (the lowest bits are dropped) or two.
      binarized: whether each access draws 0 or 1, with the probability level / (stored - 1) of 1.
    """

    stored: int
    count: int
    binarized: bool = False

    def quantise(self, key: Key, data: jax.Array) -> jax.Array:
        """The levels of the model for stored data, like them, int32."""
        if self.binarized:
            return jax.random.bernoulli(key, data.astype(jnp.float32) / (self.stored - 1)).astype(jnp.int32)
        return (data.astype(jnp.int32) * self.count) // self.stored

    def to_stored(self, mean: jax.Array) -> jax.Array:
        """The stored level nearest to `mean`, which is in units of the model's levels; uint8."""
        return jnp.round(mean * ((self.stored - 1) / (self.count - 1))).clip(0, self.stored - 1).astype(jnp.uint8)


class Encoded(NamedTuple):
    """Data encoded by a VAE and decoded again.

    Attributes:
      top: latents [B, ...] whose prior is the score model.
      lower: latents whose prior is N(0, I).
      reconstruction: -log p(x|z) in nats, [B].
      decoded: the decoder's mean, in stored levels.
    """

    top: Posterior
    lower: tuple[Posterior, ...]
    reconstruction: jax.Array
    decoded: jax.Array

    @property
    def lower_kl(self) -> jax.Array:
        """One-sample estimates of the lower groups' divergences from N(0, I), [B, G]; G may be 0."""
        rows = [(p.log_q - normal_log_prob(p.z)).reshape(len(p.z), -1).sum(1) for p in self.lower]
        return jnp.stack(rows, axis=1) if rows else jnp.zeros((len(self.top.z), 0))


class LatentSpace(NamedTuple):
    """A latent space.

    Attributes:
      shape: shape of the latents of one example that are diffused.
      groups: number of groups of their channels, see `models.vae.VAE`.
      sizes: relative sizes of the divergences of these groups and of the lower ones, see `models.vae.VAE`.
      init: (key) -> params of the VAE.
      quantiser: conversion between stored levels and those of the model.
      infer: (params of the VAE, key, levels of the model) -> Encoded.
      decode_mean: (params of the VAE, key, z) -> the decoder's mean, in stored levels.
    """

    shape: tuple[int, ...]
    groups: int
    sizes: tuple[float, ...]
    init: Callable[[Key], Params]
    quantiser: Quantiser
    infer: Callable[[Params, Key, jax.Array], Encoded]
    decode_mean: Callable[[Params, Key, jax.Array], jax.Array]


def latent_space(vae: VAE, decoder: Decoder, quantiser: Quantiser, data_shape: tuple[int, ...]) -> LatentSpace:
    """The latent space of a VAE.

    Args:
      vae: the VAE.
      decoder: the likelihood of its decoder.
      quantiser: conversion between stored levels and those of the model.
      data_shape: shape of one example.
    """

    def infer(params: Params, key: Key, x: jax.Array) -> Encoded:
        inferred = vae.infer(params, key, 2.0 * x.astype(jnp.float32) / (quantiser.count - 1) - 1.0)
        decoded = quantiser.to_stored(decoder.mean(inferred.out))
        return Encoded(inferred.top, inferred.lower, -decoder.log_prob(inferred.out, x), decoded)

    def decode_mean(params: Params, key: Key, z: jax.Array) -> jax.Array:
        return quantiser.to_stored(decoder.mean(vae.generate(params, key, z)))

    def init(key: Key) -> Params:
        return vae.init(key, (1, *data_shape))

    def latents(key: Key) -> jax.Array:
        return vae.infer(init(key), key, jnp.zeros((1, *data_shape))).top.z

    shape = jax.eval_shape(latents, jax.random.key(0)).shape[1:]
    return LatentSpace(shape, vae.groups, vae.sizes, init, quantiser, infer, decode_mean)
