"""Settings of the network."""

import dataclasses
from typing import Literal

from m3ae_tpu.errors import require

type Dtype = Literal["float32", "bfloat16", "float64"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A stack of equal pre-norm Transformer blocks."""

    num_layers: int = 12
    """Blocks in the stack."""
    width: int = 768
    """Channels of a token; a multiple of `num_heads` and of 4."""
    num_heads: int = 12
    """Attention heads; each gets `width / num_heads` channels."""
    mlp_ratio: int = 4
    """Hidden channels of a block's MLP, in units of `width`."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "width", "num_heads", "mlp_ratio"):
            require(
                getattr(self, name) >= 1,
                f"{name} = {getattr(self, name)} is not positive. Set 1 or more.",
            )
        near = max(1, round(self.width / self.num_heads)) * self.num_heads
        require(
            self.width % self.num_heads == 0,
            f"width = {self.width} is no multiple of num_heads = {self.num_heads}. "
            f"Set width = {near}, or another num_heads.",
        )
        require(
            self.width % 4 == 0,
            f"width = {self.width} is no multiple of 4, which 2-D position codes need. "
            f"Set width = {4 * max(1, self.width // 4)}.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The M3AE network: one encoder for patches and text tokens, one small decoder."""

    patch_size: int = 16
    """Side of a square image patch, pixels."""
    vocab_size: int = 32_000
    """Pieces of the tokenizer; 0 builds a model without text parameters."""
    encoder: TransformerConfig = TransformerConfig()
    """What a run is for: its features are the product."""
    decoder: TransformerConfig = TransformerConfig(num_layers=8, width=512, num_heads=16)
    """Rebuilds what was hidden; thrown away after pre-training."""
    compute_dtype: Dtype = "bfloat16"
    """Dtype of activations. Norms, softmax and losses are float32 or wider in any case."""
    parameter_dtype: Dtype = "float32"
    """Dtype in which parameters and optimizer moments are kept."""
    remat: bool = False
    """Keep only each block's input for the backward pass and compute blocks again: a third more
    work, less memory.
    """
    unroll: int = 1
    """Blocks in one turn of the loop over layers: more to compile, fewer copies. Pays on CPUs and
    GPUs.
    """

    def __post_init__(self) -> None:
        require(
            self.patch_size >= 1, f"model.patch_size = {self.patch_size} is not positive. Set 16."
        )
        require(self.unroll >= 1, f"model.unroll = {self.unroll} is not positive. Set 1.")
        require(
            self.vocab_size >= 0,
            f"model.vocab_size = {self.vocab_size} is negative. Set 0 for no text.",
        )
