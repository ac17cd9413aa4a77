"""Likelihood of a text beside images: how well a model guesses the text's hidden words.

M3AE learns no space that images and texts share, unlike CLIP. It learns to fill in hidden words
beside an image; the better it does, the better the text suits the image.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from m3ae_tpu.batch import Rows
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.model.inputs import Inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.masking import Masks, Selection
from m3ae_tpu.model.modality import gather
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.pretrained.pretrained import ENCODED_AT_A_TIME, Pretrained

NUM_DRAWS = 8
"""Ways in which words of a text are hidden."""
_SEED = 20_220_528  # Any; the same for all texts, so that their scores compare.


class _HiddenWords(NamedTuple):
    """A text and the ways in which its tokens are hidden, in shapes that all texts share."""

    ids: Int32[np.ndarray, " length"]
    is_valid: Bool[np.ndarray, " length"]
    visible: Int32[np.ndarray, "draws visible"]
    """Visible tokens, and padding."""
    hidden: Int32[np.ndarray, "draws hidden"]
    """Padding if there is more, and hidden tokens."""


class CaptionScorer:
    """Scores texts beside images by a model that has learned images with texts."""

    def __init__(self, model: Pretrained, *, num_draws: int = NUM_DRAWS):
        """Compiles nothing yet.

        Args:
            model: Has learned pairs, and has its decoder.
            num_draws: Ways in which words of a text are hidden: more make scores steadier and
                take longer.

        Raises:
            UserError: it has learned no pairs, or has no decoder.
        """
        require(
            model.task.has_pairs,
            "the model has not learned images with texts, so it cannot score one by the other. "
            "Name one that has, or search by features alone.",
        )
        require(
            model.model.decoder is not None,
            "the model has no decoder, so it cannot guess hidden words. Name a run, or a model "
            "folder with decoder; or search by features alone.",
        )
        self._model, self._num_draws = model, num_draws
        self._with_images = self._row_map(has_images=True)
        self._alone = self._row_map(has_images=False)

    def _row_map(self, *, has_images: bool) -> RowMap:
        task = self._model.task

        def score(whole: tuple[M3AE, _HiddenWords], rows: Rows) -> Float32[Array, " rows"]:
            model, words = whole
            images = task.make_inputs(Rows(images=rows.images)).images
            return _log_likelihood(model, images if has_images else None, len(rows.images), words)

        return RowMap(score, self._model.mesh, rows_per_device=ENCODED_AT_A_TIME)

    def __call__(
        self, images: UInt8[np.ndarray, "images size size 3"], text: str
    ) -> Float32[np.ndarray, " images"]:
        """Returns the mean log-probability of the text's hidden tokens beside each image, in nats.

        Words are hidden with the ratio of the training, in ways that hide each token about equally
        often; images are shown whole.

        Args:
            images: RGB bytes, see `Pretrained.rows`.
            text: A text with at least one token; longer ones are cut.

        Raises:
            UserError: the text has no token.
        """
        return self._with_images((self._model.model, self.hide(text)), Rows(images=images))

    def alone(self, text: str) -> float:
        """Returns the same without an image: how likely the text is by itself."""
        blank = np.zeros((1, *self._image_shape), np.uint8)
        return float(self._alone((self._model.model, self.hide(text)), Rows(images=blank))[0])

    def classify(
        self,
        images: UInt8[np.ndarray, "images size size 3"],
        prompts: Mapping[str, Sequence[str]],
    ) -> Float32[np.ndarray, "images classes"]:
        """Returns a score of each class for each image: zero-shot classification by prompts.

        A prompt's score is the log-likelihood beside the image less that of the prompt alone,
        which would otherwise favour common words; a class has the mean of its prompts.

        Args:
            images: RGB bytes.
            prompts: Texts for each class.
        """
        scores = [
            np.mean([self(images, text) - np.float32(self.alone(text)) for text in texts], axis=0)
            for texts in prompts.values()
        ]
        return np.stack(scores, axis=1).astype(np.float32)

    def hide(self, text: str) -> _HiddenWords:
        """Returns a text's tokens, and those that each draw hides."""
        tokenizer, length = self._model.require_tokenizer(), self._model.text_length
        ids, is_valid, _ = tokenizer.encode([text], length)
        num_tokens = int(is_valid.sum())
        if num_tokens == 0:
            raise UserError(f"text = {text!r} has no word. Write one.")
        order = np.random.default_rng(_SEED).permutation(num_tokens).astype(np.int32)
        padding = np.arange(num_tokens, length, dtype=np.int32)
        num_hidden, most_hidden = self._num_hidden(num_tokens), self._num_hidden(length)
        orders = []
        for draw in range(self._num_draws):
            rolled = np.roll(order, -(draw * num_tokens // self._num_draws))
            hidden, visible = rolled[:num_hidden], rolled[num_hidden:]
            orders.append(np.concatenate([visible, padding, hidden]))
        visible, hidden = np.split(np.stack(orders), [length - most_hidden], axis=1)
        return _HiddenWords(ids[0], is_valid[0], visible, hidden)

    def _num_hidden(self, num_tokens: int) -> int:
        return max(1, math.ceil(num_tokens * self._model.config.masking.text_mask_ratio))

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        size = self._model.config.data.image_size
        return size, size, 3


def _log_likelihood(
    model: M3AE,
    images: Float[Array, "rows size size 3"] | None,
    num_rows: int,
    words: _HiddenWords,
) -> Float32[Array, " rows"]:
    def repeated(array: Array) -> Array:
        return jnp.broadcast_to(array[None], (num_rows, *array.shape))

    ids, is_valid = repeated(jnp.asarray(words.ids)), repeated(jnp.asarray(words.is_valid))
    selection = None
    if images is not None:
        grid = model.grid(images)
        every = repeated(jnp.arange(grid[0] * grid[1], dtype=jnp.int32))
        selection = Selection(every, every[:, :0])

    def draw(total: Array, way: tuple[Array, Array]) -> tuple[Array, None]:
        visible, hidden = map(repeated, way)
        masks = Masks(selection, Selection(visible, hidden))
        logits = model.reconstruct(Inputs(images, ids, is_valid), masks).logits
        assert logits is not None
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        right = jnp.take_along_axis(log_probs, gather(ids, hidden)[..., None], axis=2)[..., 0]
        is_word = gather(is_valid, hidden).astype(jnp.float32)
        return total + (right * is_word).sum(axis=1) / is_word.sum(axis=1), None

    start = jnp.zeros(num_rows, jnp.float32)
    ways = (jnp.asarray(words.visible), jnp.asarray(words.hidden))
    total, _ = jax.lax.scan(draw, start, ways)
    return total / jnp.float32(len(words.visible))
