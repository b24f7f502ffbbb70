"""Data seen through a VAE: what a score model diffuses instead of x, and what the decoder says of x given it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scoreflow.latent.decoders import Decoder
from scoreflow.models.vae import VAE, Posterior, normal_log_prob


class Quantiser(NamedTuple):
    """Between data as stored, integers from 0 to `stored` - 1, and what is modeled, from 0 to `count` - 1.

    Attributes:
      stored: levels of the data set.
      count: levels that are modeled: as many, fewer (the lowest bits are dropped) or two.
      binarized: whether each access draws 0 or 1, with a probability of 1 that is the stored level's share of the top.
    """

    stored: int
    count: int
    binarized: bool = False

    def quantise(self, key: jax.Array, data: jax.Array) -> jax.Array:
        """What is modeled of data as stored, like it, int32."""
        if self.binarized:
            return jax.random.bernoulli(key, data.astype(jnp.float32) / (self.stored - 1)).astype(jnp.int32)
        return (data.astype(jnp.int32) * self.count) // self.stored

    def to_stored(self, mean: jax.Array) -> jax.Array:
        """The stored level nearest to `mean`, in units of what is modeled; uint8."""
        return jnp.round(mean * ((self.stored - 1) / (self.count - 1))).clip(0, self.stored - 1).astype(jnp.uint8)


class Encoded(NamedTuple):
    """Data through a VAE, nats for each example.

    Attributes:
      top: latents [B, ...] under the score prior.
      lower: those under N(0, I).
      reconstruction: [B], -log p(x|z).
      decoded: the decoder's mean, in levels as stored.
    """

    top: Posterior
    lower: tuple[Posterior, ...]
    reconstruction: jax.Array
    decoded: jax.Array

    @property
    def lower_kl(self) -> jax.Array:
        """[B, G], one-sample divergences of the lower groups from N(0, I); G may be 0."""
        rows = [(p.log_q - normal_log_prob(p.z)).reshape(len(p.z), -1).sum(1) for p in self.lower]
        return jnp.stack(rows, axis=1) if rows else jnp.zeros((len(self.top.z), 0))


class LatentSpace(NamedTuple):
    """A latent space.

    Attributes:
      shape: of the latents of one example that are diffused.
      groups: parts of their channels, and `sizes` of these and the lower groups, see `models.vae.VAE`.
      init: (key) -> params of the VAE.
      quantiser: what is modeled of data as stored.
      infer: (params of the VAE, key, levels as modeled) -> Encoded.
      decode_mean: (params of the VAE, key, z) -> the decoder's mean, in levels as stored.
    """

    shape: tuple[int, ...]
    groups: int
    sizes: tuple[float, ...]
    init: Callable
    quantiser: Quantiser
    infer: Callable
    decode_mean: Callable


def latent_space(vae: VAE, decoder: Decoder, quantiser: Quantiser, data_shape: tuple[int, ...]) -> LatentSpace:
    """The latent space of a VAE for data of a shape."""

    def infer(params, key, x):
        inferred = vae.infer(params, key, 2.0 * x.astype(jnp.float32) / (quantiser.count - 1) - 1.0)
        decoded = quantiser.to_stored(decoder.mean(inferred.out))
        return Encoded(inferred.top, inferred.lower, -decoder.log_prob(inferred.out, x), decoded)

    def decode_mean(params, key, z):
        return quantiser.to_stored(decoder.mean(vae.generate(params, key, z)))

    def init(key):
        return vae.init(key, (1, *data_shape))

    def latents(key):
        return vae.infer(init(key), key, jnp.zeros((1, *data_shape))).top.z

    shape = jax.eval_shape(latents, jax.random.key(0)).shape[1:]
    return LatentSpace(shape, vae.groups, vae.sizes, init, quantiser, infer, decode_mean)
