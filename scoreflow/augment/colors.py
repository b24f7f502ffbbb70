"""Affine maps of colors, for images in [-1, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

_LUMA = np.full((3, 3), 1 / 3, np.float32)  # the projection on gray
_TURN = np.cross(np.eye(3), np.full(3, 3**-0.5)).astype(np.float32)  # u -> gray axis x u
_ADDED = np.outer([1, 1, 1, 0], [0, 0, 0, 1]).astype(np.float32)


def _about_gray(along: jax.Array, across: jax.Array, turned: jax.Array) -> jax.Array:
    """The map with factors [B, 1] along the gray axis and across it, plus `turned` [B, 1] quarter turns about it."""
    along, across, turned = (factor[:, :, None] for factor in (along, across, turned))
    linear = along * _LUMA[None] + across * (np.eye(3, dtype=np.float32) - _LUMA)[None] + turned * _TURN[None]
    return jnp.pad(linear, [(0, 0), (0, 1), (0, 1)]).at[:, 3, 3].set(1.0)


def brightening(w: jax.Array) -> jax.Array:
    """The map that adds w / 5, w [B, 1]."""
    return jnp.eye(4)[None] + 0.2 * w[:, :, None] * _ADDED[None]


def contrasting(w: jax.Array) -> jax.Array:
    """The map that multiplies by 2^(w / 2), w [B, 1]."""
    return _about_gray(2.0 ** (0.5 * w), 2.0 ** (0.5 * w), 0.0 * w)


def luma_flipping(w: jax.Array) -> jax.Array:
    """The map that turns gray into its negative where w [B, 1] is 1, and keeps what is added to gray."""
    return _about_gray(1.0 - 2.0 * w, jnp.ones_like(w), 0.0 * w)


def hue_turning(w: jax.Array) -> jax.Array:
    """The map that turns colors about the gray axis by w [B, 1] radians."""
    return _about_gray(jnp.ones_like(w), jnp.cos(w), jnp.sin(w))


def saturating(w: jax.Array) -> jax.Array:
    """The map that multiplies what is added to gray by 2^w, w [B, 1]."""
    return _about_gray(jnp.ones_like(w), 2.0**w, 0.0 * w)


def recolor(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Images changed by affine maps of their colors.

    Args:
      x: images [B, H, W, C] in [-1, 1], of three channels, or of one that stands for three equal ones.
      matrix: [B, 4, 4] on (red, green, blue, 1).
    """
    linear, constant = matrix[:, :3, :3], matrix[:, :3, 3]
    if x.shape[-1] == 1:
        linear = linear.sum(axis=2, keepdims=True).mean(axis=1, keepdims=True)
        constant = constant.mean(axis=1, keepdims=True)
    return jnp.einsum("bij,bhwj->bhwi", linear, x, precision="highest") + constant[:, None, None]
