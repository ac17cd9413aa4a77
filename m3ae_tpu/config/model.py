"""Settings of the network."""

import dataclasses
from typing import Literal

from m3ae_tpu.config.checks import (
    FieldError,
    require_choice,
    require_field,
    require_positive,
    require_within,
)

type Activation = Literal["gelu_tanh", "gelu_erf"]
type Dtype = Literal["float32", "bfloat16", "float64"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A stack of equal pre-norm Transformer blocks."""

    num_layers: int = 12
    """Blocks in the stack; a decoder of 0 blocks is none at all."""
    width: int = 768
    """Channels of a token; a multiple of `num_heads` and of 4."""
    num_heads: int = 12
    """Attention heads; each gets `width / num_heads` channels."""
    mlp_ratio: int = 4
    """Hidden channels of a block's MLP, in units of `width`."""

    def __post_init__(self) -> None:
        require_within(self, "[0, inf)", "num_layers")
        require_positive(self, "width", "num_heads", "mlp_ratio")
        near = max(1, round(self.width / self.num_heads)) * self.num_heads
        require_field(
            self,
            "width",
            self.width % self.num_heads == 0,
            f"is not a multiple of num_heads = {self.num_heads}",
            f"Set {near}, or another num_heads.",
        )
        require_field(
            self,
            "width",
            self.width % 4 == 0,
            "is not a multiple of 4, which 2-D position codes need",
            f"Set {4 * max(1, self.width // 4)}.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The M3AE network: one encoder for patches and text tokens, one small decoder."""

    patch_size: int = 16
    """Side of a square image patch, pixels."""
    vocab_size: int = 32_000
    """Pieces of the tokenizer; 0 builds a model without text parameters."""
    encoder: TransformerConfig = TransformerConfig()
    """Transformer over the visible tokens; its features are the product of a run."""
    decoder: TransformerConfig = TransformerConfig(num_layers=8, width=512, num_heads=16)
    """Transformer that predicts the hidden tokens; only pre-training uses it. With
    `num_layers = 0` the model is an encoder alone, as an imported one may be."""
    activation: Activation = "gelu_tanh"
    """GELU of the MLPs: by its tanh approximation, as the paper's code, or exact."""
    norm_epsilon: float = 1e-6
    """Added to the variance in layer norms."""
    stored_image_positions: int = 0
    """Patches whose position codes in the encoder are parameters, as an imported encoder may have
    them; a square number. Images of other sizes get them resized. 0 computes fixed sine-cosine
    codes."""
    stored_decoder_positions: int = 0
    """The same for position codes of patches in the decoder."""
    stored_text_positions: int = 0
    """Text positions whose codes in the encoder are parameters. 0 computes fixed ones."""
    compute_dtype: Dtype = "bfloat16"
    """Dtype of activations. Norms, softmax and losses are float32 or wider in any case."""
    parameter_dtype: Dtype = "float32"
    """Dtype of parameters and optimizer moments."""
    remat: bool = False
    """Keep only each block's input for the backward pass, and compute the blocks again.
    Less memory, a third more work.
    """
    unroll: int | None = None
    """Blocks per iteration of the loop over layers. None leaves it to the devices: all blocks on
    GPUs, without `remat`; else 1. More blocks take longer to compile and copy less, which pays on
    CPUs and GPUs.
    """

    def __post_init__(self) -> None:
        require_positive(self, "patch_size", "norm_epsilon")
        if self.unroll is not None:
            require_positive(self, "unroll")
        require_within(self, "[0, inf)", "vocab_size", "stored_text_positions")
        require_choice(self, "activation", "compute_dtype", "parameter_dtype")
        if self.encoder.num_layers == 0:
            raise FieldError("encoder.num_layers = 0 is not positive. Set 12, the default.")
        for name in ("stored_image_positions", "stored_decoder_positions"):
            stored = getattr(self, name)
            near = round(max(stored, 0) ** 0.5) ** 2
            require_field(self, name, stored == near, "is not a square number", f"Set {near}.")
        require_field(
            self,
            "stored_decoder_positions",
            self.decoder.num_layers > 0 or self.stored_decoder_positions == 0,
            "belongs to a decoder, and decoder.num_layers = 0 builds none",
        )
