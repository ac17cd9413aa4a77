"""Train steps of several implementations side by side, as the model of a GPU's program has them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import rich
from rich.console import Console
from rich.table import Table

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure.gpu_step_cost import (
    MEMORY_SHARE,
    PRODUCT_SHARE,
    ComponentCost,
    GpuStepCost,
    modelled_step,
)
from m3ae_tpu.measure.gpu_trace import BusyTime
from m3ae_tpu.measure.step_cost import COMPONENTS, flops_by_component

KINDS_HEADINGS = ("kernels", "modelled, ms", "traced, ms", "share of the peak, traced")


def model_steps(
    config: PretrainConfig, implementations: Sequence[Any], chip: str
) -> dict[str, Any]:
    """Compiles each implementation's step for one GPU, and prints a table of its components.

    Args:
        config: `batch_size` rows on the GPU.
        implementations: "ours", "xla".
        chip: One of `kernels.chips.GPUS`.

    Returns:
        The figures, ready for JSON.
    """
    costs: dict[str, GpuStepCost] = {}
    for name in implementations:
        with Console().status(f"{name}: compiling for {chip}, minutes"):
            costs[name] = modelled_step(config, chip, name)
    _print_components(config, costs, chip)
    totals = {
        name: {"ms": cost.whole.ms, "without_attention_ms": cost.without_attention_ms}
        for name, cost in costs.items()
    }
    return {"chip": chip} | {
        name: dataclasses.asdict(cost) | totals[name] for name, cost in costs.items()
    }


def _print_components(config: PretrainConfig, costs: dict[str, GpuStepCost], chip: str) -> None:
    flops, peak = flops_by_component(config), CHIPS[chip].flops
    table = Table(
        title=f"a step of {config.batch_size} rows on one {chip}, modelled", title_justify="left"
    )
    table.add_column("component")
    table.add_column("least", justify="right")
    for name in costs:
        for heading in (f"{name}, ms", "products", "cuDNN", "GB", "kernels"):
            table.add_column(heading, justify="right")
    for component in COMPONENTS:
        cells = [f"{flops[component] / peak * 1e3:.2f}"]
        for cost in costs.values():
            cells += _cells(cost.components[component])
        table.add_row(component, *cells)
    table.add_section()
    least = sum(flops.values()) / peak * 1e3
    rows = {"whole step": [f"{least:.2f}"]}
    rows |= {name: [""] for name in ("without cuDNN", "MFU", "temporary memory", "peak memory")}
    for cost in costs.values():
        rows["whole step"] += _cells(cost.whole)
        of_step = {
            "without cuDNN": f"{cost.without_attention_ms:.2f}",
            "MFU": f"{least / cost.whole.ms:.1%}",
            "temporary memory": f"{cost.temporary_bytes / 1e9:.2f} GB",
            "peak memory": f"{cost.peak_bytes / 1e9:.2f} GB",
        }
        for name, cell in of_step.items():
            rows[name] += [cell, "", "", "", ""]
    for heading, cells in rows.items():
        table.add_row(heading, *cells, style="bold" if heading == "whole step" else None)
    rich.print(table)
    bandwidth = MEMORY_SHARE * CHIPS[chip].bytes_per_second / 1e12
    rich.print(
        f"ms: a model of the compiled program, not a measurement: products at {PRODUCT_SHARE:.0%} "
        f"of the peak, other kernels at {bandwidth:.2f} TB/s, cuDNN from a table. least: FLOPs of "
        "matrix products at the chip's peak. GB: of memory traffic, or of memory."
    )


class KindTime(NamedTuple):
    """Time of one kind of kernels in a step."""

    kernels: str
    modelled_ms: float
    traced_ms: float
    share: float | None
    """Traced share of the chip's peak, of which the model takes `PRODUCT_SHARE` or `MEMORY_SHARE`;
    None of attention, which has a table instead.
    """


def kinds_of(model: GpuStepCost, busy: BusyTime) -> list[KindTime]:
    """Returns a step by kind of kernel, as modelled and as a trace has it."""
    whole = model.whole
    times = [
        ("products", whole.product_ms, busy.product_ms, PRODUCT_SHARE),
        ("other kernels", whole.other_ms, busy.other_ms, MEMORY_SHARE),
        ("attention", whole.cudnn_ms, busy.attention_ms, None),
        ("all", whole.ms, busy.ms, None),
    ]
    return [
        KindTime(kernels, modelled, traced, share * modelled / traced if share and traced else None)
        for kernels, modelled, traced, share in times
    ]


def kinds_table(kinds: Sequence[KindTime]) -> Table:
    """Returns a table of a step by kind of kernel."""
    table = Table(title="the same step by kind of kernel", title_justify="left")
    for heading in KINDS_HEADINGS:
        table.add_column(heading, justify="left" if heading == "kernels" else "right")
    for kind in kinds:
        table.add_row(*kind_cells(kind))
    return table


def kind_cells(kind: KindTime) -> list[str]:
    """Returns a row's texts under `KINDS_HEADINGS`."""
    share = "" if kind.share is None else f"{kind.share:.0%}"
    return [kind.kernels, f"{kind.modelled_ms:.1f}", f"{kind.traced_ms:.1f}", share]


def _cells(cost: ComponentCost) -> list[str]:
    traffic = (cost.read_bytes + cost.written_bytes) / 1e9
    figures = [cost.ms, cost.product_ms, cost.cudnn_ms, traffic]
    return [*(f"{figure:.2f}" for figure in figures), f"{cost.num_kernels:,}"]
