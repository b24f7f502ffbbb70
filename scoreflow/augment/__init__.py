"""Augmentation of training images where the network is told what was done to them, as EDM trains with.

Each kind draws parameters w for a share of the examples and changes those; w = 0 changes nothing. The label of an
example is a function of its w, zero for zero, and the network is given it with the noise label. In use the label is
zero, so that samples and densities are those of images as they were (Karras et al. 2022, arXiv 2206.00364, appendix
F.2). The kinds, their order, parameters and labels are those of the public code of EDM, and so are their names.
"""

import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.augment import colors, geometry
from scoreflow.augment.geometry import Sides
from scoreflow.dequantise import Bins
from scoreflow.runs.errors import UserError
from scoreflow.types import Check, Key, Probability


class Augmented(NamedTuple):
    """Images `x` [B, H, W, C] and `label` [B, n], what was done to each; zeros where nothing was."""

    x: jax.Array
    label: jax.Array


class Kind(NamedTuple):
    """One kind of augmentation.

    Attributes:
      draw: (key, n) -> parameters w [n, k] of n examples.
      change: of a kind that moves pixels, (x [B, H, W, C], w) -> x; of a warp, (w, sides) -> the inverse map, see
        `geometry.warp`; of a change of color, w -> the map, see `colors.recolor`.
      label: (w, sides) -> what the network is told, [n, labels].
      labels: how many numbers that is.
      always: whether all examples draw w, and not only a share of them.
    """

    draw: Callable[[Key, int], jax.Array]
    change: Callable[..., jax.Array]
    label: Callable[[jax.Array, Sides], jax.Array]
    labels: int = 1
    always: bool = False


# --- parameters and labels --------------------------------------------------------------------------------------------


def _coin(key: Key, n: int) -> jax.Array:
    return jax.random.bernoulli(key, 0.5, (n, 1)).astype(jnp.float32)


def _quarters(key: Key, n: int) -> jax.Array:
    return jax.random.randint(key, (n, 1), 0, 4).astype(jnp.float32)


def _uniforms(key: Key, n: int) -> jax.Array:
    return jax.random.uniform(key, (n, 2), minval=-1.0, maxval=1.0)


def _normal(key: Key, n: int) -> jax.Array:
    return jax.random.normal(key, (n, 1))


def _normals(key: Key, n: int) -> jax.Array:
    return jax.random.normal(key, (n, 2))


def _angle(key: Key, n: int) -> jax.Array:
    return jax.random.uniform(key, (n, 1), minval=-np.pi, maxval=np.pi)


def _axis(key: Key, n: int) -> jax.Array:
    """A normal number, and the angle of its axis, 0 for half of the examples."""
    key_size, key_angle, key_coin = jax.random.split(key, 3)
    return jnp.concatenate([_normal(key_size, n), _angle(key_angle, n) * _coin(key_coin, n)], axis=1)


def _itself(w: jax.Array, sides: Sides) -> jax.Array:
    return w


def _of_quarters(w: jax.Array, sides: Sides) -> jax.Array:
    return jnp.concatenate([(w == 1) | (w == 2), (w == 2) | (w == 3)], axis=1).astype(w.dtype)


def _of_shift(w: jax.Array, sides: Sides) -> jax.Array:
    return geometry.whole_pixels(w, sides) / (0.125 * np.array(sides[::-1], np.float32))[None]


def _of_angle(w: jax.Array, sides: Sides) -> jax.Array:
    return jnp.concatenate([jnp.cos(w) - 1.0, jnp.sin(w)], axis=1)


def _of_axis(w: jax.Array, sides: Sides) -> jax.Array:
    return w[:, :1] * jnp.concatenate([jnp.cos(w[:, 1:]), jnp.sin(w[:, 1:])], axis=1)


# --- the kinds --------------------------------------------------------------------------------------------------------

MOVES = {
    "xflip": Kind(_coin, functools.partial(geometry.flip, axis=2), _itself, always=True),
    "yflip": Kind(_coin, functools.partial(geometry.flip, axis=1), _itself),
    "rotate_int": Kind(_quarters, geometry.turn, _of_quarters, 2),
    "translate_int": Kind(_uniforms, geometry.shift, _of_shift, 2),
}
WARPS = {
    "scale": Kind(_normal, geometry.scaling, _itself),
    "rotate_frac": Kind(_angle, geometry.rotation, _of_angle, 2),
    "aniso": Kind(_axis, geometry.stretching, _of_axis, 2),
    "translate_frac": Kind(_normals, geometry.translation, _itself, 2),
}
COLORS = {
    "brightness": Kind(_normal, colors.brightening, _itself),
    "contrast": Kind(_normal, colors.contrasting, _itself),
    "lumaflip": Kind(_coin, colors.luma_flipping, _itself),
    "hue": Kind(_angle, colors.hue_turning, _of_angle, 2),
    "saturation": Kind(_normal, colors.saturating, _itself),
}
KINDS = MOVES | WARPS | COLORS
"""In the order in which they are done, and in which the label tells of them."""

GEOMETRIC = ("xflip", "yflip", *WARPS)
"""The kinds that the published models of EDM are trained with; their label has 9 numbers."""


def _of_kinds(value: tuple) -> bool:
    return 0 < len(value) == len(set(value)) and all(kind in KINDS for kind in value)


Kinds = Annotated[tuple[str, ...], Check(tuple, _of_kinds, f"a tuple of names among {', '.join(KINDS)}")]


def augment(
    key: Key,
    x: jax.Array,
    *,
    probability: jax.Array | float,
    kinds: tuple[str, ...],
    center: float = 0.0,
    half: float = 1.0,
) -> Augmented:
    """Images, a share of them changed, and what was done to each.

    Every kind draws its own share. Examples that it leaves alone stay the same to the bit.

    Args:
      key: PRNG key; what a kind draws does not depend on the others.
      x: images [B, H, W, C].
      probability: the share of each kind; 0 for no change at all. Mirroring left to right takes half of all images
        where it is above 0.
      kinds: names of `KINDS`, in any order.
      center, half: the range of the images is center - half to center + half.
    """
    n, sides, drawn, labels = x.shape[0], (x.shape[1], x.shape[2]), {}, []
    for i, (name, kind) in enumerate(KINDS.items()):
        if name in kinds:
            key_draw, key_share = jax.random.split(jax.random.fold_in(key, i))
            share = jnp.sign(probability) if kind.always else probability
            w = jnp.where(jax.random.uniform(key_share, (n, 1)) < share, kind.draw(key_draw, n), 0.0)
            labels.append(kind.label(w, sides))
            drawn[name] = w
    for name in MOVES:
        if name in drawn:
            x = MOVES[name].change(x, drawn[name])
    if warps := {name: drawn[name] for name in WARPS if name in drawn}:
        inverse = geometry.product([WARPS[name].change(w, sides) for name, w in warps.items()])
        x = jnp.where(_any(warps), geometry.warp(x, inverse), x)
    if recolored := {name: drawn[name] for name in COLORS if name in drawn}:
        matrix = geometry.product([COLORS[name].change(w) for name, w in reversed(recolored.items())])
        x = jnp.where(_any(recolored), center + half * colors.recolor((x - center) / half, matrix), x)
    return Augmented(x, jnp.concatenate(labels, axis=1))


def _any(drawn: dict[str, jax.Array]) -> jax.Array:
    """Whether any parameter of an example is not 0, [B, 1, 1, 1]."""
    return jnp.any(jnp.concatenate(list(drawn.values()), axis=1) != 0, axis=1)[:, None, None, None]


class Augmentation(NamedTuple):
    """What an objective and its network need of augmentation.

    Attributes:
      apply: (key, x [B, H, W, C]) -> `Augmented`.
      labels: how many numbers the network is told of each example.
    """

    apply: Callable[[Key, jax.Array], Augmented]
    labels: int


def edm(
    shape: tuple[int, ...], bins: Bins | None = None, *, probability: Probability = 0.12, kinds: Kinds = GEOMETRIC
) -> Augmentation:
    """Flips and affine maps, and by choice changes of color, which the network is told of (Karras et al. 2022).

    Args:
      shape: of one image, (H, W, C).
      bins: where the levels of the images lie; None for images in [-1, 1].
      probability: Share of training images that each kind changes; 0 for none. Mirroring (xflip) takes half of all
        images instead.
      kinds: What is done to training images, in the names of EDM's public code.

    Raises:
      UserError: where the images do not go with a kind.
    """
    if len(shape) != 3:
        raise UserError(f"augment.name = edm needs images, not examples of shape {shape}")
    if "rotate_int" in kinds and shape[0] != shape[1]:
        raise UserError(f"augment.kinds = {kinds}: rotate_int needs square images, not {shape[0]} x {shape[1]} pixels")
    if (recoloring := [kind for kind in kinds if kind in COLORS]) and shape[2] not in (1, 3):
        raise UserError(f"augment.kinds = {kinds}: {recoloring[0]} needs images of 1 or 3 channels, not {shape[2]}")
    half = 1.0 if bins is None else bins.width / 2
    center = 0.0 if bins is None else bins.low + half
    options = {"probability": probability, "kinds": kinds, "center": center, "half": half}
    return Augmentation(functools.partial(augment, **options), sum(KINDS[kind].labels for kind in kinds))
