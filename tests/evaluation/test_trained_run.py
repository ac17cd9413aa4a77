"""Guards runs that are read back from their directory."""

import jax
import numpy as np
import pytest
from small_run import save_run, trained_run, with_source

from m3ae_tpu.errors import UserError
from m3ae_tpu.evaluation.trained_run import (
    EVALUATION,
    has_checkpoint,
    load_trained_run,
    read_evaluation,
)


def test_a_run_is_loaded_onto_all_devices(tmp_path):
    saved = trained_run()
    save_run(tmp_path, saved)
    loaded = load_trained_run(tmp_path)
    assert has_checkpoint(tmp_path)
    assert (loaded.step, loaded.config) == (saved.step, saved.config)
    for ours, theirs in zip(
        jax.tree.leaves(loaded.model), jax.tree.leaves(saved.model), strict=True
    ):
        assert ours.sharding.device_set == set(jax.devices())
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.model.operations.mesh == loaded.mesh
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.model == (tmp_path / "tokenizer.model").read_bytes()


def test_a_run_of_images_alone_has_no_tokenizer(tmp_path):
    save_run(tmp_path, trained_run(with_source("image")))
    assert load_trained_run(tmp_path).tokenizer is None


def test_an_evaluation_that_is_not_there_is_empty_and_a_damaged_one_refused(tmp_path):
    assert read_evaluation(tmp_path) == {}
    (tmp_path / EVALUATION).write_text("{")
    with pytest.raises(UserError, match=r"is not JSON\. Write it again"):
        read_evaluation(tmp_path)
