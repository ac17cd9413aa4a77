"""Confusion of classes as HTML: a matrix, and the most confused pairs with their images."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from m3ae_tpu.report.uris import thumbnail_uri

MOST_CLASSES = 24
"""Classes of a matrix that a page has room for."""
_SIDE = 96


def confusion(
    described: Mapping[str, Any], images: UInt8[np.ndarray, "examples size size 3"] | None
) -> str:
    """Returns the matrix of a probe's mistakes and the most confused pairs.

    Args:
        described: Result of `describe_confusion`.
        images: Images of the test examples, where they are known.
    """
    labels, matrix = described["labels"], np.array(described["matrix"])
    mistakes = int(matrix.sum() - np.trace(matrix))
    if not mistakes:
        return f"<p>All {matrix.sum():,} test examples are classified right.</p>"
    sentences = [
        f"{mistakes:,} of {matrix.sum():,} test examples are taken for another class. A row shows "
        "the examples of a class, a column what they are taken for; the shade is the share of "
        "the row."
    ]
    shown = list(range(len(labels)))
    if len(labels) > MOST_CLASSES:
        off = matrix - np.diag(np.diag(matrix))
        worst = np.argsort(-(off.sum(axis=0) + off.sum(axis=1)), kind="stable")[:MOST_CLASSES]
        shown = sorted(worst.tolist())
        sentences.append(
            f"The {MOST_CLASSES} classes of {len(labels)} with the most mistakes are shown."
        )
    pairs = "".join(_pair(pair, matrix, labels, images) for pair in described["pairs"])
    return (
        f"<p>{' '.join(sentences)}</p>{_matrix(matrix, labels, shown)}"
        f'<h3 class="pairs-title">Most confused</h3><div class="pairs">{pairs}</div>'
    )


def _matrix(matrix: np.ndarray, labels: Sequence[str], shown: Sequence[int]) -> str:
    heads = "".join(f"<th><span>{_name(labels[column])}</span></th>" for column in shown)
    rows = []
    for row in shown:
        total = matrix[row].sum()
        cells = []
        for column in shown:
            count = int(matrix[row, column])
            share = count / total if total else 0.0
            kind = "right" if row == column else "wrong"
            dark = " dark" if share > 0.5 else ""
            text = f"{count:,}" if count else ""
            cells.append(f'<td class="{kind}{dark}" style="--share:{100 * share:.0f}%">{text}</td>')
        rows.append(f"<tr><th>{_name(labels[row])}</th>{''.join(cells)}</tr>")
    return (
        '<div class="scroll"><table class="confusion">'
        f"<tr><th></th>{heads}</tr>{''.join(rows)}</table></div>"
    )


def _pair(
    pair: Mapping[str, Any],
    matrix: np.ndarray,
    labels: Sequence[str],
    images: np.ndarray | None,
) -> str:
    true, predicted, count = _name(pair["true"]), _name(pair["predicted"]), pair["count"]
    total = matrix[labels.index(pair["true"])].sum()
    thumbnails = ""
    if images is not None:
        thumbnails = "".join(
            f'<img class="image" src="{thumbnail_uri(images[index], _SIDE)}" alt="{true}">'
            for index in pair["examples"]
        )
        thumbnails = f'<div class="thumbnails">{thumbnails}</div>'
    return (
        f'<article class="card"><h3>{true} <span>taken for</span> {predicted}</h3>{thumbnails}'
        f'<p class="note">{count:,} of {total:,}</p></article>'
    )


def _name(label: str) -> str:
    return html.escape(label.replace("_", " "))
