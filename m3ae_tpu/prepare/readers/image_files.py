"""Loose image files, each with the text of the same name beside it."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from m3ae_tpu.prepare.opening import UNREADABLE, read_whole
from m3ae_tpu.prepare.samples import (
    Fault,
    Sample,
    as_captions,
    first_line,
    first_of,
)

_TEXT_ENDINGS, _JSON_ENDINGS = (".txt", ".TXT", ".caption"), (".json",)
_JSON_NAMES = ("captions", "caption", "text", "txt", "description")
"""Names of the caption in a JSON file. A `title` is often the image's own name there."""
SIDECAR_ENDINGS = (*_TEXT_ENDINGS, *_JSON_ENDINGS)
"""Endings of the text beside an image."""


def read_image_files(urls: Iterable[str]) -> Iterator[Sample]:
    """Yields image files, each with the text beside it and its folder's name as label.

    The text beside `a.jpg` is `a.txt`, `a.jpg.txt`, or the caption in `a.json`.
    """
    for url in urls:
        try:
            image, captions = read_whole(url), _captions_beside(url)
        except UNREADABLE as error:
            yield Sample(place=url, fault=Fault("unreadable image file", first_line(error)))
            continue
        yield Sample(
            place=url, image=image, captions=captions, label=os.path.basename(os.path.dirname(url))
        )


def names_beside(url: str, endings: Iterable[str] = SIDECAR_ENDINGS) -> Iterator[str]:
    """Yields the names that the text beside an image may have, those that come first first."""
    for stem in (os.path.splitext(url)[0], url):
        yield from (f"{stem}{ending}" for ending in endings if f"{stem}{ending}" != url)


def _captions_beside(url: str) -> tuple[bytes | None, ...]:
    text = _content_beside(url, _TEXT_ENDINGS)
    if text is not None:
        return (text,)
    content = _content_beside(url, _JSON_ENDINGS)
    return as_captions(first_of(_object(content), _JSON_NAMES)) if content else ()


def _content_beside(url: str, endings: Iterable[str]) -> bytes | None:
    for name in names_beside(url, endings):
        with contextlib.suppress(FileNotFoundError):
            return read_whole(name)
    return None  # Cleaning decides whether an image alone is enough.


def _object(content: bytes) -> dict[str, Any]:
    """Returns the values of a JSON object by name in lower case; nothing for other content."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return {name.lower(): value[name] for name in value} if isinstance(value, dict) else {}
