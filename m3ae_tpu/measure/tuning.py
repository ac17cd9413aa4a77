"""Searches block sizes of the attention kernels, and enters them in the table that dispatch uses."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from m3ae_tpu.kernels.attention.block_sizes import Blocks

_CHOICES = {
    "rows": (1, 2, 4, 8, 16),
    "unroll": (1, 2, 4, 8, 16, 32),
    "query_tile": (128, 256),
    "key_tile": (128, 256),
}
_LAGS = (1, 2, 3, 4, 6, 8, 12)


def neighbours(blocks: Blocks) -> Iterator[Blocks]:
    """Yields block sizes that differ in one setting, by one place of its choices."""
    for name, choices in _CHOICES.items():
        place = choices.index(getattr(blocks, name))
        for value in (*choices[max(0, place - 1) : place], *choices[place + 1 : place + 2]):
            yield dataclasses.replace(blocks, **{name: value})
    for number, lag in enumerate(blocks.lags):
        smaller = [choice for choice in _LAGS if choice < lag][-1:]
        larger = [choice for choice in _LAGS if choice > lag][:1]
        for value in (*smaller, *larger):
            lags = (*blocks.lags[:number], value, *blocks.lags[number + 1 :])
            yield dataclasses.replace(blocks, lags=lags)


class Found(NamedTuple):
    """Where a search ended."""

    blocks: Blocks
    before: float
    """Microseconds at its start."""
    after: float
    tries: int


def hill_climb(start: Blocks, measure: Callable[[Blocks], float | None]) -> Found:
    """Goes from block sizes to the best of their neighbours until none is better by half a per
    cent.

    Args:
        start: Where to begin.
        measure: Microseconds, or None for what does not compile. Called once for the same block
            sizes.

    Raises:
        ValueError: `start` cannot be measured.
    """
    known: dict[Blocks, float | None] = {}

    def us(blocks: Blocks) -> float:
        if blocks not in known:
            known[blocks] = measure(blocks)
        found = known[blocks]
        return float("inf") if found is None else found

    best = start
    if us(start) == float("inf"):
        raise ValueError(f"{start} cannot be measured: there is nothing to compare others with.")
    while True:
        candidate = min(neighbours(best), key=us)
        if us(candidate) > 0.995 * us(best):
            return Found(best, us(start), us(best), len(known))
        best = candidate


def with_row(
    table: list[dict], kernel: str, chip: str, tokens: int, blocks: Blocks, source: str
) -> list[dict]:
    """Returns a table with block sizes for a chip in bfloat16, for token counts up to the end of
    their row.

    Args:
        table: Rows of `block_sizes.json`.
        kernel: "attention_forward" or "attention_backward".
        chip: As in the table.
        tokens: Of the shape that was measured.
        blocks: What was found.
        source: How.
    """

    def fits(row: dict) -> bool:
        return (
            row["kernel"] in (None, kernel)
            and row["chip"] in (None, chip)
            and row["dtype"] in (None, "bfloat16")
            and tokens <= row["max_tokens"]
        )

    place, old = next((place, row) for place, row in enumerate(table) if fits(row))
    new = {"kernel": kernel, "chip": chip, "dtype": "bfloat16", "max_tokens": old["max_tokens"]}
    is_same = all(old[name] == value for name, value in new.items())
    new |= {"blocks": dataclasses.asdict(blocks) | {"lags": list(blocks.lags)}, "source": source}
    return [*table[:place], new, *table[place + is_same :]]


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
