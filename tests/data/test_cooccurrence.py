"""Guards word vectors from counts: their definition, what counts as a text, and their bits."""

import numpy as np
import pytest
from small_sets import TOKENIZER

from m3ae_tpu.config import DataConfig, SourceConfig
from m3ae_tpu.data import cooccurrence
from m3ae_tpu.data.cooccurrence import cooccurrence_vectors
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.data.sources import open_data

VOCAB = TOKENIZER.vocab_size


def texts_of(folder, records, **source):
    write_shards(folder, "texts", records, num_shards=1)
    return opened(folder, **source)


def opened(folder, **source):
    config = DataConfig(
        sources=(SourceConfig(kind="text", shards=f"{folder}/texts-*", **source),), num_workers=0
    )
    return open_data(config, batch_size=4, seed=0, vocab_size=VOCAB)


def pieces(text):
    ids, is_valid, _ = TOKENIZER.encode([text], 64)
    return sorted(set(ids[is_valid].tolist()))


@pytest.fixture(scope="module")
def records():
    shards = open_shards("starter/texts-*")
    return [shards[index] for index in range(300)]


def test_vectors_are_singular_vectors_of_positive_mutual_information(tmp_path, records):
    vectors = cooccurrence_vectors(texts_of(tmp_path, records), VOCAB, 24)
    counts = np.zeros((VOCAB, VOCAB))
    for record in records:
        for caption in record.captions:
            ids = pieces(caption)
            counts[np.ix_(ids, ids)] += 1
    np.fill_diagonal(counts, 0)
    known = counts.sum(axis=1) > 0
    counts = counts[np.ix_(known, known)]
    share, context = counts.sum(axis=1), counts.sum(axis=1) ** 0.75
    with np.errstate(divide="ignore"):
        information = np.log(counts / np.outer(share, context / context.sum())).clip(0)
    _, values, _ = np.linalg.svd(information)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[~known], 0)
    vectors = vectors[known].astype(np.float64)
    assert np.square(vectors).mean() == pytest.approx(1, rel=1e-5)
    # Of matrices of rank 24 the truncated decomposition is the nearest; the solver is randomised.
    directions, _ = np.linalg.qr(vectors)
    rest = information - directions @ (directions.T @ information)
    assert np.linalg.norm(rest) < 1.01 * np.linalg.norm(values[24:])
    sizes = np.square(vectors).sum(axis=0)
    np.testing.assert_allclose(sizes / sizes[0], values[:24] / values[0], rtol=0.1)


def test_each_caption_is_a_text_that_is_cut_as_the_encoder_sees_it(tmp_path):
    captions = ("red apple", "green pear on the old table")
    data = texts_of(tmp_path, [Record(id="a", captions=captions)] * 4, text_length=3)
    vectors = cooccurrence_vectors(data, VOCAB, 8)
    ids, is_valid, _ = TOKENIZER.encode(captions, 3)
    seen = set(ids[is_valid].tolist())
    assert set(np.flatnonzero(vectors.any(axis=1)).tolist()) == seen


def test_the_same_data_give_the_same_bits_and_records_are_spread_over_the_source(
    tmp_path, records, monkeypatch
):
    data = texts_of(tmp_path, records)
    first = cooccurrence_vectors(data, VOCAB, 8)
    np.testing.assert_array_equal(cooccurrence_vectors(data, VOCAB, 8), first)
    monkeypatch.setattr(cooccurrence, "MAX_RECORDS", 100)
    few = tmp_path / "few"
    few.mkdir()
    expected = cooccurrence_vectors(texts_of(few, records[::3]), VOCAB, 8)
    np.testing.assert_array_equal(cooccurrence_vectors(data, VOCAB, 8), expected)


def test_texts_without_two_pieces_give_no_vector_and_blank_records_are_left_out(tmp_path, records):
    lonely = [Record(id=str(number), captions=("a",)) for number in range(4)]
    data = texts_of(tmp_path, lonely)
    assert not cooccurrence_vectors(data, VOCAB, 8).any()
    blanks = tmp_path / "blanks"
    blanks.mkdir()
    blank = [Record(id="blank", captions=(" ",))]
    mixed = cooccurrence_vectors(texts_of(blanks, records[:9] + blank), VOCAB, 8)
    whole = tmp_path / "whole"
    whole.mkdir()
    np.testing.assert_array_equal(
        mixed, cooccurrence_vectors(texts_of(whole, records[:9]), VOCAB, 8)
    )


def test_images_beside_texts_are_not_read(tmp_path, folder, records):
    write_shards(tmp_path, "texts", records[:9], num_shards=1)
    text = SourceConfig(kind="text", shards=f"{tmp_path}/texts-*")
    images = SourceConfig(kind="image", shards=f"{folder}/pairs-*")
    config = DataConfig(sources=(images, text), num_workers=0, image_size=16)
    data = open_data(config, batch_size=4, seed=0, vocab_size=VOCAB)
    np.testing.assert_array_equal(
        cooccurrence_vectors(data, VOCAB, 8), cooccurrence_vectors(opened(tmp_path), VOCAB, 8)
    )
