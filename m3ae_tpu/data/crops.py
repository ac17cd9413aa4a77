"""Random crops of decoded images, and resizing."""

import functools
import math
import platform
import sys
import threading

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

_CROP_ASPECT = (3 / 4, 4 / 3)
_LOG_ASPECT = (math.log(_CROP_ASPECT[0]), math.log(_CROP_ASPECT[1]))
CROP_DRAWS = (10, 4)
"""Shape of a crop's random numbers: four for each of ten attempts."""

# cykooz.resizer has no wheel for this platform. Pillow replaces it, at a quarter of the speed.
_HAS_FAST_RESIZER = (sys.platform, platform.machine()) != ("linux", "aarch64")
if _HAS_FAST_RESIZER:
    from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

    # Pillow's bicubic is this cubic, a = -0.5, widened by the scale when it shrinks an image.
    _BICUBIC = ResizeOptions(ResizeAlg.convolution(FilterType.catmull_rom))


def draw_crop(
    height: int, width: int, area: tuple[float, float], draws: Float64[np.ndarray, "attempts 4"]
) -> tuple[int, int, int, int]:
    """Draws a box (left, top, right, bottom) whose fraction of the image's area lies in `area`.

    The distribution is that of the paper's code (torchvision's): area uniform, aspect ratio
    log-uniform between 3/4 and 4/3, and after ten boxes that do not fit the largest central one of
    an allowed aspect.

    Args:
        height: The image's height, pixels.
        width: The image's width, pixels.
        area: Smallest and largest fraction.
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
    image: UInt8[np.ndarray, "height width 3"],
    out: UInt8[np.ndarray, "size size 3"],
    *,
    area: tuple[float, float],
    draws: Float64[np.ndarray, "attempts 4"],
) -> None:
    """Crops a random box and resizes it to the square `out`: the pre-training transform."""
    resize(image, draw_crop(image.shape[0], image.shape[1], area, draws), out)


def resize(
    image: UInt8[np.ndarray, "height width 3"],
    box: tuple[int, int, int, int],
    out: UInt8[np.ndarray, "size size 3"],
) -> None:
    """Resizes a box to the square `out`, bicubic with antialiasing.

    Equals Pillow's BICUBIC to rounding and is several times faster. The box is cropped first, as in
    the paper's code, so that pixels outside of it do not count. Computed in integers, so that every
    processor of a platform gives the same bits.

    Args:
        image: RGB.
        box: Left, top, right and bottom, pixels.
        out: Gets the result.
    """
    left, top, right, bottom = box
    crop, size = image[top:bottom, left:right], out.shape[0]
    if _THIS_THREAD is None:
        whole = Image.fromarray(np.ascontiguousarray(crop))
        out[:] = whole.resize((size, size), Image.Resampling.BICUBIC)
        return
    source = ImageData(right - left, bottom - top, PixelType.U8x3, crop.tobytes())
    square = _THIS_THREAD.square(size)
    _THIS_THREAD.resizer.resize(source, square, _BICUBIC)
    out[:] = np.frombuffer(square.get_buffer(), np.uint8).reshape(out.shape)


class _ThisThread(threading.local):
    """A resizer and its output squares, which only one thread may use at a time."""

    def __init__(self):
        self.resizer = Resizer()
        self.square = functools.cache(self._square)

    @staticmethod
    def _square(size: int) -> "ImageData":
        return ImageData(size, size, PixelType.U8x3)


_THIS_THREAD = _ThisThread() if _HAS_FAST_RESIZER else None


def resize_and_crop_center(
    image: UInt8[np.ndarray, "height width 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes the shorter side to `size`, bicubic, and crops the centre: the test transform."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    new_width, new_height = (size * width // shorter, size * height // shorter)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))
