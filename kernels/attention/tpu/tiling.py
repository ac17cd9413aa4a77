"""Tiling of the TPU attention kernels: groups of heads, tiles of keys, blocks of queries.

`README.md` in the folder `kernels` gives the reasons.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp

from ..block_sizes import Blocks

LANES = 128
PACKED_ROWS = 16
"""Rows of bfloat16 that a matrix unit takes in one pass."""


class Segment(NamedTuple):
    """Consecutive queries of one head, which are neighbouring columns of a `QueryBlock`."""

    head: int
    start: int
    stop: int
    """Queries `start` to `stop` of the row."""
    columns: int
    """Columns of the block; those beyond the queries are zero."""


class QueryBlock(NamedTuple):
    """Queries that one matrix product multiplies with keys: those of a head's tile, or of several
    heads' tiles side by side where a tile is small.
    """

    row: int
    """First of the rows of `LANES` numbers that store the block's softmax terms."""
    segments: tuple[Segment, ...]
    """One a head, of consecutive heads."""

    @property
    def columns(self) -> int:
        return sum(segment.columns for segment in self.segments)

    @property
    def heads(self) -> slice:
        return slice(self.segments[0].head, self.segments[-1].head + 1)

    def stored_rows(self) -> list[tuple[int, slice]]:
        """Returns the rows that store the block's softmax terms, and the columns in each."""
        starts = range(0, self.columns, LANES)
        return [
            (self.row + n, slice(c, min(c + LANES, self.columns))) for n, c in enumerate(starts)
        ]

    def segment_columns(self) -> list[tuple[Segment, slice]]:
        """Returns each segment with its columns."""
        starts = [sum(s.columns for s in self.segments[:n]) for n in range(len(self.segments))]
        return [
            (s, slice(start, start + s.columns))
            for s, start in zip(self.segments, starts, strict=True)
        ]


class Tiling(NamedTuple):
    """Division of the arrays of one kernel call into groups, tiles and blocks."""

    blocks: Blocks
    rows: int
    """Rows of the batch per program of the grid."""
    tokens: int
    width: int
    head_dim: int
    group_width: int
    """Channels of a group of heads."""
    is_rounded: bool
    """The arrays are bfloat16, so products round their operands."""

    @property
    def groups(self) -> int:
        return self.width // self.group_width

    @property
    def heads(self) -> int:
        """Heads of a group."""
        return self.group_width // self.head_dim

    @property
    def unroll(self) -> int:
        """Groups per iteration of the kernel's loop."""
        return math.gcd(self.rows * self.groups, self.blocks.unroll)

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def tail(self) -> int:
        """Leftover queries (`tokens % 64`) if one pass takes those of all heads, else 0."""
        rest = self.tokens % (LANES // 2)
        return rest if self.tokens > rest and rest * self.heads <= PACKED_ROWS else 0

    @property
    def saves_peaks(self) -> bool:
        """The backward pass decides by the largest weights how exactly it multiplies.

        Memory limits shorter rows: no product is worth saving there.
        """
        return self.is_rounded and len(tiles(self.tokens, LANES)) > 1

    @property
    def peaks_row(self) -> int:
        """First of the rows of `LANES` numbers that store no query's softmax terms."""
        return self.heads * -(-self.tokens // LANES)

    @property
    def stored_rows(self) -> int:
        """Rows of `LANES` numbers that a group stores of each softmax term."""
        return self.peaks_row + self.saves_peaks

    @property
    def key_tiles(self) -> list[slice]:
        return tiles(self.tokens, self.blocks.key_tile)

    @property
    def query_tiles(self) -> list[slice]:
        return tiles(self.tokens - self.tail, self.blocks.query_tile)

    def channels(self, heads: slice) -> slice:
        """Channels of heads within their group."""
        return slice(heads.start * self.head_dim, heads.stop * self.head_dim)

    def window(self, heads: slice) -> slice:
        """Channels of heads within their group, extended to whole lane tiles."""
        channels = self.channels(heads)
        stop = -(-channels.stop // LANES) * LANES
        return slice(channels.start // LANES * LANES, min(stop, self.group_width))

    def query_blocks(self) -> list[QueryBlock]:
        """Returns the blocks of a group's queries, without the tail."""
        blocks, row = [], 0
        for tile in self.query_tiles:
            queries = tile.stop - tile.start
            room = 2 ** max(5, math.ceil(math.log2(queries)))
            shared = min(self.heads, max(1, self.blocks.query_tile // room))
            for first in range(0, self.heads, shared):
                heads = range(first, min(first + shared, self.heads))
                columns = room if len(heads) > 1 else queries
                block = QueryBlock(
                    row, tuple(Segment(head, tile.start, tile.stop, columns) for head in heads)
                )
                blocks.append(block)
                row += len(block.stored_rows())
        return blocks


@functools.cache
def tiles(tokens: int, size: int) -> list[slice]:
    """Returns runs of `size` tokens; fewer than 8 at the end join the run before.

    They would cost as much as a whole tile, and Mosaic refuses a tile of one lane.
    """
    starts = list(range(0, tokens, size))
    if len(starts) > 1 and tokens - starts[-1] < 8:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], tokens], strict=True)]


def make_tiling(
    batch: int, tokens: int, width: int, num_heads: int, dtype: jnp.dtype, blocks: Blocks
) -> Tiling:
    """Returns the tiling for block sizes, with as many rows a program as divide the batch."""
    rows = max(rows for rows in range(1, min(blocks.rows, batch) + 1) if batch % rows == 0)
    head_dim = width // num_heads
    return Tiling(
        blocks,
        rows,
        tokens,
        width,
        head_dim,
        group_width(width, head_dim),
        is_rounded=dtype == jnp.bfloat16,
    )


def group_width(width: int, head_dim: int) -> int:
    """Returns the channels of the smallest group of whole heads that fills whole lane tiles."""
    size = math.lcm(head_dim, LANES)
    return width if width % size else size
