"""Cleaning: a sample becomes a record that training can rely on, or is dropped with a reason."""

import codecs
import contextlib
import hashlib
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from m3ae_tpu.data.image_errors import ColorError, ImageSizeError
from m3ae_tpu.data.image_formats import image_format
from m3ae_tpu.data.images import decode_upright, image_size, is_plain_jpeg, num_pages
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.visible_text import is_blank, trim
from m3ae_tpu.files import is_unicode
from m3ae_tpu.prepare.options import CleaningOptions
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


class Cleaned(NamedTuple):
    """A record, and what was found out about it."""

    record: Record
    size: tuple[int, int]
    """Width and height of the image; (0, 0) without one."""
    left_out: tuple[Fault, ...]
    """Faults of the captions that are not in the record."""
    left_out_pages: int
    """Images of the file behind its first one."""


def clean_sample(sample: Sample, options: CleaningOptions) -> Cleaned:
    """Makes the record of a sample.

    The record's `id` is a digest of its content: the same example has the same `id` in every
    collection. A labelled record has captions where the sample has good ones.

    Raises:
        Unfit: with the reason.
    """
    if sample.fault:
        raise Unfit(*sample.fault)
    image, size, captions, left_out, label, pages = b"", (0, 0), (), (), "", 1
    if options.kind != "text":
        if sample.image is None:
            raise Unfit("no image")
        image, size = clean_image(sample.image, options)
        with _unfit_images():
            pages = num_pages(sample.image)
    if options.kind != "image":
        captions, left_out = clean_captions(sample.captions, options)
    if options.kind in ("paired", "text") and not captions:
        raise Unfit(*_worst(left_out))
    if options.kind == "labelled":
        label = unicodedata.normalize("NFC", trim(sample.label))
        if is_blank(label):
            raise Unfit("no label")
        if not is_unicode(label):
            raise Unfit("label is not UTF-8", f"{label[:40]!a}")
    digest = hashlib.sha256(image)
    for text in (*captions, label):
        digest.update(b"\0" + text.encode())
    name = digest.hexdigest()[:32]
    record = Record(
        id=name, image=image, captions=captions, label_name=label, license=options.license
    )
    return Cleaned(record, size, left_out, pages - 1)


def clean_captions(
    captions: tuple[str | bytes | None, ...], options: CleaningOptions
) -> tuple[tuple[str, ...], tuple[Fault, ...]]:
    """Returns the good texts as trimmed, composed Unicode (NFC), and the faults of the others.

    If the first good text is too short, none is good.
    """
    cleaned: list[str] = []
    faults: list[Fault] = []
    for caption in captions:
        text = _clean_caption(caption, options)
        faults.append(text) if isinstance(text, Fault) else cleaned.append(text)
    if cleaned and len(cleaned[0]) < options.min_caption_characters:
        too_short = Fault("text too short", f"{len(cleaned[0])} characters")
        return (), (*faults, *[too_short] * len(cleaned))
    return tuple(cleaned), tuple(faults)


def _clean_caption(caption: str | bytes | None, options: CleaningOptions) -> str | Fault:
    if caption is None:
        return Fault("caption is not a text", "a list or a struct")
    try:
        text = _decoded(caption) if isinstance(caption, bytes) else caption
        text.encode()
    except UnicodeError as error:
        return Fault("text is not UTF-8", first_line(error))
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return Fault("not fetched from Git LFS", "git lfs pull")
    text = trim(text.replace("\0", ""))
    # Checked first: composing a long run of accents takes time with the square of its length.
    if len(text) <= options.max_caption_characters:
        text = unicodedata.normalize("NFC", text)
    if len(text) > options.max_caption_characters:
        return Fault("text too long", f"{len(text):,} characters")
    return Fault("empty text", f"{caption[:20]!a}" if caption else "") if is_blank(text) else text


def _decoded(caption: bytes) -> str:
    """Returns a text in UTF-8, or in what its byte order mark announces: Windows writes UTF-16."""
    if caption.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return caption.decode("utf-32")
    if caption.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return caption.decode("utf-16")
    return caption.decode("utf-8")


def _worst(faults: Sequence[Fault]) -> Fault:
    """Returns the fault of a sample without a good caption: the first, but of empty ones last."""
    for fault in faults:
        if fault.reason != "empty text":
            return fault
    return faults[0] if faults else Fault("no text")


def clean_image(data: bytes, options: CleaningOptions) -> tuple[bytes, tuple[int, int]]:
    """Returns an image as an upright JPEG in RGB or grey, with its width and height.

    Good JPEGs keep their bytes.

    Raises:
        Unfit: empty, not an image, damaged, without colours, too small or too large.
    """
    pixels, (width, height) = decode_fit_image(data, options)
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


def decode_fit_image(
    data: bytes, options: CleaningOptions
) -> tuple[UInt8[np.ndarray, "height width 3"], tuple[int, int]]:
    """Returns the pixels of an image, upright, and its width and height.

    Raises:
        Unfit: as for `clean_image`.
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
    return pixels, (width, height)


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
