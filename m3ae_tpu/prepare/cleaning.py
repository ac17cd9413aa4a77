"""A sample as found becomes a record that training can trust, or a reason why not."""

import contextlib
import dataclasses
import hashlib
import io
import unicodedata
import warnings
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image

from m3ae_tpu.config import Kind
from m3ae_tpu.data.images import ImageSizeError, damage_as_value_error, decode_image
from m3ae_tpu.data.records import Record
from m3ae_tpu.errors import require
from m3ae_tpu.prepare.samples import Sample, image_format

_QUALITY, _QUALITY_WHEN_SHRUNK = 95, 90
"""Of JPEGs that are encoded anew: nothing that a crop would show is lost. Who shrinks asks for
speed: at 90 a image takes two thirds of the bytes and five sixths of the time to decode, and loses
less than by shrinking."""
_LONGEST_SIDE = 65_500
"""Pixels, of what libjpeg writes."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleaningOptions:
    """What a record must be like."""

    kind: Kind | str = "paired"
    """`paired`, `image`, `text` or `labelled`: what a sample must have; the rest of it is left out.
    """
    max_shorter_side: int = 0
    """Larger images are resized to this shorter side, pixels; 0 keeps every size."""
    min_shorter_side: int = 8
    """Smaller images are dropped, pixels."""
    max_pixels: int = 64_000_000
    """Larger images are dropped before they are decoded."""
    min_caption_characters: int = 1
    """Shorter texts are dropped."""
    max_caption_characters: int = 20_000
    """Longer texts are dropped."""
    license: str = ""
    """Written to every record."""

    def __post_init__(self) -> None:
        kinds = ("paired", "image", "text", "labelled")
        require(
            self.kind in kinds, f"--kind = {self.kind} is none of {', '.join(kinds)}. Choose one."
        )
        require(
            self.min_shorter_side >= 1,
            f"--min_shorter_side = {self.min_shorter_side} is not positive. Set 8.",
        )
        require(
            self.max_shorter_side == 0 or self.max_shorter_side >= self.min_shorter_side,
            f"--max_shorter_side = {self.max_shorter_side} is less than --min_shorter_side = "
            f"{self.min_shorter_side}. Set 0 to keep every size, or {self.min_shorter_side} or more.",
        )
        require(
            _is_unicode(self.license),
            f"--license = {self.license!a} is not UTF-8. Write it in plain letters.",
        )


class Unfit(Exception):
    """A sample that makes no record; its only argument is the reason, the same words for the same
    cause.
    """


def clean_sample(sample: Sample, options: CleaningOptions) -> tuple[Record, tuple[int, int]]:
    """Returns the record of a sample, and its image's width and height (0, 0 where it has none).

    The record's `id` is a digest of its content: the same example gets the same one from whatever
    collection.

    Raises:
        Unfit: with the reason.
    """
    if sample.fault:
        raise Unfit(sample.fault.partition(":")[0])
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
        if not _is_unicode(label):
            raise Unfit("label is not UTF-8")
    digest = hashlib.sha256(image)
    for text in (*captions, label):
        digest.update(b"\0" + text.encode())
    name = digest.hexdigest()[:32]
    return Record(
        id=name, image=image, captions=captions, label_name=label, license=options.license
    ), size


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return True


def clean_captions(
    captions: tuple[str | bytes | None, ...], options: CleaningOptions
) -> tuple[str, ...]:
    """Returns the texts as trimmed, composed Unicode (NFC), empty ones left out.

    Raises:
        Unfit: none is left, or one is no text, not UTF-8, too short or too long.
    """
    cleaned = []
    for caption in captions:
        if caption is None:
            raise Unfit("caption is no text")
        try:
            text = caption.decode("utf-8") if isinstance(caption, bytes) else caption
        except UnicodeError:
            raise Unfit("text is not UTF-8") from None
        if not _is_unicode(text):
            raise Unfit("text is not UTF-8")
        # Files may begin with the mark of their byte order.
        text = text.replace("\0", "").removeprefix("\ufeff").strip()
        # Looked at first: composing a long run of accents takes time with the square of its length.
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


def image_size(data: bytes) -> tuple[int, int]:
    """Returns width and height of a clean image."""
    with Image.open(io.BytesIO(data)) as image:
        return image.size


def clean_image(data: bytes, options: CleaningOptions) -> tuple[bytes, tuple[int, int]]:
    """Returns an image as a JPEG in RGB or grey, upright, with its width and height; good JPEGs
    keep their bytes.

    Raises:
        Unfit: empty, no image, damaged, too small or too large.
    """
    if not data:
        raise Unfit("empty image")
    kind = image_format(data[:12])
    if not kind:
        raise Unfit("not an image")
    try:
        with _no_warnings(), damage_as_value_error(), Image.open(io.BytesIO(data)) as header:
            (width, height), mode = header.size, header.mode
            turn = _TURNS.get(header.getexif().get(0x0112, 1))
    except ImageSizeError:
        raise Unfit("image has too many pixels") from None
    except ValueError:
        raise Unfit("damaged image") from None
    if width * height > options.max_pixels:
        raise Unfit("image has too many pixels")
    if min(width, height) < options.min_shorter_side:
        raise Unfit("image too small")
    try:
        with _no_warnings(), damage_as_value_error():
            pixels = decode_image(data) if mode != "CMYK" else _from_cmyk(data)
    except ValueError:
        raise Unfit("damaged image") from None
    limit = options.max_shorter_side
    shrinks = bool(limit) and min(width, height) > limit
    if kind == "jpeg" and mode in ("RGB", "L") and turn is None and not shrinks:
        return data, (width, height)
    picture = Image.fromarray(pixels)
    if turn is not None:
        picture = picture.transpose(turn)
    if shrinks:
        scale = limit / min(picture.size)
        picture = picture.resize(
            (max(limit, round(picture.width * scale)), max(limit, round(picture.height * scale))),
            Image.Resampling.BICUBIC,
        )
    if max(picture.size) > _LONGEST_SIDE:
        raise Unfit("image too wide or high for JPEG")
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(picture),
        quality=_QUALITY_WHEN_SHRUNK if shrinks else _QUALITY,
        colorspace="RGB",
        colorsubsampling="420",
    )
    return encoded, picture.size


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Silences what Pillow says of sizes, which are looked at here, and of odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _from_cmyk(data: bytes) -> np.ndarray:
    simplejpeg.decode_jpeg(data)  # Strict: Pillow would fill what is missing with grey.
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))
