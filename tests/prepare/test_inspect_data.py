"""Guards the inspection of data: damage is named, and no file of the user is overwritten."""

import hashlib
import json
import subprocess
import sys

import pytest

from m3ae_tpu.config import DataConfig, SourceConfig
from m3ae_tpu.data.manifest import STARTER, read_manifest
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare.inspection import find_faults, sources_of, summarise


@pytest.fixture
def folder(tmp_path):
    """A set of 30 pairs in three shards, with its manifest."""
    shards = open_shards("starter/train-*")
    paths = write_shards(tmp_path, "train", [shards[index] for index in range(30)], num_shards=3)
    lines = {}
    for path in map(tmp_path.joinpath, paths):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines[path.name] = {"records": 10, "bytes": path.stat().st_size, "sha256": digest}
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": lines}))
    return tmp_path


def test_a_whole_set_has_no_fault_and_each_damage_is_named(folder):
    manifest = read_manifest(folder)
    assert find_faults(folder, manifest) == []
    flipped, short, gone = (folder / name for name in manifest["shards"])
    data = bytearray(flipped.read_bytes())
    data[1000] ^= 1
    flipped.write_bytes(data)
    short.write_bytes(short.read_bytes()[:-1])
    gone.unlink()
    faults = find_faults(folder, manifest)
    for fault, path, what in zip(
        faults, (flipped, short, gone), ("another SHA-256", "bytes", "missing"), strict=True
    ):
        assert str(path) in fault
        assert what in fault


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("{", "damaged"), ("[]", "no shards")]
)
def test_a_file_that_is_not_a_manifest_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_the_kinds_of_the_starter_set_are_recognised():
    kinds = {
        source.shards.rpartition("/")[2]: source.kind
        for source in sources_of(STARTER, read_manifest(STARTER))
    }
    assert kinds == {
        "train-*": "paired",
        "heldout-*": "paired",
        "images-*": "image",
        "texts-*": "text",
    }


def test_the_mixture_and_the_cut_texts_are_those_of_the_config(folder):
    sources = (
        SourceConfig(shards=f"{folder}/train-*", text_length=8, weight=3.0),
        SourceConfig(kind="image", shards="starter/images-*"),
    )
    pairs, images = summarise(
        open_data(DataConfig(sources=sources), batch_size=20, seed=0, vocab_size=32_000)
    )
    assert (pairs.source.rows, pairs.records, pairs.epochs_per_thousand_steps) == (15, 30, 500.0)
    captions = [
        caption for record in open_shards(f"{folder}/train-*") for caption in record.captions
    ]
    _, _, num_truncated = Tokenizer("starter/tokenizer.model").encode(captions, 8)
    assert pairs.texts == len(captions)
    assert pairs.truncated == num_truncated / len(captions)
    assert (images.source.rows, images.texts, images.truncated) == (5, 0, 0.0)


def test_a_split_is_measured_alone_and_damaged_records_stop_nothing(folder):
    paths = sorted(folder.glob("train-*"))
    data = bytearray(paths[0].read_bytes())
    data[1000] ^= 1
    paths[0].write_bytes(data)
    source = SourceConfig(shards=f"{folder}/train-*", split=(0.0, 0.5))
    (pairs,) = summarise(
        open_data(DataConfig(sources=(source,)), batch_size=30, seed=0, vocab_size=32_000)
    )
    assert (pairs.records, pairs.epochs_per_thousand_steps) == (15, 2000.0)
    (found,) = sources_of(folder, read_manifest(folder))
    assert (found.kind, found.weight) == ("paired", 30.0)


def test_a_folder_may_be_named_like_a_glob(folder, tmp_path_factory):
    named_like_a_glob = tmp_path_factory.mktemp("odd") / "set [1]"
    folder.rename(named_like_a_glob)
    (found,) = sources_of(named_like_a_glob, read_manifest(named_like_a_glob))
    assert len(open_shards(found.shards)) == 30


def test_the_program_writes_a_sheet_only_where_it_is_asked_to(tmp_path):
    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "m3ae_tpu.pipelines.inspect_data", "--config=quickstart"]
        command = [*program, *flags]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert run().returncode == 0
    assert list(tmp_path.iterdir()) == []
    assert run("--sheet=sheet.png", "--examples=1").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    refused = run("--sheet=.")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --sheet = . is a folder. Name a file in it.\n",
    )
