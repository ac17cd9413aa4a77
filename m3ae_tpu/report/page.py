"""The report of a run: one page, `report.html`, that needs nothing but itself."""

import html
import importlib.resources
import pathlib
import platform
import string
from collections.abc import Mapping, Sequence
from typing import Any

from m3ae_tpu import charts
from m3ae_tpu.charts import Level, Series, line_chart
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.files import atomic_write
from m3ae_tpu.report import sections
from m3ae_tpu.report.examples import Picture

FILE_NAME = "report.html"


def write_report(
    workdir: pathlib.Path,
    config: PretrainConfig,
    *,
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    pictures: Sequence[Picture] | None,
    versions: Mapping[str, str],
) -> pathlib.Path:
    """Writes `WORKDIR/report.html` in one piece and returns its path. What a run lacks, the page
    says.

    Args:
        workdir: Of the run; its last name is the page's title.
        config: The run's.
        metrics: Lines of `metrics.jsonl`, oldest first; may be empty.
        evaluation: As `evaluate_run` returns it; may be empty.
        images: Of `make_pictures`; None for a run without a checkpoint.
        versions: Of the packages that trained the run.
    """
    folder = importlib.resources.files(__package__)
    name = workdir.resolve().name
    page = string.Template((folder / "report.html").read_text()).substitute(
        name=html.escape(name),
        style=f"{charts.STYLE}\n{(folder / 'report.css').read_text().strip()}",
        lead=_lead(config, metrics, evaluation),
        tiles=sections.tiles(evaluation, metrics),
        probes=sections.probe_bars(evaluation),
        gallery=sections.gallery(pictures, config),
        attention=sections.attention(pictures),
        curves=curves(metrics, evaluation),
        mixture=sections.mixture(config, metrics),
        settings=sections.settings(config, dict(versions) | {"python": platform.python_version()}),
        workdir=html.escape(str(workdir)),
    )
    path = workdir / FILE_NAME
    atomic_write(path, page)
    return path


def _lead(
    config: PretrainConfig, metrics: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any]
) -> str:
    encoder, kinds = config.model.encoder, {source.kind for source in config.data.sources}
    learned = {"paired": "images with captions", "image": "images", "text": "texts"}
    done = metrics[-1]["step"] if metrics else evaluation.get("run/step", 0)
    steps = (
        f"{done:,} steps" if done == config.num_steps else f"{done:,} of {config.num_steps:,} steps"
    )
    parts = [
        f"Learned from {' and '.join(learned[kind] for kind in learned if kind in kinds)}: "
        f"{steps} of {config.batch_size:,} examples",
        f"an encoder of {encoder.num_layers} blocks and width {encoder.width}",
        f"{config.data.image_size} px in patches of {config.model.patch_size}"
        if kinds != {"text"}
        else "",
        f"{evaluation['run/num_parameters'] / 1e6:.1f} million parameters" if evaluation else "",
        f"{_duration(_training_seconds(metrics))} of training" if metrics else "",
    ]
    return html.escape(", ".join(part for part in parts if part) + f"; seed {config.seed}.")


def _training_seconds(metrics: Sequence[Mapping[str, Any]]) -> float:
    """Returns the time of all steps by the rate of the line that each belongs to; the start is left
    out.
    """
    steps = [0, *(line["step"] for line in metrics)]
    rates = [line.get("time/seconds_per_step", 0.0) for line in metrics]
    return sum((b - a) * rate for a, b, rate in zip(steps, steps[1:], rates, strict=False))


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return (
        f"{seconds:.0f} seconds"
        if seconds < 100
        else f"{minutes} minutes"
        if minutes < 100
        else f"{hours:.1f} hours"
    )


def curves(metrics: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any]) -> str:
    """Returns a chart for each of the run's metrics that has values."""
    if not metrics:
        return sections.missing("This run has no metrics.jsonl, or it is empty.")

    def series(key: str, name: str, *, is_noisy: bool = True) -> list[Series]:
        # A value that is not finite is null in the file.
        points = [
            (float(line["step"]), float(line[key])) for line in metrics if line.get(key) is not None
        ]
        return [Series(name=name, points=points, is_noisy=is_noisy)] if points else []

    def levels(**keys: str) -> list[Level]:
        found = [(name.replace("_", " "), evaluation.get(key)) for name, key in keys.items()]
        return [Level(name=name, value=value) for name, value in found if value is not None]

    curves: list[tuple[str, list[Series], dict[str, Any]]] = [
        ("Loss", series("train/loss", "loss"), {}),
        (
            "Error at hidden patches",
            series("train/image_loss", "train")
            + series("train/unpaired_image_loss", "images alone"),
            {
                "levels": levels(
                    visible_mean="heldout/image_loss_of_visible_mean", held_out="heldout/image_loss"
                )
            },
        ),
        (
            "Cross-entropy of hidden words, nats",
            series("train/text_loss", "train") + series("train/unpaired_text_loss", "texts alone"),
            {},
        ),
        (
            "Hidden words guessed right",
            series("train/text_accuracy", "train")
            + series("train/unpaired_text_accuracy", "texts alone"),
            {
                "levels": levels(held_out="heldout/text_accuracy"),
                "show": "{:.0%}".format,
                "starts_at_zero": True,
            },
        ),
        (
            "Nearest neighbours during training",
            series("probe/knn_accuracy", "accuracy", is_noisy=False),
            {"show": "{:.1%}".format},
        ),
        ("Gradient norm", series("train/grad_norm", "norm"), {"starts_at_zero": True}),
        (
            "Learning rate",
            series("train/learning_rate", "rate", is_noisy=False),
            {"show": "{:.2g}".format, "starts_at_zero": True},
        ),
        (
            "Examples a second",
            series("time/examples_per_second", "examples/s"),
            {"show": "{:,.0f}".format, "starts_at_zero": True},
        ),
        (
            "Share of time spent waiting for data",
            series("time/data_wait_fraction", "waiting"),
            {"show": "{:.1%}".format, "starts_at_zero": True},
        ),
    ]
    cards = [
        f'<figure class="card" style="margin:0"><h3>{title}</h3>{line_chart(lines, **options)}</figure>'
        for title, lines, options in curves
        if lines
    ]
    return (
        "<p>Values of single steps, faint, and their running mean, by finished steps. Point at a chart to read it. "
        "Training draws any wording of a caption and weighs examples alike, the held-out figures at the top take main "
        "captions and weigh words alike, so the two cannot be compared for words.</p>"
        f'<div class="charts">{"".join(cards)}</div>'
    )
