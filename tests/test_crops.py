"""What is kept of an image, and how it is resized: closed forms, and the published rules computed in NumPy."""

import typing

import numpy as np
import pytest

from scoreflow.data import DataError
from scoreflow.data.images import Crop, Decoding, Filter, checked, cropped

FILTERS, CROPS = typing.get_args(Filter), typing.get_args(Crop)
RNG = np.random.default_rng(0)


def of(image, side=0, crop: Crop = "center", filter: Filter = "box"):
    return cropped(image, "a.png", Decoding(side, crop=crop, filter=filter))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("shape, side", [((48, 48, 3), 16), ((50, 37, 1), 11), ((20, 30, 3), 47)])
def test_constant_images_stay_constant(filter, shape, side):
    image = np.full(shape, 137, np.uint8)
    assert (of(image, side, filter=filter) == 137).all() and of(image, side, filter=filter).shape == (
        side,
        side,
        shape[2],
    )


def test_box_by_a_whole_factor_is_the_mean_of_blocks():
    image = RNG.integers(0, 256, (40, 60, 3), np.uint8)
    means = image[:, 10:50].astype(float).reshape(8, 5, 8, 5, 3).mean((1, 3))
    np.testing.assert_allclose(of(image, 8), means, atol=1.01)  # Pillow rounds after each direction


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("side", [24, 32, 120])
def test_a_ramp_stays_a_ramp_inside(filter, side):
    """Each filter reproduces straight lines, away from the border; the center of pixel i is at (i + 1/2) / side."""
    ramp = np.broadcast_to(2.0 * np.arange(96)[None, :, None] + 20, (96, 96, 1)).astype(np.uint8)
    centers = 2.0 * ((np.arange(side) + 0.5) * 96 / side - 0.5) + 20
    inside = slice(side // 6, -side // 6)
    tolerance = 2.01 if filter == "box" and 96 % side else 1.01  # the mean of an area whose borders are rounded
    np.testing.assert_allclose(of(ramp, side, filter=filter)[3, inside, 0], centers[inside], atol=tolerance)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "lanczos"])
def test_filters_widen_with_the_reduction(filter):
    """Without antialias, a grating of one pixel would become all black or all white, or a moire."""
    grating = np.broadcast_to(255 * (np.arange(96) % 2)[None, :, None], (96, 96, 1)).astype(np.uint8)
    assert np.abs(of(grating, 12, filter=filter)[2:-2, 2:-2].astype(float) - 127.5).max() <= 2


def positions(shape):
    """An image whose pixels say where they are."""
    rows, columns = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    return np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)


@pytest.mark.parametrize("shape", [(100, 100), (100, 141), (141, 100), (218, 178), (7, 8)])
def test_the_center_is_the_largest_square_in_the_middle(shape):
    side = min(shape)
    window = of(positions(shape), side)
    assert tuple(window[0, 0, :2]) == ((shape[0] - side) // 2, (shape[1] - side) // 2)
    np.testing.assert_array_equal(window[-1, -1, :2] - window[0, 0, :2], side - 1)


def test_the_window_of_celeba_is_the_published_one():
    """Rows 39 to 178 and columns 19 to 158 of 218 x 178, with or without a resize."""
    window = of(positions((218, 178)), crop="celeba")
    assert window.shape == (140, 140, 3)
    assert (*window[0, 0, :2], *window[-1, -1, :2]) == (39, 19, 178, 158)
    np.testing.assert_array_equal(of(positions((218, 178)), 140, crop="celeba"), window)
    with pytest.raises(DataError, match="a.png has 139 x 178 pixels, data.crop = celeba takes 140 x 140"):
        of(positions((139, 178)), 64, crop="celeba")


def halved(image, axis):
    """The mean of neighbors along an axis, half rounded up, as 8 bits have it."""
    first, second = (np.take(image, np.arange(k, image.shape[axis], 2), axis).astype(int) for k in (0, 1))
    return (first + second + 1) // 2


@pytest.mark.parametrize("shape", [(64, 64, 3), (64, 96, 1), (128, 64, 3), (80, 64, 3)])
def test_the_crop_of_dhariwal_and_nichol_halves_and_takes_the_center(shape):
    """For sides that are a power of two times the wanted one, the bicubic resize after the halving has nothing to do."""
    image = RNG.integers(0, 256, shape, np.uint8)
    wanted = image
    while min(wanted.shape[:2]) > 16:
        wanted = halved(halved(wanted, 1), 0)
    top, left = (wanted.shape[0] - 16) // 2, (wanted.shape[1] - 16) // 2
    np.testing.assert_array_equal(of(image, 16, "dhariwal"), wanted[top : top + 16, left : left + 16])


def cubic(x):
    """The kernel of Keys (1981), a = -1/2."""
    x = np.abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0.0))


def test_the_crop_of_dhariwal_and_nichol_ends_with_a_bicubic_resize():
    image = RNG.integers(0, 256, (50, 50, 3), np.uint8)
    scale = 25 / 20
    places = (np.arange(20) + 0.5) * scale - 0.5
    weights = cubic((np.arange(25)[None] - places[:, None]) / scale)
    weights /= weights.sum(1, keepdims=True)
    small = halved(halved(image, 1), 0)
    wanted = np.einsum("ip,jq,pqc->ijc", weights, weights, small).clip(0, 255)
    np.testing.assert_allclose(of(image, 20, "dhariwal"), wanted, atol=1.6)  # rounded, and cut, after each direction


def test_crops_that_do_not_fit_are_refused():
    image = positions((20, 30))
    with pytest.raises(DataError, match="a.png has 20 x 30 pixels: with data.crop = none images must be square"):
        of(image, 8, "none")
    np.testing.assert_array_equal(of(image, 0, "none"), image)
    np.testing.assert_array_equal(of(image[:, :20], 8, "none"), of(image[:, :20], 8, "center"))
    for side, filter in ((0, "box"), (8, "lanczos")):
        with pytest.raises(DataError, match="data.crop = dhariwal needs data.image_size, and has filters of its own"):
            checked(Decoding(side, crop="dhariwal", filter=filter))
