"""The page of a GPU's benchmark: measured figures beside modelled ones, as Markdown."""

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from m3ae_tpu.kernels.chips import CHIPS, chip_name
from m3ae_tpu.measure.gpu_plan import Stage, shown
from m3ae_tpu.measure.gpu_step_benchmark import KINDS_HEADINGS, KindTime, kind_cells

_PACKAGES = ("jax", "jaxlib", "torch", "timm")


def page(stages: Sequence[Stage], results: Mapping[str, Any], device: str) -> str:
    """Returns the page.

    Args:
        stages: What was measured.
        results: Figures by the stage's name, as `gpu_plan.run` returns them.
        device: Name of the GPU.
    """
    lines = [f"# {device}", "", f"{_date()}; {_versions()}.", ""]
    for stage in stages:
        figures = results[stage.name]
        lines += [f"## {stage.name}", "", "```", shown(stage), "```", ""]
        if isinstance(figures, list):
            lines += _attention(figures)
        elif "failed" in figures:
            lines += [f"No figures: {figures['failed']}."]
        else:
            lines += [*_steps(figures), *_kinds(figures)]
        lines += [""]
    return "\n".join(lines)


def _date() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _versions() -> str:
    installed = {found.name for found in importlib.metadata.distributions()}
    return ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES if name in installed
    )


def _steps(figures: Mapping[str, Any]) -> list[str]:
    """Returns the table of the steps that a run of `benchmark_step` timed."""
    headings = ["step", "ms", "modelled, ms", "images/s", "TFLOP/s", "MFU", "temporary memory"]
    chip = chip_name(figures["device"])
    rows = []
    for name, step in figures.items():
        if not isinstance(step, dict):
            continue
        if "failed" in step:
            rows.append([name, step["failed"], *[""] * (len(headings) - 2)])
            continue
        rate, memory, model = (
            step[field] for field in ("flops_per_second", "temporary_bytes", "modelled")
        )
        rows.append(
            [
                name,
                f"{step['seconds'] * 1e3:.1f} ±{step['spread']:.1%}",
                f"{model['ms']:.1f}" if model else "",
                f"{step['images_per_second']:,.0f}",
                f"{rate / 1e12:.0f}",
                f"{rate / CHIPS[chip].flops:.1%}" if chip else "",
                f"{memory / 1e9:.1f} GB" if memory is not None else "",
            ]
        )
    return _table(headings, rows)


def _kinds(figures: Mapping[str, Any]) -> list[str]:
    """Returns the table of our step by kind of kernel; nothing without a model and a trace."""
    kinds = figures["ours"].get("kinds", [])
    rows = [kind_cells(KindTime(**kind)) for kind in kinds]
    return ["", *_table(KINDS_HEADINGS, rows)] if rows else []


def _attention(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the table of attention: microseconds of a row, forward, then both directions."""
    names = list(dict.fromkeys(line["implementation"] for line in lines))
    cells: dict[str, dict[str, list[str]]] = {}
    for line in lines:
        us = f"{line['us']:.2f}" if "us" in line else line["reason"]
        cells.setdefault(line["shape"], {}).setdefault(line["implementation"], []).append(us)
    rows = [
        [shape, *(", ".join(row.get(name, [])) for name in names)] for shape, row in cells.items()
    ]
    return _table(["us of a row, forward and both", *names], rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]
