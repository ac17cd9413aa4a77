"""Shapes of attention as the models of this project have them: what tests, tuning and benchmarks
share.
"""

from typing import NamedTuple


class AttentionShape(NamedTuple):
    """One row of a batch."""

    tokens: int
    num_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim


# Images of 256 pixels in patches of 16, a quarter visible, and what joins them: 81 in the encoder;
# with 64 words or with all patches, 257 to 321 in the decoder.
ATTENTION = {
    "encoder_small": AttentionShape(tokens=81, num_heads=6, head_dim=64),
    "encoder_base": AttentionShape(tokens=81, num_heads=12, head_dim=64),
    "encoder_large": AttentionShape(tokens=81, num_heads=16, head_dim=64),
    "encoder_huge": AttentionShape(tokens=81, num_heads=16, head_dim=80),
    "decoder_image": AttentionShape(tokens=257, num_heads=16, head_dim=32),
    "decoder": AttentionShape(tokens=321, num_heads=16, head_dim=32),
}
