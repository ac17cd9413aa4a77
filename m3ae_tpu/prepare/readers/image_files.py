"""Loose image files, each with the text of the same name beside it."""

import contextlib
import os
from collections.abc import Iterable, Iterator

from m3ae_tpu.prepare.opening import UNREADABLE, read_whole
from m3ae_tpu.prepare.samples import Fault, Sample, first_line

SIDECAR_ENDINGS = (".txt", ".TXT", ".caption")
"""Endings of the text beside an image."""


def read_image_files(urls: Iterable[str]) -> Iterator[Sample]:
    """Yields image files, each with the text of the same name and its folder's name as label."""
    for url in urls:
        try:
            image, captions = read_whole(url), _text_beside(url)
        except UNREADABLE as error:
            yield Sample(place=url, fault=Fault("unreadable image file", first_line(error)))
            continue
        yield Sample(
            place=url, image=image, captions=captions, label=os.path.basename(os.path.dirname(url))
        )


def _text_beside(url: str) -> tuple[bytes, ...]:
    for ending in SIDECAR_ENDINGS:
        beside = f"{os.path.splitext(url)[0]}{ending}"
        if beside == url:
            return ()
        with contextlib.suppress(FileNotFoundError):
            return (read_whole(beside),)
    return ()  # Cleaning decides whether an image alone is enough.
