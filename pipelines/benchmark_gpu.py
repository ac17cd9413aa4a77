"""Measures a GPU in about a quarter of an hour, beside what the model of compiled programs says.

    python -m pipelines.benchmark_gpu --output=runs/benchmark_gpu

One after the other, each in a process of its own: the train steps of `m3ae_base` and `m3ae_large`
on images alone, with PyTorch's in the same run where torch and timm are installed, and of
`m3ae_base` on pairs; attention, also by our own kernel for Hopper; and the step without each of the
rewrites that belong to GPUs. It stops at nothing: what fails, or takes too long, has no figures.

The folder gets the figures of each (`NAME.json`) and a page (`benchmark_gpu.md`): the time of every
step beside its model, busy time by kind of kernel from a trace, and the shares of the chip's peaks
from which the model's two constants can be set (`m3ae_tpu/measure/gpu_step_cost.py`). The commands
are on the page too. `--list` prints them and measures nothing.

It needs one NVIDIA GPU with 80 GB and JAX for it (`make install ACCELERATOR=cuda13`); of several
GPUs the first is taken. `make benchmark-gpu` also compares cuDNN's attention with float64.
"""

import rich

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_write, local_path, require_writable_file
from m3ae_tpu.option_flags import define_flag

_PAGE = "benchmark_gpu.md"
_OUTPUT = define_flag("output", str, "runs/benchmark_gpu", "Folder for the figures; a new one.")
_LIST = define_flag("list", bool, False, "Print the commands, and measure nothing.")


def main(argv: list[str]) -> None:
    """Runs the plan, writes the page and prints where it is."""
    from m3ae_tpu.measure import gpu_plan
    from m3ae_tpu.measure.gpu_page import page

    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is not a flag. See python -m pipelines.benchmark_gpu --help.")
    stages = gpu_plan.plan()
    if _LIST.value:
        print(*map(gpu_plan.shown, stages), sep="\n")
        return
    folder = local_path("--output", _OUTPUT.value)
    require(
        not folder.exists(), f"--output = {folder} exists already. Name another one, or remove it."
    )
    device = gpu_plan.gpu_here()
    if device is None:
        raise UserError(
            "JAX finds no NVIDIA GPU here. Run this on a machine with one, after `make install "
            "ACCELERATOR=cuda13`.\nWithout one: python -m pipelines.benchmark_step "
            "--config=mae_base --rows=256 --static=h100."
        )
    folder.mkdir(parents=True)
    require_writable_file("--output", folder / _PAGE)
    results = gpu_plan.run(stages, folder)
    atomic_write(folder / _PAGE, page(stages, results, device))
    rich.print(f"Figures and commands: {folder / _PAGE}")
    failed = [name for name, figures in results.items() if "failed" in figures]
    require(not failed, f"{len(failed)} of {len(stages)} have no figures: {', '.join(failed)}.")


def run() -> None:
    """Entry point of the installed command `m3ae-benchmark-gpu`."""
    run_program(main)


if __name__ == "__main__":
    run()
