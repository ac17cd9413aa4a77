"""Reads the text of a compiled TPU program: its operations, how often they run, and their memory
traffic.
"""

import math
import re
from typing import NamedTuple


class NotCountedError(Exception):
    """The cost of an operation is not known: the compiler's replay gives no cycles, or a loop no
    length.
    """


class Operation(NamedTuple):
    """An operation of a compiled program, loops unrolled in number."""

    name: str
    kind: str
    times: int
    """How often it runs in a call of the program."""
    cycles: int | None
    """Of one run; None where the replay gives none. 0 for a copy in the background."""
    estimated_cycles: int | None
    """Of one run, as the compiler expected when it chose how to cut a matrix product; None for
    others.
    """
    hbm_bytes: int
    """Arguments and results of one run that are not in VMEM, tile padding included."""
    source: str
    """Where it comes from, as JAX names it: `jit(step)/...`."""


type Computations = dict[str, list["Instruction"]]


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    """What follows the operands: attributes, and `op_name`."""
    is_root: bool


_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]\{([\d,]*)(?::([^{}]*))?\}")
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
}
_WIDTH = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
}


def operations(text: str) -> list[Operation]:
    """Lists the operations of a compiled program, given as its text; those of a loop as often as it
    turns.

    Raises:
        NotCountedError: a loop whose length is not known, or a branch.
    """
    computations: Computations = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head.group(2)
            computations[name] = []
            entry = name if head.group(1) else entry
        elif name and (match := _INSTRUCTION.match(line)):
            root, label, shape, kind, rest = match.groups()
            inside, _, after = rest.partition(")")
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            if kind == "parameter" or kind == "constant":
                after = inside
            computations[name].append(
                Instruction(label, shape, kind, operands, after, root is not None)
            )
    return _operations_of(computations, entry, 1)


def _operations_of(computations: Computations, name: str, times: int) -> list[Operation]:
    shapes, found = {}, []
    for line in computations[name]:
        shapes[line.name] = line.shape
        # AllocateBuffer: room for another operation, no work.
        is_free = line.kind in _FREE or 'custom_call_target="AllocateBuffer"' in line.rest
        if is_free or line.kind.endswith("-done"):
            continue
        if line.kind == "conditional":
            raise NotCountedError(f"{line.name}: which branch runs is not known.")
        if line.kind in ("while", "call"):
            turns = _turns(computations, line.rest) if line.kind == "while" else 1
            body = _called(line.rest, "body|to_apply")
            if body is None or turns is None:
                raise NotCountedError(f"{line.name}: how often the loop turns is not known.")
            found += _operations_of(computations, body, times * turns)
            continue
        if line.kind.endswith("-start"):
            cycles, estimate, hbm_bytes = 0, None, _moved(line.shape)
        else:
            hbm_bytes = _traffic(computations, line, [shapes[operand] for operand in line.operands])
            cycles = _cycles(line.rest, "bundle_analysis_data")
            estimate = _cycles(line.rest, "window_config")
        source = re.search(r'op_name="([^"]*)"', line.rest)
        scope = source.group(1) if source else ""
        found.append(Operation(line.name, line.kind, times, cycles, estimate, hbm_bytes, scope))
    return found


def _called(rest: str, attribute: str) -> str | None:
    found = re.search(rf"(?:{attribute})=%([\w.\-]+)", rest)
    return found.group(1) if found else None


def _turns(computations: Computations, loop: str) -> int | None:
    """How often a loop turns: as the compiler says, or as the limit of a counter, which JAX's loops
    start at 0.
    """
    if told := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop):
        return int(told.group(1))
    lines = {line.name: line for line in computations[_called(loop, "condition") or ""]}
    (root,) = (line for line in lines.values() if line.is_root)
    if root.kind != "compare" or "direction=LT" not in root.rest:
        return None
    limit = lines[root.operands[1]]
    return int(limit.rest) if limit.kind == "constant" else None


def _cycles(text: str, field: str) -> int | None:
    found = re.search(r'"estimated_cycles":"(\d+)"', text.partition(f'"{field}"')[2])
    return int(found.group(1)) if found else None


def _traffic(computations: Computations, line: Instruction, operands: list[str]) -> int:
    """Bytes of memory that an operation reads and writes; of a stack of layers only the slice that
    it touches.
    """
    reads, writes = [1.0] * len(operands), [1.0] * len(_arrays(line.shape))
    called = _called(line.rest, "calls") if line.kind == "fusion" else None
    if called is not None:
        shares = _shares(computations, called)
        reads = [shares.get(number, 1.0) for number in range(len(operands))]
        writes = _written_shares(computations[called])
    elif line.kind == "dynamic-slice":
        reads[0] = _size(line.shape) / _size(operands[0])
    elif line.kind == "dynamic-update-slice":
        reads[0], writes = 0.0, [_size(operands[1]) / _size(line.shape)]
    read = sum(share * _hbm_bytes(shape) for share, shape in zip(reads, operands, strict=True))
    written = sum(
        share * _array_bytes(array)
        for share, array in zip(writes, _arrays(line.shape), strict=True)
    )
    return round(read + written)


def _moved(shape: str) -> int:
    """Bytes of memory that a copy in the background touches, which may take a slice: two arrays,
    from and to.
    """
    both = _arrays(shape)[:2]
    sizes = [math.prod(int(size) for size in array[1].split(",") if size) for array in both]
    return round(
        sum(_array_bytes(x) * min(sizes) / size for x, size in zip(both, sizes, strict=True))
    )


def _shares(computations: Computations, fusion: str) -> dict[int, float]:
    """The share of each parameter that a fusion reads, also where another one in it does."""
    fused = computations[fusion]
    lines = {line.name: line for line in fused}
    origin = {line.name: line.name for line in fused if line.kind == "parameter"}
    touched: dict[str, list[float]] = {}
    for line in fused:
        for place, operand in enumerate(line.operands):
            if (parameter := origin.get(operand)) is None:
                continue
            if line.kind == "bitcast":
                origin[line.name] = parameter
            elif place == 0 and line.kind == "dynamic-slice":
                touched.setdefault(parameter, []).append(
                    _size(line.shape) / _size(lines[operand].shape)
                )
            elif place == 0 and line.kind == "dynamic-update-slice":
                touched.setdefault(parameter, []).append(0.0)
            elif (inner := _called(line.rest, "calls")) is not None:
                touched.setdefault(parameter, []).append(
                    _shares(computations, inner).get(place, 0.0)
                )
            else:
                touched.setdefault(parameter, []).append(1.0)
    return {int(lines[name].rest): min(1.0, sum(shares)) for name, shares in touched.items()}


def _written_shares(fused: list[Instruction]) -> list[float]:
    """The share of each result that a fusion writes: of an update in place the update."""
    lines = {line.name: line for line in fused}
    (root,) = (line for line in fused if line.is_root)

    def share(line: Instruction) -> float:
        while line.kind == "bitcast":
            line = lines[line.operands[0]]
        if line.kind != "dynamic-update-slice":
            return 1.0
        return _size(lines[line.operands[1]].shape) / _size(line.shape)

    if root.kind == "tuple":
        return [share(lines[name]) for name in root.operands]
    return [share(root)] * len(_arrays(root.shape))


def _arrays(shape: str) -> list[tuple[str, str, str, str]]:
    return _ARRAY.findall(shape)


def _size(shape: str) -> int:
    """Elements of an array."""
    return math.prod(int(size) for size in _arrays(shape)[0][1].split(",") if size)


def _hbm_bytes(shape: str) -> int:
    return sum(map(_array_bytes, _arrays(shape)))


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
