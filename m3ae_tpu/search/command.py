"""The work of the program `search`: loads features and model, searches, prints and draws."""

import pathlib

import rich

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.features.examples import Example
from m3ae_tpu.features.reading import read_features
from m3ae_tpu.files import Place, require_writable_file
from m3ae_tpu.pretrained.loading import load
from m3ae_tpu.search.page import EXPECT_LIKELIHOOD, print_hits, write_page
from m3ae_tpu.search.search import Query, examples_of, search


def search_and_show(
    folder: pathlib.Path,
    query: Query,
    *,
    model: Place | None,
    count: int,
    rerank: int,
    output: pathlib.Path | None,
) -> None:
    """Prints the best rows of features, and writes their contact sheet.

    Args:
        folder: Output of `extract_features`.
        query: An image, a text, or both.
        model: The model's folder; None: where it was when the features were made.
        count: Largest number of results.
        rerank: See `search`.
        output: The contact sheet's file; None: `search.html` in the folder.

    Raises:
        UserError: something is missing, or does not fit together.
    """
    features, page = read_features(folder), output or folder / "search.html"
    require_writable_file("--output", page)
    where = model or features.manifest["model"]
    require(bool(where), f"--model is empty, and {folder} does not name one. Name the model.")
    loaded = load(where, image_size=features.manifest["image_size"])
    with rich.get_console().status("searching"):
        hits = search(features, loaded, query, count=count, rerank=rerank)
    examples: dict[int, Example] = {}
    try:
        examples = dict(examples_of(features, [hit.row for hit in hits]))
    except UserError as error:
        print(f"the results are shown without images and texts: {error}")
    texts = {row: example.text for row, example in examples.items() if example.text}
    print_hits(features, hits, texts)
    write_page(page, features, query, hits, examples)
    if any(hit.log_likelihood is not None for hit in hits):
        print(EXPECT_LIKELIHOOD)
    print(f"contact sheet: {page}")
