"""File of a contact sheet, marked so that a later sheet may replace it, but no other file."""

import pathlib

from PIL import Image, PngImagePlugin

from m3ae_tpu.errors import require
from m3ae_tpu.files import atomic_path

_SOFTWARE = "m3ae_tpu inspect_data"
"""Mark of a sheet, in PNG's field for the program that made the file."""


def save_sheet(sheet: Image.Image, path: pathlib.Path) -> None:
    """Writes a contact sheet as a marked PNG. An interruption leaves the old or the new file."""
    marks = PngImagePlugin.PngInfo()
    marks.add_text("Software", _SOFTWARE)
    with atomic_path(path) as unfinished:
        sheet.save(unfinished, "png", pnginfo=marks)


def require_no_other_file(path: pathlib.Path) -> None:
    """Refuses a path at which there is a file that `save_sheet` did not write.

    Raises:
        UserError: there is one.
    """
    require(
        not path.exists() or _is_sheet(path),
        f"{path} exists and is not a contact sheet of this program. "
        "Name another file with --sheet=FILE, or draw none with --sheet= (empty).",
    )


def _is_sheet(path: pathlib.Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == _SOFTWARE
    except (OSError, SyntaxError, ValueError):  # Pillow's errors for what is not an image.
        return False
