"""JSON documents: an array of objects, or the captions of COCO, Flickr30k and others like them."""

import collections
import json
from collections.abc import Iterator, Mapping
from typing import Any

from m3ae_tpu.prepare.opening import LARGEST_FILE
from m3ae_tpu.prepare.samples import Fault, first_line, is_image_name

NOT_A_LIST = Fault("JSON that is not a list", "write JSON lines: one object a line")
"""Fault of a document that holds no rows: settings or statistics."""


def read_document(file: Any) -> Iterator[Mapping[str, Any] | Fault]:
    """Yields the rows of a document, with names in lower case.

    Read are an array of objects or texts; an object with one such array; captions by file name;
    columns, as arrays or as pandas writes them; and COCO's layout, one row for an image with all of
    its captions: `images` with `file_name` and `id`, `annotations` with `image_id` and `caption`,
    or `images` that hold their own `sentences` (Karpathy & Fei-Fei 2015).

    Args:
        file: A binary file. It is read whole.
    """
    content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        yield Fault("JSON document too large", "write JSON lines: one object a line")
        return
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        yield Fault("not JSON", first_line(error))
        return
    rows = _rows(document)
    if rows is None:
        yield NOT_A_LIST
        return
    for row in rows:
        if isinstance(row, str):
            yield {"text": row}
        elif isinstance(row, dict):
            yield {name.lower(): value for name, value in row.items()}
        else:
            yield Fault("not a JSON object", str(row)[:60])


def _rows(document: Any) -> list[Any] | None:
    if not isinstance(document, dict):
        return document if isinstance(document, list) else None
    arrays = {name: value for name, value in document.items() if _is_array(value)}
    if "images" in arrays and "annotations" in arrays:
        return _coco_rows(arrays["images"], arrays["annotations"])
    if "images" in arrays and any("sentences" in image for image in arrays["images"]):
        return [
            image | {"captions": [_sentence(text) for text in image.get("sentences", ())]}
            for image in arrays["images"]
        ]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    if document and all(is_image_name(name) for name in document):
        return [{"file": name, "captions": captions} for name, captions in document.items()]
    return _rows_of_columns(document)


def _rows_of_columns(document: dict[str, Any]) -> list[Any] | None:
    """Returns the rows of columns of the same length; None if the values are not columns."""
    columns = [
        list(values.values()) if isinstance(values, dict) else values
        for values in document.values()
    ]
    if not columns or not all(isinstance(values, list) for values in columns):
        return None
    if len(set(map(len, columns))) != 1:
        return None
    return [dict(zip(document, row, strict=True)) for row in zip(*columns, strict=True)]


def _is_array(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _coco_rows(images: list[dict], annotations: list[dict]) -> list[dict]:
    captions = collections.defaultdict(list)
    for annotation in annotations:
        if "caption" in annotation:
            captions[annotation.get("image_id")].append(annotation["caption"])
    # Annotations of boxes and keypoints name the same images without a caption.
    return [
        image | ({"captions": captions[image.get("id")]} if captions else {}) for image in images
    ]


def _sentence(value: Any) -> Any:
    return value.get("raw") if isinstance(value, dict) else value
