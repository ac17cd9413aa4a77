"""A config's train step timed on the devices here, on random batches that lie on them already."""

import contextlib
import dataclasses
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Literal

import jax

from m3ae_tpu.batch import mixture, random_batch
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.measure.rehearsal import Kernels, config_batch_shapes, step_functions
from m3ae_tpu.parallel.mesh import by_example, make_mesh

type Implementation = Literal["ours", "xla", "torch"]

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


def timed_step(config: PretrainConfig, implementation: Implementation, *, rounds: int) -> StepTime:
    """Times train steps of a config on random data.

    Args:
        config: `batch_size` rows over all devices.
        implementation: "ours", with kernels; "xla", without; "torch", the same sizes in PyTorch on
            one GPU, for images alone.
        rounds: Rounds of 10 steps each.
    """
    compiled = (
        _torch_step(config) if implementation == "torch" else _jax_step(config, implementation)
    )
    with compiled as (steps, memory):
        steps()
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            steps()
            seconds.append((time.perf_counter() - start) / _CALLS)
        low, middle, high = statistics.quantiles(seconds, n=4)
        return StepTime(middle, (high - low) / 2 / middle, memory())


type _Steps = tuple[Callable[[], None], Callable[[], int | None]]


@contextlib.contextmanager
def _jax_step(config: PretrainConfig, implementation: Kernels) -> Iterator[_Steps]:
    mesh = make_mesh(config.mesh)
    init, step = step_functions(mesh, config, implementation)
    state = init()
    shapes = config_batch_shapes(config)
    batch = random_batch(shapes, vocab_size=max(2, config.model.vocab_size))
    batch = jax.device_put(batch, by_example(mesh))
    compiled = step.lower(state, batch).compile()
    analysis = compiled.memory_analysis()

    def steps() -> None:
        nonlocal state
        for _ in range(_CALLS):
            state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    yield steps, lambda: analysis.temp_size_in_bytes if analysis is not None else None
    jax.tree.map(lambda array: array.delete(), (state, batch))


@contextlib.contextmanager
def _torch_step(config: PretrainConfig) -> Iterator[_Steps]:
    torch = importlib.import_module("torch")
    step = importlib.import_module("m3ae_tpu.measure.torch_mae").make_step(config)
    before = torch.cuda.memory_allocated()

    def steps() -> None:
        for _ in range(_CALLS):
            step()
        torch.cuda.synchronize()

    yield steps, lambda: torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()


def images_per_step(config: PretrainConfig) -> int:
    """Returns the rows of a step that have an image."""
    sources = mixture(config.data, config.batch_size)
    return sum(source.rows for source in sources if source.kind != "text")
