"""Guards the command that makes the package's model: rounded weights, true scores, digests."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy
from labelled_sets import write_labelled
from small_run import CONFIG, save_run, trained_run

from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.errors import UserError
from m3ae_tpu.evaluation.evaluate import evaluate_run
from m3ae_tpu.files import file_sha256
from m3ae_tpu.pretrained.loading import load
from m3ae_tpu.weights import starter_model
from m3ae_tpu.weights.starter_model import known_features, make_starter_model

FINISHED = dataclasses.replace(CONFIG, num_steps=3)
LABELS = ["cat", "dog"] * 10


def make(made, output, config=FINISHED, **options):
    make_starter_model(
        made.run,
        output,
        config,
        config_name="small",
        changes=["--seed=0"],
        train_shards=made.train,
        test_shards=made.test,
        **options,
    )


@dataclasses.dataclass(frozen=True)
class Made:
    """A run, labelled shards, and the folder that was made of them."""

    run: pathlib.Path
    train: str
    test: str
    folder: pathlib.Path

    @property
    def manifest(self):
        return json.loads((self.folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    save_run(folder / "run", trained_run(FINISHED))
    captions = [f"a {label} sits here" for label in LABELS]
    train = write_labelled(folder, "train", LABELS, captions=captions)
    test = write_labelled(folder, "test", LABELS[:10], captions=captions[:10], seed=1)
    made = Made(folder / "run", train, test, folder / "new" / "model")
    make(made, made.folder)
    return made


def test_the_folder_is_complete_and_names_its_origin(made):
    names = {"README.md", "config.json", "evaluation.json", "manifest.json", "model.safetensors"}
    assert {path.name for path in made.folder.iterdir()} == names
    assert [path.name for path in made.folder.parent.iterdir()] == ["model"]
    manifest = made.manifest
    assert (manifest["config"], manifest["changes"], manifest["steps"]) == (
        "small",
        ["--seed=0"],
        3,
    )
    assert manifest["sha256"] == {
        name: file_sha256(made.folder / name)
        for name in ("model.safetensors", "config.json", "evaluation.json")
    }
    card = (made.folder / "README.md").read_text()
    for part in ('load("starter")', "weights are under Apache-2.0 too", "float16", "Noto Emoji"):
        assert part in card


def test_the_weights_are_those_of_the_run_in_half_the_bytes(made):
    run, packed = load(made.run), load(made.folder)
    assert packed.digest == made.manifest["parameters_sha256"]
    stored = safetensors.numpy.load_file(made.folder / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
    texts = ["a cat sits here"]
    difference = np.abs(packed.encode(texts=texts).tokens - run.encode(texts=texts).tokens)
    assert 0 < difference.max() < 1e-2


def test_scores_and_features_are_those_of_the_rounded_weights(made):
    packed = load(made.folder)
    again = evaluate_run(packed, [].append, train_shards=made.train, test_shards=made.test)
    assert again == json.loads((made.folder / "evaluation.json").read_text())
    shards = open_shards(made.test)
    known = known_features(packed, [shards[index] for index in range(3)])
    assert known == made.manifest["features"]["values"]
    assert np.shape(known["text_mean"]) == (3, 4)


def test_a_run_of_another_config_or_unfinished_is_refused(made, tmp_path):
    other = dataclasses.replace(FINISHED, batch_size=7)
    with pytest.raises(UserError, match=r"is not a run of --config = small: batch_size = 7 now"):
        make(made, tmp_path / "model", other)
    save_run(tmp_path / "run", trained_run(CONFIG))
    unfinished = dataclasses.replace(made, run=tmp_path / "run")
    with pytest.raises(UserError, match=r"has finished 3 of [\d,]+ steps\. Train it to its end"):
        make(unfinished, tmp_path / "model", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_same_bytes_replace_a_model_folder_and_only_if_told_so(made, tmp_path, monkeypatch):
    monkeypatch.setattr(starter_model, "evaluate_run", lambda *_, **__: {})
    monkeypatch.setattr(starter_model, "print_figures", lambda _: None)
    make(made, tmp_path / "model")
    first, second = (folder / "model.safetensors" for folder in (made.folder, tmp_path / "model"))
    assert first.read_bytes() == second.read_bytes()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(UserError, match=r"--output = .*model is there already and not empty"):
        make(made, tmp_path / "model")
    assert (tmp_path / "model" / "old").exists()
    make(made, tmp_path / "model", overwrite=True)
    assert not (tmp_path / "model" / "old").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"mine is there already and not empty"):
        make(made, tmp_path / "mine", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "mine"}


def test_weights_that_rounding_changes_too_much_are_refused(made, tmp_path, monkeypatch):
    monkeypatch.setattr(starter_model, "TOLERANCE", 1e-9)
    with pytest.raises(UserError, match=r"Rounding the weights moves features by"):
        make(made, tmp_path / "model")
    assert not list(tmp_path.iterdir())
