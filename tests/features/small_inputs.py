"""Small folders of images, captions and broken files, for the tests of features."""

import functools
import io
import pathlib

import numpy as np
from PIL import Image

CAPTIONS = ("a red house", "two dogs on a beach by the sea", "words " * 30)


@functools.cache
def as_png(number: int) -> bytes:
    """Returns a small image that differs from those of other numbers."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_photos(folder: pathlib.Path, count: int = 20, *, captions: bool = False) -> pathlib.Path:
    """Writes images in a folder for each of two classes; numbers 3 and 7 are broken."""
    for number in range(count):
        of_class = folder / ("cats" if number % 2 else "dogs")
        of_class.mkdir(parents=True, exist_ok=True)
        content = {3: as_png(3)[:-60], 7: b"<html>gone</html>"}.get(number, as_png(number))
        (of_class / f"{number:02d}.png").write_bytes(content)
        if captions:
            (of_class / f"{number:02d}.txt").write_text(CAPTIONS[number % len(CAPTIONS)])
    return folder


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the files of a folder by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
