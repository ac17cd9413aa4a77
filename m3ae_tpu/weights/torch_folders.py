"""Folders that Hugging Face's transformers and timm load: weights, config, preprocessing."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from m3ae_tpu.batch import Rows
from m3ae_tpu.config import TransformerConfig
from m3ae_tpu.errors import require
from m3ae_tpu.model.inputs import Inputs, make_inputs
from m3ae_tpu.model.masking import Masks, Selection, num_visible
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.weights import hf_names, timm_names
from m3ae_tpu.weights.comparison import (
    Comparison,
    compare,
    features_of,
    random_rows,
)
from m3ae_tpu.weights.parameters import Parameter, to_theirs
from m3ae_tpu.weights.plain_model import image_arrays, plain_model
from m3ae_tpu.weights.torch_forward import TorchTensors

_WEIGHTS, _CONFIG, _PREPROCESSOR = (
    "model.safetensors",
    "config.json",
    "preprocessor_config.json",
)
_HF_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu_erf": "gelu"}
_TIMM_ACTIVATIONS = {"gelu_tanh": "gelu_tanh", "gelu_erf": "gelu"}
_TIMM_EPSILON = 1e-6
_QKV_BIAS = "attention_in.bias"


def write_hf(folder: pathlib.Path, pretrained: Pretrained) -> list[Comparison]:
    """Writes the encoder for images as `transformers.ViTModel`, and compares it.

    Raises:
        UserError: the model has learned no images.
    """
    _require_images(pretrained)
    table = _without_absent_biases(hf_names.encoder_names(), pretrained)
    config = _hf_config(pretrained) | {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "qkv_bias": _has_qkv_bias(table),
    }
    _write(folder, pretrained, table, config)
    _write_json(folder / _PREPROCESSOR, _preprocessor(pretrained))
    return [_compare_encoder(folder, pretrained, table)]


def write_hf_mae(folder: pathlib.Path, pretrained: Pretrained) -> list[Comparison]:
    """Writes encoder and decoder for images as `transformers.ViTMAEForPreTraining`.

    Raises:
        UserError: the model has learned no images, or has no decoder.
    """
    _require_images(pretrained)
    decoder = pretrained.config.model.decoder
    require(
        decoder.num_layers > 0,
        "--format=hf_mae needs a decoder, and this model has none (model.decoder.num_layers = 0). "
        "Use --format=hf for its encoder.",
    )
    names = hf_names.encoder_names(prefix=hf_names.PREFIX) + hf_names.decoder_names()
    table = _without_absent_biases(names, pretrained)
    config = _hf_config(pretrained) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "qkv_bias": _has_qkv_bias(table),
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.num_layers,
        "decoder_num_attention_heads": decoder.num_heads,
        "decoder_intermediate_size": decoder.width * decoder.mlp_ratio,
        "mask_ratio": pretrained.config.masking.image_mask_ratio,
        "norm_pix_loss": pretrained.config.loss.norm_pix_loss,
    }
    _write(folder, pretrained, table, config)
    _write_json(folder / _PREPROCESSOR, _preprocessor(pretrained))
    return [
        _compare_encoder(folder, pretrained, table),
        _compare_decoder(folder, pretrained, table),
    ]


def write_timm(folder: pathlib.Path, pretrained: Pretrained) -> list[Comparison]:
    """Writes the encoder for images as timm's `VisionTransformer`, and compares it.

    Raises:
        UserError: the model has learned no images, or its norms add another epsilon than timm's.
    """
    _require_images(pretrained)
    model, data = pretrained.config.model, pretrained.config.data
    require(
        model.norm_epsilon == _TIMM_EPSILON,
        f"model.norm_epsilon = {model.norm_epsilon:g}, and timm's ViT takes {_TIMM_EPSILON:g} "
        "only. Use --format=hf or --format=onnx.",
    )
    encoder, table = model.encoder, _without_absent_biases(timm_names.encoder_names(), pretrained)
    arguments = {
        "img_size": data.image_size,
        "patch_size": model.patch_size,
        "embed_dim": encoder.width,
        "depth": encoder.num_layers,
        "num_heads": encoder.num_heads,
        "mlp_ratio": encoder.mlp_ratio,
        "act_layer": _TIMM_ACTIVATIONS[model.activation],
        "qkv_bias": _has_qkv_bias(table),
    }
    size = [3, data.image_size, data.image_size]
    config = {
        # Any name of timm's: the arguments below decide all sizes.
        "architecture": "vit_base_patch16_224",
        "num_classes": 0,
        "num_features": encoder.width,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "m3ae",
            "custom_load": False,
            "input_size": size,
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(data.image_mean),
            "std": list(data.image_std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    _write(folder, pretrained, table, config)
    return [_compare_encoder(folder, pretrained, table)]


def _require_images(pretrained: Pretrained) -> None:
    require(
        pretrained.task.has_images,
        "The model has learned texts only, and this format is for images. "
        "Use --format=onnx, stablehlo or safetensors.",
    )


def _without_absent_biases(table: list[Parameter], pretrained: Pretrained) -> list[Parameter]:
    """Returns a table without the biases of queries, keys and values if none of them exists.

    A model that was imported without them is exported without them. Those of a new model are zero,
    and exist.
    """
    arrays = image_arrays(pretrained)
    biases = [parameter for parameter in table if parameter.ours.endswith(_QKV_BIAS)]
    values = np.concatenate([arrays[parameter.ours].ravel() for parameter in biases])
    has_bias = values.any() or not np.signbit(values).all()
    return table if has_bias else [each for each in table if each not in biases]


def _has_qkv_bias(table: list[Parameter]) -> bool:
    return any(parameter.ours.endswith(_QKV_BIAS) for parameter in table)


def _hf_config(pretrained: Pretrained) -> dict[str, Any]:
    model, data = pretrained.config.model, pretrained.config.data
    return {
        "hidden_size": model.encoder.width,
        "num_hidden_layers": model.encoder.num_layers,
        "num_attention_heads": model.encoder.num_heads,
        "intermediate_size": model.encoder.width * model.encoder.mlp_ratio,
        "hidden_act": _HF_ACTIVATIONS[model.activation],
        "layer_norm_eps": model.norm_epsilon,
        "image_size": data.image_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    }


def _preprocessor(pretrained: Pretrained) -> dict[str, Any]:
    """Returns the settings of CLIP's image processor, which resizes and crops as we do.

    ViT's own squashes images that are not square, and its resizing is bilinear.
    """
    data = pretrained.config.data
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": data.image_size},
        "resample": 3,  # Bicubic.
        "do_center_crop": True,
        "crop_size": {"height": data.image_size, "width": data.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.image_mean),
        "image_std": list(data.image_std),
    }


def _write(
    folder: pathlib.Path, pretrained: Pretrained, table: list[Parameter], config: dict[str, Any]
) -> None:
    tensors = to_theirs(image_arrays(pretrained), table)
    safetensors.numpy.save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    _write_json(folder / _CONFIG, config)
    # The library's files are for their owner's eyes alone.
    (folder / _WEIGHTS).chmod((folder / _CONFIG).stat().st_mode)


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _read(folder: pathlib.Path, pretrained: Pretrained, table: list[Parameter]) -> TorchTensors:
    config = pretrained.config.model
    return TorchTensors(
        safetensors.numpy.load_file(folder / _WEIGHTS),
        table,
        epsilon=config.norm_epsilon,
        activation=config.activation,
    )


def _sizes(config: TransformerConfig) -> dict[str, int]:
    return {"num_layers": config.num_layers, "num_heads": config.num_heads}


def _compare_encoder(
    folder: pathlib.Path, pretrained: Pretrained, table: list[Parameter]
) -> Comparison:
    """Runs the tensors of the file as PyTorch would, beside the model."""
    model, tensors = plain_model(pretrained), _read(folder, pretrained, table)
    rows = random_rows(pretrained, 2, has_image=True, has_text=False)
    pixels = np.asarray(_inputs(rows, pretrained).images, np.float64)
    tokens = tensors.encode(pixels, visible=None, **_sizes(pretrained.config.model.encoder))
    wanted = np.asarray(features_of(model, pretrained.task.normalizer, rows).tokens)
    return compare("tokens of images", tokens, wanted)


def _compare_decoder(
    folder: pathlib.Path, pretrained: Pretrained, table: list[Parameter]
) -> Comparison:
    """Hides patches and compares the predictions of the hidden ones."""
    model, tensors = plain_model(pretrained), _read(folder, pretrained, table)
    rows = random_rows(pretrained, 2, has_image=True, has_text=False)
    inputs = _inputs(rows, pretrained)
    config = pretrained.config
    num_patches = (config.data.image_size // config.model.patch_size) ** 2
    order = np.random.default_rng(0).permuted(np.tile(np.arange(num_patches), (2, 1)), axis=1)
    count = num_visible(num_patches, config.masking.image_mask_ratio)
    selection = Selection.from_order(jnp.asarray(order, jnp.int32), count)
    with jax.default_matmul_precision("highest"):
        reconstruct = jax.jit(lambda model: model.reconstruct(inputs, Masks(image=selection)))
        wanted = np.asarray(reconstruct(model).patches)
    encoded = tensors.encode(
        np.asarray(inputs.images, np.float64),
        visible=order[:, :count],
        **_sizes(config.model.encoder),
    )
    patches = tensors.decode(encoded, order, **_sizes(config.model.decoder))
    hidden = np.take_along_axis(patches, order[:, count:, None], axis=1)
    return compare("predictions of hidden patches", hidden, wanted)


def _inputs(rows: Rows, pretrained: Pretrained) -> Inputs:
    rows = jax.tree.map(jnp.asarray, rows)
    return make_inputs(rows, pretrained.task.normalizer, jnp.float32)
