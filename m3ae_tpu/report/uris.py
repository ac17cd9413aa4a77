"""Images as data URIs, so that a page needs no other file."""

import base64
import io

import numpy as np
import PIL.Image
from jaxtyping import UInt8


def png_uri(image: UInt8[np.ndarray, "height width channels"]) -> str:
    """Returns an RGB or RGBA image as a PNG data URI: every pixel as it is."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "png", optimize=True)
    return _uri(buffer, "png")


def thumbnail_uri(image: UInt8[np.ndarray, "height width 3"], side: int) -> str:
    """Returns an RGB image, at most `side` pixels wide and high, as a small WebP data URI."""
    buffer, small = io.BytesIO(), PIL.Image.fromarray(image)
    small.thumbnail((side, side), PIL.Image.Resampling.BICUBIC)
    small.save(buffer, "webp", quality=85)
    return _uri(buffer, "webp")


def _uri(buffer: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
