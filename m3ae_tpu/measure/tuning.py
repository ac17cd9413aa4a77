"""Search for the attention kernels' block sizes, and their table in `block_sizes.json`."""

import dataclasses
import datetime
import functools
import importlib.metadata
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from m3ae_tpu.files import atomic_write
from m3ae_tpu.kernels.attention import block_sizes
from m3ae_tpu.kernels.attention.block_sizes import Blocks, blocks_for
from m3ae_tpu.kernels.attention.shapes import AttentionShape
from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure.compiler_process import TIMEOUT, CompilerProcess, ReplayFailedError
from m3ae_tpu.measure.kernel_cost import Case, scheduled_with

_CHOICES = {
    "rows": (1, 2, 4, 8, 16),
    "unroll": (1, 2, 4, 8, 16, 32),
    "query_tile": (128, 256),
    "key_tile": (128, 256),
}
_OFFSETS = (1, 2, 3, 4, 6, 8, 12)


def tune(
    shapes: Mapping[str, AttentionShape],
    chips: Sequence[str],
    *,
    is_masked: bool,
    report: Callable[[str], None],
) -> Iterator[str]:
    """Searches block sizes for every chip and shape, forward first, and yields a line on each.

    Sizes that are better than those in use are written to `block_sizes.json` as they are found.

    Args:
        shapes: By name.
        chips: TPUs of `CHIPS` that the replay supports.
        is_masked: Tune attention with a mask of valid keys.
        report: Takes a line on the progress of the search.
    """
    path = pathlib.Path(block_sizes.__file__).with_suffix(".json")
    compiler = CompilerProcess(replay=True, timeout=TIMEOUT)
    for chip, name, kernel in itertools.product(
        chips, shapes, ("attention_forward", "attention_backward")
    ):
        shape, title = shapes[name], f"{kernel} {name} {chip}"
        case = Case(shape, backward=kernel == "attention_backward", is_masked=is_masked)
        start = blocks_for(kernel, CHIPS[chip].device_kind, shape.tokens, "bfloat16")
        report(title)
        measure = functools.partial(_measure, compiler, kernel, case, chip)
        found = hill_climb(
            start, measure, report=lambda text, title=title: report(f"{title}: {text}")
        )
        yield f"{title}: {found.before:.3f} -> {found.after:.3f} us, {found.tries} tried"
        if found.blocks != start:
            table = json.loads(path.read_text())
            source = _source(chip, shape)
            table = with_row(table, kernel, chip, shape.tokens, found.blocks, source)
            atomic_write(path, dumps(table))
            yield f"  {found.blocks}, written to {path}"
    compiler.close()


def _measure(
    compiler: CompilerProcess, kernel: str, case: Case, chip: str, blocks: Blocks
) -> float | None:
    try:
        return compiler.run(scheduled_with, kernel, blocks, case, chip)
    except ReplayFailedError:
        return None


def _source(chip: str, shape: AttentionShape) -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    return (
        f"fewest scheduled cycles on {chip}, {shape.tokens} tokens, {shape.num_heads} heads of "
        f"{shape.head_dim}; libtpu {importlib.metadata.version('libtpu')}, {today}"
    )


def neighbours(blocks: Blocks) -> Iterator[Blocks]:
    """Yields block sizes that differ in one setting, by one step of its choices."""
    for name, choices in _CHOICES.items():
        index = choices.index(getattr(blocks, name))
        for value in (*choices[max(0, index - 1) : index], *choices[index + 1 : index + 2]):
            yield dataclasses.replace(blocks, **{name: value})
    for number, offset in enumerate(blocks.stage_offsets):
        smaller = [choice for choice in _OFFSETS if choice < offset][-1:]
        larger = [choice for choice in _OFFSETS if choice > offset][:1]
        for value in (*smaller, *larger):
            offsets = (*blocks.stage_offsets[:number], value, *blocks.stage_offsets[number + 1 :])
            yield dataclasses.replace(blocks, stage_offsets=offsets)


class Found(NamedTuple):
    """Result of a search."""

    blocks: Blocks
    before: float
    """Microseconds at the start."""
    after: float
    """Microseconds of the result."""
    tries: int


def hill_climb(
    start: Blocks,
    measure: Callable[[Blocks], float | None],
    *,
    report: Callable[[str], None] = lambda text: None,
) -> Found:
    """Moves to the best neighbour until none is faster by half a per cent.

    Args:
        start: First block sizes.
        measure: Returns microseconds, or None for sizes that do not compile. Called once for the
            same sizes.
        report: Takes a line on the progress.

    Raises:
        ValueError: `start` cannot be measured.
    """
    measured: dict[Blocks, float | None] = {}

    def us(blocks: Blocks) -> float:
        if blocks not in measured:
            measured[blocks] = measure(blocks)
            fastest = min((us for us in measured.values() if us is not None), default=math.nan)
            report(f"{len(measured)} tried, best {fastest:.3f} us")
        result = measured[blocks]
        return float("inf") if result is None else result

    best = start
    if us(start) == float("inf"):
        raise ValueError(f"{start} cannot be measured, so that nothing can be compared with it.")
    while True:
        candidate = min(neighbours(best), key=us)
        if us(candidate) > 0.995 * us(best):
            return Found(best, us(start), us(best), len(measured))
        best = candidate


def with_row(
    table: list[dict], kernel: str, chip: str, tokens: int, blocks: Blocks, source: str
) -> list[dict]:
    """Returns the table with a row of block sizes for a chip in bfloat16.

    The row holds for the token counts of the row that matched before, which it replaces if that one
    was for the same chip and dtype.

    Args:
        table: Rows of `block_sizes.json`.
        kernel: "attention_forward" or "attention_backward".
        chip: A name of `CHIPS`.
        tokens: Tokens of the shape that was measured.
        blocks: Block sizes of the row.
        source: Origin of the sizes, for readers of the table.
    """

    def matches(row: dict) -> bool:
        return (
            row["kernel"] in (None, kernel)
            and row["chip"] in (None, chip)
            and row["dtype"] in (None, "bfloat16")
            and tokens <= row["max_tokens"]
        )

    index, old = next((index, row) for index, row in enumerate(table) if matches(row))
    new = {"kernel": kernel, "chip": chip, "dtype": "bfloat16", "max_tokens": old["max_tokens"]}
    is_same = all(old[name] == value for name, value in new.items())
    sizes = dataclasses.asdict(blocks) | {"stage_offsets": list(blocks.stage_offsets)}
    return [*table[:index], new | {"blocks": sizes, "source": source}, *table[index + is_same :]]


def dumps(table: list[dict]) -> str:
    """Returns the text of `block_sizes.json`, three lines a row."""
    rows = []
    for row in table:
        head = {name: row[name] for name in ("kernel", "chip", "dtype", "max_tokens")}
        blocks = f'"blocks": {json.dumps(row["blocks"])}, ' if row["blocks"] is None else ""
        first = f"  {{{json.dumps(head)[1:-1]}, {blocks}".rstrip()
        middle = "" if row["blocks"] is None else f'   "blocks": {json.dumps(row["blocks"])},\n'
        rows.append(f'{first}\n{middle}   "source": {json.dumps(row["source"])}}}')
    return "[\n" + ",\n".join(rows) + "\n]\n"
