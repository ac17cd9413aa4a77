"""Guards what features are compared with: counts of pieces, and projections to their size."""

import numpy as np
import pytest
import scipy.sparse
from labelled_sets import write_labelled
from small_run import trained_run

from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.evaluation import baselines
from m3ae_tpu.evaluation.baselines import count_pieces, known_pieces, random_projection
from m3ae_tpu.evaluation.evaluate import read_examples
from m3ae_tpu.evaluation.protocol import Row

RUN = trained_run()


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    captions = ["a cat and a cat and a cat", "a dog", "a dog and a cat"]
    pattern = write_labelled(folder, "train", ["cat", "dog", "cat"], captions=captions)
    return read_examples(RUN, open_shards(pattern))


def test_pieces_are_counted_as_the_encoder_sees_them(examples):
    counts = count_pieces(examples, 4_000).toarray()
    for row, ids, is_valid in zip(counts, examples.text_ids, examples.is_valid, strict=True):
        np.testing.assert_array_equal(row, np.bincount(ids[is_valid], minlength=4_000))
    assert counts[0].max() > 1
    assert counts[0].sum() == examples.text_ids.shape[1]  # The rest of the caption is cut off.


def test_only_pieces_of_training_captions_are_known(examples, monkeypatch):
    counts = count_pieces(examples, 4_000)
    train, test = counts[[1]], counts[[0, 2]]
    both = known_pieces((train, test))
    assert both is not None
    known, of_test = both
    assert known.shape[1] == len(np.unique(examples.text_ids[1][examples.is_valid[1]]))
    assert (known > 0).all()
    assert of_test.shape == (2, known.shape[1])
    monkeypatch.setattr(baselines, "MAX_PIECES", 1)
    both = known_pieces((counts, counts))
    assert both is not None
    frequent = both[0]
    assert frequent.shape == (3, 1)
    assert (frequent > 0).all()
    assert known_pieces((scipy.sparse.csr_array((1, 4_000), dtype=np.float32), test)) is None


@pytest.mark.parametrize("size", [4, 40])
def test_a_random_projection_has_the_size_and_is_linear_and_the_same_every_time(size):
    features = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
    train, test = random_projection((features, features[:2]), size)
    assert train.shape == (6, size)
    assert train.dtype == np.float32
    np.testing.assert_allclose(test, train[:2], rtol=1e-5, atol=1e-6)
    again, doubled = random_projection((features, 2 * features), size)
    np.testing.assert_array_equal(train, again)
    np.testing.assert_allclose(doubled, 2 * train, rtol=1e-5, atol=1e-6)


def test_counts_and_their_dense_form_have_the_same_projection(examples):
    counts = count_pieces(examples, 4_000)
    sparse = random_projection((counts, counts), 8)[0]
    dense = random_projection((counts.toarray(), counts.toarray()), 8)[0]
    np.testing.assert_allclose(sparse, dense, atol=1e-5)


@pytest.mark.parametrize(("unit", "first"), [("accuracy", "high"), ("loss", "low")])
def test_the_best_baseline_is_named_first(unit, first):
    values = {"pretrained": 9.0, "low": 0.1, "high": 0.9, "middle": 0.5}
    row = Row(title="a figure", values=values, section="features", unit=unit)
    assert [name for name, _ in row.baselines][::2] == [first, {"high": "low"}.get(first, "high")]
    assert Row(title="", values={}, section="features", unit=unit).baselines == []
