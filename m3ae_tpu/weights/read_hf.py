"""Weights of Hugging Face's ViT and ViTMAE, in the three spellings that its releases write."""

import re
from typing import Any, cast

from m3ae_tpu.config import LossConfig, MaskingConfig, ModelConfig, TransformerConfig
from m3ae_tpu.config.model import Activation
from m3ae_tpu.errors import require
from m3ae_tpu.weights.hf_names import (
    DECODER_STACKS,
    DROPPED,
    ENCODER_STACKS,
    PREFIX,
    Spelling,
    decoder_names,
    encoder_names,
)
from m3ae_tpu.weights.imported import (
    HALF,
    IMAGENET,
    NO_DECODER,
    Choices,
    Imported,
    Rgb,
    computed_tables,
    heads_of,
    mlp_ratio_of,
    model_folder_config,
    require_rgb,
    require_square,
    side_of,
    statistics_of,
)
from m3ae_tpu.weights.matching import count_blocks, match, require_some
from m3ae_tpu.weights.sources import Source
from m3ae_tpu.weights.tensors import Tensors

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_REASONS = {
    r"(vit\.)?embeddings\.mask_token": (
        "a mask token in the encoder, as models that predict masked patches from it have"
    ),
    r"(vit\.)?embeddings\.(distillation|register)": "tokens that our encoder has none of",
}


def read_hf(source: Source, choices: Choices) -> Imported:
    """Reads a ViT or ViTMAE: encoder, and decoder where there is one.

    Raises:
        UserError: `config.json` is missing or of another model, or a tensor is missing or has no
            place.
    """
    tensors, config, remarks = source.tensors, source.config, []
    require(
        bool(config),
        f"{source.path.parent / 'config.json'} does not exist, and activation and heads stand in "
        "it. Put it beside the weights, as Hugging Face has it.",
    )
    kind = str(config.get("model_type"))
    require(
        kind in ("vit", "vit_mae"),
        f"model_type = {kind} in config.json is neither vit nor vit_mae. "
        "Such a model cannot be imported.",
    )
    prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
    projection = f"{prefix}embeddings.patch_embeddings.projection.weight"
    table = f"{prefix}embeddings.position_embeddings"
    decoder_table = "decoder.decoder_pos_embed"
    has_decoder = "decoder.decoder_embed.weight" in tensors
    require_some(tensors, {projection: 4, table: 3})
    if has_decoder:
        require_some(tensors, {decoder_table: 3})
    width, _, patch_size, _ = tensors.shape(projection)
    require_rgb(tensors.shape(projection))
    require_square("image_size", config.get("image_size"))
    side = side_of(tensors.shape(table)[1] - 1)
    computed = computed_tables(tensors, (table, decoder_table))
    spelling, stack = _stack_of(tensors, prefix)
    parameters = encoder_names(spelling, prefix)
    absent = {"image.encoder_type": "0: the source adds no type vector"}
    decoder = NO_DECODER
    if has_decoder:
        decoder_stack = next(
            (each for each in DECODER_STACKS if count_blocks(tensors, each)), DECODER_STACKS[0]
        )
        parameters += decoder_names(_spelling(tensors, decoder_stack), decoder_stack)
        absent["image.decoder_type"] = absent["image.encoder_type"]
        narrow = tensors.shape("decoder.decoder_embed.weight")[0]
        decoder = TransformerConfig(
            num_layers=count_blocks(tensors, decoder_stack),
            width=narrow,
            num_heads=heads_of(
                narrow,
                config.get("decoder_num_attention_heads"),
                choices.decoder_num_heads,
                "--decoder_num_heads",
                remarks,
            ),
            mlp_ratio=mlp_ratio_of(int(_number(config, "decoder_intermediate_size")), narrow),
        )
    parameters = [each for each in parameters if not computed.keys() & {*each.theirs}]
    if config.get("qkv_bias") is False:
        biases = [each for each in parameters if each.ours.endswith("attention_in.bias")]
        parameters = [each for each in parameters if each not in biases]
        absent |= {each.ours: "0: qkv_bias is False in config.json" for each in biases}
    act = str(config.get("hidden_act"))
    require(
        act in _ACTIVATIONS,
        f"hidden_act = {act} in config.json is not one of {', '.join(_ACTIVATIONS)}. "
        "Such a model cannot be imported.",
    )
    model = ModelConfig(
        patch_size=patch_size,
        vocab_size=0,
        encoder=TransformerConfig(
            num_layers=count_blocks(tensors, stack),
            width=width,
            num_heads=heads_of(
                width,
                config.get("num_attention_heads"),
                choices.num_heads,
                "--num_heads",
                remarks,
            ),
            mlp_ratio=mlp_ratio_of(int(_number(config, "intermediate_size")), width),
        ),
        decoder=decoder,
        activation=_ACTIVATIONS[act],
        norm_epsilon=_number(config, "layer_norm_eps", 1e-12),
        stored_image_positions=0 if table in computed else side**2,
        stored_decoder_positions=side**2 if has_decoder and decoder_table not in computed else 0,
        compute_dtype="float32",
    )
    matched = match(
        tensors,
        parameters,
        model,
        dropped={
            rf"({re.escape(PREFIX)})?{re.escape(each)}": "a head for other tasks"
            for each in DROPPED
        }
        | {f"{re.escape(name)}$": remark for name, remark in computed.items()},
        absent=absent,
        reasons=_REASONS,
    )
    default = IMAGENET if kind == "vit_mae" else HALF
    statistics = statistics_of(_statistics(source.preprocessor), default, choices, remarks)
    masking = MaskingConfig(image_mask_ratio=_number(config, "mask_ratio", 0.75))
    made = model_folder_config(
        model,
        image_size=side * patch_size,
        statistics=statistics,
        loss=LossConfig(norm_pix_loss=config.get("norm_pix_loss") is True),
        masking=masking,
    )
    return Imported(config=made, arrays=matched.arrays, lines=matched.lines, remarks=remarks)


def _stack_of(tensors: Tensors, prefix: str) -> tuple[Spelling, str]:
    """Returns the spelling of the encoder's blocks, and the beginning of their names."""
    for spelling, stack in ENCODER_STACKS.items():
        if count_blocks(tensors, f"{prefix}{stack}"):
            return spelling, f"{prefix}{stack}"
    return "v4", f"{prefix}{ENCODER_STACKS['v4']}"


def _spelling(tensors: Tensors, stack: str) -> Spelling:
    return "v5" if f"{stack}0.attention.q_proj.weight" in tensors else "v4"


def _number(config: dict[str, Any], name: str, default: float | None = None) -> float:
    value = config.get(name, default)
    require(
        isinstance(value, int | float),
        f"{name} = {value} in config.json is not a number. Download it again.",
    )
    return float(cast(Any, value))


def _statistics(preprocessor: dict[str, Any]) -> tuple[Any, Any] | None:
    """Returns mean and standard deviation of preprocessed images; None: nothing says it.

    Raises:
        UserError: pixels are scaled otherwise than to 0 to 1.
    """
    if not preprocessor:
        return None
    factor = preprocessor.get("rescale_factor", 1 / 255)
    is_number = isinstance(factor, int | float)
    is_usual = preprocessor.get("do_rescale", True) and is_number and abs(factor - 1 / 255) < 1e-6
    require(
        is_usual,
        f"rescale_factor = {factor} in preprocessor_config.json is not 1/255. "
        "Such a model cannot be imported.",
    )
    if not preprocessor.get("do_normalize", True):
        zero: Rgb = (0.0, 0.0, 0.0)
        return zero, (1.0, 1.0, 1.0)
    if "image_mean" not in preprocessor or "image_std" not in preprocessor:
        return None
    return preprocessor["image_mean"], preprocessor["image_std"]
