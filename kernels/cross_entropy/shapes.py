"""Cross-entropy shapes of this project's models, shared by tests and benchmarks."""

from typing import NamedTuple


class CrossEntropyShape(NamedTuple):
    """Hidden words of one row of a batch, and the head that predicts them."""

    tokens: int
    width: int
    vocab: int


# Three quarters of 64 and of 24 text positions are hidden.
CROSS_ENTROPY = {
    "text_head": CrossEntropyShape(tokens=48, width=512, vocab=32_000),
    "quickstart": CrossEntropyShape(tokens=18, width=64, vocab=4_000),
}
