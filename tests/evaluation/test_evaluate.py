"""Guards the evaluation of a whole run: every figure is there and lies in its range."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.config import DataConfig, ModelConfig, PretrainConfig, SourceConfig, TransformerConfig
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.evaluation.evaluate import evaluate_run
from m3ae_tpu.evaluation.running_probe import knn_accuracy, read_probe_examples
from m3ae_tpu.evaluation.trained_run import TrainedRun
from m3ae_tpu.train.step import init_model

SMALL = TransformerConfig(num_layers=2, width=16, num_heads=2)
CONFIG = PretrainConfig(
    model=ModelConfig(
        patch_size=8, vocab_size=4_000, encoder=SMALL, decoder=SMALL, compute_dtype="float32"
    ),
    data=DataConfig(image_size=32, sources=(SourceConfig(text_length=8),)),
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Returns patterns of a small training and a small test part."""
    folder = tmp_path_factory.mktemp("shards")
    records = open_shards("starter/heldout-*")
    write_shards(folder, "train", [records[index] for index in range(80)])
    write_shards(folder, "test", [records[index] for index in range(80, 120)])
    return f"{folder}/train-*", f"{folder}/test-*"


@pytest.fixture(scope="module")
def run():
    # Filled by NumPy: a substitute for a trained model that differs from the initial one.
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_model(CONFIG))
    model = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.2, leaf.shape), leaf.dtype), shapes
    )
    tokenizer = Tokenizer("starter/tokenizer.model")
    return TrainedRun(config=CONFIG, step=3, model=model, tokenizer=tokenizer, versions={})


def test_every_figure_of_a_run_with_pairs_is_there(run, shards):
    stages = []
    results = evaluate_run(run, stages.append, train_shards=shards[0], test_shards=shards[1])
    accuracies = [
        *(
            f"{probe}/{name}"
            for probe in ("linear_probe", "knn")
            for name in ("pretrained", "untrained", "raw_pixels")
        ),
        *(
            f"linear_probe_image_and_text/{name}"
            for name in ("pretrained", "untrained", "bag_of_words")
        ),
        *(f"heldout/text_accuracy{suffix}" for suffix in ("", "_with_other_image")),
    ]
    for name in accuracies:
        assert 0 <= results[name] <= 1, name
    assert {
        "linear_probe/pooling",
        "heldout/image_loss",
        "heldout/image_loss_of_visible_mean",
    } <= results.keys()
    assert (results["examples/train"], results["examples/test"], results["run/step"]) == (80, 40, 3)
    assert len(stages) > 5


def test_run_of_pictures_alone_has_their_probes_only(run, shards):
    data = dataclasses.replace(CONFIG.data, sources=(SourceConfig(kind="image"),))
    alone = dataclasses.replace(run, config=dataclasses.replace(CONFIG, data=data))
    results = evaluate_run(alone, [].append, train_shards=shards[0], test_shards=shards[1])
    assert "linear_probe/pretrained" in results
    assert [name for name in results if "text" in name] == []


def test_probe_during_training_learns_from_other_groups_than_it_is_scored_on(run, shards):
    probe = dataclasses.replace(CONFIG.probe, train_shards=shards[0], every_steps=1)
    train, test = read_probe_examples(dataclasses.replace(CONFIG, probe=probe), run.tokenizer)
    assert len(train.id) + len(test.id) == 80
    assert set(train.group) & set(test.group) == set()
    accuracy = knn_accuracy(
        run.model, train, test, mean=CONFIG.data.image_mean, std=CONFIG.data.image_std
    )
    assert 0 <= accuracy <= 1
