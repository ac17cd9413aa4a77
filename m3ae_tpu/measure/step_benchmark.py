"""Train steps of several implementations side by side: timed here, or scheduled for a TPU."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import rich
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.errors import UserError
from m3ae_tpu.kernels.chips import CHIPS, chip_name
from m3ae_tpu.measure.compiler_process import CompilerProcess, ReplayFailedError
from m3ae_tpu.measure.gpu_step_benchmark import kinds_of, kinds_table
from m3ae_tpu.measure.operation_time import REPLAYED_ALONE
from m3ae_tpu.measure.step_cost import (
    COMPONENTS,
    ComponentCost,
    KernelTime,
    StepCost,
    flops_by_component,
    replayed_kernels,
    scheduled_step,
)
from m3ae_tpu.measure.step_timing import images_per_step, timed_step


def time_steps(
    config: PretrainConfig, implementations: Sequence[Any], *, rounds: int, has_trace: bool = False
) -> dict[str, Any]:
    """Times each implementation's step on the devices here, and prints a table of them.

    Args:
        config: `batch_size` rows over all devices.
        implementations: As `timed_step` takes them.
        rounds: Rounds of 10 steps each; medians are shown.
        has_trace: Trace our step once more, and print the busy time of a GPU by kind of kernel.

    Returns:
        The figures, ready for JSON.
    """
    device = jax.devices()[0].device_kind
    flops = sum(flops_by_component(config).values())
    chip = chip_name(device)
    peak = math.nan if chip is None else CHIPS[chip].flops * jax.device_count()
    table = Table(
        title=f"a step of {config.batch_size} rows on {jax.device_count()} x {device}, "
        f"{flops / config.batch_size / 1e9:.1f} GFLOP a row",
        title_justify="left",
    )
    headings = ("implementation", "ms", "images/s", "TFLOP/s", "MFU", "temporary", "modelled, ms")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "implementation" else "right")
    tables = [table]
    results: dict[str, Any] = {"device": device, "devices": jax.device_count(), "flops": flops}
    for name in implementations:
        with Console().status(name):
            try:
                timing = timed_step(
                    config, name, rounds=rounds, has_trace=has_trace and name == "ours"
                )
            except jax.errors.JaxRuntimeError as error:
                results[name] = {"failed": _out_of_memory(error)}
                table.add_row(name, "does not fit")
                continue
        rates = {
            "flops_per_second": flops / timing.seconds,
            "images_per_second": images_per_step(config) / timing.seconds,
        }
        results[name] = dataclasses.asdict(timing) | rates
        memory, model = timing.temporary_bytes, timing.modelled
        if model is not None:
            results[name]["modelled"] |= {"ms": model.whole.ms}
        if model is not None and timing.busy is not None:
            kinds = kinds_of(model, timing.busy)
            results[name]["kinds"] = [kind._asdict() for kind in kinds]
            tables.append(kinds_table(kinds))
        table.add_row(
            name,
            f"{timing.seconds * 1e3:.1f} ±{timing.spread:.0%}",
            f"{rates['images_per_second']:,.0f}",
            f"{rates['flops_per_second'] / 1e12:.1f}",
            "?" if math.isnan(peak) else f"{rates['flops_per_second'] / peak:.1%}",
            "?" if memory is None else f"{memory / 1e9:.1f} GB",
            "" if model is None else f"{model.whole.ms:.1f}",
        )
    rich.print(*tables, sep="\n")
    return results


def schedule_steps(
    config: PretrainConfig, implementations: Sequence[Any], chip: str
) -> dict[str, Any]:
    """Schedules each implementation's step for one chip, and prints a table of its components.

    Args:
        config: `batch_size` rows on the chip.
        implementations: "ours", "xla".
        chip: One that the compiler's replay runs for.

    Returns:
        The figures, ready for JSON.

    Raises:
        UserError: the replay cannot count the attention kernels of the config.
    """
    results: dict[str, Any] = {"chip": chip}
    costs: dict[str, StepCost] = {}
    kernel_times: list[KernelTime] = []
    status = Console().status
    if "ours" in implementations:
        with status("replaying the attention kernels"):
            process = CompilerProcess(replay=True)
            try:
                kernel_times = process.run(replayed_kernels, config, chip)
            except ReplayFailedError as error:
                raise UserError(
                    f"{error} for the attention kernels of this config (--static = {chip}), so "
                    "their time is not known. Those of mae_base and m3ae_base are; or measure on a "
                    "chip."
                ) from error
            finally:
                process.close()
    process = CompilerProcess(replay=False)
    for name in implementations:
        with status(f"{name}: compiling, minutes"):
            try:
                cost = costs[name] = process.run(scheduled_step, config, chip, name, kernel_times)
            except jax.errors.JaxRuntimeError as error:
                results[name] = {"failed": _out_of_memory(error)}
                continue
        totals = ("floor_us", "ceiling_us", "hbm_bytes")
        results[name] = dataclasses.asdict(cost) | {field: getattr(cost, field) for field in totals}
    process.close()
    results["kernels"] = [kernel._asdict() for kernel in kernel_times]
    results["replayed_alone"] = REPLAYED_ALONE
    _print_components(config, costs, chip)
    for kernel in kernel_times:
        rich.print(f"{kernel.component}: {kernel.us / 1e3:.2f} ms, {kernel.name}.")
    for name, use in REPLAYED_ALONE.items():
        rich.print(escape(f"{use}, by the replay of one alone on v5e: {name}."))
    for name in implementations:
        if name not in costs:
            rich.print(f"{name}: {results[name]['failed']}")
    return results


def _out_of_memory(error: Exception) -> str:
    """Returns the line of an error about too little memory; raises any other error."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return "does not fit. " + str(error).partition("RESOURCE_EXHAUSTED: ")[2].splitlines()[0]


def _print_components(config: PretrainConfig, costs: dict[str, StepCost], chip: str) -> None:
    flops, peak = flops_by_component(config), CHIPS[chip].core_flops
    table = Table(
        title=f"a step of {config.batch_size} rows on one {chip}, estimated",
        title_justify="left",
    )
    table.add_column("component")
    table.add_column("least", justify="right")
    for name in costs:
        table.add_column(f"{name}, ms", justify="right")
        table.add_column("ceiling", justify="right")
        table.add_column("GB", justify="right")
    for component in COMPONENTS:
        cells = [f"{flops[component] / peak * 1e3:.2f}"]
        for cost in costs.values():
            cells += _cells(cost.components[component])
        table.add_row(component, *cells)
    table.add_section()
    least = sum(flops.values()) / peak * 1e6
    rows: dict[str, list[str]] = {
        "whole step": [f"{least / 1e3:.2f}"],
        "MFU": [""],
        "peak memory": [""],
        "operations": [""],
    }
    for cost in costs.values():
        rows["whole step"] += _cells(cost)
        rows["MFU"] += [f"{least / cost.floor_us:.0%}", f"{least / cost.ceiling_us:.0%}", ""]
        rows["peak memory"] += ["", "", f"{cost.peak_bytes / 1e9:.2f}"]
        rows["operations"] += ["", "", f"{cost.num_operations:,}"]
    for heading, cells in rows.items():
        table.add_row(heading, *cells, style="bold" if heading == "whole step" else None)
    rich.print(table)
    rich.print(
        "ms: a floor, work as the compiler's replay of operations like these says, or memory "
        "traffic where that is more; no waits, no gaps. ceiling: with the cycles that the compiler "
        "estimated. least: FLOPs of matrix products at the chip's peak. GB: of memory traffic, or "
        "of memory."
    )


def _cells(cost: ComponentCost | StepCost) -> list[str]:
    """Returns floor and ceiling in ms, and traffic in GB."""
    figures = cost.floor_us / 1e3, cost.ceiling_us / 1e3, cost.hbm_bytes / 1e9
    return [f"{figure:.2f}" for figure in figures]
