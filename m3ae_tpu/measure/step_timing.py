"""A config's train step timed on the devices here, on random batches that lie on them already."""

import contextlib
import dataclasses
import importlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from m3ae_tpu.batch import mixture, random_batch
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.kernels.chips import GPUS, chip_name
from m3ae_tpu.measure.gpu_step_cost import GpuStepCost, cost_of_compiled
from m3ae_tpu.measure.gpu_trace import BusyTime, read_trace
from m3ae_tpu.measure.rehearsal import Kernels, config_batch_shapes, step_functions
from m3ae_tpu.parallel.mesh import by_example, make_mesh

type Implementation = Kernels
"""As `rehearsal.Kernels` has them, or "torch": the same sizes in PyTorch on one GPU, for images
alone.
"""

_CALLS = 10


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Time and memory of one train step."""

    seconds: float
    """Median over the rounds."""
    spread: float
    """Half the distance between the quartiles, relative to the median."""
    temporary_bytes: int | None
    """Memory beside parameters, optimizer state and batch: XLA's plan, or PyTorch's peak."""
    modelled: GpuStepCost | None = None
    """Cost of the program that was timed, by the model of GPUs; on one GPU that it knows."""
    busy: BusyTime | None = None
    """Busy time of one GPU by kind of kernel, from a trace; None without one."""


class _Step(NamedTuple):
    """A step that is ready to be timed."""

    run: Callable[[], None]
    """Takes `_CALLS` steps, and waits for them."""
    temporary_bytes: Callable[[], int | None]
    modelled: GpuStepCost | None = None


def timed_step(
    config: PretrainConfig, implementation: Implementation, *, rounds: int, has_trace: bool = False
) -> StepTime:
    """Times train steps of a config on random data.

    Args:
        config: `batch_size` rows over all devices.
        implementation: Which step.
        rounds: Rounds of 10 steps each.
        has_trace: Trace one round more. Of steps on GPUs it gives the busy time.
    """
    compiled = (
        _torch_step(config) if implementation == "torch" else _jax_step(config, implementation)
    )
    with compiled as step:
        step.run()
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            step.run()
            seconds.append((time.perf_counter() - start) / _CALLS)
        low, middle, high = statistics.quantiles(seconds, n=4)
        return StepTime(
            seconds=middle,
            spread=(high - low) / 2 / middle,
            temporary_bytes=step.temporary_bytes(),
            modelled=step.modelled,
            busy=_traced(step) if has_trace else None,
        )


def _traced(step: _Step) -> BusyTime | None:
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step.run()
        return read_trace(pathlib.Path(folder), num_steps=_CALLS)


@contextlib.contextmanager
def _jax_step(config: PretrainConfig, implementation: Kernels) -> Iterator[_Step]:
    mesh = make_mesh(config.mesh)
    init, step = step_functions(mesh, config, implementation)
    state = init()
    shapes = config_batch_shapes(config)
    batch = random_batch(shapes, vocab_size=max(2, config.model.vocab_size))
    batch = jax.device_put(batch, by_example(mesh))
    compiled = step.lower(state, batch).compile()
    analysis = compiled.memory_analysis()

    def run() -> None:
        nonlocal state
        for _ in range(_CALLS):
            state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    chip = chip_name(jax.devices()[0].device_kind)
    # The loop over words is as long as the data says, so that no program of texts can be counted.
    is_known = mesh.size == 1 and chip in GPUS and config.model.vocab_size == 0
    yield _Step(
        run,
        lambda: analysis.temp_size_in_bytes if analysis is not None else None,
        cost_of_compiled(config, chip, compiled) if is_known and chip else None,
    )
    jax.tree.map(lambda array: array.delete(), (state, batch))


@contextlib.contextmanager
def _torch_step(config: PretrainConfig) -> Iterator[_Step]:
    torch = importlib.import_module("torch")
    step = importlib.import_module("m3ae_tpu.measure.torch_mae").make_step(config)
    before = torch.cuda.memory_allocated()

    def run() -> None:
        for _ in range(_CALLS):
            step()
        torch.cuda.synchronize()

    yield _Step(run, lambda: torch.cuda.max_memory_allocated() - before)
    torch.cuda.empty_cache()


def images_per_step(config: PretrainConfig) -> int:
    """Returns the rows of a step that have an image."""
    sources = mixture(config.data, config.batch_size)
    return sum(source.rows for source in sources if source.kind != "text")
