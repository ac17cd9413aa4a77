"""What the TPU compiler schedules for a function, with no TPU at hand: cycles and bytes of its operations.

libtpu compiles for a described chip on any machine. One of its flags makes it replay each scheduled
operation, bundle by bundle, and write the cycles into the compiled program. It is read when libtpu
is loaded: `prepare()` comes before anything is compiled for a TPU.
"""

import contextlib
import dataclasses
import functools
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding


class Chip(NamedTuple):
    """A TPU as compiler and data sheet describe it."""

    topology: str
    clock_hz: float | None
    """Peak bfloat16 FLOP/s over what the matrix units do in a cycle; None where the replay does not run."""
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


class NotCountedError(Exception):
    """The compiler's replay gives no cycles for an operation: the program's cost is not known."""


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
    return topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip].topology).devices[0]


def compile_for(chip: str, function: Callable, *shapes: jax.ShapeDtypeStruct):
    """Compiles a function of arrays, all of them and its results row-major in HBM, as a model's layers hold them."""
    where = SingleDeviceSharding(device(chip))

    def place(x):
        return Format(Layout(tuple(range(len(x.shape)))), where)

    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)) for x in shapes]
    results = jax.tree.map(place, jax.eval_shape(function, *shapes))
    with not_kept():
        return jax.jit(function, out_shardings=results).lower(*arguments).compile()


@contextlib.contextmanager
def not_kept():
    """Keeps programs out of the persistent cache: one for a chip that is not here cannot be read back."""
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


def row_cost(chip: str, make: Callable[[int], tuple[Callable, Sequence]], batches: tuple[int, int]) -> Cost:
    """Returns the cost of one more row: start of the program and filling of its pipelines drop out.

    Args:
        chip: One of `CHIPS`.
        make: Returns function and shapes for a batch.
        batches: Two sizes, both multiples of the rows of a kernel's program.
    """
    small, large = (cost(chip, function, *shapes) for function, shapes in map(make, batches))
    rows = batches[1] - batches[0]
    return Cost(chip, (large.cycles - small.cycles) / rows, (large.hbm_bytes - small.hbm_bytes) / rows)


class Operation(NamedTuple):
    """An operation of a compiled program, loops unrolled in number."""

    name: str
    kind: str
    times: int
    """How often it runs in a call of the program."""
    cycles: int | None
    """Of one run; None where the replay gives none. 0 for a copy in the background."""
    hbm_bytes: int
    """Arguments and results of one run that are not in VMEM, tile padding included."""
    source: str
    """Where it comes from, as JAX names it: `jit(step)/...`."""


def read_cost(chip: str, text: str) -> Cost:
    """Adds up the operations of a compiled program, given as its text.

    Raises:
        NotCountedError: an operation that the replay has no cycles for, or a loop of unknown length.
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


_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]\{([\d,]*)(?::([^{}]*))?\}")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
_WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4}


def operations(text: str) -> list[Operation]:
    """Lists the operations of a compiled program, given as its text; those of a loop as often as it turns.

    Raises:
        NotCountedError: a loop whose length the compiler does not know, or a branch.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head.group(2)
            computations[name] = []
            entry = name if head.group(1) else entry
        elif name:
            computations[name].append(line)
    return _operations_of(computations, entry, 1)


def _operations_of(computations: dict[str, list[str]], name: str, times: int) -> list[Operation]:
    shapes, found = {}, []
    for line in computations[name]:
        if not (match := _INSTRUCTION.match(line)):
            continue
        name, shape, kind, rest = match.groups()
        shapes[name] = shape
        # AllocateBuffer: room for another operation, no work.
        if kind in _FREE or kind.endswith("-done") or 'custom_call_target="AllocateBuffer"' in rest:
            continue
        if kind == "conditional":
            raise NotCountedError(f"{name}: which branch runs is not known.")
        if kind in ("while", "call"):
            turns = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', rest)
            body = re.search(r"(?:body|to_apply)=%([\w.\-]+)", rest)
            if body is None or (kind == "while" and turns is None):
                raise NotCountedError(f"{name}: how often the loop turns is not known.")
            found += _operations_of(computations, body.group(1), times * int(turns.group(1) if turns else 1))
            continue
        source = re.search(r'op_name="([^"]*)"', rest)
        if kind.endswith("-start"):
            cycles, hbm_bytes = 0, sum(map(_array_bytes, _ARRAY.findall(shape)[:2]))
        else:
            operands = re.findall(r"%([\w.\-]+)", rest[: rest.index(")")])
            hbm_bytes = sum(map(_hbm_bytes, [shape, *(shapes[operand] for operand in operands)]))
            counted = re.search(r'"estimated_cycles":"(\d+)"', rest.partition('"bundle_analysis_data"')[2])
            cycles = int(counted.group(1)) if counted else None
        found.append(Operation(name, kind, times, cycles, hbm_bytes, source.group(1) if source else ""))
    return found


def _hbm_bytes(shape: str) -> int:
    return sum(map(_array_bytes, _ARRAY.findall(shape)))


def _array_bytes(array: tuple[str, str, str, str]) -> int:
    """Bytes of an array in HBM, its tiles padded; 0 for one in another memory."""
    kind, sizes, order, layout = array
    if "S(" in layout:
        return 0
    padded = [int(size) for size in sizes.split(",") if size]
    if padded and (tile := re.search(r"T\(([\d,]+)\)", layout)):
        minor_first = [int(axis) for axis in order.split(",")]
        for axis, size in zip(minor_first, reversed(tile.group(1).split(",")), strict=False):
            padded[axis] = -(-padded[axis] // int(size)) * int(size)
    return math.prod(padded) * _WIDTH[kind]
