"""Moves of pixels, and affine maps of images. See `warp`.

A warp reads every pixel from where the inverse map puts it, by

    y = down read up x,                                                                                              (1)

where `up` doubles the sides, `read` is bilinear, and `down` halves the sides. Beyond its border the image is continued
by reflection. The filters are a symmetric biorthogonal pair with down up = 1 (Cohen, Daubechies, Feauveau 1992, with 6
and 8 vanishing moments). EDM has the orthogonal wavelet sym6 in their place, whose frequency response is similar and
which is not symmetric. With a symmetric pair, quarter turns and shifts by whole pixels are exact in (1).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# The filters of (1) from the center to one end; the other half mirrors it. They sum to 2 and to 1.
UP = (1.168031504481569, 0.595095812691446, -0.133019801249715, -0.109266627365050, 0.070332946613076)
UP += (0.016878024079617, -0.024028393334167, -0.002707209406009, 0.002699495730025)
DOWN = (0.536628801791642, 0.295463938592949, -0.028544471715179, -0.055664860779988, 0.010230070819359)
DOWN += (0.010200922187038,)
MARGIN = len(DOWN) - 1

Sides = tuple[int, int]
"""Height and width of an image, in pixels."""

# --- moves of pixels --------------------------------------------------------------------------------------------------


def flip(x: jax.Array, w: jax.Array, *, axis: int) -> jax.Array:
    """Images [B, H, W, C] mirrored along an axis where w [B, 1] is 1."""
    return jnp.where(w[:, :, None, None] == 1, jnp.flip(x, axis), x)


def turn(x: jax.Array, w: jax.Array) -> jax.Array:
    """Square images [B, H, W, C] turned counterclockwise by w [B, 1] quarters, 0 to 3."""
    quarters = w[:, :, None, None]
    for k in (1, 2, 3):
        x = jnp.where(quarters >= k, jnp.rot90(x, 1, (1, 2)), x)
    return x


def whole_pixels(w: jax.Array, sides: Sides) -> jax.Array:
    """By how many pixels `shift` shifts for w [B, 2]: to the right and up."""
    return jnp.round(w * (0.125 * np.array(sides[::-1], np.float32))[None])


def shift(x: jax.Array, w: jax.Array) -> jax.Array:
    """Images [B, H, W, C] shifted by whole pixels, w0 / 8 of the width to the right and w1 / 8 of the height up."""
    height, width = x.shape[1:3]
    pixels = whole_pixels(w, (height, width)).astype(jnp.int32)
    rows = _reflected(jnp.arange(height)[None] + pixels[:, 1:], height - 1)
    columns = _reflected(jnp.arange(width)[None] - pixels[:, :1], width - 1)
    return jax.vmap(lambda x, i, j: x[i][:, j])(x, rows, columns)


# --- warps ------------------------------------------------------------------------------------------------------------


def _matrix(*rows: tuple[jax.Array | float, ...]) -> jax.Array:
    """[n, ...] of entries that are numbers or have the shape [n]."""
    entries = jnp.broadcast_arrays(*(entry for row in rows for entry in row))
    return jnp.stack(entries, axis=-1).reshape(-1, len(rows), len(rows[0]))


def product(matrices: list[jax.Array]) -> jax.Array:
    """The matrix product, of which the last factor acts first."""
    return functools.reduce(functools.partial(jnp.matmul, precision="highest"), matrices)


def scaling(w: jax.Array, sides: Sides) -> jax.Array:
    """The inverse map of an enlargement by 2^(w / 5), w [B, 1]."""
    small = 2.0 ** (-0.2 * w[:, 0])
    return _matrix((small, 0.0, 0.0), (0.0, small, 0.0), (0.0, 0.0, 1.0))


def rotation(w: jax.Array, sides: Sides) -> jax.Array:
    """The inverse map of a counterclockwise turn by w [B, 1] radians."""
    cos, sin = jnp.cos(w[:, 0]), jnp.sin(w[:, 0])
    return _matrix((cos, -sin, 0.0), (sin, cos, 0.0), (0.0, 0.0, 1.0))


def stretching(w: jax.Array, sides: Sides) -> jax.Array:
    """The inverse map of a stretch by 2^(w0 / 5) along an axis and a squeeze by as much across it, w [B, 2].

    The axis is horizontal, turned counterclockwise by w1 radians.
    """
    small = 2.0 ** (-0.2 * w[:, 0])
    squeeze = _matrix((small, 0.0, 0.0), (0.0, 1.0 / small, 0.0), (0.0, 0.0, 1.0))
    return product([rotation(-w[:, 1:], sides), squeeze, rotation(w[:, 1:], sides)])


def translation(w: jax.Array, sides: Sides) -> jax.Array:
    """The inverse map of a move by w0 / 8 of the width to the right and w1 / 8 of the height down, w [B, 2]."""
    height, width = sides
    return _matrix((1.0, 0.0, -0.125 * width * w[:, 0]), (0.0, 1.0, -0.125 * height * w[:, 1]), (0.0, 0.0, 1.0))


def _reflected(at: jax.Array, last: int) -> jax.Array:
    """Coordinates on a line of mirrors at 0 and `last`, as coordinates between them."""
    return last - jnp.abs(last - at % (2 * last)) if last else jnp.zeros_like(at)


@functools.cache
def _filters(side: int) -> tuple[np.ndarray, np.ndarray]:
    """`up` [2 n - 1, n] and `down` [n, 2 n - 1 + 2 MARGIN] of (1) along a side of n pixels.

    Between them are points half a pixel apart. Those from the first pixel to the last are all that `up` makes, since
    its filter is symmetric and their continuation is their reflection, too; `down` needs MARGIN more at each end.
    """
    double, halve = np.zeros((2 * side - 1, side)), np.zeros((side, 2 * side - 1 + 2 * MARGIN))
    for offset in range(1 - len(UP), len(UP)):
        for point in range(offset % 2, 2 * side - 1, 2):
            pixel = (point - offset) // 2 % max(2 * side - 2, 1)
            double[point, side - 1 - abs(side - 1 - pixel)] += UP[abs(offset)]
    for offset in range(-MARGIN, MARGIN + 1):
        for pixel in range(side):
            halve[pixel, 2 * pixel + offset + MARGIN] = DOWN[abs(offset)]
    return double.astype(np.float32), halve.astype(np.float32)


def _along_sides(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Matrices [P, H] and [Q, W] applied along the sides of x [B, H, W, C]; [B, P, Q, C]."""
    x = jnp.einsum("ph,bhwc->bpwc", rows, x, precision="highest")
    return jnp.einsum("qw,bpwc->bpqc", columns, x, precision="highest")


def _read(x: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """One image [P, Q, C] at coordinates [M, N] inside it, bilinearly; [M, N, C]."""
    height, width, channels = x.shape
    pixels = x.reshape(height * width, channels)  # one index instead of two is faster
    i0, j0 = jnp.floor(row).astype(jnp.int32), jnp.floor(column).astype(jnp.int32)
    i1, j1 = jnp.minimum(i0 + 1, height - 1), jnp.minimum(j0 + 1, width - 1)
    down, across = (row - i0)[..., None], (column - j0)[..., None]

    def along_row(i):
        left, right = pixels[i * width + j0], pixels[i * width + j1]
        return left + across * (right - left)

    upper, lower = along_row(i0), along_row(i1)
    return upper + down * (lower - upper)


def warp(x: jax.Array, inverse: jax.Array) -> jax.Array:
    """Images moved by affine maps, (1).

    Args:
      x: images [B, H, W, C].
      inverse: the place that each place of the result is read from, as [B, 3, 3] on homogeneous coordinates (x, y, 1)
        in pixels from the center, to the right and down.
    """
    sides = height, width = x.shape[1], x.shape[2]
    (up_rows, down_rows), (up_columns, down_columns) = _filters(height), _filters(width)
    down, right = (0.5 * (np.arange(2 * n - 1 + 2 * MARGIN, dtype=np.float32) - MARGIN - (n - 1)) for n in sides)
    grid = np.stack([*np.meshgrid(right, down), np.ones((len(down), len(right)), np.float32)])
    places = jnp.einsum("bij,jmn->ibmn", inverse, grid, precision="highest")
    columns = _reflected(2.0 * places[0] + (width - 1), 2 * (width - 1))
    rows = _reflected(2.0 * places[1] + (height - 1), 2 * (height - 1))
    read = jax.vmap(_read)(_along_sides(x, up_rows, up_columns), rows, columns)
    return _along_sides(read, down_rows, down_columns)
