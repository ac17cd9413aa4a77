"""Guards one training step: sharding, accumulation, decay, and that no mask depends on devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.batch import mixture
from m3ae_tpu.configs import debug
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.errors import UserError
from m3ae_tpu.kernels.attention import packed
from m3ae_tpu.parallel.mesh import by_example, make_mesh, require_even_batches
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.parallel.rules import state_shardings
from m3ae_tpu.train.card import num_tokens
from m3ae_tpu.train.flops import matmul_flops
from m3ae_tpu.train.optimizer import is_matrix, make_optimizer
from m3ae_tpu.train.pretraining import init_model, pretraining
from m3ae_tpu.train.step import compile_step, init_state, steps_key, train_step

CONFIG = debug.CONFIG


@pytest.fixture(scope="module")
def batches():
    data = open_data(
        CONFIG.data,
        batch_size=CONFIG.batch_size,
        seed=CONFIG.seed,
        vocab_size=CONFIG.model.vocab_size,
    )
    loader = data.loader()
    return [loader.batch_at(step)[0] for step in range(3)]


def optimizer_of(config):
    return make_optimizer(
        config.optimizer, batch_size=config.batch_size, num_steps=config.num_steps
    )


def arguments(config):
    return {
        "loss": pretraining(config).loss,
        "optimizer": optimizer_of(config)[0],
        "key": steps_key(config.seed),
        "accumulation_steps": config.optimizer.accumulation_steps,
    }


def initial(config, operations=Operations()):
    return init_state(init_model(config.model, config.seed, operations), optimizer_of(config)[0])


def steps(state, batches, step_fn):
    all_metrics = []
    for batch in batches:
        state, metrics = step_fn(state, batch)
        all_metrics.append(metrics.means | metrics.counts)
    return state, all_metrics


def on_one_device(config, batches):
    step_fn = jax.jit(functools.partial(train_step, **arguments(config)))
    return steps(jax.jit(functools.partial(initial, config))(), batches, step_fn)


def test_eight_devices_compute_what_one_does_and_compile_once(batches):
    mesh = make_mesh()
    assert mesh.size == 8
    init = functools.partial(initial, CONFIG, Operations(mesh))
    shardings = state_shardings(jax.eval_shape(init), mesh)
    step_fn = compile_step(mesh, shardings, **arguments(CONFIG))
    sharded = [jax.device_put(batch, by_example(mesh)) for batch in batches]
    images = sharded[0]["paired"].images
    assert len(images.addressable_shards) == 8
    assert images.addressable_shards[0].data.shape[0] == 2
    state, metrics = steps(jax.jit(init, out_shardings=shardings)(), sharded, step_fn)
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
    none = np.zeros_like(pairs.is_flipped)
    assert pairs.is_flipped.any()
    assert not pairs.is_flipped.all()
    by_hand = np.where(
        pairs.is_flipped[:, None, None, None], pairs.images[:, :, ::-1], pairs.images
    )
    mirrored = {"paired": pairs._replace(images=by_hand, is_flipped=none)}
    unmarked = {"paired": pairs._replace(is_flipped=none)}
    losses = [
        on_one_device(CONFIG, [batch])[1][0]["image_loss"]
        for batch in (batches[0], mirrored, unmarked)
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize("draw", ["per_example", "per_batch"])
def test_accumulated_micro_batches_make_the_update_of_the_whole_batch(batches, draw):
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


def test_a_step_computes_through_the_operations_that_its_model_carries(batches):
    calls = []

    class Counted(Operations):
        def attention(self, qkv, is_valid, num_heads):
            calls.append(packed(qkv).shape)
            return super().attention(qkv, is_valid, num_heads)

    batch = jax.tree.map(jnp.asarray, batches[0])
    state, _ = jax.eval_shape(
        lambda: train_step(initial(CONFIG, Counted()), batch, **arguments(CONFIG))
    )
    assert isinstance(state.model.encoder.blocks.operations, Counted)
    assert {width for _, _, _, width in calls} == {
        CONFIG.model.encoder.width,
        CONFIG.model.decoder.width,
    }


def test_weight_decay_takes_matrices_and_nothing_else():
    decayed = is_matrix(jax.eval_shape(lambda: init_model(CONFIG.model, CONFIG.seed)))
    names = {
        jax.tree_util.keystr(path)
        for path, is_decayed in jax.tree_util.tree_leaves_with_path(decayed)
        if is_decayed
    }
    assert ".encoder.blocks.mlp_in.kernel" in names
    assert ".text.head.kernel" in names
    assert not [name for name in names if not name.endswith("kernel")]


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does():
    with pytest.raises(UserError, match=r"batch_size = 20 .* 8 devices x 1 .*--batch_size=24"):
        require_even(batch_size=20, accumulation_steps=1)


def require_even(*, batch_size, accumulation_steps):
    require_even_batches(
        mixture(CONFIG.data, batch_size),
        make_mesh(),
        batch_size=batch_size,
        accumulation_steps=accumulation_steps,
    )


def test_micro_batches_that_do_not_divide_are_refused_with_the_largest_number_that_does():
    with pytest.raises(UserError, match=r"--optimizer\.accumulation_steps=2, or --batch_size=32"):
        require_even(batch_size=16, accumulation_steps=4)


def test_flops_count_the_body_of_a_scan_as_often_as_it_runs():
    weights, x = jnp.ones((5, 4, 4)), jnp.ones((3, 4))

    def loop(weights, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    assert sum(matmul_flops(loop, weights, x).values()) == 5 * 2 * 3 * 4 * 4


def test_the_card_counts_the_tokens_that_are_computed():
    # 256 px, patch 16, 64 text positions at 75 %: 1 + 64 + 16 and 1 + 256 + 64 tokens (Geng et al.
    # 2022).
    from m3ae_tpu.configs import m3ae_base

    assert num_tokens(256, 64, m3ae_base.CONFIG.masking) == (81, 321)
    assert num_tokens(256, 0, m3ae_base.CONFIG.masking) == (65, 257)


def rate(config):
    return lambda step: np.asarray(optimizer_of(config)[1](step)).item()


def test_the_first_update_has_rate_zero_and_an_extended_run_follows_its_new_schedule():
    schedule = rate(CONFIG)
    assert schedule(0) == 0
    assert schedule(CONFIG.num_steps) < 1e-12
    extended = rate(dataclasses.replace(CONFIG, num_steps=2 * CONFIG.num_steps))
    assert (
        extended(CONFIG.num_steps)
        > 0.4 * CONFIG.optimizer.base_learning_rate * CONFIG.batch_size / 256
    )
