"""Guards models that are read back from a run's directory or a model folder."""

import json

import jax
import numpy as np
import pytest
from small_run import CONFIG, save_run, trained_run, with_source

import m3ae_tpu
from m3ae_tpu.errors import UserError
from m3ae_tpu.pretrained.loading import has_model, load_pretrained
from m3ae_tpu.pretrained.model_folder import new_folder, write_model_folder
from m3ae_tpu.run.checkpoint_reader import named_arrays

RUN = trained_run()


def write_folder(folder, run=RUN):
    """Writes a model folder of a run."""
    parameters = {name: np.asarray(leaf) for name, leaf in named_arrays(run.model).items()}
    tokenizer = run.tokenizer.model if run.tokenizer is not None else b""
    with new_folder("--output", folder) as unfinished:
        write_model_folder(unfinished, run.config, parameters, step=run.step, tokenizer=tokenizer)


@pytest.mark.parametrize("write", [save_run, write_folder])
def test_a_model_is_loaded_onto_all_devices(tmp_path, write):
    write(tmp_path, RUN)
    loaded = load_pretrained(tmp_path)
    assert has_model(tmp_path)
    assert (loaded.step, loaded.config, loaded.digest) == (RUN.step, RUN.config, RUN.digest)
    for ours, theirs in zip(jax.tree.leaves(loaded.model), jax.tree.leaves(RUN.model), strict=True):
        assert ours.sharding.device_set == set(jax.devices())
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.model.operations.mesh == loaded.mesh
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.model == (tmp_path / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("write", [save_run, write_folder])
def test_a_model_of_images_alone_has_no_tokenizer(tmp_path, write):
    write(tmp_path, trained_run(with_source("image")))
    assert load_pretrained(tmp_path).tokenizer is None


def test_a_model_is_loaded_for_images_of_another_size(tmp_path):
    write_folder(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    features = m3ae_tpu.load(tmp_path, image_size=48).encode(images=[image])
    assert features.tokens.shape == (1, 1 + 6 * 6, CONFIG.model.encoder.width)
    with pytest.raises(UserError, match=r"image_size = 50 is not a multiple"):
        m3ae_tpu.load(tmp_path, image_size=50)
    with pytest.raises(UserError, match=r"gives more than 1,000 patches of 8 pixels a side"):
        m3ae_tpu.load(tmp_path, image_size=8_008)


def cut_file(path):
    path.write_bytes(path.read_bytes()[:-100])


def other_version(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"format_version":"1"', b'"format_version":"2"'))


def not_ours(path):
    path.write_bytes(path.read_bytes().replace(b'"m3ae-tpu"', b'"otherlib"'))


def without_step(path):
    path.write_bytes(path.read_bytes().replace(b'"step":', b'"stop":'))


def without_tokenizer(path):
    (path.parent / "tokenizer.model").unlink()
    config = path.parent / "config.json"
    config.write_text(config.read_text().replace("starter/tokenizer.model", "elsewhere.model"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_file, r"is damaged or was not copied to its end .*\. Copy it again\."),
        (other_version, r"format_version = '2', and this version of m3ae-tpu reads '1'"),
        (not_ours, r"was not written by m3ae-tpu\. Import it first"),
        (lambda path: path.write_bytes(b""), r"is damaged or was not copied to its end"),
        (without_step, r"is damaged: its metadata says no step, tokenizer or versions \('step'\)"),
        (without_tokenizer, r"lacks the tokenizer of its model .* Copy the whole folder again\."),
    ],
)
def test_a_damaged_model_folder_is_refused(tmp_path, damage, message):
    write_folder(tmp_path)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_pretrained(tmp_path)


def test_parameters_that_do_not_fit_the_config_are_named(tmp_path):
    write_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"]["encoder"]["num_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"encoder.blocks.attention_in.bias is \[2, 3, 16\] there"):
        load_pretrained(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is not a folder\. Name the workdir of a run"):
        load_pretrained(tmp_path / "none")


def test_a_new_folder_overwrites_nothing_and_leaves_nothing_after_an_error(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with (
        pytest.raises(UserError, match=r"--output = .*mine is there already and not empty"),
        new_folder("--output", tmp_path / "mine"),
    ):
        pass
    with (
        pytest.raises(FileNotFoundError),
        new_folder("--output", tmp_path / "new") as folder,
    ):
        (folder / "missing" / "half").write_text("half")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
