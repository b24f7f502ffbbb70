"""Augmentation by its group laws, by sinusoids whose image under any affine map is known, and by what labels say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import augment
from scoreflow.augment import COLORS, GEOMETRIC, KINDS, WARPS, colors, geometry
from scoreflow.runs import parallel
from scoreflow.runs.errors import UserError

WARP = jax.jit(geometry.warp)
RNG = np.random.default_rng(0)
TINY = jnp.asarray(RNG.standard_normal((4000, 4, 4, 3)), jnp.float32)


def column(*values: float) -> jax.Array:
    """The same parameters for two examples."""
    return jnp.tile(jnp.asarray(values, jnp.float32)[None], (2, 1))


def noise(height: int, width: int) -> jax.Array:
    """Two images of white noise, which have every frequency."""
    return jnp.asarray(RNG.standard_normal((2, height, width, 3)), jnp.float32)


def waves(x, y, sides) -> np.ndarray:
    """Two channels of slow cosines [..., 2] at places in pixels from the center, to the right and up.

    Mirrored at the first and last pixels, each is itself, so they are known beyond the borders of the image too.
    """
    (height, width), half = sides, np.pi / 2
    u, v = np.pi * x / (width - 1) + half, -np.pi * y / (height - 1) + half
    return np.stack([np.cos(u) + 0.5 * np.cos(2 * v), np.cos(2 * u) * np.cos(v)], axis=-1)


def places(sides) -> np.ndarray:
    """Pixels as complex numbers, from the center to the right and up, [H, W]."""
    y, x = np.mgrid[: sides[0], : sides[1]]
    return (x - (sides[1] - 1) / 2) - 1j * (y - (sides[0] - 1) / 2)


def came_from(z, w, sides):
    """Where the content at places z of a warped image was, in complex arithmetic: each kind undone, the last first."""
    right, down = 0.125 * w["translate_frac"] * np.array(sides[::-1])
    z = z - (right - 1j * down)
    size, angle = w["aniso"]
    turned, factor = z * np.exp(-1j * angle), 2.0 ** (0.2 * size)
    z = (turned.real / factor + 1j * turned.imag * factor) * np.exp(1j * angle)
    return z * np.exp(-1j * w["rotate_frac"][0]) / 2.0 ** (0.2 * w["scale"][0])


# --- moves of pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis, numpy_flip", [(2, np.fliplr), (1, np.flipud)])
def test_a_flip_mirrors_the_image_and_twice_is_the_identity(axis, numpy_flip):
    x = noise(5, 6)
    once = geometry.flip(x, column(1.0), axis=axis)
    np.testing.assert_array_equal(once[1], numpy_flip(np.asarray(x[1])))
    np.testing.assert_array_equal(geometry.flip(once, column(1.0), axis=axis), x)


def test_quarter_turns_are_a_cyclic_group():
    x = noise(5, 5)
    for k in range(4):
        turned = geometry.turn(x, column(k))
        np.testing.assert_array_equal(turned[0], np.rot90(np.asarray(x[0]), k))
        for other in range(4):
            np.testing.assert_array_equal(
                geometry.turn(turned, column(other)), geometry.turn(x, column((k + other) % 4))
            )


def test_a_shift_is_a_roll_away_from_the_border_and_a_mirror_at_it():
    x = noise(16, 24)
    shifted = geometry.shift(x, column(1.0, 0.5))  # by 3 pixels to the right and 1 up
    np.testing.assert_array_equal(shifted[:, :-1, 3:], jnp.roll(x, (3, -1), (2, 1))[:, :-1, 3:])
    np.testing.assert_array_equal(shifted[:, :-1, :3], x[:, 1:, 3:0:-1])
    np.testing.assert_array_equal(shifted[:, -1, 3:], x[:, -2, :-3])


# --- warps ------------------------------------------------------------------------------------------------------------


def test_filters_are_biorthogonal_with_vanishing_moments():
    """Halving undoes doubling, and both keep polynomials: (-1)^k k^m sums to 0 against them."""
    up, down = (np.array([*reversed(half[1:]), *half]) for half in (geometry.UP, geometry.DOWN))
    product = np.convolve(up, down)
    np.testing.assert_allclose(product[len(product) // 2 :: 2], [1.0] + 6 * [0.0], atol=1e-14)
    assert up.sum() == pytest.approx(2.0) and down.sum() == pytest.approx(1.0)
    for taps, moments in ((up, 8), (down, 6)):
        k = np.arange(len(taps)) - len(taps) // 2
        np.testing.assert_allclose(
            [np.sum((-1.0) ** k * k**m * taps) / 8.0**m for m in range(moments)], 0.0, atol=1e-13
        )


@pytest.mark.parametrize("sides", [(8, 8), (1, 5), (2, 3)])
def test_the_warp_of_the_identity_is_the_identity(sides):
    """Also of images of one row, and of two."""
    x, zeros = noise(*sides), {name: 0.0 * kind.draw(jax.random.key(0), 2) for name, kind in WARPS.items()}
    inverse = geometry.product([WARPS[name].change(w, sides) for name, w in zeros.items()])
    np.testing.assert_array_equal(inverse, np.stack(2 * [np.eye(3)]))
    np.testing.assert_allclose(WARP(x, inverse), x, atol=2e-6)


@pytest.mark.parametrize("side", [16, 15])
def test_four_turns_by_90_degrees_are_the_identity_and_each_is_exact(side):
    x = noise(side, side)
    turned = x
    for k in range(1, 5):
        turned = WARP(turned, geometry.rotation(column(np.pi / 2), (side, side)))
        np.testing.assert_allclose(turned, jnp.rot90(x, k, (1, 2)), atol=2e-5)


def test_a_move_by_whole_pixels_is_a_roll_away_from_the_border():
    x, sides = noise(16, 24), (16, 24)
    moved = WARP(x, geometry.translation(column(1.0, 2.0), sides))  # by 3 pixels to the right and 4 down
    np.testing.assert_allclose(moved[:, 4:, 3:], jnp.roll(x, (3, 4), (2, 1))[:, 4:, 3:], atol=1e-5)
    np.testing.assert_allclose(moved[:, 4:, :3], x[:, :-4, 3:0:-1], atol=1e-5)  # and a mirror at it


@pytest.mark.parametrize("kind, w, back", [("scale", (1.5,), (-1.5,)), ("rotate_frac", (0.7,), (-0.7,)), ("aniso", (1.0, 0.4), (-1.0, 0.4))])  # fmt: skip
def test_a_warp_and_its_inverse_return_a_slow_image(kind, w, back):
    """Away from the border, beyond which the mirror image has moved too."""
    sides = (33, 32)
    z, change = places(sides), WARPS[kind].change
    x = jnp.asarray(np.stack(2 * [waves(z.real, z.imag, sides)]), jnp.float32)
    there = WARP(x, change(column(*w), sides))
    returned = WARP(there, change(column(*back), sides))
    inside = (slice(None), slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(returned[inside], x[inside], atol=0.01)
    assert np.abs(there - x)[inside].max() > 0.1
    maps = geometry.product([change(column(*w), sides), change(column(*back), sides)])
    np.testing.assert_allclose(maps, np.stack(2 * [np.eye(3)]), atol=1e-6)


@pytest.mark.parametrize("names", [*((name,) for name in WARPS), tuple(WARPS)], ids=lambda names: "-".join(names))
@pytest.mark.parametrize("sides", [(32, 32), (25, 40)])
def test_a_warped_wave_is_the_wave_where_the_inverse_map_puts_each_pixel(sides, names):
    """All over the image, its border and what has come from beyond it; the map is computed in complex arithmetic."""
    n, draw = 8, {name: np.asarray(kind.draw(jax.random.key(3), 8), np.float64) for name, kind in WARPS.items()}
    drawn = {name: w * (name in names) for name, w in draw.items()}
    z = places(sides)
    x = jnp.asarray(np.stack(n * [waves(z.real, z.imag, sides)]), jnp.float32)
    maps = [WARPS[name].change(jnp.asarray(w, jnp.float32), sides) for name, w in drawn.items()]
    warped = WARP(x, geometry.product(maps))
    sources = [came_from(z, {name: w[i] for name, w in drawn.items()}, sides) for i in range(n)]
    wanted = np.stack([waves(source.real, source.imag, sides) for source in sources])
    assert np.abs(wanted - np.asarray(x)).max() > 0.3
    np.testing.assert_allclose(warped, wanted, atol=0.02)


def test_flips_commute_with_warps_as_the_maps_do():
    """A flip before a turn by w is a turn by -w before the flip, to rounding, also for white noise."""
    x, sides, mirror = noise(12, 12), (12, 12), functools.partial(geometry.flip, w=column(1.0), axis=2)
    turn = lambda x, w: WARP(x, geometry.rotation(column(w), sides))
    np.testing.assert_allclose(turn(mirror(x), 0.6), mirror(turn(x, -0.6)), atol=2e-5)


# --- colors -----------------------------------------------------------------------------------------------------------


def test_changes_of_color_have_their_closed_forms():
    x, gray = noise(3, 4), jnp.ones((2, 2, 2, 3)) * 0.3
    change = lambda name, w, x: np.asarray(colors.recolor(x, COLORS[name].change(column(w))))
    np.testing.assert_allclose(change("brightness", 1.5, x), x + 0.3, atol=1e-6)
    np.testing.assert_allclose(change("contrast", 2.0, x), 2.0 * x, atol=1e-5)
    luma = np.asarray(x).mean(-1, keepdims=True)
    np.testing.assert_allclose(change("lumaflip", 1.0, x), x - 2.0 * luma, atol=1e-6)
    np.testing.assert_allclose(change("saturation", 1.0, x), luma + 2.0 * (x - luma), atol=1e-5)
    np.testing.assert_allclose(change("hue", 2 * np.pi / 3, x), jnp.roll(x, 1, -1), atol=1e-5)  # red to green to blue
    for name in ("saturation", "hue"):
        np.testing.assert_allclose(change(name, 0.7, gray), gray, atol=1e-6)


@pytest.mark.parametrize("name, first, second", [("hue", 0.4, 1.1), ("saturation", 0.5, -1.2), ("contrast", 0.5, -0.3), ("brightness", 1.0, 0.7)])  # fmt: skip
def test_changes_of_color_are_one_parameter_groups(name, first, second):
    change = COLORS[name].change
    product = geometry.product([change(column(first)), change(column(second))])
    np.testing.assert_allclose(product, change(column(first + second)), atol=1e-6)


def test_gray_images_change_as_three_equal_colors_do_on_average():
    gray, kinds = noise(4, 5)[..., :1], tuple(COLORS)
    run = jax.jit(functools.partial(augment.augment, jax.random.key(1), probability=1.0, kinds=kinds))
    np.testing.assert_allclose(run(gray).x, run(jnp.tile(gray, 3)).x.mean(-1, keepdims=True), atol=1e-5)


def test_colors_of_images_in_another_range_change_alike():
    x = noise(4, 5)
    in_half = augment.augment(
        jax.random.key(1), 0.5 + 0.5 * x, probability=1.0, kinds=tuple(COLORS), center=0.5, half=0.5
    )
    wanted = augment.augment(jax.random.key(1), x, probability=1.0, kinds=tuple(COLORS))
    np.testing.assert_allclose(2.0 * in_half.x - 1.0, wanted.x, atol=1e-5)
    np.testing.assert_array_equal(in_half.label, wanted.label)


# --- labels and shares ------------------------------------------------------------------------------------------------

# kind, parameters, what EDM's public code tells the network of them, for images of 16 x 24
LABELS = [
    ("xflip", (1.0,), (1.0,)),
    ("yflip", (1.0,), (1.0,)),
    ("rotate_int", (1.0,), (1.0, 0.0)),
    ("rotate_int", (2.0,), (1.0, 1.0)),
    ("rotate_int", (3.0,), (0.0, 1.0)),
    ("translate_int", (0.9, -0.7), (1.0, -0.5)),  # 3 pixels of 24 / 8 and 1 of 16 / 8
    ("scale", (-0.3,), (-0.3,)),
    ("rotate_frac", (np.pi / 3,), (-0.5, 0.75**0.5)),
    ("aniso", (2.0, np.pi / 6), (3.0**0.5, 1.0)),
    ("translate_frac", (0.4, -1.1), (0.4, -1.1)),
    ("brightness", (0.8,), (0.8,)),
    ("contrast", (-0.8,), (-0.8,)),
    ("lumaflip", (1.0,), (1.0,)),
    ("hue", (-np.pi / 2,), (-1.0, -1.0)),
    ("saturation", (1.3,), (1.3,)),
]


@pytest.mark.parametrize("name, w, wanted", LABELS)
def test_labels_have_their_closed_forms(name, w, wanted):
    kind = KINDS[name]
    np.testing.assert_allclose(kind.label(column(*w), (16, 24))[1], wanted, atol=1e-6)
    assert len(wanted) == kind.labels
    np.testing.assert_array_equal(kind.label(0.0 * column(*w), (16, 24)), np.zeros((2, kind.labels)))


def test_the_label_is_that_of_each_kind_in_the_order_of_the_public_code():
    """Whatever the order of the names; what a kind draws does not depend on the others. EDM's label has 9 numbers."""
    key, x = jax.random.key(4), jnp.zeros((9, 16, 16, 3))
    label = lambda kinds: augment.augment(key, x, probability=0.7, kinds=kinds).label
    run = lambda *kinds: jax.jit(label, static_argnums=0)(kinds)
    order = ["xflip", "yflip", "rotate_int", "translate_int", "scale", "rotate_frac", "aniso", "translate_frac"]
    order += ["brightness", "contrast", "lumaflip", "hue", "saturation"]
    whole, ends = run(*reversed(order)), np.cumsum([KINDS[name].labels for name in order])
    for some in (order[::2], order[1::2]):
        wanted = [whole[:, ends[i] - KINDS[name].labels : ends[i]] for i, name in enumerate(order) if name in some]
        np.testing.assert_array_equal(run(*some), np.concatenate(wanted, axis=1))
    assert (np.asarray(whole) != 0).any(0).all()
    assert augment.edm((4, 4, 3)).labels == run(*GEOMETRIC).shape[1] == 9


def test_an_image_is_what_its_label_says():
    """The map is read from the labels of images alone: flips first, then the warps; see `came_from`."""
    sides, kinds, n = (32, 32), ("xflip", "yflip", "scale", "rotate_frac", "translate_frac"), 24
    z = places(sides)
    x = jnp.asarray(np.stack(n * [waves(z.real, z.imag, sides)]), jnp.float32)
    out = jax.jit(augment.edm((32, 32, 2), probability=0.6, kinds=kinds).apply)(jax.random.key(2), x)
    for image, (xflip, yflip, size, cos, sin, right, down) in zip(out.x, np.asarray(out.label, np.float64)):
        w = {"scale": [size], "rotate_frac": [np.arctan2(sin, cos + 1.0)], "aniso": (0.0, 0.0)}
        source = came_from(z, w | {"translate_frac": np.array([right, down])}, sides)
        wanted = waves(source.real * (1 - 2 * xflip), source.imag * (1 - 2 * yflip), sides)
        np.testing.assert_allclose(image, wanted, atol=0.02)
    assert (np.asarray(out.label) != 0).any(0).all()


def test_the_share_of_every_kind_is_the_probability():
    """Within four binomial standard errors; two kinds fall together by the product. Mirroring takes half."""
    p, n, kinds = 0.3, len(TINY), ("xflip", "yflip", "scale", "rotate_frac", "translate_frac", "hue")
    out = jax.jit(augment.edm((4, 4, 3), probability=p, kinds=kinds).apply)(jax.random.key(0), TINY)
    label = np.asarray(out.label)
    done = {"xflip": label[:, 0], "yflip": label[:, 1], "scale": label[:, 2], "rotate_frac": label[:, 4]}
    done |= {"translate_frac": label[:, 5:7].all(1), "hue": label[:, 8]}
    for name, wanted in {
        "xflip": 0.5,
        "yflip": p / 2,
        "scale": p,
        "rotate_frac": p,
        "translate_frac": p,
        "hue": p,
    }.items():
        assert abs(np.mean(done[name] != 0) - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / n), name
    both = np.mean((done["scale"] != 0) & (done["hue"] != 0))
    assert abs(both - p**2) < 4 * np.sqrt(p**2 * (1 - p**2) / n)
    changed = np.any(np.asarray(out.x) != np.asarray(TINY), axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, label.any(1))  # the others are the same to the bit


def test_parameters_have_their_distributions():
    """Means and variances of what is drawn, in the units of the labels, within five standard errors."""
    n = 20000
    draw = lambda name: np.asarray(KINDS[name].draw(jax.random.key(1), n), np.float64)
    normal, angle = (0.0, 1.0, 2.0), (0.0, np.pi**2 / 3, np.pi**4 * (1 / 5 - 1 / 9))
    kinds = {"scale": normal, "translate_frac": normal, "saturation": normal, "rotate_frac": angle, "hue": angle}
    for name, (mean, variance, of_square) in kinds.items():
        w = draw(name)
        assert np.all(np.abs(w.mean(0) - mean) < 5 * np.sqrt(variance / n)), name
        assert np.all(np.abs((w**2).mean(0) - variance) < 5 * np.sqrt(of_square / n)), name
    size, axis = draw("aniso").T
    assert abs(np.mean(axis == 0) - 0.5) < 5 * np.sqrt(0.25 / n) and abs(size.std() - 1.0) < 5 / np.sqrt(2 * n)
    assert np.abs(np.bincount(draw("rotate_int")[:, 0].astype(int)) / n - 0.25).max() < 5 * np.sqrt(0.1875 / n)


@pytest.mark.parametrize("kinds", [GEOMETRIC, tuple(KINDS)])
def test_probability_zero_changes_nothing_to_the_bit(kinds):
    x = noise(6, 6)
    out = jax.jit(augment.edm((6, 6, 3), probability=0.0, kinds=kinds).apply)(jax.random.key(0), x)
    np.testing.assert_array_equal(out.x, x)
    np.testing.assert_array_equal(out.label, np.zeros((2, sum(KINDS[kind].labels for kind in kinds))))


def test_augmentation_can_be_compiled_mapped_and_divided_over_devices():
    """Each gives the same as one call on one device, to rounding."""
    key, x = jax.random.key(7), TINY[:8]
    apply = augment.edm((4, 4, 3), probability=0.9, kinds=("xflip", "rotate_frac")).apply
    run = jax.jit(apply)
    keys = jax.random.split(key, 2)
    mapped = jax.jit(jax.vmap(apply))(keys, jnp.stack([x, x + 1.0]))
    divided = parallel.gather(run(key, parallel.shard(np.asarray(x))))
    for out, want in ((divided, run(key, x)), (jax.tree.map(lambda leaf: leaf[1], mapped), run(keys[1], x + 1.0))):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), tuple(out), tuple(want))


@pytest.mark.parametrize(
    "shape, kinds, words",
    [
        ((2,), GEOMETRIC, r"augment.name = edm needs images, not examples of shape \(2,\)"),
        ((8, 6, 3), ("rotate_int",), r"augment.kinds = \('rotate_int',\): rotate_int needs square images, not 8 x 6"),
        ((8, 8, 2), ("scale", "hue"), "hue needs images of 1 or 3 channels, not 2"),
    ],
)
def test_images_that_do_not_go_with_a_kind_are_refused(shape, kinds, words):
    with pytest.raises(UserError, match=words):
        augment.edm(shape, kinds=kinds)
