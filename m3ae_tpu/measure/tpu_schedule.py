"""What the TPU compiler schedules for a function, with no TPU at hand: cycles and bytes of its
operations.

libtpu compiles for a described chip on any machine. One of its flags makes it replay each scheduled
operation, bundle by bundle, and write the cycles into the compiled program. It is read when libtpu
is loaded: `prepare()` comes before anything is compiled for a TPU.
"""

import contextlib
import dataclasses
import functools
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from m3ae_tpu.measure.hlo_text import NotCountedError, operations


class Chip(NamedTuple):
    """A TPU as compiler and data sheet describe it."""

    topology: str
    clock_hz: float | None
    """Peak bfloat16 FLOP/s over what the matrix units do in a cycle; None where the replay does not
    run.
    """
    hbm_bytes_per_second: float | None
    """Of one core."""
    peak_flops: float | None
    """bfloat16, of one core."""


CHIPS = {
    "v4": Chip("v4:2x2x1", None, None, None),
    "v5e": Chip("v5e:2x2", 1.50e9, 819e9, 197e12),
    "v5p": Chip("v5p:2x2x1", 1.75e9, 2765e9 / 2, 459e12 / 2),
    "v6e": Chip("v6e:2x2", 1.75e9, 1640e9, 918e12),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a program, or of a row of its batch."""

    chip: str
    cycles: float
    hbm_bytes: float
    """Arguments and results of every operation that are not in VMEM, tile padding included."""

    @property
    def scheduled_us(self) -> float:
        return self.cycles / (CHIPS[self.chip].clock_hz or math.nan) * 1e6

    @property
    def hbm_us(self) -> float:
        return self.hbm_bytes / (CHIPS[self.chip].hbm_bytes_per_second or math.nan) * 1e6

    @property
    def us(self) -> float:
        """Microseconds: the larger of both. The replay takes reads and writes for independent."""
        return max(self.scheduled_us, self.hbm_us)

    @property
    def bound(self) -> str:
        return "memory" if self.hbm_us > self.scheduled_us else "schedule"


def prepare(*, replay: bool) -> None:
    """Makes libtpu ready for this process; comes before its first use.

    Args:
        replay: Have the compiler count cycles. The process then aborts where the replay does not
            run: compile for such a chip, or such an operation, without it.

    Raises:
        ModuleNotFoundError: libtpu is not installed.
    """
    import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]

    if replay:
        flag = f"--xla_jf_dump_static_llo_profile_to={tempfile.mkdtemp(prefix='scheduled_cost_')}"
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flag}".strip()
    # No metadata server and no lock: nothing here touches a device.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")


@functools.cache
def device(chip: str):
    """Returns a described device: programs can be compiled for it, not run on it."""
    return topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip].topology).devices[
        0
    ]


def compile_for(chip: str, function: Callable, *shapes: jax.ShapeDtypeStruct):
    """Compiles a function of arrays, all of them and its results row-major in HBM, as a model's
    layers hold them.
    """
    where = SingleDeviceSharding(device(chip))

    def place(x):
        return Format(Layout(tuple(range(len(x.shape)))), where)

    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)) for x in shapes]
    results = jax.tree.map(place, jax.eval_shape(function, *shapes))
    with not_kept():
        return jax.jit(function, out_shardings=results).lower(*arguments).compile()


@contextlib.contextmanager
def not_kept():
    """Keeps programs out of the persistent cache: one for a chip that is not here cannot be read
    back.
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
        NotCountedError: an operation that the replay has no cycles for.
    """
    return read_cost(chip, compile_for(chip, function, *shapes).as_text() or "")


def traffic(chip: str, function: Callable, *shapes: jax.ShapeDtypeStruct) -> int:
    """Returns the bytes of memory traffic of one call; needs no replay.

    Raises:
        NotCountedError: a loop of unknown length, or a branch.
    """
    text = compile_for(chip, function, *shapes).as_text() or ""
    return sum(operation.times * operation.hbm_bytes for operation in operations(text))


def row_cost(
    chip: str, make: Callable[[int], tuple[Callable, Sequence]], batches: tuple[int, int]
) -> Cost:
    """Returns the cost of one more row: start of the program and filling of its pipelines drop out.

    Args:
        chip: One of `CHIPS`.
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
        NotCountedError: an operation that the replay has no cycles for, or a loop of unknown
            length.
    """
    cycles = hbm_bytes = 0
    for operation in operations(text):
        if operation.cycles is None:
            raise NotCountedError(
                f"{operation.name}: the compiler's replay gives no cycles for {operation.kind} on {chip}."
            )
        cycles += operation.times * operation.cycles
        hbm_bytes += operation.times * operation.hbm_bytes
    return Cost(chip, cycles, hbm_bytes)
