"""Search: the rows of features that are nearest to an image, a text, or both."""

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import rich.progress

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.features.decoding import decoded
from m3ae_tpu.features.examples import START, Example, Input, Place, open_input, read_file
from m3ae_tpu.features.options import ExampleKind
from m3ae_tpu.features.pooling import Encoder, PooledLayers
from m3ae_tpu.features.reading import FeatureSet
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.search.caption_likelihood import CaptionScorer
from m3ae_tpu.search.neighbours import Neighbours, best

_SCORED_AT_A_TIME = 64
_EXTRACT_AGAIN = "Extract the features again: python -m pipelines.extract_features."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """An image, a text, or both."""

    image: str = ""
    """Path of an image; empty without one."""
    text: str = ""


class Hit(NamedTuple):
    """A row that was found."""

    row: int
    cosine: float | None
    """With the query's features; None where a text was compared with images alone."""
    log_likelihood: float | None
    """Mean log-probability of the text's hidden words beside the image, nats; None: not asked."""


def search(
    features: FeatureSet, model: Pretrained, query: Query, *, count: int, rerank: int
) -> list[Hit]:
    """Returns the best rows, best first.

    An image is compared with images, a text with texts, and an image with its text with pairs. A
    text decides the order of images by its likelihood beside each: of the `rerank` nearest ones, or
    of all where the query has no image.

    Args:
        features: From `extract_features`.
        model: The one that made them.
        query: An image, a text, or both.
        count: Largest number of rows.
        rerank: Nearest images whose order the text decides; 0: none.

    Raises:
        UserError: query, features and model do not fit together, or an image cannot be read.
    """
    require(
        model.digest == features.manifest["model_digest"],
        f"--model is not the one that made {features.folder} ({features.manifest['model']}, step "
        f"{features.manifest['model_step']}). Name that one, or extract again with this one.",
    )
    kind: ExampleKind = features.manifest["kind"]
    require(
        kind != "text" or not query.image,
        f"--query = {query.image} is an image, and {features.folder} holds features of texts. "
        "Search by a text, or extract features of images.",
    )
    cosines = _cosines(features, model, query)
    if not query.text or kind == "text" or (cosines is not None and rerank == 0):
        if cosines is None:
            raise UserError(
                f"{features.folder} holds no array that can be compared with the query: "
                f"{', '.join(features.names)}. Extract features with --pooling=image_mean."
            )
        return [Hit(int(row), float(cosines[row]), None) for row in best(cosines, count)]
    require(
        rerank > 0,
        "--rerank = 0 leaves nothing to order images by: the query is a text. Leave it out.",
    )
    rows = np.arange(len(features)) if cosines is None else best(cosines, rerank)
    scores = _likelihoods(features, model, query.text, rows)
    order = best(scores, count)
    return [
        Hit(
            int(rows[place]),
            None if cosines is None else float(cosines[rows[place]]),
            float(scores[place]),
        )
        for place in order
    ]


def _cosines(features: FeatureSet, model: Pretrained, query: Query) -> np.ndarray | None:
    """Returns the cosine of each row with the query; None if they do not compare."""
    manifest = features.manifest
    kind = manifest["kind"]
    if kind == "image" and not query.image:
        return None
    text = query.text if kind != "image" else ""
    has = {"image_mean": bool(query.image), "text_mean": bool(text), "cls": True, "mean": True}
    if kind == "both" and not query.image:
        has |= {"cls": False, "mean": False}  # Those of pairs: a text alone has others.
    names = [
        name
        for name, columns in manifest["arrays"].items()
        if all(has.get(column["pooling"], False) for column in columns)
    ]
    if not names:
        return None
    pooled = PooledLayers(
        poolings=tuple(manifest["poolings"]),
        layers=tuple(manifest["layers"]),
        num_layers=model.config.model.encoder.num_layers,
        width=model.config.model.encoder.width,
        norm=manifest["norm"],
        concatenate=manifest["concatenate"],
    )
    rows = model.rows(images=[query.image] if query.image else None, texts=[text] if text else None)
    wanted = dataclasses.replace(
        pooled, poolings=tuple(name for name in pooled.poolings if has.get(name, False))
    )
    vector = Encoder(model, wanted)(rows)[names[0]][0]
    return Neighbours(features.array(names[0])).cosines(vector)


def _likelihoods(
    features: FeatureSet, model: Pretrained, text: str, rows: np.ndarray
) -> np.ndarray:
    """Returns the text's log-likelihood beside the image of each of some rows."""
    scorer, scores = CaptionScorer(model), np.full(len(rows), -np.inf, np.float32)
    places = {int(row): place for place, row in enumerate(rows)}
    read = examples_of(features, places)
    placed = ((START, example) for _, example in read)
    batches = decoded(placed, model.config.data.image_size, _SCORED_AT_A_TIME)
    order = iter(places)
    with rich.progress.Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("scoring the text beside images", total=len(rows))
        for batch in batches:
            taken = [places[row] for row in itertools.islice(order, len(batch))]
            broken = [each.example for each in batch if each.image is None]
            require(
                not broken,
                f"{broken[0].place if broken else ''} cannot be read as it was when the features "
                f"were made. {_EXTRACT_AGAIN}",
            )
            images = np.stack([each.image for each in batch if each.image is not None])
            scores[taken] = scorer(images, text)
            bar.advance(task, len(batch))
    return scores


def examples_of(features: FeatureSet, rows: Iterable[int]) -> Iterator[tuple[int, Example]]:
    """Yields the examples of some rows, in the order of the rows as they are given.

    Raises:
        UserError: the input is not there any more as it was, or is another.
    """
    rows = list(rows)
    lines = [features.index[row] for row in rows]
    kind = features.manifest["kind"]
    if all(os.path.isfile(line["place"]) for line in lines) and kind != "text":
        # Loose files are opened by name; anything else is read from the start of its part.
        for row, line in zip(rows, lines, strict=True):
            yield row, read_file(line["place"], kind)
        return
    found = open_input(features.manifest["inputs"], kind)
    require(
        found.digest == features.manifest["input_digest"],
        f"--input = {','.join(features.manifest['inputs'])} is not what {features.folder} was "
        f"made of: files were changed, added or removed. {_EXTRACT_AGAIN}",
    )
    if rows == sorted(rows):
        yield from _in_order(features, found, rows)
        return
    examples = dict(_in_order(features, found, sorted(rows)))
    yield from ((row, examples[row]) for row in rows)


def _in_order(
    features: FeatureSet, found: Input, rows: Sequence[int]
) -> Iterator[tuple[int, Example]]:
    """Yields the examples of ascending rows, part by part."""
    for number, of_part in itertools.groupby(rows, lambda row: features.index[row]["part"]):
        part = features.manifest["parts"][number]
        read = itertools.islice(found.read(Place(*part["start"])), part["inputs"])
        examples = (example for _, example in read)
        for row in of_part:
            place = features.index[row]["place"]
            example = next((each for each in examples if each.place == place), None)
            if example is None:
                raise UserError(f"{place} is not in the input any more. {_EXTRACT_AGAIN}")
            yield row, example
