"""Guards the tables of names: complete, each name once, and converted both ways without a loss."""

import jax
import numpy as np
import pytest

from m3ae_tpu.config import ModelConfig, TransformerConfig
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.weights import hf_names, timm_names
from m3ae_tpu.weights.parameters import names_in, to_ours, to_theirs

CONFIG = ModelConfig(
    patch_size=4,
    vocab_size=0,
    encoder=TransformerConfig(num_layers=11, width=8, num_heads=2),
    decoder=TransformerConfig(num_layers=2, width=12, num_heads=2),
)
NUM_LAYERS = {"encoder": 11, "decoder": 2}
TABLES = {
    "hf_v4": hf_names.encoder_names("v4", "vit.") + hf_names.decoder_names("v4"),
    "hf_v5": hf_names.encoder_names("v5") + hf_names.decoder_names("v5"),
    "hf_v5_saved": hf_names.encoder_names() + hf_names.decoder_names("v4", "decoder.encoder."),
    "timm": timm_names.encoder_names() + timm_names.decoder_names(),
}


def our_arrays():
    """Random values of all parameters that other libraries have too, by our names."""
    model = jax.eval_shape(lambda: M3AE(CONFIG, key=jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(model)
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves
    }
    shapes |= {"image.positions": (16, 8), "image.decoder_positions": (16, 12)}
    shapes |= {"cls_position": (8,), "decoder_cls_position": (12,)}
    random = np.random.default_rng(0)
    return {
        name: random.normal(size=shape) for name, shape in shapes.items() if "_type" not in name
    }


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_parameter_goes_there_and_comes_back_unchanged(table):
    arrays = our_arrays()
    tensors = to_theirs(arrays, table)
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())
    assert sum(map(np.size, tensors.values())) == sum(map(np.size, arrays.values()))
    back = to_ours(tensors, table, NUM_LAYERS)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_no_name_stands_twice_in_a_table(table):
    ours = [parameter.ours for parameter in table]
    theirs = [name for parameter in table for name in names_in(parameter)]
    assert len(set(ours)) == len(ours)
    # Only the position of the class token shares a tensor with those of the patches.
    assert len(set(theirs)) == len(theirs) - sum("cls_position" in name for name in ours)


def test_a_patch_is_cut_in_the_same_order_by_a_convolution():
    arrays = our_arrays()
    tensors = to_theirs(arrays, timm_names.encoder_names())
    patch = np.random.default_rng(1).normal(size=(4, 4, 3))
    theirs = np.einsum("dcrk,rkc->d", tensors["patch_embed.proj.weight"], patch)
    np.testing.assert_allclose(patch.reshape(-1) @ arrays["image.embedding.kernel"], theirs)


def test_queries_keys_and_values_are_told_apart():
    arrays = our_arrays()
    tensors = to_theirs(arrays, hf_names.encoder_names())
    timm = to_theirs(arrays, timm_names.encoder_names())
    kernel = arrays["encoder.blocks.attention_in.kernel"]
    for part, name in enumerate(("query", "key", "value")):
        tensor = tensors[f"encoder.layer.10.attention.attention.{name}.weight"]
        np.testing.assert_array_equal(tensor, kernel[10, :, part].T)
        rows = timm["blocks.10.attn.qkv.weight"][8 * part : 8 * part + 8]
        np.testing.assert_array_equal(rows, tensor)
