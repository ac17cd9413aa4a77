"""The charts of a run's metrics over its steps, as HTML."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from m3ae_tpu.charts import Level, Series, line_chart
from m3ae_tpu.page import missing


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Curve:
    """One chart."""

    title: str
    metrics: dict[str, str]
    """Name of each line, by its metric."""
    levels: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name of each dashed line, by its figure in the evaluation."""
    show: Callable[[float], str] = "{:.3g}".format
    starts_at_zero: bool = False
    is_noisy: bool = True


_CURVES = (
    _Curve(title="Loss", metrics={"train/loss": "loss"}),
    _Curve(
        title="Error at hidden patches",
        metrics={"train/image_loss": "train", "train/unpaired_image_loss": "images alone"},
        levels={
            "heldout/image_loss_of_visible_mean": "visible mean",
            "heldout/image_loss": "held out",
        },
    ),
    _Curve(
        title="Cross-entropy of hidden words, nats",
        metrics={"train/text_loss": "train", "train/unpaired_text_loss": "texts alone"},
    ),
    _Curve(
        title="Hidden words predicted right",
        metrics={"train/text_accuracy": "train", "train/unpaired_text_accuracy": "texts alone"},
        levels={"heldout/text_accuracy": "held out"},
        show="{:.0%}".format,
        starts_at_zero=True,
    ),
    _Curve(
        title="Nearest neighbours during training",
        metrics={"probe/knn_accuracy": "accuracy"},
        show="{:.1%}".format,
        is_noisy=False,
    ),
    _Curve(
        title="Test images classified right",
        metrics={"finetune/accuracy": "weights", "finetune/average/accuracy": "running average"},
        show="{:.1%}".format,
        is_noisy=False,
    ),
    _Curve(
        title="Training images classified right, as augmented",
        metrics={"train/accuracy": "accuracy"},
        show="{:.0%}".format,
        starts_at_zero=True,
    ),
    _Curve(title="Gradient norm", metrics={"train/grad_norm": "norm"}, starts_at_zero=True),
    _Curve(
        title="Learning rate",
        metrics={"train/learning_rate": "rate"},
        show="{:.2g}".format,
        starts_at_zero=True,
        is_noisy=False,
    ),
    _Curve(
        title="Examples per second",
        metrics={"time/examples_per_second": "examples/s"},
        show="{:,.0f}".format,
        starts_at_zero=True,
    ),
    _Curve(
        title="Model FLOPs utilisation, of the chips' peak",
        metrics={"time/mfu": "MFU"},
        show="{:.1%}".format,
        starts_at_zero=True,
    ),
    _Curve(
        title="Share of time spent waiting for data",
        metrics={"time/data_wait_fraction": "waiting"},
        show="{:.1%}".format,
        starts_at_zero=True,
    ),
)


def curves(
    metrics: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any], *, first: str = ""
) -> str:
    """Returns a chart for each of the run's metrics that has values.

    Args:
        metrics: Lines of `metrics.jsonl`, oldest first; a value that was not finite is None.
        evaluation: The figures of `evaluation.json`; may be empty.
        first: HTML of a card to show before the charts.
    """
    if not metrics:
        return missing("This run has no metrics.jsonl, or it is empty.")
    cards = [first]
    for curve in _CURVES:
        series = [
            Series(name=name, points=points, is_noisy=curve.is_noisy)
            for metric, name in curve.metrics.items()
            if (points := _points(metrics, metric))
        ]
        levels = [
            Level(name=name, value=evaluation[figure])
            for figure, name in curve.levels.items()
            if figure in evaluation
        ]
        if series:
            chart = line_chart(
                series, levels=levels, show=curve.show, starts_at_zero=curve.starts_at_zero
            )
            cards.append(f'<figure class="card"><h3>{curve.title}</h3>{chart}</figure>')
    return (
        "<p>Values of single steps are faint, their running mean is strong. Point at a chart to "
        "read it. Losses and accuracies of words in training cannot be compared with held-out "
        "ones: training draws any of an image's captions and weighs examples alike, the held-out "
        "figures take the main caption and weigh words alike.</p>"
        f'<div class="charts">{"".join(cards)}</div>'
    )


def _points(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [
        (float(line["step"]), float(line[name])) for line in metrics if line.get(name) is not None
    ]
