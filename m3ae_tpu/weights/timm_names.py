"""Names of parameters in timm's VisionTransformer; the decoder's, in the MAE authors' code.

Both agree on the encoder: the MAE code builds on timm.
"""

from m3ae_tpu.weights.parameters import (
    CLS_POSITION,
    MATRIX,
    PATCHES,
    POSITIONS,
    QKV_BIAS,
    QKV_MATRIX,
    SAME,
    TOKEN,
    Parameter,
)

ENCODER_STACK, DECODER_STACK = "blocks.", "decoder_blocks."
"""Beginnings of the blocks' names."""
DROPPED = ("head.",)
"""Beginnings of names that have no place in our model."""
LAYER_SCALES = {
    "ls1.gamma": "attention_out",
    "ls2.gamma": "mlp_out",
}
"""Ends of the names of factors that fold exactly into a linear layer of ours: its kernel's columns
and its bias are multiplied by them."""

_BLOCK = {
    "attention_norm": "norm1",
    "attention_in": "attn.qkv",
    "attention_out": "attn.proj",
    "mlp_norm": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}


def encoder_names() -> list[Parameter]:
    """Returns the table of the encoder, with its position table and without type vectors."""
    return [
        Parameter("cls_token", ("cls_token",), TOKEN),
        Parameter("cls_position", ("pos_embed",), CLS_POSITION),
        Parameter("image.positions", ("pos_embed",), POSITIONS),
        Parameter("image.embedding.kernel", ("patch_embed.proj.weight",), PATCHES),
        Parameter("image.embedding.bias", ("patch_embed.proj.bias",), SAME),
        *_blocks("encoder", ENCODER_STACK),
        *_layer("encoder.norm", "norm"),
    ]


def decoder_names() -> list[Parameter]:
    """Returns the table of the MAE code's decoder, with its position table."""
    return [
        *_layer("decoder_input", "decoder_embed"),
        Parameter("image.mask_token", ("mask_token",), TOKEN),
        Parameter("decoder_cls_position", ("decoder_pos_embed",), CLS_POSITION),
        Parameter("image.decoder_positions", ("decoder_pos_embed",), POSITIONS),
        *_blocks("decoder", DECODER_STACK),
        *_layer("decoder.norm", "decoder_norm"),
        *_layer("image.head", "decoder_pred"),
    ]


def _blocks(ours: str, stack: str) -> list[Parameter]:
    return [
        parameter
        for name, tail in _BLOCK.items()
        for parameter in _layer(f"{ours}.blocks.{name}", f"{stack}{{layer}}.{tail}")
    ]


def _layer(ours: str, theirs: str) -> list[Parameter]:
    """Returns the two parameters of a norm or of a linear layer."""
    is_norm, is_qkv = ours.endswith("norm"), ours.endswith("attention_in")
    weight = SAME if is_norm else QKV_MATRIX if is_qkv else MATRIX
    return [
        Parameter(f"{ours}.{'scale' if is_norm else 'kernel'}", (f"{theirs}.weight",), weight),
        Parameter(f"{ours}.bias", (f"{theirs}.bias",), QKV_BIAS if is_qkv else SAME),
    ]
