"""Attention shapes of this project's models, shared by tests, tuning and benchmarks."""

from typing import NamedTuple


class AttentionShape(NamedTuple):
    """Sizes of one row of a batch."""

    tokens: int
    num_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim


# A class token, 256 patches (256 pixels in patches of 16) and 64 words. The encoder sees a quarter
# of patches and words, 1 + 64 + 16 tokens; the decoder all, 1 + 256 + 64, or 1 + 256 without words.
ATTENTION = {
    "encoder_small": AttentionShape(tokens=81, num_heads=6, head_dim=64),
    "encoder_base": AttentionShape(tokens=81, num_heads=12, head_dim=64),
    "encoder_large": AttentionShape(tokens=81, num_heads=16, head_dim=64),
    "encoder_huge": AttentionShape(tokens=81, num_heads=16, head_dim=80),
    "decoder_image": AttentionShape(tokens=257, num_heads=16, head_dim=32),
    "decoder": AttentionShape(tokens=321, num_heads=16, head_dim=32),
}
