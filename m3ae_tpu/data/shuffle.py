"""An order of a source's records, shuffled anew every epoch, of which any stretch is computed by
itself.

Nothing is kept or walked through: a run goes on at any step, and a billion records need no memory.
Grain's shuffle gives as much, one record at a time, and at 0.3 ms a record for a set of a hundred.
"""

import math

import numpy as np
from jaxtyping import Int64, UInt64

_ROUNDS = 6
"""From six on, no statistic that was tried tells the orders of even eight records from drawn ones.
"""
_STEP = np.uint64(0x9E3779B97F4A7C15)


def shuffled(
    positions: Int64[np.ndarray, " rows"], count: int, seed: int
) -> Int64[np.ndarray, " rows"]:
    """Returns which of `count` records stand at some positions of an endless walk, each record once
    an epoch.

    The places of an epoch are laid out as a table about as wide as high. Columns are shifted by a
    hash of their row, rows by a hash of their new column, some times over: that maps the table onto
    itself. Where it ends in a cell beyond the last record, it is mapped again (Black and Rogaway
    2002, "Ciphers with Arbitrary Finite Domains").

    Args:
        positions: In the walk, from 0 on.
        count: Of records, at least 1.
        seed: 64 bits.
    """
    width = math.isqrt(count - 1) + 1
    columns, rows = np.uint64(width), np.uint64(-(-count // width))
    epochs, places = np.divmod(positions.astype(np.uint64), np.uint64(count))
    keys = _hash(_hash(np.array([seed], np.uint64)) + epochs)
    unfinished = np.arange(len(places))
    while unfinished.size:
        row, column = np.divmod(places[unfinished], columns)
        key = keys[unfinished]
        for _ in range(_ROUNDS):
            column = (column + _hash(key ^ row)) % columns
            row = (row + _hash((key + _STEP) ^ column)) % rows
            key = key + _STEP + _STEP
        places[unfinished] = row * columns + column
        unfinished = unfinished[places[unfinished] >= count]
    return places.astype(np.int64)


def _hash(numbers: UInt64[np.ndarray, " rows"]) -> UInt64[np.ndarray, " rows"]:
    """Mixes the bits of each number; the last step of SplitMix64 (Steele, Lea and Flood 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
