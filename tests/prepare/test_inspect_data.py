"""Guards the look at data: damage is named, and the sheet hides what the masks hide."""

import hashlib
import json

import numpy as np
import pytest

from m3ae_tpu.config import DataConfig, ModelConfig, PretrainConfig, SourceConfig
from m3ae_tpu.data.manifest import STARTER, read_manifest
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare.inspection import find_faults, sources_of, summarise
from m3ae_tpu.report.contact_sheet import draw_contact_sheet, hide_patches


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
def test_a_manifest_that_is_none_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_the_starter_sets_kinds_are_told_apart():
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
    assert (pairs.rows, pairs.records, pairs.epochs_per_thousand_steps) == (15, 30, 500.0)
    captions = [
        caption for record in open_shards(f"{folder}/train-*") for caption in record.captions
    ]
    _, _, cut = Tokenizer("starter/tokenizer.model").encode(captions, 8)
    assert pairs.texts == len(captions)
    assert pairs.cut == cut / len(captions)
    assert (images.rows, images.texts, images.cut) == (5, 0, 0.0)


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
    odd = tmp_path_factory.mktemp("odd") / "set [1]"
    folder.rename(odd)
    (found,) = sources_of(odd, read_manifest(odd))
    assert len(open_shards(found.shards)) == 30


def test_patches_that_are_not_visible_are_grey():
    images = np.random.default_rng(0).integers(0, 100, (2, 8, 8, 3), np.uint8)
    seen = hide_patches(images, np.array([[0], [3]]), 4)
    np.testing.assert_array_equal(seen[0, :4, :4], images[0, :4, :4])
    np.testing.assert_array_equal(seen[1, 4:, 4:], images[1, 4:, 4:])
    assert [int((image == 150).all(axis=-1).sum()) for image in seen] == [48, 48]


def test_a_contact_sheet_shows_every_kind(folder):
    sources = (
        SourceConfig(shards=f"{folder}/train-*"),
        SourceConfig(kind="image", shards="starter/images-*"),
        SourceConfig(kind="text", shards="starter/texts-*"),
    )
    data = DataConfig(sources=sources, image_size=32, num_workers=0)
    config = PretrainConfig(batch_size=6, model=ModelConfig(patch_size=8), data=data)
    batch, _ = open_data(data, batch_size=6, seed=0, vocab_size=32_000).loader().batch_at(0)
    tokenizer = Tokenizer(data.tokenizer)
    sheet = draw_contact_sheet(config, batch, tokenizer)
    pairs = draw_contact_sheet(config, {"paired": batch["paired"]}, tokenizer)
    assert sheet.width == pairs.width
    assert sheet.height > pairs.height > 192
    assert (np.asarray(pairs) == 150).all(axis=-1).sum() > 192 * 192
