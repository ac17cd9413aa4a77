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
    from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions

    # `Resizer` would copy the options and wrap the output again for every image.
    from cykooz_resizer.rust_lib import PilImageWrapper, RustResizer

    # Pillow's bicubic is this cubic, a = -0.5, widened by the scale when it shrinks an image.
    _BICUBIC = ResizeOptions(ResizeAlg.convolution(FilterType.catmull_rom))
    _BICUBIC.use_alpha = False


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
    image: UInt8[np.ndarray, "height width 4"],
    out: UInt8[np.ndarray, "size size 3"],
    *,
    area: tuple[float, float],
    draws: Float64[np.ndarray, "attempts 4"],
) -> None:
    """Crops a random box and resizes it to the square `out`: the pre-training transform."""
    resize(image, draw_crop(image.shape[0], image.shape[1], area, draws), out)


def resize(
    image: UInt8[np.ndarray, "height width 4"],
    box: tuple[int, int, int, int],
    out: UInt8[np.ndarray, "size size 3"],
) -> None:
    """Resizes a box to the square `out`, bicubic with antialiasing.

    Equals Pillow's BICUBIC to rounding and is several times faster. The box is cropped first, as in
    the paper's code, so that pixels outside of it do not count. Computed in integers, so that every
    processor of a platform gives the same bits.

    Args:
        image: RGBX, as `decode_image` of `m3ae_tpu.data.images` returns it.
        box: Left, top, right and bottom, pixels.
        out: Gets the result.
    """
    source, size = _as_pillow(image, box), out.shape[0]
    if _THIS_THREAD is not None:
        square, result = _THIS_THREAD.square(size)
        _THIS_THREAD.resizer.resize_pil(PilImageWrapper(source), result, _BICUBIC.rust_options)
    else:
        square = np.asarray(source.resize((size, size), Image.Resampling.BICUBIC))
    _drop_fourth_byte(square, out)


def _drop_fourth_byte(
    image: UInt8[np.ndarray, "size size 4"], out: UInt8[np.ndarray, "size size 3"]
) -> None:
    """Copies the first three of four bytes a pixel."""
    # Writes four bytes a pixel; the next pixel overwrites the fourth. Half the time of a copy by
    # channel, a twelfth of `out[:] = image[..., :3]`. The last pixel would overrun the array, so it
    # is copied apart.
    pixels = image.reshape(-1).view(np.uint32)[:-1]
    np.ndarray(pixels.shape, np.uint32, out, strides=(3,))[:] = pixels
    out[-1, -1] = image[-1, -1, :3]


def _as_pillow(
    image: UInt8[np.ndarray, "height width 4"], box: tuple[int, int, int, int]
) -> Image.Image:
    """Returns a box of an image as a Pillow image, in the same memory if possible."""
    left, top, right, bottom = box
    size, stride = (right - left, bottom - top), 4 * image.shape[1]
    pixels = image.reshape(-1)[top * stride + 4 * left :]
    if pixels.size < size[1] * stride:  # Pillow reads the last row at full stride.
        pixels, stride = image[top:bottom, left:right].tobytes(), 4 * size[0]
    # CMYK stands for any four bytes a pixel.
    return Image.frombuffer("CMYK", size, pixels, "raw", "CMYK", stride, 1)


class _ThisThread(threading.local):
    """A resizer and its output squares, which only one thread may use at a time."""

    def __init__(self):
        self.resizer = RustResizer()
        self.square = functools.cache(self._square)

    @staticmethod
    def _square(size: int) -> tuple[UInt8[np.ndarray, "size size 4"], "PilImageWrapper"]:
        """Returns a square as an array and as the resizer's image in the same memory."""
        square = np.empty((size, size, 4), np.uint8)
        return square, PilImageWrapper(_as_pillow(square, (0, 0, size, size)))


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
