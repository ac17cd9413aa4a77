"""Shapes of projection and cross-entropy as the models of this project have them: what tests and
benchmarks share.
"""

from typing import NamedTuple


class CrossEntropyShape(NamedTuple):
    """Hidden words of one row of a batch, and the head that guesses them."""

    tokens: int
    width: int
    vocab: int


# 64 and 24 text positions, three quarters hidden.
CROSS_ENTROPY = {
    "text_head": CrossEntropyShape(tokens=48, width=512, vocab=32_000),
    "quickstart": CrossEntropyShape(tokens=18, width=64, vocab=4_000),
}
