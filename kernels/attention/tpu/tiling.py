"""How the TPU attention kernels cut the arrays: groups of heads, tiles of tokens, units of work.

Why it is cut so is in `README.md` beside this file.
"""

import functools
import math
from typing import NamedTuple

from ..block_sizes import Blocks

LANES = 128
PACKED_ROWS = 16
"""Rows that a matrix unit takes at once, of bfloat16."""


class Segment(NamedTuple):
    """Queries of one head, as they stand side by side in a unit."""

    head: int
    start: int
    stop: int
    columns: int
    """Columns that they take; those beyond the queries are zero."""


class Unit(NamedTuple):
    """Queries whose scores are one matrix product: segments of heads that follow one another."""

    row: int
    """The first of the rows of `LANES` that its statistics take."""
    segments: tuple[Segment, ...]

    @property
    def columns(self) -> int:
        return sum(segment.columns for segment in self.segments)

    @property
    def heads(self) -> slice:
        return slice(self.segments[0].head, self.segments[-1].head + 1)

    def rows(self) -> list[tuple[int, slice]]:
        """Returns the rows that its statistics take, and the columns in each."""
        starts = range(0, self.columns, LANES)
        return [
            (self.row + n, slice(c, min(c + LANES, self.columns))) for n, c in enumerate(starts)
        ]

    def parts(self) -> list[tuple[Segment, slice]]:
        """Returns each segment with its columns."""
        starts = [sum(s.columns for s in self.segments[:n]) for n in range(len(self.segments))]
        return [
            (s, slice(start, start + s.columns))
            for s, start in zip(self.segments, starts, strict=True)
        ]


class Cut(NamedTuple):
    """How one kernel's share of the arrays is cut."""

    blocks: Blocks
    rows: int
    tokens: int
    width: int
    head_dim: int
    group_width: int

    @property
    def groups(self) -> int:
        return self.width // self.group_width

    @property
    def heads(self) -> int:
        """Heads of a group."""
        return self.group_width // self.head_dim

    @property
    def unroll(self) -> int:
        """Groups per trip of the kernel's loop."""
        return math.gcd(self.rows * self.groups, self.blocks.unroll)

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def odd(self) -> int:
        """Queries past the last half tile, if so few that all heads' together are one pass of a
        matrix unit.
        """
        rest = self.tokens % (LANES // 2)
        return rest if self.tokens > rest and rest * self.heads <= PACKED_ROWS else 0

    @property
    def key_tiles(self) -> list[slice]:
        return tiles(self.tokens, self.blocks.key_tile)

    @property
    def query_tiles(self) -> list[slice]:
        return tiles(self.tokens - self.odd, self.blocks.query_tile)

    def channels(self, heads: slice) -> slice:
        """Channels of heads within their group."""
        return slice(heads.start * self.head_dim, heads.stop * self.head_dim)

    def window(self, heads: slice) -> slice:
        """The whole lane tiles that hold the channels of heads."""
        channels = self.channels(heads)
        stop = -(-channels.stop // LANES) * LANES
        return slice(channels.start // LANES * LANES, min(stop, self.group_width))

    def units(self) -> list[Unit]:
        """Returns the units of a group: a head's queries of a tile, or those of several heads if
        they are few.
        """
        units, row = [], 0
        for tile in self.query_tiles:
            queries = tile.stop - tile.start
            room = 2 ** max(5, math.ceil(math.log2(queries)))
            shared = min(self.heads, max(1, self.blocks.query_tile // room))
            for first in range(0, self.heads, shared):
                heads = range(first, min(first + shared, self.heads))
                columns = room if len(heads) > 1 else queries
                unit = Unit(
                    row, tuple(Segment(head, tile.start, tile.stop, columns) for head in heads)
                )
                units.append(unit)
                row += len(unit.rows())
        return units


@functools.cache
def tiles(tokens: int, size: int) -> list[slice]:
    """Returns runs of `size` tokens; a sliver joins the run before: it costs a tile, and Mosaic
    refuses one lane.
    """
    starts = list(range(0, tokens, size))
    if len(starts) > 1 and tokens - starts[-1] < 8:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], tokens], strict=True)]


def make_cut(batch: int, tokens: int, width: int, num_heads: int, blocks: Blocks) -> Cut:
    """Returns the cut that `blocks` asks for, as far as the shape allows."""
    rows = max(rows for rows in range(1, min(blocks.rows, batch) + 1) if batch % rows == 0)
    return Cut(
        blocks, rows, tokens, width, width // num_heads, group_width(width, width // num_heads)
    )


def group_width(width: int, head_dim: int) -> int:
    """Returns the channels of the smallest group of whole heads that starts and ends with a lane
    tile.
    """
    size = math.lcm(head_dim, LANES)
    return width if width % size else size


def statistics_rows(tokens: int, heads: int) -> int:
    """Returns how many rows of `LANES` hold a number for every query of a group, however it is cut."""
    return heads * -(-tokens // LANES)
