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
from m3ae_tpu.report.examples import show_examples

RATIOS = (0.5, 0.75, 0.9)
FIGURES = {
    f"error_{round(100 * ratio)}": f"error at hidden patches, {round(100 * ratio)} % hidden, of "
    "that of the visible patches' mean colour"
    for ratio in RATIOS
}
_MOST_EXAMPLES, _SHOWN_EXAMPLES = 300, 6


def figures(run: Pretrained, examples: LabelledExamples) -> dict[str, float]:
    """Returns the figures of `FIGURES`; 1 is as good as the mean colour."""
    examples = examples.take(np.arange(min(_MOST_EXAMPLES, len(examples))))
    found = {}
    for ratio, name in zip(RATIOS, FIGURES, strict=True):
        run_at = _at(run, ratio)
        measured = heldout_reconstruction(run.model, examples, run_at.task, run.mesh, num_draws=1)
        found[name] = measured["image_loss"] / measured["image_loss_of_visible_mean"]
    return found


def show(run: Pretrained, examples: LabelledExamples) -> str:
    """Returns a section of a page, as HTML: each image as it is, then masked and filled."""
    by_ratio = {
        ratio: show_examples(_at(run, ratio), examples, count=_SHOWN_EXAMPLES) for ratio in RATIOS
    }
    rows = []
    for number, example in enumerate(by_ratio[RATIOS[0]]):
        figures = [("original", example.original, "image")]
        for ratio, shown in by_ratio.items():
            percent = round(100 * ratio)
            figures.append((f"{percent} % hidden", shown[number].masked, "image hatched"))
            figures.append(("filled", shown[number].reconstructed, "image"))
        cells = "".join(
            f'<figure><img class="{style}" src="{source}" alt="{name}">'
            f"<figcaption>{name}</figcaption></figure>"
            for name, source, style in figures
        )
        title = html.escape(example.title or example.label)
        rows.append(
            f'<article class="card example"><h3>{title}</h3><div class="ratios">{cells}</div>'
            "</article>"
        )
    return section("heldout", "Held-out images", "".join(rows))


def _at(run: Pretrained, ratio: float) -> Pretrained:
    """Returns a model that is asked at another mask ratio.

    Raises:
        UserError: it has no decoder, or has not learned images.
    """
    require(
        run.config.model.decoder.num_layers > 0 and run.task.has_images,
        "The model has no decoder, or has not learned images, so it fills in nothing. "
        "Name another: --model=...",
    )
    changes = {"masking.image_mask_ratio": ratio}
    return dataclasses.replace(run, config=replaced(run.config, changes))
