"""Kernels of a program compiled for a GPU, read from its text: bytes, FLOPs, and what each is."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from m3ae_tpu.measure.hlo_program import (
    Computations,
    Instruction,
    called_computation,
    loop_iterations,
    read_program,
)
from m3ae_tpu.measure.hlo_text import NotCountedError

PRODUCT, ATTENTION, ATTENTION_BACKWARD = "product", "attention", "attention backward"
COLLECTIVE, PALLAS = "collective", "pallas"

type Arrays = list[tuple[str, tuple[int, ...]]]
"""Dtype and sizes of each array of a shape."""


class Kernel(NamedTuple):
    """A kernel of a compiled program, counted as if loops were unrolled."""

    name: str
    kind: str
    """`PRODUCT` by cuBLAS or Triton, `ATTENTION` and `ATTENTION_BACKWARD` by cuDNN, `COLLECTIVE`,
    `PALLAS` for kernels written in it; otherwise as the program names it: "fusion", "copy".
    """
    times: int
    """Runs in one call of the program."""
    read_bytes: int
    """Bytes of one run: each argument once, and of one that is sliced the slice."""
    written_bytes: int
    """Without workspaces."""
    flops: int
    """FLOPs of its matrix products, one run."""
    epilogue: str
    """Name of what cuBLASLt computes after the product, such as `BIAS_GELU_AUX`."""
    results: Arrays
    scope: str
    """Scope that JAX gave it: `jit(step)/...`."""

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes


_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_WIDTH = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8} | {
    f"{sign}{bits}": bits // 8 for sign in "su" for bits in (8, 16, 32, 64)
}
_NO_KERNEL = {
    "parameter",
    "constant",
    "bitcast",
    "get-tuple-element",
    "tuple",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
    "optimization-barrier",
    "opt-barrier",
}
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_SLICES = ("slice", "dynamic-slice", "gather")
_IN_PLACE = ("dynamic-update-slice", "scatter")
_ARGUMENT_OF_UPDATE = {"dynamic-update-slice": 1, "scatter": 2}


def kernels(text: str) -> list[Kernel]:
    """Lists the kernels of a program that was compiled for a GPU, given as its text.

    Raises:
        NotCountedError: the program has a loop of unknown length, or a branch.
    """
    computations, entry = read_program(text)
    return _kernels_of(computations, entry, 1)


def _kernels_of(computations: Computations, name: str, times: int) -> list[Kernel]:
    shapes, found = {}, []
    for line in computations[name]:
        shapes[line.name] = line.shape
        if line.kind in _NO_KERNEL or line.kind.endswith("-done"):
            continue
        if line.kind == "conditional":
            raise NotCountedError(f"{line.name}: the branch that runs is not known.")
        if line.kind in ("while", "call"):
            iterations = 1
            if line.kind == "while":
                iterations = loop_iterations(computations, line.rest)
            body = called_computation(line.rest, "body|to_apply")
            if body is None or iterations is None:
                raise NotCountedError(f"{line.name}: the number of iterations is not known.")
            found += _kernels_of(computations, body, times * iterations)
            continue
        found.append(_kernel(computations, line, shapes, times))
    return found


def _kernel(
    computations: Computations, line: Instruction, shapes: Mapping[str, str], times: int
) -> Kernel:
    called = called_computation(line.rest, "calls")
    inside = computations[called] if line.kind == "fusion" and called else []
    within = {inner.name: inner.shape for inner in inside}
    # A fusion that slices an argument of cuBLAS holds the call.
    products = [
        (inner, around)
        for lines, around in (([line], shapes), (inside, within))
        for inner in lines
        if inner.kind == "dot" or "__cublas" in inner.rest.partition(", metadata=")[0]
    ]
    target = re.search(r'custom_call_target="([^"]+)"', line.rest)
    epilogues = [re.search(r'"epilogue":\s*"(\w+)"', inner.rest) for inner, _ in products]
    return Kernel(
        name=line.name,
        kind=_kind(line, target.group(1) if target else "", is_product=bool(products)),
        times=times,
        read_bytes=_read(line, shapes, inside),
        written_bytes=_written(line, inside),
        flops=sum(_product_flops(inner, around) for inner, around in products),
        epilogue=next((found.group(1) for found in epilogues if found), ""),
        results=arrays(line.shape),
        scope=next(filter(None, map(_scope, [line, *(inner for inner, _ in products)])), ""),
    )


def _scope(line: Instruction) -> str:
    found = re.search(r'op_name="([^"]*)"', line.rest)
    return found.group(1) if found else ""


def _kind(line: Instruction, target: str, *, is_product: bool) -> str:
    if is_product:
        return PRODUCT
    if target.startswith("__cudnn$fmha"):
        return ATTENTION_BACKWARD if "Backward" in target else ATTENTION
    if "mosaic" in target or "triton" in target:
        return PALLAS
    if line.kind.removesuffix("-start") in _COLLECTIVES:
        return COLLECTIVE
    return target or line.kind


def arrays(shape: str) -> Arrays:
    """Returns dtype and sizes of each array of a shape."""
    return [
        (kind, tuple(int(size) for size in sizes.split(",") if size))
        for kind, sizes in _ARRAY.findall(shape)
        if kind in _WIDTH
    ]


def _size(shape: str) -> int:
    return _size_of(arrays(shape))


def _size_of(of: Arrays) -> int:
    """Returns the bytes of arrays."""
    return sum(_WIDTH[kind] * math.prod(sizes) for kind, sizes in of)


def _product_flops(product: Instruction, shapes: Mapping[str, str]) -> int:
    (_, left), (_, result) = arrays(shapes[product.operands[0]])[0], arrays(product.shape)[0]
    contracted = re.search(
        r'"?lhs_contracting_dim(?:ension)?s"?[:=]\s*[\[{]([\d",]*)[\]}]', product.rest
    )
    axes = contracted.group(1).replace('"', "").split(",") if contracted else []
    return 2 * math.prod(result) * math.prod(left[int(axis)] for axis in axes if axis)


def _read(line: Instruction, shapes: Mapping[str, str], inside: Sequence[Instruction]) -> int:
    """Returns the bytes that a kernel reads; an argument that is given twice counts once."""
    read: dict[str, int] = {}
    of_parameter = _read_of_parameters(inside)
    for place, operand in enumerate(line.operands):
        size = of_parameter.get(place, 0) if inside else _size(shapes.get(operand, ""))
        if place == 0 and line.kind in _SLICES:
            size = _size(line.shape)
        elif place == 0 and line.kind in _IN_PLACE:
            size = 0
        read[operand] = max(read.get(operand, 0), size)
    return sum(read.values())


def _read_of_parameters(inside: Sequence[Instruction]) -> dict[int, int]:
    """Returns the bytes that a fusion reads of each argument."""
    read = {}
    for parameter in inside:
        if parameter.kind != "parameter":
            continue
        whole, total, names = _size(parameter.shape), 0, [parameter.name]
        while names:
            name = names.pop()
            for line in inside:
                if name not in line.operands:
                    continue
                is_first = line.operands[0] == name and line.operands.count(name) == 1
                if line.kind == "bitcast":
                    names.append(line.name)
                elif is_first and line.kind in _SLICES:
                    total += _size(line.shape)
                elif not (is_first and line.kind in _IN_PLACE):
                    total += whole
        read[int(parameter.rest)] = min(whole, total)
    return read


def _written(line: Instruction, inside: Sequence[Instruction]) -> int:
    """Returns the bytes that a kernel writes; of an update in place those of the update."""
    lines = {inner.name: inner for inner in inside}
    roots = [inner for inner in inside if inner.is_root] or [line]
    if roots[0].kind == "tuple":
        roots = [lines[name] for name in roots[0].operands]
    return sum(_written_by(root, lines) for root in roots)


def _written_by(root: Instruction, lines: Mapping[str, Instruction]) -> int:
    while root.kind in ("bitcast", "get-tuple-element") and root.operands[0] in lines:
        root = lines[root.operands[0]]
    update = _ARGUMENT_OF_UPDATE.get(root.kind)
    if update is not None and root.operands[update] in lines:
        return _size(lines[root.operands[update]].shape)
    results = arrays(root.shape)
    if root.kind == "custom-call":  # Bytes beside its first result are a workspace.
        results = results[:1] + [array for array in results[1:] if array[0] not in ("s8", "u8")]
    return _size_of(results)
