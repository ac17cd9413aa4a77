"""Fixed sine-cosine position codes, computed in float64 on the host."""

import numpy as np


def text_positions(num_tokens: int, width: int) -> np.ndarray:
    """Returns the codes of positions 0 to `num_tokens` - 1: float64 [num_tokens, width].

    All sines stand before all cosines (Vaswani et al. 2017, §3.5, in the order of the MAE code).
    """
    half = width // 2
    frequencies = 10_000.0 ** -(np.arange(half) / half)
    angles = np.arange(num_tokens)[:, None] * frequencies[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def image_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """Returns the codes of a (rows, columns) grid in row-major order: float64 [rows * columns,
    width].

    The first half of the channels codes the column, the second half the row (He et al. 2022, code).
    """
    rows, columns = grid
    row_codes = text_positions(rows, width // 2)
    column_codes = text_positions(columns, width // 2)
    return np.concatenate(
        [np.tile(column_codes, (rows, 1)), np.repeat(row_codes, columns, axis=0)], axis=1
    )
