"""Image bytes to RGB pixels, of any format that is read.

Colour profiles are not applied. Of an animation or of several pages the first image counts.
"""

import contextlib
import io
import warnings
from typing import Literal

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageCms

from m3ae_tpu.data.image_errors import ColorError, ImageSizeError, damage_as_value_error
from m3ae_tpu.data.image_formats import image_format
from m3ae_tpu.data.image_metadata import (
    exif_orientation,
    jpeg_exif,
    without_avif_metadata,
    without_jpeg_metadata,
    without_png_metadata,
    without_webp_metadata,
)
from m3ae_tpu.data.pixel_memory import PixelMemory

_MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded; one of this size takes 192 MB."""
_WITHOUT_METADATA = {
    "AVIF": without_avif_metadata,
    "JPEG": without_jpeg_metadata,
    "PNG": without_png_metadata,
    "WEBP": without_webp_metadata,
}
"""Functions that leave out of an image what changes no pixel, and may be damaged. Pillow passes
over the damaged metadata of other formats.
"""
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""Tags of TIFF."""

# Pillow warns of metadata that are odd. `-W error` must not make damage of them.
warnings.filterwarnings("ignore", module=r"PIL\.")

type Channels = Literal["RGB", "RGBX"]
type Pixels = UInt8[np.ndarray, "height width channels"]


def decode_image(
    data: bytes, channels: Channels = "RGB", memory: PixelMemory | None = None
) -> Pixels:
    """Decodes an image of any format that is read to RGB.

    JPEG goes through libjpeg-turbo in its strict mode: damaged data is an error, not a grey area.
    Transparent pixels become white; 16-bit values are scaled to 8 bits. An EXIF orientation is
    ignored, but for that of TIFF.

    Args:
        data: An encoded image.
        channels: `RGBX` has a fourth, unused byte a pixel: the input of `resize`.
        memory: Gets the pixels of a JPEG, which are then gone with the next image of this thread.
            Other pixels get memory of their own.

    Raises:
        ImageSizeError: it has no pixels, or more than 64 million.
        ColorError: it has pixels of an unknown scale.
        ValueError: not an image, or a damaged one.
    """
    with damage_as_value_error():
        if data[:3] == b"\xff\xd8\xff":
            return _decode_jpeg(data, channels, memory)
        with _open(data) as image:
            return np.asarray(_to_rgb(image).convert(channels))


def decode_upright(data: bytes) -> Pixels:
    """Decodes an image to RGB and turns it upright by its EXIF orientation.

    An orientation that is none of 1 to 8, or that stands in damaged metadata, is ignored.

    Raises:
        ImageSizeError: as `decode_image`.
        ColorError: as `decode_image`.
        ValueError: as `decode_image`.
    """
    with damage_as_value_error():
        if data[:3] == b"\xff\xd8\xff":
            return _turn(_decode_jpeg(data, "RGB", None), exif_orientation(jpeg_exif(data)))
        with _open(data) as image:
            pixels = np.asarray(_to_rgb(image))
            # Pillow turns a TIFF while it decodes it and leaves no orientation behind.
            return _turn(pixels, exif_orientation(image.info.get("exif") or b""))


def is_plain_jpeg(data: bytes) -> bool:
    """Returns whether an image is a JPEG in RGB or grey that is upright without being turned."""
    if data[:3] != b"\xff\xd8\xff":
        return False
    try:
        colors = _jpeg_header(data)[2]
    except ValueError:
        return False
    return colors in ("RGB", "YCbCr", "Gray") and exif_orientation(jpeg_exif(data)) == 1


def num_pages(data: bytes) -> int:
    """Returns the number of images in a TIFF; 1 for another format.

    Raises:
        ValueError: a damaged TIFF.
    """
    if image_format(data) != "TIFF":
        return 1
    with damage_as_value_error(), _open(data, is_checked=False) as image:
        return getattr(image, "n_frames", 1)


def image_size(data: bytes) -> tuple[int, int]:
    """Returns an image's width and height, before it is turned upright, without decoding it.

    Raises:
        ImageSizeError: so many pixels that Pillow does not open it.
        ValueError: not an image, or a damaged one.
    """
    with damage_as_value_error():
        if data[:3] == b"\xff\xd8\xff":
            with contextlib.suppress(ValueError):
                height, width, *_ = _jpeg_header(data)
                return width, height
        with _open(data, is_checked=False) as image:
            return image.size


def _jpeg_header(data: bytes) -> tuple[int, int, str]:
    """Returns height, width and colours.

    Raises:
        ValueError: damage, or a subsampling of colours that libjpeg-turbo has no name for.
    """
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except KeyError:
        raise ValueError("subsampling without a name") from None
    return int(height), int(width), str(colors)


def _decode_jpeg(data: bytes, channels: Channels, memory: PixelMemory | None) -> Pixels:
    try:
        pixels, colors = _decode_strictly(data, channels, memory)
    except ImageSizeError:
        raise
    except ValueError as error:
        sound = without_jpeg_metadata(data)
        if "subsampling" in str(error):
            with _open(sound) as image:
                return np.asarray(_to_rgb(image).convert(channels))
        # Bytes between segments, or no marker at the end, change no pixel.
        pixels, colors = _decode_strictly(sound, channels, memory)
    if colors not in ("CMYK", "YCCK"):
        return pixels
    # Pillow knows which of them Adobe's programs store inverted.
    with _open(without_jpeg_metadata(data)) as image:
        return np.asarray(image.convert("RGB").convert(channels))


def _decode_strictly(
    data: bytes, channels: Channels, memory: PixelMemory | None
) -> tuple[Pixels, str]:
    """Returns pixels and stored colours.

    Raises:
        ImageSizeError: as `decode_image`.
        ValueError: damage, or a subsampling of colours that libjpeg-turbo has no name for.
    """
    height, width, colors = _jpeg_header(data)
    _check_size(width, height)
    buffer = None if memory is None else memory.take(len(channels) * height * width)
    return simplejpeg.decode_jpeg(data, colorspace=channels, buffer=buffer), colors


def _open(data: bytes, *, is_checked: bool = True) -> Image.Image:
    """Returns a Pillow image, not decoded yet.

    Args:
        data: An encoded image.
        is_checked: Whether its number of pixels must be an accepted one.

    Raises:
        ImageSizeError: it must, and is not.
        ColorError: Pillow does not read this kind of pixels.
        ValueError: not of a format that is read. Pillow raises other errors over damage.
    """
    format = image_format(data)
    if not format:
        raise ValueError("not an image of a format that is read")
    data = _WITHOUT_METADATA.get(format, bytes)(data)
    Image.init()
    # `Image.open` would hide the reason of a failure.
    factory, _ = Image.OPEN[format]
    try:
        image = factory(io.BytesIO(data), "")
    except SyntaxError as error:
        if "pixel mode" in str(error):
            raise ColorError("pixels of a kind that is not read") from error
        raise
    if is_checked:
        _check_size(*image.size)
    return image


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= _MAX_PIXELS:
        raise ImageSizeError(
            f"image of {width} x {height} pixels; 1 to {_MAX_PIXELS:,} are accepted"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Decodes a Pillow image and returns it in RGB, on white where it is transparent."""
    image.load()
    _check_size(*image.size)  # An icon may hold an image of another size than it says.
    if image.mode == "F":
        raise ColorError("pixels are fractions of an unknown scale")
    if image.mode in _SIXTEEN_BIT_MODES:
        return Image.fromarray(_from_16_bits(image)).convert("RGB")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(*profiles, "LAB", "RGB")
        return ImageCms.applyTransform(image, transform) or image
    if image.has_transparency_data:
        # Pillow knows no direct way from premultiplied grey.
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    """Returns grey of up to 16 bits in 8 bits, which Pillow would clip at 255: nearly white."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if values.min() < 0 or values.max() >= 2**16:
        raise ColorError("pixels are whole numbers of more than 16 bits")
    largest = 2**12 - 1 if tags.get(_BITS_PER_SAMPLE) == (12,) else 2**16 - 1
    grey = ((values.astype(np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # White is zero, which Pillow knows of 8 bits only.
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return grey


def _turn(
    pixels: Pixels, orientation: int
) -> UInt8[np.ndarray, "upright_height upright_width channels"]:
    """Returns pixels upright, by the EXIF orientation in which they are stored."""
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.swapaxes(0, 1)
        case 6:
            return pixels[::-1].swapaxes(0, 1)
        case 7:
            return pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return pixels[:, ::-1].swapaxes(0, 1)
    return pixels
