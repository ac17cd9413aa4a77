"""A config's train step timed on the devices that are here, on random batches that lie there
already.
"""

import contextlib
import dataclasses
import functools
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.mixture import rows_per_source
from m3ae_tpu.measure.step_compile import batch_shapes
from m3ae_tpu.parallel.mesh import attention_on, by_example, cross_entropy_on, make_mesh
from m3ae_tpu.train.loop import compile_step
from m3ae_tpu.train.reconstruction import Batch
from m3ae_tpu.train.step import init_state

type Implementation = Literal["ours", "xla", "torch"]

_CALLS = 10


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Of one train step."""

    seconds: float
    """Median over the rounds."""
    spread: float
    """Half the distance between the quartiles, of the median."""
    temporary_bytes: int | None
    """Beside parameters, optimizer state and batch; as the compiler says, or PyTorch's highest."""


def timed_step(config: PretrainConfig, implementation: Implementation, *, rounds: int) -> StepTime:
    """Times train steps of a config on random data.

    Args:
        config: `batch_size` rows over all devices.
        implementation: "ours", with kernels; "xla", without; "torch", the same sizes in PyTorch on
            one GPU, for images alone.
        rounds: Of 10 steps each.
    """
    with (_torch_step if implementation == "torch" else _jax_step)(config, implementation) as (
        steps,
        memory,
    ):
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
def _jax_step(config: PretrainConfig, implementation: Implementation) -> Iterator[_Steps]:
    mesh = make_mesh()
    kernels = (attention_on(mesh), cross_entropy_on(mesh)) if implementation == "ours" else ()
    state = jax.jit(functools.partial(init_state, config, *kernels))()
    batch = jax.device_put(random_batch(config), by_example(mesh))
    compiled = compile_step(config, mesh).lower(state, batch).compile()
    analysis = compiled.memory_analysis()

    def steps() -> None:
        nonlocal state
        for _ in range(_CALLS):
            state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    yield steps, lambda: analysis.temp_size_in_bytes if analysis is not None else None
    jax.tree.map(lambda array: array.delete(), (state, batch))


def random_batch(config: PretrainConfig) -> Batch:
    """Returns a batch of random pixels and words; texts have all lengths."""
    keys = iter(jax.random.split(jax.random.key(0), 16))
    batch: Batch = {}
    for kind, shapes in batch_shapes(config).items():
        arrays = {}
        for name, shape in shapes.items():
            if name == "text_valid":
                lengths = jax.random.randint(next(keys), (shape.shape[0], 1), 1, shape.shape[1] + 1)
                arrays[name] = jnp.arange(shape.shape[1])[None] < lengths
            elif name == "flip":
                arrays[name] = jax.random.bernoulli(next(keys), shape=shape.shape)
            else:
                most = config.model.vocab_size if name == "text" else 256
                arrays[name] = jax.random.randint(next(keys), shape.shape, 0, most).astype(
                    shape.dtype
                )
        batch[kind] = arrays
    return batch


@contextlib.contextmanager
def _torch_step(config: PretrainConfig, _: Implementation) -> Iterator[_Steps]:
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
    sources = zip(config.data.sources, rows_per_source(config), strict=True)
    return sum(rows for source, rows in sources if source.kind != "text")
