"""The results of a search: a table on the terminal, and a contact sheet without other files."""

import base64
import html
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import rich
import rich.table
from PIL import Image

from m3ae_tpu.features.examples import FIT, Example
from m3ae_tpu.features.reading import FeatureSet
from m3ae_tpu.files import atomic_write, printable
from m3ae_tpu.page import missing, page, section
from m3ae_tpu.prepare.cleaning import Unfit, decode_fit_image
from m3ae_tpu.search.search import Hit, Query

_SIDE = 360
"""Pixels of the longer side of an image on the page."""

EXPECT_COSINE = (
    "The cosine compares features that were standardised over the whole set: 1 is the same, 0 is "
    "unrelated. Features of a masked autoencoder follow shape, colour and layout at least as much "
    "as meaning."
)
EXPECT_LIKELIHOOD = (
    "The model has no space that images and texts share, as CLIP has. Images stand in the order of "
    "how well the model guesses hidden words of the text beside each: the mean log-probability of "
    "a hidden word, in nats, higher is better. Differences between images are small beside those "
    "between texts. A small model mostly tells the kind of image, not its content."
)


def print_hits(features: FeatureSet, hits: Sequence[Hit], texts: Mapping[int, str]) -> None:
    """Prints a table: rank, scores, class, and the text or place of each row."""
    table = rich.table.Table(box=None, pad_edge=False)
    has = {name: any(getattr(hit, name) is not None for hit in hits) for name in _HEADINGS}
    for heading in ("rank", *(_HEADINGS[name] for name in has if has[name])):
        table.add_column(heading, justify="right")
    has_labels = any(features.labels)
    for heading in (*(["class"] * has_labels), "text" if texts else "place"):
        table.add_column(heading, overflow="fold")
    for rank, hit in enumerate(hits, 1):
        line = features.index[hit.row]
        scores = [f"{getattr(hit, name):.3f}" for name in has if has[name]]
        label = [printable(line.get("label", ""))] * has_labels
        shown = printable(texts.get(hit.row) or line["place"])
        table.add_row(str(rank), *scores, *label, shown)
    console = rich.get_console()
    console.print(table, markup=False, soft_wrap=not console.is_terminal)


_HEADINGS = {"cosine": "cosine", "log_likelihood": "log-likelihood"}


def write_page(
    path: pathlib.Path,
    features: FeatureSet,
    query: Query,
    hits: Sequence[Hit],
    examples: Mapping[int, Example],
) -> None:
    """Writes the contact sheet of a search.

    Args:
        path: The page's file.
        features: The features that were searched.
        query: The image and text that were searched for.
        hits: The rows that were found, best first.
        examples: The rows' examples; those that cannot be read any more are missing.
    """
    shown = _image(pathlib.Path(query.image).read_bytes(), query.image) if query.image else ""
    has_likelihood = any(hit.log_likelihood is not None for hit in hits)
    has_cosine = any(hit.cosine is not None for hit in hits)
    notes = [EXPECT_LIKELIHOOD] * has_likelihood + [EXPECT_COSINE] * has_cosine
    cards = "\n".join(
        _card(rank, hit, features.index[hit.row], examples.get(hit.row))
        for rank, hit in enumerate(hits, 1)
    )
    expected = "\n".join(f"<p>{html.escape(note)}</p>" for note in notes)
    text = page(
        title=query.text or os.path.basename(query.image),
        topic="search",
        lead=_lead(features, query, hits),
        main=[
            section("hits", "What was found", f'<div class="hits">\n{cards}\n</div>'),
            section("expect", "How to read this", expected),
        ],
        command=f"python -m pipelines.search --features={features.folder}",
        beside=shown,
    )
    atomic_write(path, text)


def _lead(features: FeatureSet, query: Query, hits: Sequence[Hit]) -> str:
    manifest = features.manifest
    noun = {"image": "images", "text": "texts", "both": "images with texts"}[manifest["kind"]]
    by = " and ".join(name for name in ("image", "text") if getattr(query, name))
    return (
        f"The best {len(hits):,} of {len(features):,} {noun}, by {by}; features of "
        f"{manifest['model'] or 'a model'}, step {manifest['model_step']:,}."
    )


def _card(rank: int, hit: Hit, line: Mapping[str, Any], example: Example | None) -> str:
    facts = [f'<span class="rank">{rank}</span>']
    if hit.log_likelihood is not None:
        facts.append(f"<span>log-likelihood {hit.log_likelihood:.3f}</span>")
    if hit.cosine is not None:
        facts.append(f"<span>cosine {hit.cosine:.3f}</span>")
    if line.get("label"):
        facts.append(f"<span>{html.escape(line['label'])}</span>")
    shown = missing("not there any more")
    if example is not None:
        image = _image(example.image, line["place"]) if example.image else ""
        text = f"<blockquote>{html.escape(example.text)}</blockquote>" if example.text else ""
        shown = image + text
    place = html.escape(printable(line["place"]))
    return (
        f'<article class="card hit">{shown}<p class="facts">{"".join(facts)}</p>'
        f'<p class="place">{place}</p></article>'
    )


def _image(content: bytes, name: str) -> str:
    """Returns an image as an element, small enough for a page."""
    try:
        pixels, _ = decode_fit_image(content, FIT)
    except Unfit as unfit:
        return missing(html.escape(str(unfit.fault)))
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    alt = html.escape(os.path.basename(name), quote=True)
    return f'<img class="image" alt="{alt}" src="{source}">'
