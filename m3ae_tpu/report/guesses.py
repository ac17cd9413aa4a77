"""The model's guesses at hidden words of captions."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int32, Key

from m3ae_tpu.batch import Rows
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.modality import gather
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.pretrained.task import ReconstructionTask
from m3ae_tpu.report.fills import SEED

NUM_GUESSES = 3


class Guesses(NamedTuple):
    """The hidden tokens of captions, and what the model makes of each."""

    places: Any
    """int32 [examples, hidden], place of the token in its caption."""
    is_word: Any
    """bool [examples, hidden], False for padding."""
    ids: Any
    """int32 [examples, hidden, guesses], the most probable tokens, the best first."""
    probs: Any
    """float32 [examples, hidden, guesses], their probabilities."""
    log_prob: Any
    """float32 [examples, hidden], log-probability of the true token, nats."""


def guess_words(run: Pretrained, rows: Rows) -> Guesses:
    """Hides tokens of captions at the run's mask ratios and has the model predict them.

    The masks depend on a row's place alone, and are those of `show_fills` at the run's own ratio.

    Args:
        run: With texts and a decoder.
        rows: Captions, with images as far as the run has learned them.
    """
    places = np.arange(len(rows.text_ids), dtype=np.int32)
    return _guesser(run.task, run.mesh)((run.model, jax.random.key(SEED)), (rows, places))


@functools.cache
def _guesser(task: ReconstructionTask, mesh: Mesh) -> RowMap:
    return RowMap(functools.partial(_guess, task=task), mesh)


def _guess(
    model_and_key: tuple[M3AE, Key[Array, ""]],
    rows_and_places: tuple[Rows, Int32[Array, " batch"]],
    *,
    task: ReconstructionTask,
) -> Guesses:
    (model, key), (rows, places) = model_and_key, rows_and_places
    inputs = task.make_inputs(rows)
    masks = task.draw_masks(model, inputs, key, places)
    logits = task.reconstruct(model, inputs, masks).logits
    assert logits is not None
    assert masks.text is not None
    assert inputs.text_ids is not None
    assert inputs.is_valid is not None
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=2)
    hidden = masks.text.hidden
    true = gather(inputs.text_ids, hidden)[..., None]
    best, ids = jax.lax.top_k(log_probs, NUM_GUESSES)
    return Guesses(
        places=hidden,
        is_word=gather(inputs.is_valid, hidden),
        ids=ids,
        probs=jnp.exp(best),
        log_prob=jnp.take_along_axis(log_probs, true, axis=2)[..., 0],
    )
