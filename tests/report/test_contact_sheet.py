"""Guards the contact sheet: it shows every kind of row, and hides what the masks hide."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m3ae_tpu.batch import Rows, batch_shapes, mixture, random_batch
from m3ae_tpu.config import (
    DataConfig,
    MaskingConfig,
    ModelConfig,
    PretrainConfig,
    SourceConfig,
    TransformerConfig,
)
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.model.m3ae import M3AE, HiddenTokens
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.report.contact_sheet import draw_contact_sheet, first_masks, hide_patches
from m3ae_tpu.train.pretraining import pretraining
from m3ae_tpu.train.step import init_state, steps_key, train_step

SMALL = TransformerConfig(num_layers=1, width=16, num_heads=2)


def test_patches_that_are_not_visible_are_grey():
    images = np.random.default_rng(0).integers(0, 100, (2, 8, 8, 3), np.uint8)
    seen = hide_patches(images, np.array([[0], [3]]), 4)
    np.testing.assert_array_equal(seen[0, :4, :4], images[0, :4, :4])
    np.testing.assert_array_equal(seen[1, 4:, 4:], images[1, 4:, 4:])
    assert [int((image == 150).all(axis=-1).sum()) for image in seen] == [48, 48]


def test_a_contact_sheet_shows_every_kind():
    sources = (
        SourceConfig(shards="starter/heldout-*"),
        SourceConfig(kind="image", shards="starter/images-*"),
        SourceConfig(kind="text", shards="starter/texts-*"),
    )
    data = DataConfig(sources=sources, image_size=32, num_workers=0)
    batch, _ = open_data(data, batch_size=6, seed=0, vocab_size=32_000).loader().batch_at(0)
    tokenizer = Tokenizer(data.tokenizer)
    run = {"seed": 0, "masking": MaskingConfig(), "patch_size": 8}
    sheet = draw_contact_sheet(batch, tokenizer, **run)
    pairs = draw_contact_sheet({"paired": batch["paired"]}, tokenizer, **run)
    assert sheet.width == pairs.width
    assert sheet.height > pairs.height > 192
    assert (np.asarray(pairs) == 150).all(axis=-1).sum() > 192 * 192
    run["masking"] = MaskingConfig(text_dropout=1.0)
    dropped = draw_contact_sheet({"paired": batch["paired"]}, tokenizer, **run)
    few, all_words = ((np.asarray(each) == 0xE4).all(axis=-1).sum() for each in (pairs, dropped))
    assert all_words > 1.1 * few


@pytest.mark.parametrize("draw", ["per_example", "per_batch"])
def test_the_sheets_masks_are_those_of_the_first_step(draw, monkeypatch):
    sources = (SourceConfig(weight=4.0), SourceConfig(kind="image"), SourceConfig(kind="text"))
    masking = MaskingConfig(image_mask_ratio=0.5, text_dropout=0.5, draw=draw)
    config = PretrainConfig(
        seed=5,
        batch_size=24,
        model=ModelConfig(patch_size=8, vocab_size=50, encoder=SMALL, decoder=SMALL),
        masking=masking,
        data=DataConfig(sources=sources, image_size=32),
    )
    batch = random_batch(batch_shapes(mixture(config.data, 24), 32), vocab_size=50)
    batch = jax.tree.map(jnp.asarray, batch)
    objective = pretraining(config)
    shapes = jax.eval_shape(lambda: objective.init_model(Operations()))
    model = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    recorded = []

    def record(model, inputs, masks):
        recorded.append(masks)
        return HiddenTokens()

    monkeypatch.setattr(M3AE, "decode_hidden", record)
    state = init_state(model, optax.sgd(0.1))
    train_step(state, batch, loss=objective.loss, optimizer=optax.sgd(0.1), key=steps_key(5))
    assert len(recorded) == 3
    for kind, masks in zip(("paired", "image", "text"), recorded, strict=True):
        shown = Rows(*(None if array is None else array[:2] for array in batch[kind]))
        found = first_masks(kind, shown, seed=5, masking=masking, patch_size=8)
        first = jax.tree.map(lambda each: each[:2], masks)
        jax.tree.map(np.testing.assert_array_equal, found, first)
