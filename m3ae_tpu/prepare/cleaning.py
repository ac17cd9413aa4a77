"""Cleaning: a sample becomes a record that training can rely on, or is dropped with a reason."""

import contextlib
import hashlib
import unicodedata
import warnings
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image

from m3ae_tpu.data.image_errors import ColorError, ImageSizeError
from m3ae_tpu.data.image_formats import image_format
from m3ae_tpu.data.images import decode_upright, image_size, is_plain_jpeg
from m3ae_tpu.data.records import Record
from m3ae_tpu.prepare.options import CleaningOptions, is_unicode
from m3ae_tpu.prepare.samples import Fault, Sample, first_line
from m3ae_tpu.prepare.unread_formats import unread_format

_QUALITY, _QUALITY_WHEN_SHRUNK = 95, 90
"""JPEG quality of re-encoded images. At 90 an image takes two thirds of the bytes and five sixths
of the time to decode, and loses less than by shrinking, which asks for speed anyway.
"""
_LONGEST_SIDE = 65_500
"""Pixels of the longest side that libjpeg writes."""


class Unfit(Exception):
    """A sample that is dropped."""

    def __init__(self, reason: str, detail: str = ""):
        """Takes the parts of `fault`."""
        super().__init__(reason, detail)
        self.fault = Fault(reason, detail)


def clean_sample(sample: Sample, options: CleaningOptions) -> tuple[Record, tuple[int, int]]:
    """Returns the record of a sample, and its image's width and height, (0, 0) without an image.

    The record's `id` is a digest of its content: the same example has the same `id` in every
    collection.

    Raises:
        Unfit: with the reason.
    """
    if sample.fault:
        raise Unfit(*sample.fault)
    image, size, captions, label = b"", (0, 0), (), ""
    if options.kind != "text":
        if sample.image is None:
            raise Unfit("no image")
        image, size = clean_image(sample.image, options)
    if options.kind in ("paired", "text"):
        captions = clean_captions(sample.captions, options)
    if options.kind == "labelled":
        label = sample.label.strip()
        if not label:
            raise Unfit("no label")
        if not is_unicode(label):
            raise Unfit("label is not UTF-8")
    digest = hashlib.sha256(image)
    for text in (*captions, label):
        digest.update(b"\0" + text.encode())
    name = digest.hexdigest()[:32]
    return Record(
        id=name, image=image, captions=captions, label_name=label, license=options.license
    ), size


def clean_captions(
    captions: tuple[str | bytes | None, ...], options: CleaningOptions
) -> tuple[str, ...]:
    """Returns the texts as trimmed, composed Unicode (NFC), empty ones left out.

    Raises:
        Unfit: none is left, or one is not a text, not UTF-8, too short or too long.
    """
    cleaned = []
    for caption in captions:
        if caption is None:
            raise Unfit("caption is not a text")
        try:
            text = caption.decode("utf-8") if isinstance(caption, bytes) else caption
        except UnicodeError:
            raise Unfit("text is not UTF-8") from None
        if not is_unicode(text):
            raise Unfit("text is not UTF-8")
        # Text files may begin with a byte order mark.
        text = text.replace("\0", "").removeprefix("\ufeff").strip()
        # Checked first: composing a long run of accents takes time with the square of its length.
        if len(text) <= options.max_caption_characters:
            text = unicodedata.normalize("NFC", text)
        if len(text) > options.max_caption_characters:
            raise Unfit("text too long")
        if text:
            cleaned.append(text)
    if not cleaned:
        raise Unfit("empty text" if captions else "no text")
    if len(cleaned[0]) < options.min_caption_characters:
        raise Unfit("text too short")
    return tuple(cleaned)


def clean_image(data: bytes, options: CleaningOptions) -> tuple[bytes, tuple[int, int]]:
    """Returns an image as an upright JPEG in RGB or grey, with its width and height.

    Good JPEGs keep their bytes.

    Raises:
        Unfit: empty, not an image, damaged, without colours, too small or too large.
    """
    if not data:
        raise Unfit("empty image")
    if not image_format(data):
        starts_with = f"starts with {data[:16]!r}"
        raise Unfit(*(unread_format(data) or ("not an image", starts_with)))
    with _no_warnings(), _unfit_images():
        width, height = image_size(data)
        sides = f"{width} x {height}"
        if width * height > options.max_pixels:
            raise Unfit("image has too many pixels", sides)
        if min(width, height) < options.min_shorter_side:
            raise Unfit("image too small", sides)
        pixels = decode_upright(data)
    limit = options.max_shorter_side
    shrinks = bool(limit) and min(width, height) > limit
    if not shrinks and is_plain_jpeg(data):
        return data, (width, height)
    image = Image.fromarray(pixels)
    if shrinks:
        scale = limit / min(image.size)
        image = image.resize(
            (max(limit, round(image.width * scale)), max(limit, round(image.height * scale))),
            Image.Resampling.BICUBIC,
        )
    if max(image.size) > _LONGEST_SIDE:
        raise Unfit("image too wide or high for JPEG", f"{image.width} x {image.height}")
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image),
        quality=_QUALITY_WHEN_SHRUNK if shrinks else _QUALITY,
        colorspace="RGB",
        colorsubsampling="420",
    )
    return encoded, image.size


@contextlib.contextmanager
def _unfit_images() -> Iterator[None]:
    """Turns the errors of decoding into the reasons of cleaning."""
    try:
        yield
    except ImageSizeError as error:
        raise Unfit("image has too many pixels", first_line(error)) from None
    except ColorError as error:
        raise Unfit("image without known colors", first_line(error)) from None
    except ValueError as error:
        raise Unfit("damaged image", first_line(error)) from None


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Silences Pillow's warnings of large sizes, which are checked here, and of odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
