"""Finds the images or texts nearest to an image, a text, or both, and shows them on one page.

    python -m pipelines.search --features=features --query=cat.jpg
    python -m pipelines.search --features=features --query="a drawing of a cat"
    python -m pipelines.search --features=features --query=cat.jpg --text="a cat that sleeps"

FEATURES is the output of extract_features. An image is compared with images and a text with texts,
by the cosine of their features. M3AE has no space that images and texts share: a text finds images
by its likelihood beside each one (how well the model guesses its hidden words), which reads the
images again and needs a model that has learned pairs and has its decoder. Expect the kind of image
rather than its content of a small model. Prints a table, and writes a contact sheet.
"""

import os
import pathlib

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import Place, home_expanded
from m3ae_tpu.option_flags import define_flag

_FEATURES = define_flag(
    "features", pathlib.Path, None, "Folder that extract_features wrote.", required=True
)
_QUERY = define_flag("query", str, None, "Path of an image, or a text.", required=True)
_TEXT = define_flag("text", str, "", "Text beside an image as query.")
_MODEL = define_flag(
    "model", Place, None, "The model that made the features, if it is not where it was then."
)
_COUNT = define_flag("count", int, 24, "Largest number of results.", at_least=1)
_RERANK = define_flag(
    "rerank",
    int,
    100,
    "Nearest images whose order the text decides; 0: none. A text without an image decides the "
    "order of all.",
    at_least=0,
)
_OUTPUT = define_flag(
    "output", pathlib.Path, None, "File of the contact sheet; default: FEATURES/search.html."
)

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def main(argv: list[str]) -> None:
    """Searches for what the flags name."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r} belongs to no flag. Write --query={argv[1]!r}.")
    given = _QUERY.value.strip()
    require(bool(given), "--query is empty. Name an image, or write a text.")
    is_file = os.path.isfile(home_expanded(given))
    require(
        is_file or not given.lower().endswith(_ENDINGS),
        f"--query = {given} is not there. Check the path.",
    )
    require(
        is_file or not _TEXT.value,
        f"--query = {given} is a text, or a file that is not there, and --text is given too. "
        "Name an image by --query.",
    )
    from m3ae_tpu.search.command import search_and_show
    from m3ae_tpu.search.search import Query

    query = Query(image=home_expanded(given), text=_TEXT.value) if is_file else Query(text=given)
    search_and_show(
        _FEATURES.value,
        query,
        model=_MODEL.value,
        count=_COUNT.value,
        rerank=_RERANK.value,
        output=_OUTPUT.value,
    )


def run() -> None:
    """Entry point of the installed command `m3ae-search`."""
    run_program(main)


if __name__ == "__main__":
    run()
