"""Pixels of image files: each kind of file is built here, and its pixels compared with the known array."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin  # noqa: F401

from scoreflow.data import DataError
from scoreflow.data.images import decode

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (6, 8, 3), np.uint8)
GRAY = COLOR[..., 0]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(image: Image.Image, kind: str = "PNG", *, channels: int = 0, background: int = 255, **options) -> np.ndarray:
    return decode(encoded(image, kind, **options), "a file", channels, background).pixels


def test_eight_bits_are_as_they_are():
    np.testing.assert_array_equal(pixels(Image.fromarray(COLOR)), COLOR)
    np.testing.assert_array_equal(pixels(Image.fromarray(GRAY)), GRAY[..., None])
    np.testing.assert_array_equal(pixels(Image.fromarray(GRAY), channels=3), np.repeat(GRAY[..., None], 3, -1))
    np.testing.assert_array_equal(pixels(Image.fromarray(GRAY > 100)), np.where(GRAY > 100, 255, 0)[..., None])


def test_gray_of_color_is_its_luma():
    luma = np.asarray(Image.fromarray(COLOR).convert("L"))
    np.testing.assert_array_equal(pixels(Image.fromarray(COLOR), channels=1)[..., 0], luma)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_divided_by_257(kind):
    deep = GRAY.astype(np.uint16) * 257
    np.testing.assert_array_equal(pixels(Image.fromarray(deep), kind), GRAY[..., None])
    between = np.array([[0, 128, 129, 65535]], np.uint16)
    np.testing.assert_array_equal(pixels(Image.fromarray(between), kind)[0, :, 0], [0, 0, 1, 255])


@pytest.mark.parametrize("background", [255, 0, 100])
def test_transparent_pixels_show_the_background(background):
    alpha = np.array([0, 255, 128, 0, 255, 0, 255, 64], np.uint8)[None, :].repeat(6, 0)
    image = Image.fromarray(np.concatenate([COLOR, alpha[..., None]], -1))
    wanted = (COLOR * (alpha / 255.0)[..., None] + background * (1 - alpha / 255.0)[..., None]).round()
    assert np.abs(pixels(image, background=background) - wanted).max() <= 1
    np.testing.assert_array_equal(pixels(image, background=background)[:, 0], background)
    gray = pixels(Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(alpha)]), background=background)
    assert gray.shape == (6, 8, 1) and (gray[:, 0] == background).all() and (gray[:, 1, 0] == GRAY[:, 1]).all()


def test_palettes_are_looked_up_and_their_transparent_color_is_the_background():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 4, mode="P")
    palette = RNG.integers(0, 256, (4, 3), np.uint8)
    image.putpalette(palette.ravel().tolist())
    wanted = palette[np.arange(48).reshape(6, 8) % 4]
    np.testing.assert_array_equal(pixels(image), wanted)
    shown = pixels(image, transparency=2)
    np.testing.assert_array_equal(shown, np.where(np.arange(48).reshape(6, 8, 1) % 4 == 2, 255, wanted))


def test_four_inks_become_three_colors():
    inks = np.zeros((4, 4, 4), np.uint8)
    inks[..., 0] = 255  # all cyan and nothing else
    shown = pixels(Image.fromarray(inks, mode="CMYK"), "TIFF")
    np.testing.assert_array_equal(shown, np.broadcast_to([0, 255, 255], (4, 4, 3)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation, turns", [(6, -1), (3, 2), (8, 1)])
def test_images_are_upright(kind, orientation, turns):
    """As a camera writes them: the pixels lie, and a tag says how to turn them."""
    flat = np.zeros((8, 16, 3), np.uint8)
    flat[:, :8] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    shown = pixels(Image.fromarray(flat), kind, exif=exif, **options).astype(int)
    wanted = np.rot90(flat, turns).astype(int)
    assert shown.shape == wanted.shape and np.abs(shown - wanted).max() <= 3


def test_of_an_animation_the_first_frame_is_taken_and_that_is_said():
    frames = [Image.fromarray(np.full((6, 8), value, np.uint8)) for value in (10, 200)]
    decoded = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "a.gif")
    assert (decoded.pixels == 10).all() and decoded.notes == ("first frame of several",)
    profile = encoded(Image.fromarray(COLOR), icc_profile=b"profile")
    assert decode(profile, "a.png").notes == ("color profile left alone",)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is not a readable image"),
        (b"text", "is not a readable image: cannot identify image file"),
        (encoded(Image.fromarray(COLOR))[:60], "is not a readable image"),
    ],
)
def test_what_is_no_image_is_one_line(content, words):
    with pytest.raises(DataError, match=words) as error:
        decode(content, "a.png")
    assert "\n" not in str(error.value) and "0x" not in str(error.value)


@pytest.mark.parametrize("values", [np.linspace(0, 1, 64, dtype=np.float32), np.arange(64, dtype=np.int32)])
def test_gray_values_of_an_unknown_scale_are_refused(values):
    with pytest.raises(DataError, match="a file is not a readable image: its gray values have 32 bits"):
        pixels(Image.fromarray(values.reshape(8, 8)), "TIFF")


def test_whatever_is_damaged_in_a_file_is_one_line():
    """Every length of an animation and of a TIFF, and single wrong bytes of a JPEG with EXIF."""
    frames = [Image.fromarray(COLOR + np.uint8(i)) for i in range(2)]
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = [encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), encoded(frames[0], "TIFF")]
    broken = [content[:size] for content in contents for size in range(len(content))]
    jpeg = encoded(frames[0], "JPEG", exif=exif)
    broken += [jpeg[:i] + bytes([255 - jpeg[i]]) + jpeg[i + 1 :] for i in range(min(len(jpeg), 400))]
    for content in broken:
        with contextlib.suppress(DataError):
            decode(content, "a file")


def test_a_header_of_a_giant_is_one_line():
    whole = bytearray(encoded(Image.fromarray(GRAY)))
    import struct
    import zlib

    whole[16:24] = struct.pack(">II", 60_000, 60_000)
    whole[29:33] = struct.pack(">I", zlib.crc32(bytes(whole[12:29])))
    with pytest.raises(DataError, match="a.png is too large to be decoded"):
        decode(bytes(whole), "a.png")
