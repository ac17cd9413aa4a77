"""Names of parameters in the paper's code, as paths in a tree of flax."""

from m3ae_tpu.weights.parameters import SAME, TOKEN, Layout, Parameter

ENCODER_STACK, DECODER_STACK = "encoder/Block_", "decoder/Block_"
"""Beginnings of the blocks' names."""
TYPES = {
    "image.encoder_type": "encoder_image_type_embedding",
    "image.decoder_type": "decoder_image_type_embedding",
    "text.encoder_type": "encoder_text_type_embedding",
    "text.decoder_type": "decoder_text_type_embedding",
}
"""Type vectors, which a model may have been trained without."""

_QKV = Layout(
    lambda ours: ours.reshape(*ours.shape[:-2], -1),
    lambda theirs: theirs.reshape(*theirs.shape[:-1], 3, -1),
)
"""Ours [..., 3, width], theirs [..., 3 * width]; kernels are [inputs, outputs] as ours."""
_BLOCK = {
    "attention_norm": "LayerNorm_0",
    "attention_in": "Attention_0/Dense_0",
    "attention_out": "Attention_0/Dense_1",
    "mlp_norm": "LayerNorm_1",
    "mlp_in": "TransformerMLP_0/fc1",
    "mlp_out": "TransformerMLP_0/fc2",
}


def encoder_names(*, has_text: bool) -> list[Parameter]:
    """Returns the table of the encoder, without type vectors."""
    text = [Parameter("text.embedding.table", ("text_embedding/embedding",), SAME)]
    return [
        Parameter("cls_token", ("cls_token",), TOKEN),
        *_layer("image.embedding", "image_embedding"),
        *(text if has_text else []),
        *_blocks("encoder", ENCODER_STACK),
        *_layer("encoder.norm", "encoder/LayerNorm_0"),
    ]


def decoder_names(*, has_text: bool) -> list[Parameter]:
    """Returns the table of the decoder, without type vectors."""
    text = [
        Parameter("text.mask_token", ("text_mask_embedding",), TOKEN),
        *_layer("text.head", "decoder_text_output/Dense_0"),
    ]
    return [
        *_layer("decoder_input", "decoder_input_projection"),
        Parameter("image.mask_token", ("image_mask_embedding",), TOKEN),
        *_blocks("decoder", DECODER_STACK),
        *_layer("decoder.norm", "decoder/LayerNorm_0"),
        *_layer("image.head", "decoder_image_output/Dense_0"),
        *(text if has_text else []),
    ]


def _blocks(ours: str, stack: str) -> list[Parameter]:
    return [
        parameter
        for name, tail in _BLOCK.items()
        for parameter in _layer(f"{ours}.blocks.{name}", f"{stack}{{layer}}/{tail}")
    ]


def _layer(ours: str, theirs: str) -> list[Parameter]:
    """Returns the two parameters of a norm or of a linear layer."""
    layout = _QKV if ours.endswith("attention_in") else SAME
    weight = "scale" if ours.endswith("norm") else "kernel"
    return [Parameter(f"{ours}.{leaf}", (f"{theirs}/{leaf}",), layout) for leaf in (weight, "bias")]
