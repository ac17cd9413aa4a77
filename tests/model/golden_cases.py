"""The files of golden numbers, turned into what our code takes: models, inputs, and names."""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.config import Dtype, ModelConfig, TransformerConfig
from m3ae_tpu.model import masking
from m3ae_tpu.model.inputs import Inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.masking import Masks, Selection

GOLDEN = pathlib.Path(
    os.environ.get("GOLDEN_DIR") or pathlib.Path(__file__).parents[1] / "golden" / "reference"
)
PRECISION: dict[str, Dtype] = {"f32": "float32", "f64": "float64"}


def load(name):
    path = GOLDEN / f"{name}.npz"
    assert any(GOLDEN.glob("*.npz")), f"GOLDEN_DIR = {GOLDEN} holds no golden files"
    if "GOLDEN_DIR" in os.environ and not path.exists():
        pytest.skip(f"{path} does not exist")
    arrays = dict(np.load(path))
    config = json.loads(str(arrays.pop("config"))) if "config" in arrays else {}
    return arrays, config


def build(config, dtype):
    """A model with the reference's parameters, named as here, in the case's precision."""
    name = PRECISION[dtype]
    model_config = ModelConfig(
        patch_size=config["patch_size"],
        vocab_size=config["text_vocab_size"],
        encoder=TransformerConfig(
            num_layers=config["depth"],
            width=config["emb_dim"],
            num_heads=config["num_heads"],
            mlp_ratio=config["mlp_ratio"],
        ),
        decoder=TransformerConfig(
            num_layers=config["dec_depth"],
            width=config["dec_emb_dim"],
            num_heads=config["dec_num_heads"],
            mlp_ratio=config["mlp_ratio"],
        ),
        compute_dtype=name,
        parameter_dtype=name,
    )
    # Shapes only: the values are the reference's.
    model = jax.eval_shape(lambda: M3AE(model_config, key=jax.random.key(0)))
    parameters = dict(np.load(GOLDEN / config["params"]))
    stored = to_model_names(
        {key: np.asarray(value, name) for key, value in parameters.items()}, config
    )
    leaves, structure = jax.tree_util.tree_flatten_with_path(model)
    assert {jax.tree_util.keystr(path) for path, _ in leaves} == set(stored)
    for path, leaf in leaves:
        assert leaf.shape == stored[jax.tree_util.keystr(path)].shape, path
    # NumPy arrays: each `jnp.asarray` of a new shape would be compiled.
    return jax.tree_util.tree_unflatten(
        structure, [stored[jax.tree_util.keystr(path)] for path, _ in leaves]
    )


def to_model_names(flat, config):
    """Renames the reference's flat arrays to paths of `M3AE`; blocks are stacked."""
    named = {
        ".cls_token": flat["cls_token"].reshape(-1),
        ".image.encoder_type": flat["encoder_image_type_embedding"].reshape(-1),
        ".text.encoder_type": flat["encoder_text_type_embedding"].reshape(-1),
        ".image.decoder_type": flat["decoder_image_type_embedding"].reshape(-1),
        ".text.decoder_type": flat["decoder_text_type_embedding"].reshape(-1),
        ".image.mask_token": flat["image_mask_embedding"].reshape(-1),
        ".text.mask_token": flat["text_mask_embedding"].reshape(-1),
        ".text.embedding.table": flat["text_embedding/embedding"],
    }
    linear = {
        "image.embedding": "image_embedding",
        "decoder_input": "decoder_input_projection",
        "image.head": "decoder_image_output/Dense_0",
        "text.head": "decoder_text_output/Dense_0",
    }
    for ours, theirs in linear.items():
        for leaf in ("kernel", "bias"):
            named[f".{ours}.{leaf}"] = flat[f"{theirs}/{leaf}"]
    layers = {
        "attention_norm": ("LayerNorm_0", ("scale", "bias")),
        "attention_in": ("Attention_0/Dense_0", ("kernel", "bias")),
        "attention_out": ("Attention_0/Dense_1", ("kernel", "bias")),
        "mlp_norm": ("LayerNorm_1", ("scale", "bias")),
        "mlp_in": ("TransformerMLP_0/fc1", ("kernel", "bias")),
        "mlp_out": ("TransformerMLP_0/fc2", ("kernel", "bias")),
    }
    for stack, depth in (("encoder", config["depth"]), ("decoder", config["dec_depth"])):
        for ours, (theirs, leaves) in layers.items():
            for leaf in leaves:
                blocks = [flat[f"{stack}/Block_{i}/{theirs}/{leaf}"] for i in range(depth)]
                stacked = np.stack(blocks)
                if ours == "attention_in":  # Queries, keys and values side by side.
                    stacked = stacked.reshape(*stacked.shape[:-1], 3, -1)
                named[f".{stack}.blocks.{ours}.{leaf}"] = stacked
        for leaf in ("scale", "bias"):
            named[f".{stack}.norm.{leaf}"] = flat[f"{stack}/LayerNorm_0/{leaf}"]
    return named


def inputs(arrays, config, dtype):
    """The case's arguments of `M3AE.reconstruct`, with the recorded permutations."""
    taken, masks = Inputs(), Masks()
    if "mask/image_ids_shuffle" in arrays:
        taken = taken._replace(images=arrays["in/image"].astype(PRECISION[dtype]))
        masks = masks._replace(image=selection(arrays, "image", config["image_mask_ratio"]))
    if "mask/text_ids_shuffle" in arrays:
        is_valid = arrays["in/text_padding_mask"] == 0
        taken = taken._replace(text_ids=arrays["in/text"], is_valid=is_valid)
        masks = masks._replace(text=selection(arrays, "text", config["text_mask_ratio"]))
    return taken, masks


def selection(arrays, modality, ratio):
    batch = arrays["in/image" if modality == "image" else "in/text"].shape[0]
    order = np.broadcast_to(
        arrays[f"mask/{modality}_ids_shuffle"], (batch, arrays[f"mask/{modality}_mask"].shape[1])
    )
    num_kept = masking.num_visible(order.shape[1], ratio)
    assert num_kept == arrays[f"mask/{modality}_ids_keep"].shape[0]
    return Selection.from_order(jnp.asarray(order), num_kept)
