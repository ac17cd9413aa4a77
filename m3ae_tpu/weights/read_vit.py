"""Weights of the MAE authors' code and of timm, whose encoders have the same names."""

import math
import re
from typing import Any

import numpy as np

from m3ae_tpu.config import LossConfig, ModelConfig, TransformerConfig
from m3ae_tpu.errors import require
from m3ae_tpu.weights import timm_names
from m3ae_tpu.weights.imported import (
    HALF,
    IMAGENET,
    NO_DECODER,
    Choices,
    Imported,
    computed_tables,
    heads_of,
    mlp_ratio_of,
    model_folder_config,
    require_rgb,
    require_square,
    side_of,
    statistics_of,
)
from m3ae_tpu.weights.matching import Matched, count_blocks, match, require_some
from m3ae_tpu.weights.sources import Source
from m3ae_tpu.weights.tensors import StoredTensor, Tensors

_REASONS = {
    r"reg_token": "register tokens, which our encoder has none of",
    r"dist_token|head_dist": "a distillation token, which our encoder has none of",
    r"norm_pre": "a norm before the first block, which our encoder has none of",
    r"fc_norm": (
        "a norm after pooling and none of the tokens, which our encoder needs. Take weights with "
        "global_pool='token'"
    ),
    r"attn_pool|map_head": "attention pooling, as in models without a class token",
    r"blocks\.\d+\.attn\.(q|k)_norm": "norms of queries and keys, which our blocks have none of",
    r"blocks\.\d+\.attn\.(norm|rel_pos|relative)": "another attention than our blocks have",
    r"blocks\.\d+\.mlp\.(fc1_[gx]|w12|w1|w2|w3|norm|gate)": "gated MLPs, which ours are not",
    r"blocks\.\d+\.(gamma_|attn\.[qv]_bias)": "blocks of BEiT, which are others than ours",
}
_ACTIVATIONS = {"gelu": "gelu_erf", "gelu_tanh": "gelu_tanh"}


def read_mae(source: Source, choices: Choices) -> Imported:
    """Reads weights of the MAE authors' code, with a decoder or without.

    They take ImageNet's mean and standard deviation; released ones predict pixels that are
    normalised patch by patch.

    Raises:
        UserError: a tensor is missing or has no place, or the number of heads is unknown.
    """
    remarks: list[str] = []
    norm_pix = source.flags.get("norm_pix_loss")
    has_decoder = "decoder_embed.weight" in source.tensors
    if has_decoder and not isinstance(norm_pix, bool):
        remarks.append(
            "The source does not say what its decoder predicts; taken: pixels that are normalised "
            "patch by patch (loss.norm_pix_loss), as the released weights do."
        )
    return _read(
        source,
        choices,
        remarks,
        has_decoder=has_decoder,
        activation="gelu_erf",
        heads=None,
        statistics=statistics_of(IMAGENET, IMAGENET, choices, remarks),
        norm_pix_loss=norm_pix if isinstance(norm_pix, bool) else has_decoder,
    )


def read_timm(source: Source, choices: Choices) -> Imported:
    """Reads a VisionTransformer of timm: its encoder.

    Raises:
        UserError: a tensor is missing or has no place, or the model is of another kind.
    """
    remarks: list[str] = []
    arguments, pretrained = (
        source.config[name] if isinstance(source.config.get(name), dict) else default
        for name, default in (("model_args", {}), ("pretrained_cfg", source.config))
    )
    require_some(source.tensors, {"patch_embed.proj.weight": 4})
    require_rgb(source.tensors.shape("patch_embed.proj.weight"))
    size = arguments.get("img_size") or pretrained.get("input_size")  # Maybe channels before it.
    require_square("img_size", size[-2:] if isinstance(size, list) else size)
    activation = str(arguments.get("act_layer") or _activation(source.config))
    require(
        activation in _ACTIVATIONS,
        f"act_layer = {activation} is not {' or '.join(_ACTIVATIONS)}. "
        "Such a model cannot be imported.",
    )
    given = (
        (pretrained["mean"], pretrained["std"]) if {"mean", "std"} <= pretrained.keys() else None
    )
    return _read(
        source,
        choices,
        remarks,
        has_decoder=False,
        activation=_ACTIVATIONS[activation],
        heads=arguments.get("num_heads"),
        statistics=statistics_of(given, HALF, choices, remarks),
        norm_pix_loss=False,
    )


def _activation(config: dict[str, Any]) -> str:
    """Returns what timm's architectures of some names take where `model_args` says nothing."""
    name = str(config.get("architecture", ""))
    if "quickgelu" in name:
        return "quick_gelu"
    return "gelu_tanh" if re.search(r"siglip|gelu_tanh", name) else "gelu"


def _read(
    source: Source,
    choices: Choices,
    remarks: list[str],
    *,
    has_decoder: bool,
    activation: Any,
    heads: int | None,
    statistics: Any,
    norm_pix_loss: bool,
) -> Imported:
    tensors = _with_class_row(source.tensors)
    require_some(
        tensors, {"patch_embed.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2}
    )
    if has_decoder:
        require_some(tensors, {"decoder_pos_embed": 3, "decoder_blocks.0.mlp.fc1.weight": 2})
    width, _, patch_size, _ = tensors.shape("patch_embed.proj.weight")
    side = side_of(tensors.shape("pos_embed")[1] - 1)
    computed = computed_tables(tensors, ("pos_embed", "decoder_pos_embed"))
    parameters = timm_names.encoder_names()
    absent = {"image.encoder_type": "0: the source adds no type vector"}
    decoder = NO_DECODER
    if has_decoder:
        parameters += timm_names.decoder_names()
        absent["image.decoder_type"] = absent["image.encoder_type"]
        narrow = tensors.shape("decoder_embed.weight")[0]
        decoder = TransformerConfig(
            num_layers=count_blocks(tensors, timm_names.DECODER_STACK),
            width=narrow,
            num_heads=heads_of(
                narrow, None, choices.decoder_num_heads, "--decoder_num_heads", remarks
            ),
            mlp_ratio=mlp_ratio_of(tensors.shape("decoder_blocks.0.mlp.fc1.weight")[0], narrow),
        )
    parameters = [each for each in parameters if not computed.keys() & {*each.theirs}]
    if not any(name.endswith("attn.qkv.bias") for name in tensors) and not has_decoder:
        bias = "encoder.blocks.attention_in.bias"
        parameters = [each for each in parameters if each.ours != bias]
        absent[bias] = "0: the source's queries, keys and values have no bias"
    model = ModelConfig(
        patch_size=patch_size,
        vocab_size=0,
        encoder=TransformerConfig(
            num_layers=count_blocks(tensors, timm_names.ENCODER_STACK),
            width=width,
            num_heads=heads_of(width, heads, choices.num_heads, "--num_heads", remarks),
            mlp_ratio=mlp_ratio_of(tensors.shape("blocks.0.mlp.fc1.weight")[0], width),
        ),
        decoder=decoder,
        activation=activation,
        stored_image_positions=0 if "pos_embed" in computed else side**2,
        stored_decoder_positions=(
            side**2 if has_decoder and "decoder_pos_embed" not in computed else 0
        ),
        compute_dtype="float32",
    )
    matched = match(
        tensors,
        parameters,
        model,
        dropped={r"head\.": "a head of classes"}
        | {f"{name}$": remark for name, remark in computed.items()},
        absent=absent,
        reasons=_REASONS,
        folded={
            rf"{timm_names.ENCODER_STACK}\d+\.{re.escape(tail)}$": f"encoder.blocks.{ours}"
            for tail, ours in timm_names.LAYER_SCALES.items()
        },
    )
    _fold_layer_scales(tensors, matched, model.encoder)
    config = model_folder_config(
        model,
        image_size=side * patch_size,
        statistics=statistics,
        loss=LossConfig(norm_pix_loss=norm_pix_loss),
    )
    return Imported(config=config, arrays=matched.arrays, lines=matched.lines, remarks=remarks)


def _with_class_row(tensors: Tensors) -> Tensors:
    """Puts a row of zeros for the class token before a position table that has none."""
    stored = tensors.stored.get("pos_embed")
    if (
        stored is None
        or len(stored.shape) != 3
        or math.isqrt(stored.shape[1]) ** 2 != stored.shape[1]
    ):
        return tensors

    def read() -> np.ndarray:
        table = tensors["pos_embed"]
        return np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)

    batch, rows, width = stored.shape
    table = StoredTensor((batch, rows + 1, width), "float32", read)
    return Tensors({**tensors.stored, "pos_embed": table})


def _fold_layer_scales(tensors: Tensors, matched: Matched, encoder: TransformerConfig) -> None:
    """Multiplies the factors of timm's LayerScale into the linear layers before them.

    Raises:
        UserError: some blocks have them and some do not.
    """
    for tail, ours in timm_names.LAYER_SCALES.items():
        names = [f"{timm_names.ENCODER_STACK}{layer}.{tail}" for layer in range(encoder.num_layers)]
        if not any(name in tensors for name in names):
            continue
        require_some(tensors, dict.fromkeys(names, 1))
        for layer, name in enumerate(names):
            factor = tensors[name]
            require(
                factor.shape == (encoder.width,),
                f"{name} is {list(factor.shape)} in the source, and not [{encoder.width}]. "
                "Download it again.",
            )
            for leaf in ("kernel", "bias"):
                matched.arrays[f"encoder.blocks.{ours}.{leaf}"][layer] *= factor
