"""Pixels of an image file as a person sees it: upright, 8 bits for each channel, with transparency on one color."""

import errno
import io
import os
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np

from scoreflow.data import DataError, first_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_GRAY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_CELEBA = 140  # pixels of the aligned images of CelebA, 178 x 218

Crop = Literal["center", "celeba", "dhariwal", "none"]
"""The part of an image that is kept, see `cropped`."""
Filter = Literal["box", "bilinear", "bicubic", "lanczos"]
"""The resampling filter, as Pillow has it: its support grows with the factor of the reduction (antialias)."""


class Decoding(NamedTuple):
    """How files become pixels.

    Attributes:
      image_size: side in pixels; 0 leaves images as they are.
      channels: 1 for gray, 3 for color, 0 for gray where all images are gray.
      background: gray level behind transparent pixels.
      crop: the part that is kept, see `cropped`.
      filter: by which it is resized: the mean of the area (box), bilinear, bicubic or lanczos, with antialias.
    """

    image_size: int = 0
    channels: int = 0
    background: int = 255
    crop: Crop = "center"
    filter: Filter = "box"


class Decoded(NamedTuple):
    """An image and what was done to it.

    Attributes:
      pixels: [H, W, 1 or 3] uint8.
      notes: what a person should know, such as "first frame of several".
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def decode(data: bytes, name: str, channels: int = 0, background: int = 255) -> Decoded:
    """Decodes an image file.

    Orientation in EXIF is applied, 16 bits are divided by 257, palettes and CMYK become RGB, and of an animation the
    first frame is taken. Color profiles are left alone.

    Args:
      data: the file's content.
      name: for messages.
      channels: 1 for gray, 3 for color, 0 for gray where the file is gray.
      background: the gray level behind transparent pixels.

    Raises:
      DataError: if it cannot be read, in one line.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as file:
            notes = _notes(file)
            file.seek(0)
            image = ImageOps.exif_transpose(file)
            gray = image.mode in _GRAY
            deep = image.mode.startswith("I")
            if ("transparency" in image.info and not deep) or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
                image = image.convert("RGBA")
                behind = Image.new("RGBA", image.size, (background,) * 3 + (255,))
                image = Image.alpha_composite(behind, image).convert("RGB")
            if image.mode == "F" or (image.mode == "I" and file.format != "PNG"):
                raise ValueError("its gray values have 32 bits, and which of them is white is not known")
            pixels = _eight_bits(image) if deep else None
            if pixels is None:
                pixels = np.asarray(image.convert("L" if gray and image.mode != "RGB" else "RGB"))
    except MemoryError as error:  # which says nothing about the file
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), name) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} is too large to be decoded: {first_line(error)}") from error
    except Exception as error:  # of damaged files Pillow raises almost anything
        raise DataError(f"{name} is not a readable image: {first_line(error)}") from error
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if gray and pixels.shape[-1] == 3:
        pixels = pixels[..., :1]  # transparency on gray
    return Decoded(with_channels(pixels, channels), notes)


def pixels_of(content: bytes | np.ndarray, name: str, rule: Decoding) -> tuple[np.ndarray, bool, tuple[str, ...]]:
    """(pixels [H, W, 1 or 3] uint8, whether they are gray, notes) of an encoded file, or of pixels [H, W, 1 or 3].

    Raises:
      DataError: if it cannot be read, in one line.
    """
    if isinstance(content, np.ndarray):
        if content.dtype != np.uint8 or content.ndim != 3 or content.shape[-1] not in (1, 3):
            raise DataError(f"{name}: {content.dtype} of shape {content.shape} is no image [H, W, 1 or 3] of uint8")
        decoded = Decoded(with_channels(content, rule.channels))
    else:
        decoded = decode(content, name, rule.channels, rule.background)
    pixels = cropped(decoded.pixels, name, rule)
    side = _CELEBA if rule.crop == "celeba" else min(decoded.pixels.shape[:2])
    small = side < rule.image_size
    notes = [*decoded.notes, *["enlarged, from fewer pixels"] * small]
    if rule.image_size and rule.crop != "celeba" and decoded.pixels.shape[0] != decoded.pixels.shape[1]:
        notes.append("cut to the square in the middle")
    return pixels, pixels.shape[-1] == 1, tuple(notes)


def checked(rule: Decoding) -> Decoding:
    """The rule itself.

    Raises:
      DataError: if its parts do not go together.
    """
    if rule.crop == "dhariwal" and (not rule.image_size or rule.filter != "box"):
        raise DataError("data.crop = dhariwal needs data.image_size, and has filters of its own: leave data.filter")
    return rule


def cropped(image: np.ndarray, name: str, rule: Decoding) -> np.ndarray:
    """The part of an image [H, W, 1 or 3] uint8 that a rule keeps, resized to its side.

    Args:
      image: [H, W, 1 or 3] uint8.
      name: for messages.
      rule: its `crop` is `center`, the largest central square; `celeba`, the central 140 x 140 pixels of CelebA's
        aligned images (Song et al. 2021, arXiv:2011.13456, `datasets.py`); `dhariwal`, the central square after halving
        with the box filter while both sides stay as large, and a bicubic resize (Dhariwal and Nichol 2021,
        arXiv:2105.05233, `image_datasets.py`; `center-crop-dhariwal` of EDM2); or `none`, the whole of a square image.

    Raises:
      DataError: where the image is too small for the crop, or not square without one.
    """
    (height, width), side = image.shape[:2], rule.image_size
    crop = min(height, width)
    if rule.crop == "dhariwal":
        return _dhariwal(image, side)
    if rule.crop == "celeba":
        if crop < _CELEBA:
            raise DataError(f"{name} has {height} x {width} pixels, data.crop = celeba takes {_CELEBA} x {_CELEBA}")
        crop = _CELEBA
    elif not side:
        return image
    elif rule.crop == "none" and height != width:
        raise DataError(f"{name} has {height} x {width} pixels: with data.crop = none images must be square")
    return center_crop_resize(image, crop, side or crop, rule.filter)


def center_crop_resize(image: np.ndarray, crop: int, side: int, filter: Filter = "box") -> np.ndarray:
    """The central crop x crop pixels of [H, W, 1 or 3], resized to side x side."""
    return _resized(_center(image, crop), side, side, filter)


def _center(image: np.ndarray, crop: int) -> np.ndarray:
    top, left = (image.shape[0] - crop) // 2, (image.shape[1] - crop) // 2
    return image[top : top + crop, left : left + crop]


def _resized(image: np.ndarray, height: int, width: int, filter: Filter) -> np.ndarray:
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    rule = {"box": Image.Resampling.BOX, "bilinear": Image.Resampling.BILINEAR}
    rule |= {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
    flat = image[..., 0] if image.shape[-1] == 1 else image
    resized = Image.fromarray(np.ascontiguousarray(flat)).resize((width, height), rule[filter])
    return np.asarray(resized).reshape(height, width, image.shape[-1])


def _dhariwal(image: np.ndarray, side: int) -> np.ndarray:
    while min(image.shape[:2]) >= 2 * side:
        image = _resized(image, image.shape[0] // 2, image.shape[1] // 2, "box")
    scale = side / min(image.shape[:2])
    height, width = (round(size * scale) for size in image.shape[:2])
    return _center(_resized(image, height, width, "bicubic"), side)


def _notes(file: Any) -> tuple[str, ...]:
    notes = []
    if getattr(file, "n_frames", 1) > 1:
        notes.append("first frame of several")
    if "icc_profile" in file.info:
        notes.append("color profile left alone")
    return tuple(notes)


def _eight_bits(image: Any) -> np.ndarray:
    """Gray values of 16 bits, of which 65,535 is white, 257 times the white of 8."""
    return np.round(np.asarray(image).astype(np.float64) / 257.0).astype(np.uint8)


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Pixels [..., 1 or 3] in gray (1) or color (3); 0 leaves them as they are."""
    if channels == 3 and pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    if channels == 1 and pixels.shape[-1] == 3:
        weights = np.array([19595, 38470, 7471])  # ITU-R 601-2, as PIL has it, in 1 / 65,536
        return ((pixels.astype(np.int64) @ weights + 32768) >> 16).astype(np.uint8)[..., None]
    return pixels
