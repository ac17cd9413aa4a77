"""Guards one training step: sharding, accumulation, decay, and that masks know nothing of devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.configs import debug
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.errors import UserError
from m3ae_tpu.kernels.attention import reference
from m3ae_tpu.parallel.mesh import by_example, make_mesh, replicated, require_even_batches
from m3ae_tpu.train.card import tokens_seen
from m3ae_tpu.train.flops import matmul_flops
from m3ae_tpu.train.loop import as_arrays, compile_step
from m3ae_tpu.train.optimizer import is_matrix
from m3ae_tpu.train.step import init_model, init_state, make_optimizer, train_step

CONFIG = debug.CONFIG


@pytest.fixture(scope="module")
def batches():
    loader = open_data(CONFIG.data, batch_size=CONFIG.batch_size, seed=0, vocab_size=4_000).loader()
    return [as_arrays(loader.batch_at(step)[0]) for step in range(3)]


def steps(config, batches, step_fn, place):
    state, all_metrics = jax.jit(functools.partial(init_state, config))(), []
    state = place(state)
    for batch in batches:
        state, metrics = step_fn(state, batch)
        all_metrics.append(metrics)
    return state, all_metrics


def on_one_device(config, batches):
    optimizer, _ = make_optimizer(config)
    step_fn = jax.jit(functools.partial(train_step, config=config, optimizer=optimizer))
    return steps(config, batches, step_fn, lambda state: state)


def test_eight_devices_compute_what_one_does_and_compile_once(batches):
    mesh = make_mesh()
    assert mesh.size == 8
    step_fn = compile_step(CONFIG, mesh)
    sharded = [jax.device_put(batch, by_example(mesh)) for batch in batches]
    images = sharded[0]["paired"]["image"]
    assert len(images.addressable_shards) == 8
    assert images.addressable_shards[0].data.shape[0] == 2
    state, metrics = steps(
        CONFIG, sharded, step_fn, lambda state: jax.device_put(state, replicated(mesh))
    )
    assert step_fn._cache_size() == 1
    assert state.model.cls_token.sharding.is_fully_replicated
    _, expected = on_one_device(CONFIG, batches)
    for got, wanted in zip(metrics, expected, strict=True):
        # The hidden words are counted from the masks drawn: exactly equal.
        assert got["hidden_words"] == wanted["hidden_words"]
        for name in ("loss", "image_loss", "text_loss", "text_accuracy"):
            np.testing.assert_allclose(got[name], wanted[name], rtol=2e-5, err_msg=name)


def test_the_step_mirrors_the_images_that_the_loader_marked(batches):
    pairs = batches[0]["paired"]
    assert pairs["flip"].any()
    assert not pairs["flip"].all()
    by_hand = np.where(
        pairs["flip"][:, None, None, None], pairs["image"][:, :, ::-1], pairs["image"]
    )
    mirrored = {"paired": {**pairs, "image": by_hand, "flip": np.zeros_like(pairs["flip"])}}
    unmarked = {"paired": {**pairs, "flip": np.zeros_like(pairs["flip"])}}
    losses = [
        on_one_device(CONFIG, [batch])[1][0]["image_loss"]
        for batch in (batches[0], mirrored, unmarked)
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize("draw", ["per_example", "per_batch"])
def test_accumulated_parts_make_the_update_of_the_whole_batch(batches, draw):
    whole = dataclasses.replace(
        CONFIG,
        optimizer=dataclasses.replace(CONFIG.optimizer, warmup_fraction=0.0),
        masking=dataclasses.replace(CONFIG.masking, draw=draw),
    )
    accumulating = dataclasses.replace(
        whole, optimizer=dataclasses.replace(whole.optimizer, accumulation_steps=4)
    )
    (_, got), (_, wanted) = on_one_device(accumulating, batches), on_one_device(whole, batches)
    for left, right in zip(got, wanted, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_allclose(left[name], right[name], rtol=5e-4, err_msg=name)
    assert got[0]["hidden_words"] == wanted[0]["hidden_words"]


def test_a_step_takes_another_attention(batches):
    def other(qkv, valid, num_heads):
        return reference.attention(qkv, valid, num_heads)

    def trained():
        state = init_state(CONFIG, attention_fn=other)
        batch = jax.tree.map(jnp.asarray, batches[0])
        return train_step(state, batch, config=CONFIG, optimizer=make_optimizer(CONFIG)[0])

    state, _ = jax.eval_shape(trained)
    assert state.model.encoder.blocks.attention_fn is other


def test_weight_decay_takes_matrices_and_nothing_else():
    decayed = is_matrix(jax.eval_shape(lambda: init_model(CONFIG)))
    names = {
        jax.tree_util.keystr(path)
        for path, is_decayed in jax.tree_util.tree_leaves_with_path(decayed)
        if is_decayed
    }
    assert ".encoder.blocks.mlp_in.kernel" in names
    assert ".text_head.kernel" in names
    assert not [name for name in names if not name.endswith("kernel")]


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does():
    config = dataclasses.replace(CONFIG, batch_size=20)
    with pytest.raises(UserError, match=r"batch_size = 20 .* 8 devices x 1 .*--batch_size=24"):
        require_even_batches(config, make_mesh())


def test_parts_that_do_not_divide_are_refused_with_the_largest_number_that_does():
    optimizer = dataclasses.replace(CONFIG.optimizer, accumulation_steps=4)
    config = dataclasses.replace(CONFIG, batch_size=16, optimizer=optimizer)
    with pytest.raises(UserError, match=r"--optimizer\.accumulation_steps=2, or --batch_size=32"):
        require_even_batches(config, make_mesh())


def test_flops_count_the_body_of_a_scan_as_often_as_it_runs():
    weights, x = jnp.ones((5, 4, 4)), jnp.ones((3, 4))

    def loop(weights, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    assert sum(matmul_flops(loop, weights, x).values()) == 5 * 2 * 3 * 4 * 4


def test_the_card_counts_the_tokens_that_are_computed():
    # 256 px, patch 16, 64 text positions at 75 %: 1 + 64 + 16 and 1 + 256 + 64 tokens (Geng et al.
    # 2022).
    from m3ae_tpu.configs import m3ae_base

    assert tokens_seen(m3ae_base.CONFIG, "paired", 64) == (81, 321)
    assert tokens_seen(m3ae_base.CONFIG, "image", 64) == (65, 257)


def rate(config):
    return lambda step: np.asarray(make_optimizer(config)[1](step)).item()


def test_the_first_update_has_rate_zero_under_warm_up_and_an_extended_run_follows_its_new_schedule():
    schedule = rate(CONFIG)
    assert schedule(0) == 0
    assert schedule(CONFIG.num_steps) < 1e-12
    extended = rate(dataclasses.replace(CONFIG, num_steps=2 * CONFIG.num_steps))
    assert (
        extended(CONFIG.num_steps)
        > 0.4 * CONFIG.optimizer.base_learning_rate * CONFIG.batch_size / 256
    )
