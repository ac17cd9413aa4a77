"""Parser of a compiled program's text: computations, their instructions, sizes of arrays."""

import math
import re
from typing import NamedTuple

type Computations = dict[str, list["Instruction"]]


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    """Text after the operands: attributes, and `op_name`."""
    is_root: bool


_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]\{([\d,]*)(?::([^{}]*))?\}")


def read_program(text: str) -> tuple[Computations, str]:
    """Returns the instructions of a compiled program by computation, and the entry's name."""
    found: Computations = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head.group(2)
            found[name] = []
            entry = name if head.group(1) else entry
        elif name and (match := _INSTRUCTION.match(line)):
            root, label, shape, kind, rest = match.groups()
            inside, _, after = rest.partition(")")
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            if kind == "parameter" or kind == "constant":
                after = inside
            found[name].append(Instruction(label, shape, kind, operands, after, root is not None))
    return found, entry


def called_computation(rest: str, attribute: str) -> str | None:
    """Returns the computation that an attribute of an instruction names, if it does."""
    found = re.search(rf"(?:{attribute})=%([\w.\-]+)", rest)
    return found.group(1) if found else None


def loop_iterations(computations: Computations, loop: str) -> int | None:
    """Returns a loop's iterations: as annotated by the compiler, or the limit of its counter, which
    starts at 0 in JAX's loops.
    """
    if annotated := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop):
        return int(annotated.group(1))
    lines = {line.name: line for line in computations[called_computation(loop, "condition") or ""]}
    (root,) = (line for line in lines.values() if line.is_root)
    if root.kind != "compare" or "direction=LT" not in root.rest:
        return None
    limit = lines[root.operands[1]]
    return int(limit.rest) if limit.kind == "constant" else None


def arrays(shape: str) -> list[tuple[str, str, str, str]]:
    """Returns dtype, sizes, order of axes and layout of each array of a shape, as text."""
    return _ARRAY.findall(shape)


def sizes(shape: str) -> list[int]:
    """Returns the sizes of the axes of an array."""
    return [int(size) for size in arrays(shape)[0][1].split(",") if size]


def elements(shape: str) -> int:
    """Returns the number of elements of an array."""
    return math.prod(sizes(shape))
