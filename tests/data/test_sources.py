"""Guards opened data: splits, fingerprints, and data that does not fit the config."""

import pytest
from small_sets import TOKENIZER, data_of, numbered, pairs_of

from m3ae_tpu.config import SourceConfig
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.data.sources import differences, open_data
from m3ae_tpu.errors import UserError


def test_splits_of_the_same_shards_share_no_record(tmp_path):
    write_shards(tmp_path, "pairs", numbered(24))
    shards, apart = f"{tmp_path}/pairs-*", (0.25, 1.0)
    sources = (
        SourceConfig(shards=shards, weight=6.0, text_length=32, split=(0.0, 0.25)),
        SourceConfig(kind="image", shards=shards, weight=18.0, split=apart),
        SourceConfig(kind="text", shards=shards, weight=18.0, text_length=32, split=apart),
    )
    data = data_of(tmp_path, sources=sources, batch_size=42)
    batch = data.loader().batch_at(0)[0]
    seen = {
        kind: sorted(round(float(image.mean()) / 10) for image in batch[kind].images)
        for kind in ("paired", "image")
    }
    assert seen == {"paired": list(range(6)), "image": list(range(6, 24))}
    read = {
        kind: {TOKENIZER.decode(text) for text in batch[kind].text_ids}
        for kind in ("paired", "text")
    }
    assert read["paired"] == {f"number {index}" for index in range(6)}
    assert read["text"] == {f"number {index}" for index in range(6, 24)}
    assert data.num_records == (6, 18, 18)
    assert [source["records"] for source in data.fingerprint()["sources"]] == [6, 18, 18]


def test_a_split_without_a_record_is_refused(tmp_path):
    write_shards(tmp_path, "pairs", numbered(3))
    sources = (SourceConfig(shards=f"{tmp_path}/pairs-*", split=(0.4, 0.6)),)
    with pytest.raises(
        UserError, match=r"split = \(0\.4, 0\.6\) of source .* holds none of its 3 records"
    ):
        data_of(tmp_path, sources=sources)


def test_a_fingerprint_tells_what_decides_the_order(folder, tmp_path):
    first = pairs_of(folder).fingerprint()
    assert first["tokenizer_sha256"] == TOKENIZER.sha256
    assert first["sources"][0]["rows"] == 8
    records = list(open_shards(f"{folder}/pairs-*"))
    write_shards(tmp_path, "pairs", records, num_shards=2)
    assert pairs_of(tmp_path).fingerprint() == first
    write_shards(tmp_path, "pairs", records[:-1], num_shards=2)
    assert differences(pairs_of(tmp_path).fingerprint(), first) == [
        "records of sources.0's pairs-00000-of-00002.array_record = 11 now, was 12",
        "the content of sources.0's pairs-00001-of-00002.array_record changed",
    ]
    assert pairs_of(folder, seed=1).fingerprint() != first
    assert pairs_of(folder, batch_size=16).fingerprint() != first


def test_images_alone_need_no_tokenizer(folder):
    sources = (SourceConfig(kind="image", shards=f"{folder}/images-*"),)
    data = data_of(folder, sources=sources, tokenizer="no/such.model")
    batch, info = data.loader().batch_at(0)
    assert list(batch) == ["image"]
    assert info.counts == {}
    assert data.fingerprint()["tokenizer_sha256"] == ""


@pytest.mark.parametrize(
    ("kind", "name", "lacks"),
    [("paired", "texts", "images"), ("image", "texts", "images"), ("paired", "images", "captions")],
)
def test_shards_of_another_kind_are_refused(folder, kind, name, lacks):
    sources = (SourceConfig(kind=kind, shards=f"{folder}/{name}-*"),)
    with pytest.raises(
        UserError, match=rf"kind = '{kind}' of source .*{name}-\* needs {lacks}, but"
    ):
        data_of(folder, sources=sources)


def test_a_tokenizer_that_the_model_cannot_hold_is_refused(folder):
    config = pairs_of(folder).config
    with pytest.raises(
        UserError, match=r"model\.vocab_size = 1000 is too small .* --model\.vocab_size=4000"
    ):
        open_data(config, batch_size=8, seed=0, vocab_size=1000)


def test_sources_of_one_kind_must_share_a_text_length(folder):
    sources = tuple(
        SourceConfig(shards=f"{folder}/pairs-*", text_length=length) for length in (32, 16)
    )
    with pytest.raises(
        UserError, match=r"text_length = 16 of source .* differs from another 'paired' source's 32"
    ):
        data_of(folder, sources=sources)
