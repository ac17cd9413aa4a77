"""Measures a config's train step: timed on the accelerator here, or compiled for one elsewhere.

    python -m pipelines.benchmark_step --config=m3ae_base --rows=256 --against=xla
    python -m pipelines.benchmark_step --config=m3ae_base --rows=64 --static=v5e
    python -m pipelines.benchmark_step --config=mae_base --rows=256 --against= --static=h100,h200
    python -m pipelines.benchmark_step --config=m3ae_base --rows=256 --model.vocab_size=0 \\
        --data.sources.0.kind=image --against=xla,torch

Every field of the config can be set by its dotted name. Batches are random and lie on the device
already. MFU is model FLOPs utilisation: FLOPs of matrix products, forward and backward, nothing
counted twice, over the chip's peak.

`--against=xla` is the same step without our kernels. `--against=torch`, on one NVIDIA GPU and for
images alone, is a masked autoencoder of the same sizes in PyTorch: timm's blocks, compiled,
bfloat16 by autocast, AdamW fused. `--without=FORM,...` adds our step without a rewrite that belongs
to the kind of device, by its name in `m3ae_tpu/parallel/forms.py`: what is it worth?

On one GPU the model of its program (see below) stands beside the time. `--trace` adds the busy time
by kind of kernel, from a trace of ten steps.

Without an accelerator, or with `--static`, the step is compiled for one chip of each kind that is
named. On a TPU its time is bounded component by component: for each operation the larger of work
and memory traffic. Work is a floor where it comes from the compiler's replay of the operation (our
attention kernels) or of operations like it (`m3ae_tpu/measure/operation_time.py`), and a ceiling
where it is what the compiler estimated. Every replay that was taken is named below the table, also
those of operations alone. None of these figures was measured on a chip. They need libtpu
(`pip install 'm3ae-tpu[compile-tpu]'`) and take minutes.

On a GPU its time is modelled: for each kernel of the compiled program the larger of products at a
share of the chip's peak and memory traffic at a share of its bandwidth, both from a trace of one
step on an H100; cuDNN's attention comes from a table (`m3ae_tpu/measure/gpu_step_cost.py`). Neither
GPU nor driver is needed, but the extra `compile-gpu` (`make compile-gpu`), and minutes. It counts
images alone: the loop over words is as long as the data says.
"""

import importlib.util
import json
import os
import pathlib

from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_write, require_writable_file
from m3ae_tpu.kernels.chips import GPUS, REPLAYED
from m3ae_tpu.option_flags import define_flag
from m3ae_tpu.overrides import load_named_config, override

_CONFIG = define_flag(
    "config", str, "m3ae_base", "Named config to start from, or path of a file like it."
)
_ROWS = define_flag("rows", int, 64, "Rows of a step: batch_size of the config.", at_least=1)
_AGAINST = define_flag("against", list, ["xla"], "Baselines: xla, torch; --against= for none.")
_WITHOUT = define_flag("without", list, [], "Forms of the device to leave out, one at a time.")
_TRACE = define_flag("trace", bool, False, "Trace our step too: busy time of a GPU.")
_CHIPS = ", ".join((*REPLAYED, *GPUS))
_STATIC = define_flag(
    "static", list, [], f"Chips to compile for: {_CHIPS}; empty: the device here."
)
_ROUNDS = define_flag("rounds", int, 7, "Rounds of 10 timed steps; medians are shown.", at_least=2)
_JSON = define_flag("json", pathlib.Path, None, "File that gets the figures too; none if empty.")


def main(argv: list[str]) -> None:
    """Prints the table, and writes the figures where `--json` says."""
    config = override(
        load_named_config(_CONFIG.value, PretrainConfig),
        [*argv[1:], f"--batch_size={_ROWS.value}"],
    )
    if _JSON.value:
        require_writable_file("--json", _JSON.value)
    if _STATIC.value:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    from m3ae_tpu.measure import step_benchmark as benchmark
    from m3ae_tpu.measure.gpu_step_benchmark import model_steps
    from m3ae_tpu.measure.rehearsal import WITHOUT
    from m3ae_tpu.parallel.forms import Forms

    against = _AGAINST.value
    for name in against:
        require(name in ("xla", "torch"), f"--against: {name!r} is not one of xla, torch.")
    chips = _STATIC.value or (["v5e"] if jax.default_backend() == "cpu" else [])
    for chip in chips:
        require(chip in (*REPLAYED, *GPUS), f"--static = {chip} is not one of {_CHIPS}.")
    require(
        config.model.vocab_size == 0 or not set(chips) & set(GPUS),
        f"--static = {','.join(chips)} counts a GPU's step of images alone: the loop over words is "
        "as long as the data says. Set --data.sources.0.kind=image --model.vocab_size=0.",
    )
    require(not (chips and _TRACE.value), "--trace is of an accelerator that is here.")
    if "torch" in against:
        _require_torch(config, is_static=bool(chips))
    for name in _WITHOUT.value:
        forms = [form for form in Forms._fields if form != "compiler_options"]
        require(name in forms, f"--without = {name} is not one of {', '.join(forms)}.")
    against = [*against, *(f"{WITHOUT}{name}" for name in _WITHOUT.value)]
    # PyTorch first: JAX takes most of a GPU's memory and keeps it.
    names = sorted(["ours", *against], key=lambda name: name != "torch")
    if chips:
        _require_compilers(chips)
        of_chips = [
            (model_steps if chip in GPUS else benchmark.schedule_steps)(config, names, chip)
            for chip in chips
        ]
        results = of_chips[0] if len(chips) == 1 else of_chips
    else:
        results = benchmark.time_steps(config, names, rounds=_ROUNDS.value, has_trace=_TRACE.value)
    if _JSON.value:
        atomic_write(_JSON.value, json.dumps(results, indent=2) + "\n")


def _require_compilers(chips: list[str]) -> None:
    from m3ae_tpu.measure.gpu_compiler import require_compiler

    if not set(chips) <= set(GPUS):
        _require_installed("libtpu", "pip install 'm3ae-tpu[compile-tpu]'")
    if set(chips) & set(GPUS):
        require_compiler()


def _require_torch(config: PretrainConfig, *, is_static: bool) -> None:
    import jax

    require(
        not is_static and jax.default_backend() == "gpu",
        "--against=torch is timed on an NVIDIA GPU only.",
    )
    kinds = {source.kind for source in config.data.sources}
    fix = "Set --data.sources.0.kind=image --model.vocab_size=0, or --against=xla."
    require(
        kinds == {"image"},
        f"--against=torch takes images alone; the config has {sorted(kinds)}. {fix}",
    )
    count = jax.device_count()
    require(count == 1, f"--against=torch takes one GPU; {count} are here.")
    for name in ("torch", "timm"):
        _require_installed(name, "pip install torch timm")


def _require_installed(name: str, fix: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise UserError(f"{name} is missing. Install it: {fix}")


def run() -> None:
    """Entry point of the installed command `m3ae-benchmark-step`."""
    run_program(main)


if __name__ == "__main__":
    run()
