"""Cost of a function on a described TPU, as its compiler schedules it: cycles and memory traffic.

libtpu compiles for a described chip on any machine. One of its flags makes it replay each scheduled
operation, bundle by bundle, and write the cycles into the compiled program. libtpu reads the flag
when it is loaded: call `prepare()` before anything is compiled for a TPU.
"""

import contextlib
import dataclasses
import functools
import math
import os
import tempfile
from collections.abc import Callable, Sequence

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure.hlo_text import NotCountedError, operations
from m3ae_tpu.parallel.mesh import described_mesh


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a program, or of a row of its batch, on one core."""

    chip: str
    cycles: float
    hbm_bytes: float
    """Bytes of arguments and results of all operations outside VMEM, with tile padding."""

    @property
    def scheduled_us(self) -> float:
        return self.cycles / (CHIPS[self.chip].clock_hz or math.nan) * 1e6

    @property
    def hbm_us(self) -> float:
        return self.hbm_bytes / CHIPS[self.chip].core_bytes_per_second * 1e6

    @property
    def us(self) -> float:
        """Microseconds: the larger of both, as if memory traffic and computation overlapped."""
        return max(self.scheduled_us, self.hbm_us)

    @property
    def bound(self) -> str:
        return "memory" if self.hbm_us > self.scheduled_us else "schedule"


def prepare(*, replay: bool) -> None:
    """Sets up libtpu for this process; call it before the first use.

    Args:
        replay: Make the compiler count cycles. The process then aborts at chips and operations that
            the replay does not support: compile these without it.

    Raises:
        ModuleNotFoundError: libtpu is not installed.
    """
    import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]

    if replay:
        flag = f"--xla_jf_dump_static_llo_profile_to={tempfile.mkdtemp(prefix='scheduled_cost_')}"
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flag}".strip()
    # Without a device, libtpu must neither ask a metadata server nor take the lock of the device.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")


@functools.cache
def device_mesh(chip: str) -> Mesh:
    """Returns a mesh of one described device: programs can be compiled for it, not run on it."""
    return described_mesh(CHIPS[chip].topology, 1)


def compile_for(chip: str, function: Callable, *shapes: jax.ShapeDtypeStruct):
    """Compiles a function of arrays for a chip, and with that chip's kernels.

    Arguments and results are row-major in HBM, as between the layers of a model.
    """
    # A sharding over a mesh, not `SingleDeviceSharding`: it tells a traced function the chip.
    sharding = NamedSharding(device_mesh(chip), PartitionSpec())

    def place(x):
        return Format(Layout(tuple(range(len(x.shape)))), sharding)

    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)) for x in shapes]
    results = jax.tree.map(place, jax.eval_shape(function, *shapes))
    with not_kept():
        return jax.jit(function, out_shardings=results).lower(*arguments).compile()


@contextlib.contextmanager
def not_kept():
    """Keeps programs compiled inside out of the persistent cache, which cannot load them again
    without the chip.
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    seconds = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        jax.config.update(name, seconds)


def cost(chip: str, function: Callable, *shapes: jax.ShapeDtypeStruct) -> Cost:
    """Returns the cost of one call.

    Raises:
        NotCountedError: the replay has no cycles for an operation.
    """
    return read_cost(chip, compile_for(chip, function, *shapes).as_text() or "")


def traffic(chip: str, function: Callable, *shapes: jax.ShapeDtypeStruct) -> int:
    """Returns the bytes of memory traffic of one call; needs no replay.

    Raises:
        NotCountedError: the program has a loop of unknown length, or a branch.
    """
    text = compile_for(chip, function, *shapes).as_text() or ""
    return sum(operation.times * operation.hbm_bytes for operation in operations(text))


def row_cost(
    chip: str, make: Callable[[int], tuple[Callable, Sequence]], batches: tuple[int, int]
) -> Cost:
    """Returns the cost of one more row, from the difference of two batches.

    Program start and pipeline fill cancel.

    Args:
        chip: A TPU of `CHIPS`.
        make: Returns function and shapes for a batch.
        batches: Two sizes, both multiples of the rows of a kernel's program.
    """
    small, large = (cost(chip, function, *shapes) for function, shapes in map(make, batches))
    rows = batches[1] - batches[0]
    return Cost(
        chip, (large.cycles - small.cycles) / rows, (large.hbm_bytes - small.hbm_bytes) / rows
    )


def read_cost(chip: str, text: str) -> Cost:
    """Adds up the operations of a compiled program, given as its text.

    Raises:
        NotCountedError: the replay has no cycles for an operation, or a loop has an unknown length.
    """
    cycles = hbm_bytes = 0
    for operation in operations(text):
        if operation.cycles is None:
            raise NotCountedError(
                f"{operation.name}: the compiler's replay gives no cycles for {operation.kind} "
                f"on {chip}."
            )
        cycles += operation.times * operation.cycles
        hbm_bytes += operation.times * operation.hbm_bytes
    return Cost(chip, cycles, hbm_bytes)
