"""Image bytes to arrays: decoding, random crops, and when a picture may be mirrored."""

import functools
import io
import math
import platform
import re
import sys
import threading

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

# The one common platform for which there is no wheel of it; Pillow does its work there, at a quarter of the speed.
_HAS_FAST_RESIZER = (sys.platform, platform.machine()) != ("linux", "aarch64")
if _HAS_FAST_RESIZER:
    from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

    # The cubic that Pillow calls bicubic, a = -0.5, stretched over the source's pixels where it shrinks.
    _BICUBIC = ResizeOptions(ResizeAlg.convolution(FilterType.catmull_rom))

    class _ThisThread(threading.local):
        """A resizer and its results keep their memory, and may serve one thread at a time only."""

        def __init__(self):
            self.resizer = Resizer()
            self.square = functools.cache(lambda size: ImageData(size, size, PixelType.U8x3))

    _THIS_THREAD = _ThisThread()


class ImageSizeError(ValueError):
    """An image without pixels, or with more than a crop could use."""


def decode_image(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image of any format that Pillow reads to RGB.

    JPEG goes through libjpeg-turbo in its strict mode: damaged data is an error, not a grey area.
    Transparent parts become white; 16-bit grey is scaled to 8 bits. An EXIF orientation is not applied.

    Raises:
        ImageSizeError: it has no pixels, or more than 64 million.
        ValueError: no image, or a damaged one.
        OSError: what Pillow makes of a damaged or unknown file.
    """
    if data[:3] == b"\xff\xd8\xff":
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(int(width), int(height))
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    with Image.open(io.BytesIO(data)) as image:
        _check_size(*image.size)
        if image.mode in ("I", "I;16", "I;16B"):
            # Pillow would clip 16 bits to 8: nearly white.
            image = Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= _MAX_PIXELS:
        raise ImageSizeError(f"image of {width} x {height} pixels; 1 to {_MAX_PIXELS:,} are accepted")


def draw_crop(
    height: int, width: int, area: tuple[float, float], draws: Float64[np.ndarray, "attempts 4"]
) -> tuple[int, int, int, int]:
    """Draws a box (left, top, right, bottom) with a share of the image's area within `area`.

    The distribution is that of the paper's code (torchvision's): area uniform, aspect ratio log-uniform
    between 3/4 and 4/3, and after ten boxes that do not fit the largest central one of an allowed aspect.

    Args:
        height: Of the image, pixels.
        width: Of the image, pixels.
        area: Smallest and largest share.
        draws: Uniform in [0, 1): area, aspect, top and left of each attempt; see `CROP_DRAWS`.
    """
    low, high = _LOG_ASPECT
    for for_area, for_aspect, for_top, for_left in draws.tolist():
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
    """Cuts a random box and resizes it to the square `out`, bicubic: the pre-training transform.

    The box is cut out first, as in the paper's code, so that no pixel outside of it takes part.
    """
    left, top, right, bottom = draw_crop(image.shape[0], image.shape[1], area, draws)
    resize(image[top:bottom, left:right], out)


def resize(image: UInt8[np.ndarray, "height width 3"], out: UInt8[np.ndarray, "size size 3"]) -> None:
    """Resizes to the square `out`, bicubic with antialiasing: Pillow's BICUBIC to rounding, several times faster.

    In whole numbers, so that every processor of a platform gives the same bits.
    """
    (height, width), size = image.shape[:2], out.shape[0]
    if not _HAS_FAST_RESIZER:
        out[:] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
        return
    source = ImageData(width, height, PixelType.U8x3, image.tobytes())
    resized = _THIS_THREAD.square(size)
    _THIS_THREAD.resizer.resize(source, resized, _BICUBIC)
    out[:] = np.frombuffer(resized.get_buffer(), np.uint8).reshape(out.shape)


def resize_and_crop_center(
    image: UInt8[np.ndarray, "height width 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes the shorter side to `size`, bicubic, and keeps the central square: the test transform."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    new_width, new_height = (size * width // shorter, size * height // shorter)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


# Directions and turning; things that are read; things that mirroring turns into something else.
_HANDED_WORDS = (
    "left|leftward|leftwards|right|rightward|rightwards|lefthand|righthand|sideways|clockwise|anticlockwise"
    "|counterclockwise|forward|backward|backwards|reverse|next|previous"
    "|east|west|northeast|northwest|southeast|southwest"
    "|letters?|lettering|words?|text|writing|written|handwriting|inscription|script|captions?|fonts?|alphabet"
    "|alphabetic|alphanumeric|latin|uppercase|lowercase|spelled|reads|says|saying"
    "|numbers?|numerals?|numeric|digits?|keycaps?|equations?|formulas?|punctuation|question|percent|dollars?|euros?"
    "|signs?|signage|signpost|signboard|sticker|posters?|billboards?|banners?|labels?|logos?|headlines?"
    "|newspapers?|magazines?|buttons?|badges?|license plate|trademark|copyright|registered"
    "|keyboards?|calendars?|maps?|globes?|compass|clefs?|musical notes?|sheet music|cursors?|pointer|pointing"
    "|flags?|ensigns?|arrows?|clocks?|clockface|watch|wristwatch|o'clock|timer|stopwatch|\\w+-thirty"
)
# A run of capitals ("SOON", "OK") or a quoted word names what is written in the picture.
_HANDED = re.compile(rf"\b(?i:{_HANDED_WORDS})\b|\b[A-Z]{{2,}}\b|\"[^\"]+\"")


def may_mirror(caption: str) -> bool:
    """Returns whether a picture with this caption stays true to it when left and right are swapped.

    The paper mirrors half of all images. That is harmless to the picture of a cat, but "a left arrow", "the
    flag of France", "a sign that says STOP" or "three o'clock" become false, and a model that reads captions
    would be taught so. Captions that speak of directions, of writing and numbers, of flags, arrows or clock
    faces therefore keep their image as it is: about a fifth of the starter set. The list errs on the side of
    keeping: "human rights" or "a written agreement" cost a flip and nothing else. What counts is the wording
    that the model reads beside the image. An empty one, or none, has nothing that could become false.
    """
    return _HANDED.search(caption) is None
