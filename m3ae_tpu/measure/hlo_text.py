"""Operations of a compiled TPU program, from its text: number of runs, memory traffic, work."""

import math
import re
from typing import NamedTuple

from m3ae_tpu.measure.hlo_program import (
    Computations,
    Instruction,
    arrays,
    called_computation,
    elements,
    loop_iterations,
    read_program,
    sizes,
)
from m3ae_tpu.measure.hlo_work import product_flops, sums_rows


class NotCountedError(Exception):
    """The cost of an operation is unknown: the replay gives no cycles, or a loop has no length."""


class Operation(NamedTuple):
    """An operation of a compiled program, counted as if loops were unrolled."""

    name: str
    kind: str
    times: int
    """Runs in one call of the program."""
    cycles: int | None
    """Cycles of one run; None where the replay gives none, or says 0, as it does for fusions that
    it cannot count. 0 for a copy in the background.
    """
    estimated_cycles: int | None
    """Cycles of one run that the compiler estimated to choose a tiling; None where it did not."""
    hbm_bytes: int
    """Bytes of arguments and results of one run outside VMEM, with tile padding."""
    product_flops: int
    """FLOPs of the matrix products in one run; 0 for an operation without one."""
    sums_rows: bool
    """If it sums over rows, as a bias's gradient does, beside no product."""
    reads_hbm: bool
    """If its largest argument lies outside VMEM."""
    source: str
    """Scope that JAX gave the operation: `jit(step)/...`."""


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
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_TAKING = ("slice", "dynamic-slice", "gather")
"""Operations that read of their first operand what they give."""
_PUTTING = {"dynamic-update-slice": 1, "scatter": 2}
"""Operations that write in place: the operand that they put into the first one."""
_IN_STACK = "_in_stack"
"""In the name of a kernel: its largest operand is a stack of layers, of which it reads one."""


def operations(text: str, *, unknown_iterations: int | None = None) -> list[Operation]:
    """Lists the operations of a compiled program, given as its text; a loop multiplies their runs.

    Args:
        text: The compiled program.
        unknown_iterations: Counted for a loop whose length is decided as it runs; None refuses it.

    Raises:
        NotCountedError: the program has a loop of unknown length, or a branch.
    """
    return _operations_of(*read_program(text), 1, unknown_iterations)


def _operations_of(
    computations: Computations, name: str, times: int, unknown_iterations: int | None
) -> list[Operation]:
    shapes, found = {}, []
    for line in computations[name]:
        shapes[line.name] = line.shape
        # AllocateBuffer reserves memory for another operation and does no work.
        is_free = line.kind in _FREE or 'custom_call_target="AllocateBuffer"' in line.rest
        if is_free or line.kind.endswith("-done"):
            continue
        if line.kind == "conditional":
            raise NotCountedError(f"{line.name}: the branch that runs is not known.")
        if line.kind in ("while", "call"):
            iterations = 1
            if line.kind == "while":
                iterations = loop_iterations(computations, line.rest) or unknown_iterations
            body = called_computation(line.rest, "body|to_apply")
            if body is None or iterations is None:
                raise NotCountedError(f"{line.name}: the number of iterations is not known.")
            found += _operations_of(computations, body, times * iterations, unknown_iterations)
            continue
        if line.kind.endswith("-start"):
            cycles, estimate, hbm_bytes = 0, None, _moved(line.shape)
        else:
            hbm_bytes = _traffic(computations, line, [shapes[operand] for operand in line.operands])
            cycles = _cycles(line.rest, "bundle_analysis_data") or None
            estimate = _cycles(line.rest, "window_config")
        source = re.search(r'op_name="([^"]*)"', line.rest)
        scope = source.group(1) if source else ""
        largest = max((shapes[operand] for operand in line.operands), key=_elements, default="")
        found.append(
            Operation(
                line.name,
                line.kind,
                times,
                cycles,
                estimate,
                hbm_bytes,
                product_flops(computations, shapes, line),
                sums_rows(computations, shapes, line),
                _hbm_bytes(largest) > 0,
                scope,
            )
        )
    return found


def _cycles(text: str, field: str) -> int | None:
    found = re.search(r'"estimated_cycles":"(\d+)"', text.partition(f'"{field}"')[2])
    return int(found.group(1)) if found else None


def _traffic(computations: Computations, line: Instruction, operands: list[str]) -> int:
    """Returns the bytes that an operation reads and writes; of a sliced array only the slice."""
    reads, writes = [1.0] * len(operands), [1.0] * len(arrays(line.shape))
    called = called_computation(line.rest, "calls") if line.kind == "fusion" else None
    if called is not None:
        shares = _shares(computations, called)
        reads = [shares.get(number, 1.0) for number in range(len(operands))]
        writes = _written_shares(computations[called])
    elif line.kind in _TAKING:
        reads[0] = elements(line.shape) / elements(operands[0])
    elif line.kind in _PUTTING:
        writes = [elements(operands[_PUTTING[line.kind]]) / elements(line.shape)]
        reads[0] = _read_where_put(line.kind, writes[0])
    elif line.kind == "custom-call" and _IN_STACK in line.name:
        largest = max(range(len(operands)), key=lambda place: _elements(operands[place]))
        reads[largest] = 1 / sizes(operands[largest])[0]
    read = sum(share * _hbm_bytes(shape) for share, shape in zip(reads, operands, strict=True))
    written = sum(
        share * _array_bytes(array) for share, array in zip(writes, arrays(line.shape), strict=True)
    )
    return round(read + written)


def _read_where_put(kind: str, share: float) -> float:
    """Returns the share of an array that is read where a share of it is written in place."""
    return share if kind == "scatter" else 0.0  # A scatter adds to what there is.


def _moved(shape: str) -> int:
    """Returns the bytes that a copy in the background reads and writes.

    Its shape names source and destination, one of which may be sliced.
    """
    both = arrays(shape)[:2]
    lengths = [math.prod(int(size) for size in array[1].split(",") if size) for array in both]
    return round(
        sum(_array_bytes(x) * min(lengths) / size for x, size in zip(both, lengths, strict=True))
    )


def _shares(computations: Computations, fusion: str) -> dict[int, float]:
    """Returns the share of each parameter that a fusion reads, fusions within it included."""
    fused = computations[fusion]
    lines = {line.name: line for line in fused}
    parameter_of = {line.name: line.name for line in fused if line.kind == "parameter"}
    touched: dict[str, list[float]] = {}
    for line in fused:
        for place, operand in enumerate(line.operands):
            if (parameter := parameter_of.get(operand)) is None:
                continue
            if line.kind == "bitcast":
                parameter_of[line.name] = parameter
            elif place == 0 and line.kind in _TAKING:
                touched.setdefault(parameter, []).append(
                    elements(line.shape) / elements(lines[operand].shape)
                )
            elif place == 0 and line.kind in _PUTTING:
                share = _put_share(lines, line)
                touched.setdefault(parameter, []).append(_read_where_put(line.kind, share))
            elif (inner := called_computation(line.rest, "calls")) is not None:
                if _passed_on(computations[inner]) == place:
                    parameter_of[line.name] = parameter
                touched.setdefault(parameter, []).append(
                    _shares(computations, inner).get(place, 0.0)
                )
            else:
                touched.setdefault(parameter, []).append(1.0)
    return {int(lines[name].rest): min(1.0, sum(shares)) for name, shares in touched.items()}


def _passed_on(fused: list[Instruction]) -> int | None:
    """Returns the parameter that a fusion passes on in another shape, or None if it computes."""
    lines = {line.name: line for line in fused}
    (line,) = (line for line in fused if line.is_root)
    while line.kind == "bitcast":
        line = lines[line.operands[0]]
    return int(line.rest) if line.kind == "parameter" else None


def _written_shares(fused: list[Instruction]) -> list[float]:
    """Returns the share of each result that a fusion writes: of an in-place update, the update."""
    lines = {line.name: line for line in fused}
    (root,) = (line for line in fused if line.is_root)

    def share(line: Instruction) -> float:
        while line.kind == "bitcast":
            line = lines[line.operands[0]]
        return _put_share(lines, line) if line.kind in _PUTTING else 1.0

    if root.kind == "tuple":
        return [share(lines[name]) for name in root.operands]
    return [share(root)] * len(arrays(root.shape))


def _put_share(lines: dict[str, Instruction], line: Instruction) -> float:
    """Returns the share of an array that an operation writes in place."""
    return elements(lines[line.operands[_PUTTING[line.kind]]].shape) / elements(line.shape)


def _elements(shape: str) -> int:
    return elements(shape) if arrays(shape) else 0


def _hbm_bytes(shape: str) -> int:
    return sum(map(_array_bytes, arrays(shape)))


def _array_bytes(array: tuple[str, str, str, str]) -> int:
    """Returns the bytes of an array in HBM, with tile padding; 0 for one in another memory."""
    kind, axes, order, layout = array
    if "S(" in layout:
        return 0
    padded = [int(size) for size in axes.split(",") if size]
    if padded and (tile := re.search(r"T\(([\d,]+)\)", layout)):
        minor_first = [int(axis) for axis in order.split(",")]
        for axis, size in zip(minor_first, reversed(tile.group(1).split(",")), strict=False):
            padded[axis] = -(-padded[axis] // int(size)) * int(size)
    return math.prod(padded) * _WIDTH[kind]
