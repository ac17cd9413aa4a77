"""Image bytes to arrays: decoding, random crops and resizing."""

import contextlib
import functools
import io
import math
import platform
import sys
import threading
from collections.abc import Iterator
from typing import Literal

import numpy as np
import simplejpeg
from jaxtyping import Float64, UInt8
from PIL import Image

_MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: 192 MB each, and no crop needs them."""
_CROP_ASPECT = (3 / 4, 4 / 3)
_LOG_ASPECT = (math.log(_CROP_ASPECT[0]), math.log(_CROP_ASPECT[1]))
CROP_DRAWS = (10, 4)
"""Shape of the random numbers that a crop takes: four for each of ten attempts."""

# The one common platform for which there is no wheel of it; Pillow does its work there, at a
# quarter of the speed.
_HAS_FAST_RESIZER = (sys.platform, platform.machine()) != ("linux", "aarch64")
if _HAS_FAST_RESIZER:
    from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer

    # The cubic that Pillow calls bicubic, a = -0.5, stretched over the source's pixels where it
    # shrinks.
    _BICUBIC = ResizeOptions(ResizeAlg.convolution(FilterType.catmull_rom))


class ImageSizeError(ValueError):
    """An image without pixels, or with more than a crop could use."""


def decode_image(
    data: bytes, channels: Literal["RGB", "RGBX"] = "RGB"
) -> UInt8[np.ndarray, "height width channels"]:
    """Decodes an image of any format that Pillow reads to RGB.

    JPEG goes through libjpeg-turbo in its strict mode: damaged data is an error, not a grey area.
    Transparent parts become white; 16-bit grey is scaled to 8 bits. An EXIF orientation is not
    applied.

    Args:
        data: An encoded image.
        channels: `RGBX` has a fourth byte that means nothing: quicker to decode, and what `resize`
            takes.

    Raises:
        ImageSizeError: it has no pixels, or more than 64 million.
        ValueError: no image, a damaged one, or one whose pixels are no colours of 8 or 16 bits.
    """
    with damage_as_value_error():
        return _decode(data, channels)


@contextlib.contextmanager
def damage_as_value_error() -> Iterator[None]:
    """Raises `ValueError` for whatever a decoder raises over a damaged file, `ImageSizeError` for a
    bomb.

    That may be OSError, SyntaxError, KeyError, TypeError, struct.error and others. Want of memory
    is no damage.
    """
    try:
        yield
    except (ImageSizeError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageSizeError(str(error)) from error
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _decode(
    data: bytes, channels: Literal["RGB", "RGBX"]
) -> UInt8[np.ndarray, "height width channels"]:
    if data[:3] == b"\xff\xd8\xff":
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(int(width), int(height))
        return simplejpeg.decode_jpeg(data, colorspace=channels)
    with Image.open(io.BytesIO(data)) as image:
        _check_size(*image.size)
        if image.mode == "F":
            raise ValueError("pixels are fractions, of no known scale")
        if image.mode in ("I", "I;16", "I;16B"):
            # Pillow would clip 16 bits to 8: nearly white.
            values = np.asarray(image, np.float64)
            if values.min() < 0 or values.max() >= 2**16:
                raise ValueError("pixels are whole numbers of more than 16 bits")
            image = Image.fromarray((values / 257).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB").convert(channels))


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= _MAX_PIXELS:
        raise ImageSizeError(
            f"image of {width} x {height} pixels; 1 to {_MAX_PIXELS:,} are accepted"
        )


def draw_crop(
    height: int, width: int, area: tuple[float, float], draws: Float64[np.ndarray, "attempts 4"]
) -> tuple[int, int, int, int]:
    """Draws a box (left, top, right, bottom) with a share of the image's area within `area`.

    The distribution is that of the paper's code (torchvision's): area uniform, aspect ratio
    log-uniform between 3/4 and 4/3, and after ten boxes that do not fit the largest central one of
    an allowed aspect.

    Args:
        height: Of the image, pixels.
        width: Of the image, pixels.
        area: Smallest and largest share.
        draws: Uniform in [0, 1): area, aspect, top and left of each attempt; see `CROP_DRAWS`.
    """
    low, high = _LOG_ASPECT
    for attempt in draws:
        for_area, for_aspect, for_top, for_left = attempt.tolist()
        pixels = height * width * (area[0] + (area[1] - area[0]) * for_area)
        aspect = math.exp(low + (high - low) * for_aspect)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(for_top * (height - h + 1)), int(for_left * (width - w + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * _CROP_ASPECT[1])))
    h = min(height, max(1, round(width / _CROP_ASPECT[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized_crop(
    image: UInt8[np.ndarray, "height width 4"],
    out: UInt8[np.ndarray, "size size 3"],
    *,
    area: tuple[float, float],
    draws: Float64[np.ndarray, "attempts 4"],
) -> None:
    """Cuts a random box and resizes it to the square `out`, bicubic: the pre-training transform."""
    resize(image, draw_crop(image.shape[0], image.shape[1], area, draws), out)


def resize(
    image: UInt8[np.ndarray, "height width 4"],
    box: tuple[int, int, int, int],
    out: UInt8[np.ndarray, "size size 3"],
) -> None:
    """Resizes a box to the square `out`, bicubic with antialiasing: Pillow's BICUBIC to rounding,
    several times faster.

    The box is cut out first, as in the paper's code, so that no pixel outside of it takes part. In
    whole numbers, so that every processor of a platform gives the same bits.

    Args:
        image: RGB and a byte that means nothing, as `decode_image` gives it.
        box: Left, top, right and bottom, pixels.
        out: Is filled.
    """
    source, size = _as_pillow(image, box), out.shape[0]
    if _THIS_THREAD is not None:
        square, result = _THIS_THREAD.square(size)
        _THIS_THREAD.resizer.resize_pil(source, result, _BICUBIC)
    else:
        square = np.asarray(source.resize((size, size), Image.Resampling.BICUBIC))
    _drop_fourth_byte(square, out)


def _drop_fourth_byte(
    image: UInt8[np.ndarray, "size size 4"], out: UInt8[np.ndarray, "size size 3"]
) -> None:
    """Copies the first three of four bytes a pixel."""
    # Four bytes at a time, each over the last one's fourth: half the time of one channel after the
    # other, and a twelfth of that of `out[:] = image[..., :3]`. The last pixel would reach beyond
    # the end.
    pixels = image.reshape(-1).view(np.uint32)[:-1]
    np.ndarray(pixels.shape, np.uint32, out, strides=(3,))[:] = pixels
    out[-1, -1] = image[-1, -1, :3]


def _as_pillow(
    image: UInt8[np.ndarray, "height width 4"], box: tuple[int, int, int, int]
) -> Image.Image:
    """Returns a box of an image as one of Pillow's in the same memory; nothing is copied if it can
    be avoided.
    """
    left, top, right, bottom = box
    size, stride = (right - left, bottom - top), 4 * image.shape[1]
    pixels = image[top:].reshape(-1)[4 * left :]
    if pixels.size < size[1] * stride:  # Pillow wants the last row whole.
        pixels, stride = image[top:bottom, left:right].tobytes(), 4 * size[0]
    # Pillow's name for four bytes of any meaning.
    return Image.frombuffer("CMYK", size, pixels, "raw", "CMYK", stride, 1)


class _ThisThread(threading.local):
    """What serves one thread at a time, and keeps its memory."""

    def __init__(self):
        self.resizer = Resizer()
        self.square = functools.cache(self._square)

    @staticmethod
    def _square(size: int) -> tuple[UInt8[np.ndarray, "size size 4"], Image.Image]:
        """Returns a square as an array and as one of Pillow's images, both in the same memory."""
        square = np.empty((size, size, 4), np.uint8)
        return square, _as_pillow(square, (0, 0, size, size))


_THIS_THREAD = _ThisThread() if _HAS_FAST_RESIZER else None


def resize_and_crop_center(
    image: UInt8[np.ndarray, "height width 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes the shorter side to `size`, bicubic, and keeps the central square: the test
    transform.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    new_width, new_height = (size * width // shorter, size * height // shorter)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))
