"""Reconstruction of held-out images with more and more of their patches hidden."""

import dataclasses
import html

import numpy as np

from m3ae_tpu.config.tree import replaced
from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.errors import require
from m3ae_tpu.evaluation.heldout import heldout_reconstruction
from m3ae_tpu.page import section
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.report.examples import choose_rows
from m3ae_tpu.report.fills import RATIOS, show_fills
from m3ae_tpu.report.sections import percent
from m3ae_tpu.report.uris import png_uri

FIGURES = {
    f"error_{round(100 * ratio)}": f"error at hidden patches, {round(100 * ratio)} % hidden, of "
    "that of the visible patches' mean colour"
    for ratio in RATIOS
}
_MOST_EXAMPLES, _SHOWN_EXAMPLES = 300, 6


def figures(run: Pretrained, examples: LabelledExamples) -> dict[str, float]:
    """Returns the figures of `FIGURES`; 1 is as good as the mean colour.

    Raises:
        UserError: the model has no decoder, or has not learned images.
    """
    _require_fills(run)
    examples = examples.take(np.arange(min(_MOST_EXAMPLES, len(examples))))
    found = {}
    for ratio, name in zip(RATIOS, FIGURES, strict=True):
        run_at = _at(run, ratio)
        measured = heldout_reconstruction(run.model, examples, run_at.task, run.mesh, num_draws=1)
        found[name] = measured["image_loss"] / measured["image_loss_of_visible_mean"]
    return found


def show(run: Pretrained, examples: LabelledExamples) -> str:
    """Returns a section of a page, as HTML: each image as it is, then masked and filled.

    Raises:
        UserError: the model has no decoder, or has not learned images.
    """
    _require_fills(run)
    examples = examples.take(choose_rows(examples.labels, _SHOWN_EXAMPLES))
    rows = []
    for number, fills in enumerate(show_fills(run, examples, RATIOS)):
        figures = [("original", png_uri(examples.images[number]), "image")]
        for fill in fills:
            figures.append((f"{percent(fill.share)} hidden", fill.masked, "image hatched"))
            figures.append(("filled", fill.reconstructed, "image"))
        cells = "".join(
            f'<figure><img class="{style}" src="{source}" alt="{name}">'
            f"<figcaption>{name}</figcaption></figure>"
            for name, source, style in figures
        )
        label = examples.label_names[examples.labels[number]]
        title = html.escape(examples.titles[number] or label)
        rows.append(
            f'<article class="card example"><h3>{title}</h3><div class="ratios">{cells}</div>'
            "</article>"
        )
    return section("heldout", "Held-out images", "".join(rows))


def _at(run: Pretrained, ratio: float) -> Pretrained:
    """Returns a model that is asked at another mask ratio."""
    changes = {"masking.image_mask_ratio": ratio}
    return dataclasses.replace(run, config=replaced(run.config, changes))


def _require_fills(run: Pretrained) -> None:
    """Raises `UserError` if the model has no decoder, or has not learned images."""
    require(
        run.config.model.decoder.num_layers > 0 and run.task.has_images,
        "The model has no decoder, or has not learned images, so it fills in nothing. "
        "Name another: --model=...",
    )
