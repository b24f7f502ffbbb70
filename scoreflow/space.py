"""What is diffused: the data themselves, dequantized where they are integer levels, or the latents of a VAE."""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from scoreflow import dequantise
from scoreflow.dequantise import Bins, Dequantiser
from scoreflow.latent.space import Encoded, LatentSpace, Quantiser
from scoreflow.models import LATENT
from scoreflow.types import Check, Flag, Key, OneOf, Params

TRAINING_RULES = {"uniform": dequantise.uniform, "none": dequantise.center}


class Space(NamedTuple):
    """The space in which a score model lives.

    Attributes:
      shape: of one x, which is what is diffused.
      encode: (params, key, data [B, ...] as stored) -> x [B, ...].
      decode: (params, key, x) -> data as stored: uint8 levels, or x itself where the data are continuous.
      bins: where the levels of integer data lie; None where the data are continuous, or have two levels and a decoder:
        their likelihood is in nats.
      latent: the latent space, whose parameters are params[LATENT]; None where x are the data.
    """

    shape: tuple[int, ...]
    encode: Callable[[Params, Key, jax.Array], jax.Array]
    decode: Callable[[Params, Key, jax.Array], jax.Array]
    bins: Bins | None = None
    latent: LatentSpace | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The interval in which levels lie; (-1, 1) where there are none."""
        return (-1.0, 1.0) if self.bins is None else (self.bins.low, self.bins.low + self.bins.width)


def continuous(shape: tuple[int, ...]) -> Space:
    """Continuous data as they are."""
    return Space(shape, lambda params, key, x: jnp.asarray(x, jnp.float32), lambda params, key, x: x)


def pixels(
    shape: tuple[int, ...],
    num_levels: int,
    *,
    centered: Flag = True,
    dequantization: Annotated[Dequantiser, OneOf(TRAINING_RULES)] = dequantise.uniform,
) -> Space:
    """Integer data, dequantized; continuous data where there are no levels.

    Args:
      shape: of one example.
      num_levels: number of gray levels; 0 where the data are continuous.
      centered: Integer data lie in [-1, 1]; otherwise in [0, 1].
      dequantization: How training data are dequantized: uniform noise in each bin, or none (bin centers).
    """
    if not num_levels:
        return continuous(shape)
    bins = Bins(num_levels) if centered else Bins(num_levels, 0.0, 1.0)

    def encode(params, key, data):
        return dequantization(key, data, bins).x

    return Space(shape, encode, lambda params, key, x: dequantise.quantise(x, bins), bins)


def quantiser(
    num_levels: int,
    *,
    binarized: Flag = False,
    bits: Annotated[int, Check(int, lambda v: 0 <= v <= 8, "a whole number from 0 to 8")] = 0,
) -> Quantiser:
    """Which levels a decoder models.

    Args:
      num_levels: number of gray levels as stored.
      binarized: For a decoder: every access draws 0 or 1, with the level's share of the top level as probability.
      bits: For a decoder: how many of the highest bits of the levels are kept; 0 keeps all.
    """
    return Quantiser(num_levels, 2 if binarized else 2**bits if bits else num_levels, binarized)


def infer(latent: LatentSpace, params: Params, key: Key, data: jax.Array) -> Encoded:
    """Data [B, ...] as stored through the VAE, with draws of what a decoder models and of the latents."""
    key_quantise, key_infer = jax.random.split(key)
    return latent.infer(params[LATENT], key_infer, latent.quantiser.quantise(key_quantise, data))


def latents(latent: LatentSpace) -> Space:
    """The latents of a VAE; a bin has size 1, since a decoder gives probabilities of levels."""
    count = latent.quantiser.count
    bins = Bins(count, 0.0, float(count)) if count > 2 else None

    def encode(params, key, data):
        return infer(latent, params, key, data).top.z

    def decode(params, key, x):
        return latent.decode_mean(params[LATENT], key, x)

    return Space(latent.shape, encode, decode, bins, latent)
