"""Guards what is hidden: counts, padding, and that nothing but seed, step and row decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.config import MaskingConfig
from m3ae_tpu.errors import UserError
from m3ae_tpu.model.masking import Selection, draw_masks, num_visible

KEY = jax.random.key(3)
LENGTHS = np.array([12, 7, 4, 1, 0])
IS_VALID = jnp.asarray(np.arange(12)[None] < LENGTHS[:, None])


def select_patches(num_patches, config, rows=(0, 1, 2, 3, 4)):
    rows = jnp.asarray(rows, jnp.int32)
    selection = draw_masks(KEY, rows, config, num_patches=num_patches).image
    assert selection is not None
    return selection


def select_tokens(is_valid, config):
    selection = draw_masks(KEY, jnp.arange(len(is_valid)), config, is_valid=is_valid).text
    assert selection is not None
    return selection


def test_every_patch_is_visible_or_hidden_and_rows_differ():
    visible, hidden = select_patches(16, MaskingConfig())
    assert visible.shape == (5, 4)
    assert hidden.shape == (5, 12)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([visible, hidden], axis=1)), np.tile(np.arange(16), (5, 1))
    )
    assert len({tuple(row) for row in np.asarray(visible)}) > 1


def test_one_draw_for_the_batch_is_shared_by_its_rows():
    visible, _ = select_patches(16, MaskingConfig(draw="per_batch"))
    np.testing.assert_array_equal(visible, np.tile(visible[:1], (5, 1)))


def test_a_row_draws_the_same_wherever_it_is_computed():
    whole = select_patches(16, MaskingConfig())
    some = select_patches(16, MaskingConfig(), rows=(3, 4))
    np.testing.assert_array_equal(whole.visible[3:], some.visible)


def test_the_share_holds_for_each_texts_own_words():
    visible, hidden = select_tokens(IS_VALID, MaskingConfig(text_mask_ratio=0.5))
    seen = np.take_along_axis(np.asarray(IS_VALID), np.asarray(visible), axis=1).sum(axis=1)
    np.testing.assert_array_equal(seen, [num_visible(int(n), 0.5) for n in LENGTHS])
    np.testing.assert_array_equal(
        np.sort(np.concatenate([visible, hidden], axis=1)), np.tile(np.arange(12), (5, 1))
    )


def test_over_all_positions_padding_is_drawn_like_words():
    visible, _ = select_tokens(
        jnp.tile(IS_VALID[1:2], (200, 1)), MaskingConfig(text_positions="all")
    )
    share_of_words = np.mean(np.asarray(visible) < 7)
    assert abs(share_of_words - 7 / 12) < 0.06


def test_a_share_of_the_hidden_patches_can_be_left_out():
    visible, hidden = select_patches(16, MaskingConfig(image_predicted_share=0.5))
    assert visible.shape == (5, 4)
    assert hidden.shape == (5, 6)
    assert not set(np.asarray(visible[0])) & set(np.asarray(hidden[0]))


def test_text_dropout_takes_its_share_of_the_pairs_and_no_other_rows():
    config = MaskingConfig(text_dropout=0.3)
    rows, is_valid = jnp.arange(1000), jnp.ones((1000, 4), bool)
    pairs = draw_masks(KEY, rows, config, num_patches=4, is_valid=is_valid)
    assert pairs.drops_text is not None
    assert abs(float(pairs.drops_text.mean()) - 0.3) < 0.05
    some = draw_masks(KEY, rows[3:5], config, num_patches=4, is_valid=is_valid[3:5])
    np.testing.assert_array_equal(some.drops_text, pairs.drops_text[3:5])
    assert draw_masks(KEY, rows, config, is_valid=is_valid).drops_text is None
    without = draw_masks(KEY, rows, MaskingConfig(), num_patches=4, is_valid=is_valid)
    jax.tree.map(np.testing.assert_array_equal, pairs._replace(drops_text=None), without)


def test_given_permutations_are_taken_as_they_are():
    order = jnp.asarray([[2, 0, 1, 3]], jnp.int32)
    visible, hidden = Selection.from_order(order, 1)
    np.testing.assert_array_equal(visible, [[2]])
    np.testing.assert_array_equal(hidden, [[0, 1, 3]])


@pytest.mark.parametrize(
    ("ratio", "hint"), [(1.2, r"Set 0\.75"), (75, r"Did you mean 0\.75"), (-0.1, "not in")]
)
def test_a_ratio_that_is_none_is_refused(ratio, hint):
    with pytest.raises(UserError, match=rf"text_mask_ratio = {float(ratio)} .*{hint}"):
        MaskingConfig(text_mask_ratio=float(ratio))
