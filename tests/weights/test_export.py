"""Exports: complete, equal to the model, and refused where they would not be."""

import dataclasses
import importlib.util
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from small_run import CONFIG, save_run, trained_run, with_source

from m3ae_tpu.config import ModelConfig
from m3ae_tpu.errors import UserError
from m3ae_tpu.pretrained.loading import load
from m3ae_tpu.run.checkpoint import named_arrays
from m3ae_tpu.weights import comparison, onnx_files, torch_folders
from m3ae_tpu.weights.exporting import export_model
from m3ae_tpu.weights.onnx_files import write_onnx
from m3ae_tpu.weights.torch_folders import write_hf, write_hf_mae, write_timm

FILES = {
    "safetensors": {"config.json", "model.safetensors", "tokenizer.model"},
    "hf": {"config.json", "model.safetensors", "preprocessor_config.json"},
    "hf_mae": {"config.json", "model.safetensors", "preprocessor_config.json"},
    "timm": {"config.json", "model.safetensors"},
    "onnx": {"image.onnx", "text.onnx", "image_text.onnx", "tokenizer.model"},
    "stablehlo": {
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "stablehlo.json",
        "image.stablehlo",
        "text.stablehlo",
        "image_text.stablehlo",
    },
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    save_run(folder, trained_run())
    return folder


def with_model(run=None, **changes):
    """Returns a trained run whose model has other settings."""
    config = (run or CONFIG).model if run else CONFIG.model
    return trained_run(
        dataclasses.replace(run or CONFIG, model=dataclasses.replace(config, **changes))
    )


@pytest.mark.parametrize("format_name", FILES)
def test_an_export_is_complete_and_tells_how_close_it_is(format_name, workdir, tmp_path, capsys):
    output = tmp_path / "new" / "export"
    export_model(workdir, format_name, output)
    assert {path.name for path in output.iterdir()} == FILES[format_name] | {"README.md"}
    assert [path.name for path in output.parent.iterdir()] == ["export"]
    assert len({path.stat().st_mode for path in output.iterdir()}) == 1
    printed = capsys.readouterr().out
    largest = float(printed.split("the largest difference is ")[1])
    assert largest == 0 if format_name == "safetensors" else 0 <= largest < 1e-5
    card = (output / "README.md").read_text()
    for part in ("2205.14204", "medical", "Licence", "3 steps", "starter/train-*", "largest value"):
        assert part in card
    assert max(len(line) for line in card.splitlines() if not line.startswith("|")) <= 100


def test_a_model_folder_is_loaded_like_the_run_that_it_was_made_of(workdir, tmp_path):
    export_model(workdir, "safetensors", tmp_path / "first")
    export_model(tmp_path / "first", "safetensors", tmp_path / "second")
    run, again = load(workdir), load(tmp_path / "second")
    assert again.digest == run.digest
    assert (again.step, again.config, again.versions) == (run.step, run.config, run.versions)
    texts = ["a red car", ""]
    np.testing.assert_array_equal(again.encode(texts=texts).tokens, run.encode(texts=texts).tokens)


def test_type_vectors_are_folded_and_position_codes_always_written(tmp_path):
    run = trained_run()
    write_hf(tmp_path, run)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    image: Any = run.model.image
    np.testing.assert_array_equal(
        tensors["embeddings.patch_embeddings.projection.bias"],
        image.embedding.bias + image.encoder_type,
    )
    positions = tensors["embeddings.position_embeddings"]
    assert positions.shape == (1, 17, 16)
    assert not positions[0, 0].any()
    assert np.abs(positions[0, 1:]).max() == 1
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float32)}


def test_configs_name_activation_epsilon_and_preprocessing(tmp_path):
    run = with_model(activation="gelu_erf", norm_epsilon=1e-5)
    write_hf_mae(tmp_path, run)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["hidden_act"], config["layer_norm_eps"]) == ("gelu", 1e-5)
    assert (config["mask_ratio"], config["norm_pix_loss"]) == (0.75, False)
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 32}
    assert processor["image_mean"] == list(run.config.data.image_mean)
    assert processor["image_std"] == list(run.config.data.image_std)


def test_an_encoder_without_decoder_and_with_stored_positions_is_exported(tmp_path):
    decoder = dataclasses.replace(CONFIG.model.decoder, num_layers=0)
    run = with_model(with_source("image"), decoder=decoder, stored_image_positions=16, vocab_size=0)
    assert write_timm(tmp_path, run)[-1].largest < 1e-5
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(tensors["pos_embed"][0, 0], run.model.cls_position)
    np.testing.assert_array_equal(tensors["pos_embed"][0, 1:], run.model.image.positions)
    with pytest.raises(UserError, match="hf_mae needs a decoder"):
        write_hf_mae(tmp_path, run)
    (tmp_path / "onnx").mkdir()
    assert max(each.largest for each in write_onnx(tmp_path / "onnx", run)) < 1e-5
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["image.onnx"]


@pytest.mark.parametrize("stored", [0, 16])
def test_an_export_takes_another_image_size(stored, tmp_path, workdir):
    run = with_model(stored_image_positions=stored)
    data = dataclasses.replace(run.config.data, image_size=48)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))
    assert write_hf(tmp_path, run)[-1].largest < 1e-5
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["image_size"] == 48
    with pytest.raises(UserError, match="image_size = 50 is not a multiple"):
        export_model(workdir, "hf", tmp_path / "wrong", image_size=50)


def test_a_tensor_that_is_written_wrongly_is_found_and_nothing_is_left(
    workdir, tmp_path, monkeypatch
):
    right = torch_folders.to_theirs

    def transposed(arrays, table):
        tensors = right(arrays, table)
        name = "encoder.layer.1.attention.output.dense.weight"
        return tensors | {name: np.ascontiguousarray(tensors[name].T)}

    monkeypatch.setattr(torch_folders, "to_theirs", transposed)
    with pytest.raises(UserError, match="of the export differs from the model by"):
        export_model(workdir, "hf", tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_is_no_small_difference():
    with pytest.raises(UserError, match="differs from the model by nan"):
        comparison.compare("tokens", np.array([np.nan]), np.array([1.0]))


def test_a_folder_that_is_not_empty_is_left_as_it_is(workdir, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        export_model(workdir, "hf", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("write", [write_hf, write_hf_mae, write_timm])
def test_formats_of_images_refuse_a_model_of_texts(write, tmp_path):
    with pytest.raises(UserError, match="has learned texts only"):
        write(tmp_path, trained_run(with_source("text")))


def test_timm_takes_one_epsilon_only(tmp_path):
    with pytest.raises(UserError, match=r"norm_epsilon = 1e-12, and timm's ViT takes 1e-06"):
        write_timm(tmp_path, with_model(norm_epsilon=1e-12))


def test_onnx_asks_for_its_package(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'm3ae-tpu\[onnx\]'"):
        export_model(workdir, "onnx", tmp_path / "export")


def test_onnx_runs_without_a_runtime_and_large_files_have_their_weights_beside_them(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(onnx_files, "_LARGEST_FILE", 10_000)
    run = trained_run(with_source("text"))
    assert max(each.largest for each in write_onnx(tmp_path, run)) < 1e-5
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"text.onnx", "text.onnx.data"}
    assert sizes["text.onnx"] < 20_000 < sizes["text.onnx.data"]


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf"])
def test_onnx_takes_any_batch_with_and_without_words(activation, tmp_path):
    import onnxruntime

    run = with_model(activation=activation)
    write_onnx(tmp_path, run)
    session = onnxruntime.InferenceSession(tmp_path / "image_text.onnx")
    names = [output.name for output in session.get_outputs()]
    random = np.random.default_rng(0)
    for batch, length in ((1, 8), (7, 8), (3, 1), (2, 200), (5, 0)):
        images = list(random.integers(0, 256, (batch, 32, 32, 3), np.uint8))
        ids = random.integers(1, 4_000, (batch, length), np.int32)
        is_valid = np.arange(length)[None] < random.integers(0, length + 1, (batch, 1))
        given = {"images": np.stack(images), "text_ids": ids, "is_valid": is_valid}
        outputs: Any = dict(zip(names, session.run(None, given), strict=True))
        wanted: Any
        if length == 0:
            wanted = run.encode(images=images)
            assert not outputs["text_mean"].any()
        else:
            inputs = run.task.make_inputs(
                run.rows(images=images)._replace(images=jnp.asarray(np.stack(images)))
            )
            inputs = inputs._replace(text_ids=jnp.asarray(ids), is_valid=jnp.asarray(is_valid))
            wanted = jax.jit(lambda model, inputs: model.encode(inputs))(run.model, inputs)
            np.testing.assert_allclose(outputs["text_mean"], wanted.text_mean, atol=1e-5)
        np.testing.assert_allclose(outputs["tokens"], wanted.tokens, atol=1e-5)
        np.testing.assert_allclose(outputs["cls"], wanted.cls, atol=1e-5)
        np.testing.assert_allclose(outputs["image_mean"], wanted.image_mean, atol=1e-5)


def test_a_program_needs_only_its_file_and_the_weights(workdir, tmp_path):
    export_model(workdir, "stablehlo", tmp_path / "export")
    program = jax.export.deserialize(
        bytearray((tmp_path / "export" / "image.stablehlo").read_bytes())
    )
    weights = safetensors.numpy.load_file(tmp_path / "export" / "model.safetensors")
    run = load(workdir)
    assert weights.keys() == named_arrays(run.model).keys()
    images = list(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    features = program.call(weights, np.stack(images))
    wanted = run.encode(images=images)
    np.testing.assert_allclose(features["tokens"], wanted.tokens, atol=1e-5)
    described = json.loads((tmp_path / "export" / "stablehlo.json").read_text())
    assert described["jax"] == jax.__version__
    assert described["programs"]["text.stablehlo"]["inputs"] == ["weights", "text_ids", "is_valid"]


def test_weights_in_bfloat16_become_float32(tmp_path):
    run = with_model(parameter_dtype="bfloat16", compute_dtype="bfloat16")
    assert isinstance(run.config.model, ModelConfig)
    assert write_hf(tmp_path, run)[-1].largest < 1e-5
