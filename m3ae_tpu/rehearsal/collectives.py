"""Collectives of a compiled TPU program, read from its text: kind, mesh axis, bytes, and runs."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from m3ae_tpu.measure.hlo_program import (
    Computations,
    Instruction,
    called_computation,
    loop_iterations,
    read_program,
)

BETWEEN_SLICES = "between slices"
"""The axis of transfers that leave a slice and cross the data centre's network."""


class Collective(NamedTuple):
    """One collective operation of a program."""

    kind: str
    """`all-gather`, `reduce-scatter`, `all-reduce`, `all-to-all` or `collective-permute`."""
    axis: str
    """Mesh axes whose devices exchange, joined by `+`; `between slices`, or `?` for other groups.
    """
    dtypes: str
    bytes: int
    """Bytes of one run, of the whole array: gathered, to be scattered, or summed."""
    times: int
    """Runs in one call of the program, that is a step."""
    is_in_loop: bool
    is_asynchronous: bool
    """True if the compiler's schedule computes something else meanwhile."""
    source: str
    """Scope that JAX gave the operation."""


class _Place(NamedTuple):
    """Place that an instruction is run from."""

    times: int = 1
    is_in_loop: bool = False
    is_asynchronous: bool = False
    scatters: bool = False


_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ARRAY = re.compile(r"([a-z]+\d+|pred)\[([\d,]*)\]")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4}
_BYTES |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8}


def collectives(text: str, axes: Mapping[str, int]) -> list[Collective]:
    """Lists the collectives of a program, in the order in which it names them.

    The compiler prints an asynchronous collective once in each computation that works beside it; it
    is counted once. A reduce-scatter is printed as the all-reduce inside a fusion.

    Args:
        text: The compiled program.
        axes: Sizes of the mesh axes by name, in the mesh's order; those of one slice if there are
            several.
    """
    computations, entry = read_program(text)
    found: dict[tuple, dict[str, Collective]] = {}
    copied = set()
    for line, place in _lines(computations, entry, _Place()):
        collective = _collective(line, place, axes)
        if collective is None:
            continue
        channel = re.search(r"channel_id=(\d+)", line.rest)
        name = channel.group(1) if channel else line.name
        key = (collective.kind, name, _sizes(line.shape), collective.times, collective.source)
        found.setdefault(key, {}).setdefault(line.name, collective)
        if place.is_asynchronous:
            copied.add(key)
    # Different collectives may share a channel, but those that are copies have an asynchronous one.
    return [
        line._replace(is_asynchronous=line.is_asynchronous or key in copied)
        for key, named in found.items()
        for line in list(named.values())[: 1 if key in copied else None]
    ]


def _lines(
    computations: Computations, name: str, place: _Place
) -> Iterator[tuple[Instruction, _Place]]:
    """Yields each instruction that is reached from a computation, with where it is run from."""
    for line in computations[name]:
        yield line, place
        if line.kind == "while":
            iterations = loop_iterations(computations, line.rest) or 1
            inner = place._replace(times=place.times * iterations, is_in_loop=True)
        else:
            called = called_computation(line.rest, "calls") or ""
            inner = place._replace(
                is_asynchronous=place.is_asynchronous
                or "async-collective" in line.name
                or "async_collective" in line.name
                or line.kind == "async-start",
                scatters=place.scatters or called.startswith("all-reduce-scatter"),
            )
        # What an all-reduce applies to two numbers holds no collective.
        attributes = "body|calls|to_apply" if line.kind == "call" else "body|calls"
        if line.kind == "conditional":
            for branch in _branches(line.rest):
                yield from _lines(computations, branch, place)
        elif (called := called_computation(line.rest, attributes)) in computations:
            yield from _lines(computations, called, inner)


def _branches(rest: str) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", rest)
    pairs = re.findall(r"(?:true|false)_computation=%([\w.\-]+)", rest)
    return re.findall(r"%([\w.\-]+)", listed.group(1)) if listed else pairs


def _collective(line: Instruction, place: _Place, axes: Mapping[str, int]) -> Collective | None:
    source = re.search(r'op_name="([^"]*)"', line.rest)
    scope = source.group(1) if source else ""
    where = (place.times, place.is_in_loop or "/while/body" in scope)
    if line.kind == "send" and "_xla_megascale_transfer_type" in line.rest:
        transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', line.rest)
        kind = transfer.group(1).lower().replace("_", "-") if transfer else "send"
        sent = _ARRAY.findall(line.shape)[:1]
        return Collective(kind, BETWEEN_SLICES, *_amount(sent), *where, True, scope)
    kind = line.kind.removesuffix("-start")
    if kind not in _KINDS:
        return None
    arrays = _ARRAY.findall(line.shape)
    if line.kind == "all-gather-start":  # Its shape names the operands, then the results.
        arrays = arrays[len(arrays) // 2 :]
    elif line.kind == "collective-permute-start":
        arrays = arrays[1:2]
    elif kind == "reduce-scatter":  # What is scattered is as many times larger than the result.
        groups = _groups(line.rest)
        times = 1 if groups is None else groups.shape[1]
        arrays = arrays * times
    if kind == "all-reduce" and place.scatters:
        kind = "reduce-scatter"
    is_asynchronous = place.is_asynchronous or line.kind.endswith("-start")
    axis = _axis(line.rest, axes)
    return Collective(kind, axis, *_amount(arrays), *where, is_asynchronous, scope)


def _amount(arrays: list[tuple[str, str]]) -> tuple[str, int]:
    """Returns the dtypes of arrays, and their bytes together."""
    sizes = [
        math.prod(int(size) for size in dims.split(",") if size) * _BYTES[dtype]
        for dtype, dims in arrays
    ]
    return "+".join(sorted({dtype for dtype, _ in arrays})), sum(sizes)


def _sizes(shape: str) -> tuple:
    return tuple(_ARRAY.findall(shape))


def _axis(rest: str, axes: Mapping[str, int]) -> str:
    """Returns the names of the mesh axes that an operation's groups of devices span."""
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", rest):
        return _axis_of_pairs(pairs.group(1), axes)
    groups = _groups(rest)
    if groups is None:
        return "?"
    wanted = {frozenset(group) for group in groups.tolist()}
    devices = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
    names = [name for name, size in axes.items() if size > 1]
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            moved = [list(axes).index(name) for name in chosen]
            size = math.prod(axes[name] for name in chosen)
            of_axes = np.moveaxis(devices, moved, range(-len(moved), 0)).reshape(-1, size)
            if {frozenset(group) for group in of_axes.tolist()} == wanted:
                return "+".join(chosen)
    return "?"


def _axis_of_pairs(pairs: str, axes: Mapping[str, int]) -> str:
    ends = np.array(
        [list(map(int, pair.split(","))) for pair in re.findall(r"\{([\d,]+)\}", pairs)]
    )
    shape = tuple(axes.values())
    if ends.max() >= math.prod(shape):
        return "?"
    start, end = (np.stack(np.unravel_index(ends[:, column], shape)) for column in (0, 1))
    differs = (start != end).any(axis=1)
    names = [name for name, differs_here in zip(axes, differs, strict=True) if differs_here]
    return "+".join(names) or "?"


def _groups(rest: str) -> np.ndarray | None:
    """Returns an operation's groups of devices, one a row, from any of the forms of the text."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        return _groups_of_mesh(*match.groups())
    form = r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if match := re.search(form, rest):
        shape, sizes, order = (
            [int(n) for n in (part or "").split(",") if n] for part in match.groups()
        )
        devices = np.arange(math.prod(sizes)).reshape(sizes)
        return (devices.transpose(order) if order else devices).reshape(shape)
    if match := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", rest):
        rows = re.findall(r"\{([\d,]+)\}", match.group(1))
        return np.array([[int(n) for n in row.split(",")] for row in rows])
    return None


def _groups_of_mesh(mesh: str, used: str) -> np.ndarray:
    """Reads the form `mesh['data'=4,'fsdp'=8] {'data','fsdp':(2)4}`: `(2)4` names the part of the
    axis that varies below its first 2 pieces, of size 4.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", used)
    shape: list[int] = []
    chosen: list[int] = []
    for name, size in sizes.items():
        of_axis = [(int(before), int(part)) for n, before, part in parts if n == name and part]
        if not of_axis:
            if any(n == name for n, _, _ in parts):
                chosen.append(len(shape))
            shape.append(size)
            continue
        done = 1
        for before, part in sorted(of_axis):
            shape.append(before // done)
            chosen.append(len(shape))
            shape.append(part)
            done = before * part
        shape.append(size // done)
    devices = np.arange(math.prod(shape)).reshape(shape)
    rest = [axis for axis in range(len(shape)) if axis not in chosen]
    return devices.transpose(rest + chosen).reshape(-1, math.prod(shape[axis] for axis in chosen))
