"""Golden models of other libraries, imported and exported again: every tensor as it was."""

import json
import pathlib
import shutil

import pytest
import safetensors.numpy

from m3ae_tpu.weights.exporting import export_model
from m3ae_tpu.weights.importing import import_weights

TWINS = pathlib.Path(__file__).parents[1] / "golden" / "twins"


def tensors_of(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def spelled_as_4(tensors):
    """Gives the decoder's blocks of release 5 their names in release 4."""
    return {
        name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("twin", "format_name", "export_format"),
    [
        ("vitmae_4", "hf", "hf_mae"),
        ("vitmae_5", "hf", "hf_mae"),
        ("vit_4", "hf", "hf"),
        ("vit_5", "hf", "hf"),
        ("timm", "timm", "timm"),
    ],
)
def test_an_imported_model_is_exported_with_the_same_bits(
    twin, format_name, export_format, tmp_path
):
    import_weights(TWINS / twin, tmp_path / "imported", format_name)
    export_model(tmp_path / "imported", export_format, tmp_path / "exported")
    given, written = spelled_as_4(tensors_of(TWINS / twin)), tensors_of(tmp_path / "exported")
    dropped = ("pooler.", "classifier.", "head.")
    given = {
        name.removeprefix("vit.") if export_format == "hf" else name: tensor
        for name, tensor in given.items()
        if not name.startswith(dropped)
    }
    assert written.keys() == given.keys()
    for name, tensor in given.items():
        assert written[name].tobytes() == tensor.tobytes(), name


def test_biases_that_are_zero_stay(tmp_path):
    shutil.copytree(TWINS / "vitmae_4", tmp_path / "new")
    given = tensors_of(tmp_path / "new")
    for name, tensor in given.items():  # As transformers begins training.
        if name.endswith((".query.bias", ".key.bias", ".value.bias")):
            tensor[:] = 0
    safetensors.numpy.save_file(given, tmp_path / "new" / "model.safetensors", {"format": "pt"})
    import_weights(tmp_path / "new", tmp_path / "imported", "hf")
    export_model(tmp_path / "imported", "hf_mae", tmp_path / "exported")
    written = tensors_of(tmp_path / "exported")
    assert written.keys() == given.keys()
    assert all(written[name].tobytes() == tensor.tobytes() for name, tensor in given.items())


@pytest.mark.parametrize("version", ["4", "5"])
def test_the_config_of_an_imported_model_comes_back(version, tmp_path):
    folder = TWINS / f"vitmae_{version}"
    import_weights(folder, tmp_path / "imported", "hf")
    export_model(tmp_path / "imported", "hf_mae", tmp_path / "exported")
    given = json.loads((folder / "config.json").read_text())
    written = json.loads((tmp_path / "exported" / "config.json").read_text())
    for name in given.keys() - {"dtype", "transformers_version"}:
        assert written[name] == given[name], name
