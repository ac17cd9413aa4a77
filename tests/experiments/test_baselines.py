"""Guards the baselines: the contrastive loss, the classes in captions, and their image towers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import CONFIG

from m3ae_tpu.batch import batch_shapes, mixture, random_batch
from m3ae_tpu.config.tree import replaced
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.experiments.clip import Clip, contrastive, contrastive_loss
from m3ae_tpu.experiments.supervised import Classifier, classes_of, supervised, with_labels
from m3ae_tpu.model.inputs import Inputs, Normalizer, make_inputs
from m3ae_tpu.parallel.operations import Operations

ONE_LAYER = {"model.encoder.num_layers": 1, "batch_size": 6}
SMALL = replaced(CONFIG, ONE_LAYER)


@pytest.fixture(scope="module")
def clip():
    return Clip(SMALL, key=jax.random.key(0))


def make_batch():
    shapes = batch_shapes(mixture(SMALL.data, 6), SMALL.data.image_size)
    return jax.tree.map(jnp.asarray, random_batch(shapes, vocab_size=4_000))


def test_the_contrastive_loss_is_that_of_the_definition(clip):
    inputs = make_inputs(make_batch()["paired"], Normalizer.of_data(SMALL.data), jnp.float32)
    loss, accuracy = contrastive_loss(clip, inputs)

    def directions(tower, projection, inputs):
        cls = np.asarray(tower.encode(inputs).cls, np.float64)
        projected = cls @ np.asarray(projection.kernel, np.float64)
        return projected / np.linalg.norm(projected, axis=1, keepdims=True)

    images = directions(clip.image_tower, clip.image_projection, Inputs(images=inputs.images))
    texts = Inputs(text_ids=inputs.text_ids, is_valid=inputs.is_valid)
    words = directions(clip.text_tower, clip.text_projection, texts)
    scores = images @ words.T / 0.07

    def cross_entropy(scores):
        return np.mean(np.log(np.exp(scores).sum(axis=1)) - np.diagonal(scores))

    expected = (cross_entropy(scores) + cross_entropy(scores.T)) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(accuracy) == pytest.approx(np.mean(scores.argmax(axis=1) == np.arange(6)))


def test_both_towers_learn_from_the_contrastive_loss(clip):
    objective = contrastive(SMALL)
    gradient, _ = jax.grad(objective.loss, has_aux=True)(
        clip, make_batch(), {"paired": jnp.arange(6)}, jax.random.key(1)
    )
    for tower in (gradient.image_tower, gradient.text_tower):
        assert float(jnp.abs(tower.encoder.blocks.mlp_in.kernel).max()) > 0
        assert tower.decoder is None
    assert clip.text_tower.image is None
    assert float(gradient.log_scale) != 0


def test_labels_are_read_from_captions_that_name_classes(tmp_path):
    config = replaced(SMALL, {"data.sources.0.shards": "starter/heldout-*"})
    config = with_labels(config, tmp_path)
    records = list(open_shards(config.data.sources[0].shards))
    names = sorted({record.label_name for record in records})
    assert all(record.captions == (record.label_name,) for record in records)
    assert with_labels(config, tmp_path).data.sources[0].shards == f"{tmp_path}/labels-*"
    length = config.data.sources[0].text_length
    tokenizer = Tokenizer(config.data.tokenizer)
    class_ids, _, _ = tokenizer.encode(names, length)
    assert len({tuple(row) for row in class_ids.tolist()}) == len(names)
    captions = [record.captions[0] for record in records[:40]]
    text_ids, _, _ = tokenizer.encode(captions, length)
    labels = classes_of(jnp.asarray(text_ids), class_ids)
    assert [names[label] for label in labels] == captions

    objective = supervised(config)
    model = objective.init_model(Operations())
    assert isinstance(model, Classifier)
    batch = make_batch()
    rows = batch["paired"]._replace(text_ids=jnp.asarray(text_ids[:6]), is_valid=None)
    loss, metrics = objective.loss(model, {"paired": rows}, {}, jax.random.key(0))
    assert float(loss) == pytest.approx(np.log(len(names)), rel=0.5)
    assert 0 <= float(metrics.means["class_accuracy"]) <= 1
