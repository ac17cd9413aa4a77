"""Rows of a probe: its accuracy beside its baselines', and with every pooling."""

import functools
from collections.abc import Mapping
from typing import Any

from m3ae_tpu.evaluation.protocol import Row


def probe_rows(
    figures: Mapping[str, Any],
    probe: str,
    title: str,
    baselines: tuple[str, ...],
    poolings: Mapping[str, str],
    *,
    note: str = "",
) -> list[Row]:
    """Returns a probe's accuracy beside its baselines, and with every pooling.

    One row without values if it was left out, none if the run has no such probe.

    Args:
        figures: The figures of an evaluation.
        probe: Beginning of the keys.
        title: Title of the rows.
        baselines: Ends of the keys to compare with.
        poolings: Descriptions by name.
        note: What to say of the baselines.
    """
    level = "headline" if probe.startswith("linear_probe") else "normal"
    row = functools.partial(Row, section="features", unit="accuracy")
    if f"left_out/{probe}" in figures:
        return [row(title=title, values={}, note=figures[f"left_out/{probe}"], level=level)]
    if f"{probe}/pretrained" not in figures:
        return []
    names = [name for name in ("pretrained", *baselines) if f"{probe}/{name}" in figures]
    chosen, size = figures[f"{probe}/pooling"], figures.get(f"{probe}/num_features")
    size = "" if size is None else f" ({size:,} numbers)"
    of_poolings = {
        description: figures[key]
        for pooling, description in sorted(poolings.items(), key=lambda item: item[0] != chosen)
        if (key := f"poolings/{probe}/pretrained/{pooling}") in figures
    }
    main = row(
        title=title,
        values={name.replace("_", " "): figures[f"{probe}/{name}"] for name in names},
        note=f"Features: {poolings.get(chosen, chosen)}{size}. {note}".rstrip(),
        level=level,
    )
    detail = row(
        title=f"{title}: every pooling",
        values=of_poolings,
        note="The first was chosen on training images. To pick another one by these figures would "
        "be to choose on test.",
        level="detail",
    )
    return [main, detail] if of_poolings else [main]
