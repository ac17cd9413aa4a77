"""Guards initial word vectors: what of the model they replace, on any mesh, and when not."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest

from m3ae_tpu.config import MeshConfig
from m3ae_tpu.configs import debug
from m3ae_tpu.data.cooccurrence import cooccurrence_vectors
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.parallel.mesh import make_mesh
from m3ae_tpu.train.initial_words import with_initial_words
from m3ae_tpu.train.pretraining import pretraining
from m3ae_tpu.train.program import make_program

SOURCE = dataclasses.replace(debug.CONFIG.data.sources[0], split=(0.0, 0.01))
CONFIG = dataclasses.replace(
    debug.CONFIG,
    initial_words="cooccurrence",
    data=dataclasses.replace(debug.CONFIG.data, sources=(SOURCE,)),
)


@pytest.fixture(scope="module")
def data():
    return open_data(
        CONFIG.data,
        batch_size=CONFIG.batch_size,
        seed=CONFIG.seed,
        vocab_size=CONFIG.model.vocab_size,
    )


def words_of(model):
    return model.text.embedding.table, model.text.head.kernel


def first_model(config, data, mesh):
    objective = with_initial_words(pretraining(config), config, data)
    return make_program(config, objective, make_mesh(mesh)).init().model


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(fsdp=4, tensor=2)])
def test_counted_pieces_get_their_vectors_on_any_mesh_and_all_else_stays(data, mesh):
    config = dataclasses.replace(CONFIG, mesh=mesh)
    model = first_model(config, data, mesh)
    drawn = first_model(dataclasses.replace(config, initial_words="random"), data, mesh)
    table, kernel = (np.asarray(leaf) for leaf in words_of(drawn))
    vectors = cooccurrence_vectors(data, *table.shape)
    is_counted = vectors.any(axis=1)
    assert 0 < is_counted.sum() < len(table)
    width = len(kernel)
    logits = vectors[:, :width].T / np.float32(width**0.5)
    expected = np.where(is_counted[:, None], vectors, table), np.where(is_counted, logits, kernel)
    jax.tree.map(np.testing.assert_array_equal, words_of(model), expected)
    for new, old in zip(words_of(model), words_of(drawn), strict=True):
        assert new.sharding == old.sharding
    back = eqx.tree_at(words_of, model, words_of(drawn))
    jax.tree.map(np.testing.assert_array_equal, back, drawn)


def test_a_run_of_images_alone_begins_as_any_other():
    source = dataclasses.replace(SOURCE, kind="image")
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(CONFIG.model, vocab_size=0),
        data=dataclasses.replace(CONFIG.data, sources=(source,)),
    )
    data = open_data(config.data, batch_size=config.batch_size, seed=0, vocab_size=0)
    objective = pretraining(config)
    assert with_initial_words(objective, config, data) is objective
