"""What is diffused: encoded data decode to what is stored, and bins lie where the levels are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import dequantise, space
from scoreflow.dequantise import Bins
from scoreflow.latent import decoders
from scoreflow.latent.space import latent_space
from scoreflow.models import LATENT
from scoreflow.models.vae import VAE, Inferred, Posterior


@pytest.mark.parametrize("rule", [dequantise.uniform, dequantise.center])
@pytest.mark.parametrize("centered, ends", [(True, (-1.0, 1.0)), (False, (0.0, 1.0))])
@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_pixels_decode_to_the_levels_that_were_encoded(num_levels, centered, ends, rule):
    pixels = space.pixels((num_levels,), num_levels, centered=centered, dequantization=rule)
    levels = np.tile(np.arange(num_levels, dtype=np.uint8), (50, 1))
    x = np.asarray(pixels.encode(None, jax.random.key(0), levels))
    decoded = pixels.decode(None, jax.random.key(1), x)
    np.testing.assert_array_equal(decoded, levels)
    assert decoded.dtype == jnp.uint8 and x.dtype == np.float32
    edges = np.linspace(*ends, num_levels + 1)
    assert (x >= edges[:-1] - 1e-6).all() and (x <= edges[1:] + 1e-6).all()
    if rule is dequantise.center:
        np.testing.assert_allclose(x[0], 0.5 * (edges[:-1] + edges[1:]), atol=1e-6)
    assert pixels.bins == Bins(num_levels, ends[0], ends[1] - ends[0]) and pixels.latent is None


def test_data_without_levels_are_diffused_as_they_are():
    continuous, x = space.pixels((3,), 0), np.random.default_rng(0).standard_normal((4, 3))
    z = continuous.encode(None, jax.random.key(0), x)
    np.testing.assert_array_equal(z, x.astype(np.float32))
    np.testing.assert_array_equal(continuous.decode(None, jax.random.key(0), z), z)
    assert continuous == space.continuous((3,))._replace(encode=continuous.encode, decode=continuous.decode)
    assert continuous.bins is None and z.dtype == jnp.float32


def lossless(num_levels: int, *, binarized: bool = False, bits: int = 0) -> space.Space:
    """The latents of a VAE without noise: z = scale x, with a decoder that is all but certain of x; params: scale."""
    quantiser = space.quantiser(num_levels, binarized=binarized, bits=bits)

    def infer(scale, key, x):
        z = scale * x
        return Inferred(Posterior(z, jnp.zeros_like(z), jnp.zeros_like(z)), (), generate(scale, key, z))

    def generate(scale, key, z):
        level = 0.5 * (z / scale + 1.0) * (quantiser.count - 1)
        apart = level[..., None] - jnp.arange(quantiser.count)[None, None]
        return (-1e3 * apart**2).reshape(*z.shape[:-1], -1)

    vae = VAE(lambda key, x_shape: jnp.float32(2.0), infer, generate)
    return space.latents(latent_space(vae, decoders.categorical(quantiser.count), quantiser, (quantiser.stored,)))


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_latents_of_a_lossless_vae_decode_to_the_levels_that_were_encoded(num_levels):
    """Encoding and decoding use the VAE's own group of the parameters, here a scale of 3."""
    latents, params = lossless(num_levels), {LATENT: jnp.float32(3.0)}
    levels = np.tile(np.arange(num_levels, dtype=np.uint8), (2, 1))
    z = latents.encode(params, jax.random.key(0), levels)
    np.testing.assert_allclose(z, 3.0 * (2.0 * levels / (num_levels - 1) - 1.0), atol=1e-5)
    decoded = latents.decode(params, jax.random.key(1), z)
    np.testing.assert_array_equal(decoded, levels)
    assert decoded.dtype == jnp.uint8 and latents.shape == (num_levels,)


def test_latents_of_the_highest_bits_decode_to_the_nearest_of_eight_levels():
    """Of 256 levels three bits are left, at multiples of 255 / 7; encoded again these stay where they are."""
    latents, params = lossless(256, bits=3), {LATENT: jnp.float32(1.0)}
    levels = np.arange(256, dtype=np.uint8)[None]
    decoded = latents.decode(params, jax.random.key(1), latents.encode(params, jax.random.key(0), levels))
    np.testing.assert_array_equal(decoded, np.round(levels // 32 * (255 / 7)))
    again = latents.decode(params, jax.random.key(1), latents.encode(params, jax.random.key(0), decoded))
    np.testing.assert_array_equal(again, decoded)
    assert latents.bins == Bins(8, 0.0, 8.0)


def test_binarized_latents_are_drawn_with_the_level_s_share():
    """Level 4 of 0 ... 16 is 1 a quarter of the time, and is decoded to the lowest or the highest stored level."""
    latents, params = lossless(17, binarized=True), {LATENT: jnp.float32(1.0)}
    levels = np.full((1000, 17), 4, np.uint8)
    z = latents.encode(params, jax.random.key(0), levels)
    assert set(np.unique(z)) == {-1.0, 1.0}
    assert abs(float((z > 0).mean()) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / z.size)
    np.testing.assert_array_equal(latents.decode(params, jax.random.key(1), z), np.where(z > 0, 16, 0))
    np.testing.assert_array_equal(z, space.infer(latents.latent, params, jax.random.key(0), levels).top.z)


@pytest.mark.parametrize(
    "num_levels, binarized, bits, count", [(17, False, 0, 17), (256, False, 5, 32), (256, True, 0, 2)]
)
def test_bits_per_dim_of_latents_are_those_of_the_levels_a_decoder_models(num_levels, binarized, bits, count):
    """A decoder that knows nothing scores log2 of their number; with two levels the unit is nats."""
    bins = lossless(num_levels, binarized=binarized, bits=bits).bins
    if count == 2:
        assert bins is None
        return
    assert bins.num_levels == count and bins.size == 1.0
    value = dequantise.bits_per_dim(jnp.float32(-6 * np.log(count)), 0.0, 6, bins)
    assert float(value) == pytest.approx(np.log2(count), rel=1e-6)
