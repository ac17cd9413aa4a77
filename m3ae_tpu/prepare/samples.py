"""A sample, the example that readers yield, and the one way from a row of named values to it."""

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from m3ae_tpu.data.visible_text import is_blank
from m3ae_tpu.prepare.named_files import find_named_file
from m3ae_tpu.prepare.opening import UNREADABLE, read_whole

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes")
"""Columns and file endings that hold an encoded image. The first that has a value counts, here and
below; all names are compared in lower case.
"""
CAPTION_NAMES = (
    *("captions", "caption", "text", "txt", "title", "comment", "description", "sentence"),
    *("alt_text", "alt"),
)
"""Columns and file endings that hold a text, or a list of captions of the same image."""
LABEL_NAMES = ("label_name", "label", "class", "cls", "class_name", "category")
"""Columns and file endings that hold a class."""
FILE_NAMES = (
    *("file", "file_name", "filename", "filepath", "file_path", "image", "path", "image_path"),
    *("image_name", "image_file", "img", "img_path", "image_id", "id"),
)
"""Columns of a table that name an image file."""
URL_NAMES = ("url", "image_url", "link")
"""Columns that hold the address of an image on the web."""


IMAGE_ENDINGS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "avif"),
    *("heic", "heif", "jp2", "j2k", "ppm", "pgm", "pbm", "ico", "qoi", "tga"),
)
"""Endings of the names of images, whatever their content is."""


class Fault(NamedTuple):
    """Reason why a sample is dropped."""

    reason: str
    """The same words each time: dropped samples are counted by them."""
    detail: str = ""
    """Particulars of this sample, such as a decoder's message or the name of a missing file."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Sample(NamedTuple):
    """One example of a collection, as it was found."""

    place: str
    """File and, within it, member or row: for messages."""
    image: bytes | None = None
    """Encoded image, None without one."""
    captions: tuple[str | bytes | None, ...] = ()
    """Texts, possibly not decoded yet. None stands for a value that is not a text."""
    label: str = ""
    """Class, or nothing."""
    fault: Fault | None = None
    """Reason why it could not be read. The other fields are then empty."""
    found: str = ""
    """Names of what it was made of: the detail of a reason that has none."""


def row_sample(
    row: Mapping[str, Any],
    place: str,
    url: str,
    image_names: Iterable[str] = IMAGE_NAMES,
    *,
    root: str = "",
) -> Sample:
    """Returns the example in a row of named values.

    An image is given as its bytes, as the name of a file, or as Hugging Face's struct of both. The
    class of a named file in a row that has no value for it is the name of the file's folder.

    Args:
        row: Values by name, in lower case.
        place: File and row, for messages.
        url: File of the row. Names of images are relative to its folder.
        image_names: Names of the values that may be the image.
        root: Folder of the input, where files are searched that are not found otherwise.
    """
    image = first_of(row, image_names)
    if isinstance(image, Mapping):
        image = image.get("bytes") if image.get("bytes") is not None else image.get("path")
    if is_address(image):
        return Sample(place=place, fault=Fault("address instead of an image file", str(image)))
    label = as_label(first_of(row, LABEL_NAMES))
    if isinstance(image, str) and image.strip():
        folder = os.path.dirname(url)
        try:
            path = find_named_file(image, folder, root or folder)
            image = read_whole(path)
        except UNREADABLE as error:
            return Sample(place=place, fault=Fault("unreadable image file", first_line(error)))
        if not any(name in row for name in LABEL_NAMES):
            label = os.path.basename(os.path.dirname(path))
    return Sample(
        place=place,
        image=image if isinstance(image, bytes) else None,
        captions=as_captions(first_of(row, CAPTION_NAMES)),
        label=label,
    )


def first_of(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Returns the value of the first name that has one which is not empty, else an empty one.

    None is not a value. Without any value the result is None.
    """
    first = None
    for name in names:
        value = row.get(name)
        if value is not None:
            if not _is_empty(value):
                return value
            first = value if first is None else first
    return first


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return is_blank(value)
    if isinstance(value, bytes):
        return not value.strip()
    return isinstance(value, list | tuple) and not value


def is_address(name: Any) -> bool:
    """Returns whether the value of an image column is the address of a web page."""
    return isinstance(name, str) and name.startswith(("http://", "https://"))


def is_image_name(name: str) -> bool:
    """Returns whether a name ends like that of an image file."""
    return name.rpartition("#")[0 if "#" in name else 2].strip().lower().endswith(_DOTTED)


_DOTTED = tuple(f".{ending}" for ending in IMAGE_ENDINGS)


def as_captions(value: Any) -> tuple[bytes | None, ...]:
    """Returns one text or a list of them as bytes.

    Numbers become their digits, missing values are left out, lists and structs in a list None.
    """
    if isinstance(value, str | bytes):
        return (_as_bytes(value),)
    texts = value if isinstance(value, list | tuple) else [value]
    return tuple(
        None if isinstance(text, Mapping | list | tuple) else _as_bytes(text)
        for text in texts
        if not _is_missing(text)
    )


def as_label(value: Any) -> str:
    """Returns a class of any type as text, a missing one as ""."""
    if isinstance(value, float) and value.is_integer():
        # pandas writes whole numbers with a missing one among them as fractions.
        value = int(value)
    return "" if _is_missing(value) else _as_bytes(value).decode("utf-8", "replace").strip()


def _is_missing(value: Any) -> bool:
    # pandas writes a missing value as NaN.
    return value is None or (isinstance(value, float) and math.isnan(value))


def _as_bytes(text: Any) -> bytes:
    """Returns the bytes of a text. Damaged ones stay damaged, for `clean_captions` to find."""
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogatepass")


def first_line(error: BaseException) -> str:
    """Returns the start of an error's message, or its type."""
    return (str(error).partition("\n")[0] or type(error).__name__)[:100]
