"""Measures a config's train step: timed on the accelerator that is here, or scheduled for a TPU,
part by part.

    python -m pipelines.benchmark_step --config=m3ae_base --rows=256 --against=xla python -m
    pipelines.benchmark_step --config=m3ae_base --rows=64 --static=v5e python -m
    pipelines.benchmark_step --config=m3ae_base --rows=256 --model.vocab_size=0
    --data.sources.0.kind=image \
--against=xla,torch

Every field of the config can be set by its dotted name. Batches are random and lie on the device
already. MFU is model FLOPs utilisation: FLOPs of matrix products, forward and backward, nothing
counted twice, over the chip's peak.

`--against=xla` is the same step without our kernels; `--against=torch`, on one NVIDIA GPU and for
images alone, is a masked autoencoder of the same sizes in PyTorch: timm's blocks, compiled,
bfloat16 by autocast, AdamW fused.

Without an accelerator, or with `--static`, the step is compiled for one TPU chip and its time
estimated: for each operation the larger of work and memory traffic. The work of a matrix product is
the compiler's own estimate, that of our attention kernels comes from a replay of their schedule;
other operations count by their memory traffic. Nothing of it was measured on a chip. It needs
libtpu (`pip install 'm3ae-tpu[compile-tpu]'`) and takes minutes.
"""

import dataclasses
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_write
from m3ae_tpu.overrides import load_named_config, override

if TYPE_CHECKING:
    from m3ae_tpu.measure.step_cost import StepCost

_CONFIG = flags.DEFINE_string(
    "config", "m3ae_base", "Named config to start from, or path of a file like it."
)
_ROWS = flags.DEFINE_integer("rows", 64, "Rows of a step: batch_size of the config.", lower_bound=1)
_AGAINST = flags.DEFINE_list("against", ["xla"], "Others: xla, torch; --against= for none.")
_STATIC = flags.DEFINE_string(
    "static", "", "Chip to schedule for: v5e, v5p, v6e; none: the device here."
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 7, "Rounds of 10 timed steps; medians are shown.", lower_bound=2
)
_JSON = flags.DEFINE_string("json", "", "File that gets the figures too; none if empty.")


def time(config: PretrainConfig, names: list[Any]) -> dict[str, Any]:
    """Times each implementation and prints a table of them."""
    import jax
    import rich
    import rich.console
    import rich.table
    from m3ae_tpu.measure.step_compile import batch_shapes

    from m3ae_tpu.kernels.chips import CHIPS, chip_name
    from m3ae_tpu.measure.step_timing import images_per_step, timed_step
    from m3ae_tpu.train.flops import flops_per_example

    device = jax.devices()[0].device_kind
    flops = flops_per_example(config, batch_shapes(config)) * config.batch_size
    chip = chip_name(device)
    peak = CHIPS[chip].flops * jax.device_count() if chip else None
    table = rich.table.Table(
        title=f"a step of {config.batch_size} rows on {jax.device_count()} x {device}, "
        f"{flops / config.batch_size / 1e9:.1f} GFLOP a row",
        title_justify="left",
    )
    for heading in ("implementation", "ms", "images/s", "TFLOP/s", "MFU", "temporary"):
        table.add_column(heading, justify="left" if heading == "implementation" else "right")
    results: dict[str, Any] = {"device": device, "devices": jax.device_count(), "flops": flops}
    for name in names:
        with rich.console.Console().status(name):
            try:
                timing = timed_step(config, name, rounds=_ROUNDS.value)
            except jax.errors.JaxRuntimeError as error:
                results[name] = {"failed": _out_of_memory(error)}
                table.add_row(name, "does not fit")
                continue
        rate = flops / timing.seconds
        results[name] = dataclasses.asdict(timing) | {"flops_per_second": rate}
        results[name]["images_per_second"] = images_per_step(config) / timing.seconds
        table.add_row(
            name,
            f"{timing.seconds * 1e3:.1f} ±{timing.spread:.0%}",
            f"{results[name]['images_per_second']:,.0f}",
            f"{rate / 1e12:.1f}",
            f"{rate / peak:.1%}" if peak else "?",
            f"{timing.temporary_bytes / 1e9:.1f} GB" if timing.temporary_bytes is not None else "?",
        )
    rich.print(table)
    return results


def schedule(config: PretrainConfig, names: list[Any], chip: str) -> dict[str, Any]:
    """Schedules each implementation and prints a table of the step's parts."""
    import jax
    import rich
    import rich.console

    from m3ae_tpu.measure.compiler_process import CompilerProcess
    from m3ae_tpu.measure.step_cost import replayed_kernels, scheduled_step

    results: dict[str, Any] = {"chip": chip}
    status = rich.console.Console().status
    kernel_us, costs = {}, {}
    if "ours" in names:
        with status("replaying the attention kernels"):
            process = CompilerProcess(replay=True)
            kernel_us = process.run(replayed_kernels, config, chip)
            process.close()
    process = CompilerProcess(replay=False)
    for name in names:
        with status(f"{name}: compiling, minutes"):
            try:
                cost = costs[name] = process.run(scheduled_step, config, chip, name, kernel_us)
            except jax.errors.JaxRuntimeError as error:
                results[name] = {"failed": _out_of_memory(error)}
                continue
        results[name] = dataclasses.asdict(cost) | {"us": cost.us, "hbm_bytes": cost.hbm_bytes}
    process.close()
    _show_parts(config, costs, chip)
    for name in names:
        if name not in costs:
            rich.print(f"{name}: {results[name]['failed']}")
    return results


def _out_of_memory(error: Exception) -> str:
    """Returns what the compiler or the device said of too little memory, in one line; raises any
    other error.
    """
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return "does not fit. " + str(error).partition("RESOURCE_EXHAUSTED: ")[2].splitlines()[0]


def _show_parts(config: PretrainConfig, costs: dict[str, "StepCost"], chip: str) -> None:
    import rich
    import rich.table

    from m3ae_tpu.kernels.chips import CHIPS
    from m3ae_tpu.measure.step_cost import PARTS, flops_by_part

    flops, peak = flops_by_part(config), CHIPS[chip].core_flops
    table = rich.table.Table(
        title=f"a step of {config.batch_size} rows on one {chip}, estimated",
        title_justify="left",
    )
    table.add_column("part")
    table.add_column("least", justify="right")
    for name in costs:
        table.add_column(f"{name}, ms", justify="right")
        table.add_column("GB", justify="right")
    for part in PARTS:
        cells = [f"{flops[part] / peak * 1e3:.2f}"]
        for cost in costs.values():
            cells += [f"{cost.parts[part].us / 1e3:.2f}", f"{cost.parts[part].hbm_bytes / 1e9:.2f}"]
        table.add_row(part, *cells)
    table.add_section()
    whole = [f"{sum(flops.values()) / peak * 1e3:.2f}"]
    peaks = [""]
    for cost in costs.values():
        whole += [f"{cost.us / 1e3:.2f}", f"{cost.hbm_bytes / 1e9:.2f}"]
        peaks += ["", f"{cost.peak_bytes / 1e9:.2f}"]
    table.add_row("whole step", *whole, style="bold")
    table.add_row("peak memory", *peaks)
    rich.print(table)
    rich.print(
        "least: FLOPs of matrix products at the chip's peak. GB: of memory traffic, or of memory."
    )


def main(argv: list[str]) -> None:
    """Prints the table, and writes the figures where `--json` says."""
    config = override(
        load_named_config(_CONFIG.value, PretrainConfig), [*argv[1:], f"--batch_size={_ROWS.value}"]
    )
    if _STATIC.value:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    from m3ae_tpu.kernels.chips import REPLAYED

    against = [name for name in _AGAINST.value if name]
    for name in against:
        require(name in ("xla", "torch"), f"--against: {name!r} is not one of xla, torch.")
    chip = _STATIC.value or ("v5e" if jax.default_backend() == "cpu" else "")
    require(
        not chip or chip in REPLAYED,
        f"--static = {chip} is not one of {', '.join(REPLAYED)}.",
    )
    if "torch" in against:
        _require_torch(config, chip)
    # PyTorch first: JAX takes most of a GPU's memory and keeps it.
    names = [
        *(name for name in against if name == "torch"),
        "ours",
        *(n for n in against if n != "torch"),
    ]
    if chip:
        _require_installed("libtpu", "pip install 'm3ae-tpu[compile-tpu]'")
    results = schedule(config, names, chip) if chip else time(config, names)
    if _JSON.value:
        atomic_write(pathlib.Path(_JSON.value), json.dumps(results, indent=2) + "\n")


def _require_torch(config: PretrainConfig, chip: str) -> None:
    import jax

    require(
        not chip and jax.default_backend() == "gpu",
        "--against=torch is timed on an NVIDIA GPU only.",
    )
    kinds = {source.kind for source in config.data.sources}
    fix = "Set --data.sources.0.kind=image --model.vocab_size=0, or --against=xla."
    require(
        kinds == {"image"},
        f"--against=torch takes images alone; the config has {sorted(kinds)}. {fix}",
    )
    require(
        jax.device_count() == 1, f"--against=torch takes one GPU; {jax.device_count()} are here."
    )
    for name in ("torch", "timm"):
        _require_installed(name, "pip install torch timm")


def _require_installed(name: str, fix: str) -> None:
    import importlib.util

    if importlib.util.find_spec(name) is None:
        raise UserError(f"{name} is missing. Install it: {fix}")


def run() -> None:
    """Entry point of the installed command `m3ae-benchmark-step`."""
    run_program(main)


if __name__ == "__main__":
    run()
