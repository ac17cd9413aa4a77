"""Names of parameters in Hugging Face's ViT and ViTMAE, in the spellings that its releases write.

Releases 4 and 5 read the first spelling; 5 also writes a second one, and for ViTMAE's decoder a
third. We write the first and read all.
"""

from typing import Literal

from m3ae_tpu.weights.parameters import (
    CLS_POSITION,
    MATRIX,
    PATCHES,
    POSITIONS,
    SAME,
    TOKEN,
    Parameter,
)

type Spelling = Literal["v4", "v5"]
"""Names as release 4 writes them and 5 mostly too, or those of release 5's attributes."""

ENCODER_STACKS: dict[Spelling, str] = {"v4": "encoder.layer.", "v5": "layers."}
"""Beginning of the encoder blocks' names, after the prefix."""
DECODER_STACKS = ("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")
"""Beginnings of the decoder blocks' names; release 5 writes the second."""
PREFIX = "vit."
"""Beginning of the encoder's names beside a head or a decoder; `ViTModel` has none."""
DROPPED = ("pooler.", "classifier.")
"""Beginnings of names, after the prefix or without it, that have no place in our model."""

_TAILS: dict[Spelling, dict[str, tuple[str, ...]]] = {
    "v4": {
        "attention_norm": ("layernorm_before",),
        "attention_in": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
        "attention_out": ("attention.output.dense",),
        "mlp_norm": ("layernorm_after",),
        "mlp_in": ("intermediate.dense",),
        "mlp_out": ("output.dense",),
    },
    "v5": {
        "attention_norm": ("layernorm_before",),
        "attention_in": tuple(f"attention.{part}_proj" for part in "qkv"),
        "attention_out": ("attention.o_proj",),
        "mlp_norm": ("layernorm_after",),
        "mlp_in": ("mlp.fc1",),
        "mlp_out": ("mlp.fc2",),
    },
}


def encoder_names(spelling: Spelling = "v4", prefix: str = "") -> list[Parameter]:
    """Returns the table of the encoder, with its position table and without type vectors.

    Args:
        spelling: That of the blocks' names.
        prefix: `PREFIX` or nothing.
    """
    projection = f"{prefix}embeddings.patch_embeddings.projection"
    positions = f"{prefix}embeddings.position_embeddings"
    return [
        Parameter("cls_token", (f"{prefix}embeddings.cls_token",), TOKEN),
        Parameter("cls_position", (positions,), CLS_POSITION),
        Parameter("image.positions", (positions,), POSITIONS),
        Parameter("image.embedding.kernel", (f"{projection}.weight",), PATCHES),
        Parameter("image.embedding.bias", (f"{projection}.bias",), SAME),
        *_blocks("encoder", f"{prefix}{ENCODER_STACKS[spelling]}", spelling),
        *_norm("encoder.norm", f"{prefix}layernorm"),
    ]


def decoder_names(spelling: Spelling = "v4", stack: str = DECODER_STACKS[0]) -> list[Parameter]:
    """Returns the table of the decoder, with its position table and without type vectors.

    Args:
        spelling: That of the ends of the blocks' names.
        stack: One of `DECODER_STACKS`.
    """
    return [
        *_linear("decoder_input", "decoder.decoder_embed"),
        Parameter("image.mask_token", ("decoder.mask_token",), TOKEN),
        Parameter("decoder_cls_position", ("decoder.decoder_pos_embed",), CLS_POSITION),
        Parameter("image.decoder_positions", ("decoder.decoder_pos_embed",), POSITIONS),
        *_blocks("decoder", stack, spelling),
        *_norm("decoder.norm", "decoder.decoder_norm"),
        *_linear("image.head", "decoder.decoder_pred"),
    ]


def _blocks(ours: str, stack: str, spelling: Spelling) -> list[Parameter]:
    parameters = []
    for name, tails in _TAILS[spelling].items():
        theirs = tuple(f"{stack}{{layer}}.{tail}" for tail in tails)
        make = _norm if name.endswith("_norm") else _linear
        parameters += make(f"{ours}.blocks.{name}", *theirs)
    return parameters


def _linear(ours: str, *theirs: str) -> list[Parameter]:
    return [
        Parameter(f"{ours}.kernel", tuple(f"{name}.weight" for name in theirs), MATRIX),
        Parameter(f"{ours}.bias", tuple(f"{name}.bias" for name in theirs), SAME),
    ]


def _norm(ours: str, *theirs: str) -> list[Parameter]:
    return [
        Parameter(f"{ours}.scale", tuple(f"{name}.weight" for name in theirs), SAME),
        Parameter(f"{ours}.bias", tuple(f"{name}.bias" for name in theirs), SAME),
    ]
