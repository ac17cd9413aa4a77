"""Guards weights of MAE, Hugging Face and timm: features are those that they computed."""

import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from m3ae_tpu.errors import UserError
from m3ae_tpu.model.inputs import Inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.masking import Masks, Selection
from m3ae_tpu.pretrained.loading import load_pretrained
from m3ae_tpu.weights.imported import Choices
from m3ae_tpu.weights.importing import import_weights, read_weights
from m3ae_tpu.weights.sources import weights_file

TWINS = pathlib.Path(__file__).parents[1] / "golden" / "twins"
FOLDED = {"encoder.blocks.attention_out", "encoder.blocks.mlp_out"}
HEADS = Choices(num_heads=4, decoder_num_heads=3)
CASES: dict[str, tuple[Any, str]] = {
    "vitmae_4": ("hf", "vitmae_4"),
    "vitmae_5": ("hf", "vitmae_5"),
    "vit_4": ("hf", "vit_4"),
    "vit_5": ("hf", "vit_5"),
    "timm": ("timm", "timm"),
    "timm_layer_scale": ("timm", "timm_layer_scale"),
    "mae": ("mae", "facebook_mae/mae_visualize.pth"),
    "mae_encoder": ("mae", "facebook_mae/mae_pretrain.pth"),
}

encode = jax.jit(M3AE.encode)
reconstruct = jax.jit(M3AE.reconstruct)


@jax.jit
def encode_visible(model, inputs, masks):
    return model.encoder(*model.embed(inputs, masks))


def read(name):
    format, source = CASES[name]
    return read_weights(weights_file(TWINS / source), format, HEADS)


@pytest.mark.parametrize("name", CASES)
def test_features_and_reconstructions_are_the_sources_own(tmp_path, name):
    format, source = CASES[name]
    import_weights(TWINS / source, tmp_path / "model", format, choices=HEADS)
    model = load_pretrained(tmp_path / "model").model
    numbers = np.load((TWINS / source).parent.joinpath("numbers.npz")) if "." in source else None
    numbers = numbers or np.load(TWINS / source / "numbers.npz")
    inputs = Inputs(jnp.asarray(numbers["images"]))
    whole = "encoded_whole" if "encoded_whole" in numbers else "encoded"
    if not name.startswith("vitmae"):
        got = np.asarray(encode(model, inputs).tokens)
        np.testing.assert_allclose(got, numbers[whole], rtol=0, atol=1e-5)
    assert (model.decoder is None) == (name not in ("vitmae_4", "vitmae_5", "mae"))
    if model.decoder is not None:
        order = jnp.asarray(np.argsort(numbers["noise"], axis=1))
        masks = Masks(image=Selection.from_order(order, 9))
        got = encode_visible(model, inputs, masks)
        np.testing.assert_allclose(got, numbers["encoded"], rtol=0, atol=1e-5)
        wanted = np.take_along_axis(numbers["patches"], np.asarray(order)[:, 9:, None], axis=1)
        got = reconstruct(model, inputs, masks).patches
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_settings_are_the_sources_own(name):
    config = read(name).config
    assert (config.model.patch_size, config.data.image_size) == (4, 24)
    assert config.model.activation == ("gelu_tanh" if name == "vit_5" else "gelu_erf")
    small = name in ("vitmae_4", "vitmae_5", "vit_4")
    assert config.model.norm_epsilon == (1e-12 if small else 1e-6)
    assert config.loss.norm_pix_loss == (name in ("vitmae_5", "mae"))
    is_half = name in ("vit_4", "vit_5", "timm", "timm_layer_scale")
    assert config.data.image_mean == ((0.5, 0.5, 0.5) if is_half else (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"), [("vitmae_4", 0, 36), ("vitmae_5", 36, 36), ("mae", 0, 0)]
)
def test_position_tables_are_stored_unless_they_are_the_computed_ones(name, encoder, decoder):
    model = read(name).config.model
    assert (model.stored_image_positions, model.stored_decoder_positions) == (encoder, decoder)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_and_every_parameter_has_its_line(name):
    imported = read(name)
    ours = {line.ours for line in imported.lines if line.fate != "dropped"} - FOLDED
    assert ours == imported.arrays.keys()
    dropped = {line.theirs for line in imported.lines if line.fate == "dropped"}
    heads = {
        "vitmae_4": {"vit.embeddings.position_embeddings"},
        "vit_4": {"pooler.dense.weight", "pooler.dense.bias"},
        "vit_5": {"classifier.weight", "classifier.bias"},
        "timm": {"head.weight", "head.bias"},
        "timm_layer_scale": {"head.weight", "head.bias"},
        "mae": {"pos_embed", "decoder_pos_embed"},
        "mae_encoder": {"pos_embed"},
    }
    assert dropped == heads.get(name, set())
    missing = {line.ours for line in imported.lines if line.fate == "missing"}
    assert ("encoder.blocks.attention_in.bias" in missing) == (name == "vit_5")
    assert all(not imported.arrays[name].any() for name in missing)


def changed(tmp_path, name, *, without=(), config=None, preprocessor=None, **tensors):
    """A copy of a golden folder with other tensors or settings."""
    folder = tmp_path / name
    shutil.copytree(TWINS / name, folder)
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    kept = {key: array for key, array in arrays.items() if key not in without}
    safetensors.numpy.save_file(kept | tensors, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(values))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return weights_file(folder)


def vector(size=16):
    return np.ones(size, np.float32)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vit_4", {"without": ["layernorm.weight"]}, r"lacks layernorm\.weight of .* Half a model"),
        ("vit_4", {"embeddings.cls_token": np.ones((1, 1, 8), np.float32)}, r"is \[1, 1, 8\] in"),
        ("vit_4", {"other.weight": vector()}, r"holds other\.weight, which no part"),
        ("vit_4", {"embeddings.mask_token": vector()}, r"a mask token in the encoder"),
        ("vit_4", {"layernorm.weight": np.ones(16, np.int8)}, r"holds numbers of type I8"),
        ("vit_4", {"config": {"hidden_act": "quick_gelu"}}, r"hidden_act = quick_gelu .* is not"),
        ("vit_4", {"config": {"model_type": "deit"}}, r"model_type = deit .* neither vit nor"),
        ("vit_4", {"config": {"intermediate_size": 50}}, r"50 channels, .* multiple of the width"),
        ("vit_4", {"config": {"num_attention_heads": 3}}, r"--num_heads = 3 does not divide"),
        (
            "vit_4",
            {"config": {"layer_norm_eps": None}},
            r"layer_norm_eps = None .* is not a number",
        ),
        ("vit_4", {"config": {"num_attention_heads": "4"}}, r"--num_heads = 4 does not divide"),
        ("vit_4", {"embeddings.position_embeddings": vector()}, r"is \[16\] in .* 3 axes are"),
        (
            "vit_4",
            {
                "embeddings.patch_embeddings.projection.weight": np.ones((18, 3, 4, 4), np.float32),
                "config": {"intermediate_size": 72, "num_attention_heads": 2},
            },
            r"model\.safetensors cannot be imported: width = 18 is not a multiple of 4, .*need\.$",
        ),
        ("vit_4", {"config": {"layer_norm_eps": 0}}, r"norm_epsilon = 0\.0 is not positive\.$"),
        ("vit_4", {"preprocessor": {"rescale_factor": 1}}, r"rescale_factor = 1 .* is not 1/255"),
        ("vit_4", {"config": {"image_size": [16, 36]}}, r"image_size = \[16, 36\] is not square"),
        (
            "timm",
            {"config": {"model_args": {"img_size": [16, 36]}}},
            r"img_size = \[16, 36\] is not square",
        ),
        (
            "timm",
            {"config": {"model_args": {}, "pretrained_cfg": {"input_size": [3, 32, 48]}}},
            r"img_size = \[32, 48\] is not square",
        ),
        (
            "timm",
            {"patch_embed.proj.weight": np.ones((16, 1, 4, 4), np.float32)},
            r"num_channels = 1\. Only RGB",
        ),
        ("timm", {"reg_token": vector()}, r"holds reg_token: register tokens"),
        ("timm", {"fc_norm.weight": vector()}, r"holds fc_norm\.weight: a norm after pooling"),
        ("timm", {"blocks.0.attn.q_norm.weight": vector(4)}, r"norms of queries and keys"),
        ("timm", {"blocks.0.ls1.gamma": vector()}, r"lacks blocks\.1\.ls1\.gamma"),
        ("timm", {"patch_embed.proj.weight": vector()}, r"is \[16\] in .* 4 axes are expected"),
        ("timm", {"without": ["pos_embed"]}, r"lacks pos_embed, as every such model has"),
        ("timm", {"pos_embed": np.ones((1, 31, 16), np.float32)}, r"30 patches, which is not a sq"),
        ("timm", {"config": {"model_args": {"act_layer": "relu"}}}, r"act_layer = relu is not"),
    ],
)
def test_what_our_model_cannot_be_is_refused_by_name(tmp_path, name, changes, message):
    path = changed(tmp_path, name, **changes)
    with pytest.raises(UserError, match=message):
        read_weights(path, CASES[name][0], Choices())


def test_statistics_come_from_the_preprocessor_and_from_the_user(tmp_path):
    stated = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "rescale_factor": 1 / 255,
    }
    path = changed(tmp_path, "vit_4", preprocessor=stated)
    imported = read_weights(path, "hf", Choices())
    assert imported.config.data.image_std == (0.4, 0.5, 0.6)
    assert imported.remarks == []
    chosen = Choices(image_mean=(0.9, 0.9, 0.9))
    assert read_weights(path, "hf", chosen).config.data.image_mean == (0.9, 0.9, 0.9)
    assert "mean and standard deviation" in read("vit_4").remarks[0]


def test_a_table_without_a_row_for_the_class_token_gets_one_of_zeros(tmp_path):
    table = np.random.default_rng(0).normal(size=(1, 36, 16)).astype(np.float32)
    path = changed(tmp_path, "timm", pos_embed=table)
    arrays = read_weights(path, "timm", Choices()).arrays
    np.testing.assert_array_equal(arrays["image.positions"], table[0])
    assert not arrays["cls_position"].any()


def test_release_5_spells_attributes_otherwise(tmp_path):
    wanted, arrays = read("vitmae_4").arrays, {}
    stored = safetensors.numpy.load_file(TWINS / "vitmae_4" / "model.safetensors")
    for name, array in stored.items():
        for v4, v5 in (
            ("vit.encoder.layer.", "vit.layers."),
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            name = name.replace(v4, v5)
        arrays[name] = array
    path = changed(tmp_path, "vitmae_4", without=stored, **arrays)
    got = read_weights(path, "hf", Choices()).arrays
    assert got.keys() == wanted.keys()
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


def test_weights_in_several_files_and_other_float_types_are_read(tmp_path):
    stored = safetensors.numpy.load_file(TWINS / "timm" / "model.safetensors")
    names = sorted(stored)
    files = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for file, listed in files.items():
        halves = {name: stored[name].astype(jnp.bfloat16) for name in listed}
        safetensors.numpy.save_file(halves, tmp_path / file)
    index = {"weight_map": {name: file for file, listed in files.items() for name in listed}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(TWINS / "timm" / "config.json", tmp_path)
    got, wanted = (
        read_weights(weights_file(tmp_path), "timm", Choices()).arrays,
        read("timm").arrays,
    )
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array.astype(jnp.bfloat16).astype(np.float32))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"index\.json names b\.safetensors, which is not there"):
        read_weights(weights_file(tmp_path), "timm", Choices())
