"""A trained model with all that its use needs: tokenizer, preprocessing, config."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from m3ae_tpu.batch import Rows
from m3ae_tpu.config import MaskingConfig, PretrainConfig
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.model.inputs import make_inputs
from m3ae_tpu.model.m3ae import M3AE, Features
from m3ae_tpu.parallel.mesh import replicated
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.pretrained.preprocessing import ImageLike, make_images, several
from m3ae_tpu.pretrained.reconstruction import Reconstructed, as_reconstructed, fill_in
from m3ae_tpu.pretrained.task import ReconstructionTask
from m3ae_tpu.run.checkpoint_reader import named_arrays
from m3ae_tpu.run.digests import arrays_sha256
from m3ae_tpu.train.pretraining import init_model

ENCODED_AT_A_TIME = 8
"""Examples that a device encodes at a time: always the same program, so that no bit of an
example's features depends on how many others there are.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model, and what is needed to use it; see `load_pretrained`."""

    config: PretrainConfig
    """Settings that the model was trained with."""
    step: int
    """Finished steps."""
    model: M3AE
    """Whole on every device of the mesh that it computes on."""
    mesh: Mesh
    tokenizer: Tokenizer | None
    """None for a model without text."""
    versions: dict[str, str]
    """Versions of the packages that trained it."""

    @property
    def task(self) -> ReconstructionTask:
        """The pre-training task, as evaluation poses it."""
        return ReconstructionTask.of_run(self.config)

    @property
    def text_length(self) -> int:
        """Tokens of a text: those of pairs where the model has learned pairs; 0 without text."""
        # Texts alone may be longer.
        lengths = {source.kind: source.text_length for source in self.config.data.sources}
        return lengths.get("paired", lengths.get("text", 0))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of names, dtypes, shapes and values of all parameters, wherever they are kept."""
        return arrays_sha256(
            {name: np.asarray(leaf) for name, leaf in named_arrays(self.model).items()}
        )

    def init_model(self) -> M3AE:
        """Draws the network with random weights, those of the run's seed."""
        init = functools.partial(
            init_model, self.config.model, self.config.seed, Operations(self.mesh)
        )
        return jax.jit(init, out_shardings=replicated(self.mesh))()

    def rows(
        self,
        *,
        images: Sequence[ImageLike] | np.ndarray | None = None,
        texts: Sequence[str] | None = None,
        text_length: int | None = None,
    ) -> Rows:
        """Prepares examples as the model was trained on them.

        Args:
            images: Paths, encoded bytes, Pillow images, or uint8 arrays [height, width, 3]; or one
                array of all. The shorter side is resized, bicubic, and the centre cropped.
            texts: One for each image, or alone. Longer ones are cut; an empty one has no token.
            text_length: Tokens of a text; None: as in training.

        Raises:
            UserError: neither of both, numbers that differ, an image that cannot be read, or a
                modality that the model has not learned.
        """
        images, texts = several("images", images), several("texts", texts)
        require(
            bool(images) or bool(texts),
            "images and texts are both empty. Give images, texts, or both.",
        )
        require(
            images is None or texts is None or len(images) == len(texts),
            f"images are {len(images or ())} and texts {len(texts or ())}. Give as many of both.",
        )
        rows = Rows()
        if images is not None:
            require(
                self.task.has_images,
                "images were given, but the model has learned texts only. Give texts alone.",
            )
            rows = rows._replace(images=make_images(images, self.config.data.image_size))
        if texts is not None:
            ids, is_valid, _ = self.require_tokenizer().encode(
                texts, self.text_length if text_length is None else text_length
            )
            rows = rows._replace(text_ids=ids, is_valid=is_valid)
        return rows

    def require_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer.

        Raises:
            UserError: the model has learned images only, or was imported without its vocabulary.
        """
        if self.tokenizer is None:
            raise UserError(
                "texts were given, but the model has learned images only. Leave the texts out."
                if self.config.model.vocab_size == 0
                else "texts were given, but the model has learned images only, or was imported "
                "without its vocabulary. Leave the texts out, or import it with --vocab=vocab.txt."
            )
        return self.tokenizer

    def encode(
        self,
        *,
        images: Sequence[ImageLike] | np.ndarray | None = None,
        texts: Sequence[str] | None = None,
    ) -> Features:
        """Computes the features of whole examples as float32 NumPy arrays; see `rows`.

        A row's features depend neither on the other rows nor on the number of devices.
        """
        return self._encode_rows(self.rows(images=images, texts=texts), "encode")

    def encode_layers(
        self,
        *,
        images: Sequence[ImageLike] | np.ndarray | None = None,
        texts: Sequence[str] | None = None,
    ) -> Features:
        """Computes `encode`'s features after every block, on a leading axis.

        The last has the final norm.
        """
        by_example = self._encode_rows(self.rows(images=images, texts=texts), "encode_layers")
        return jax.tree.map(lambda array: np.moveaxis(array, 1, 0), by_example)

    def reconstruct(
        self,
        *,
        images: Sequence[ImageLike] | np.ndarray | None = None,
        texts: Sequence[str] | None = None,
        image_mask_ratio: float | None = None,
        text_mask_ratio: float | None = None,
        seed: int = 0,
    ) -> Reconstructed:
        """Hides parts of examples at random, and fills them in; see `rows`.

        Args:
            images: As `rows` takes them.
            texts: One for each image, or alone.
            image_mask_ratio: Share of the patches to hide; None: as in training.
            text_mask_ratio: The same of words.
            seed: Decides what is hidden.

        Raises:
            UserError: the model has no decoder, or a ratio is not one; and as `rows` does.
        """
        require(
            self.model.decoder is not None,
            "The model is an encoder without a decoder, so it fills in nothing. Load another.",
        )
        ratios = {"image_mask_ratio": image_mask_ratio, "text_mask_ratio": text_mask_ratio}
        given = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        fill = self._fillers(dataclasses.replace(self.task.masking, **given))
        rows = self.rows(images=images, texts=texts)
        places = np.arange(len(jax.tree.leaves(rows)[0]), dtype=np.int32)
        filled = fill((self.model, jax.random.key(seed)), (rows, places))
        return as_reconstructed(filled, rows, self.tokenizer)

    @functools.cached_property
    def _fillers(self) -> Any:
        @functools.cache
        def filler(masking: MaskingConfig) -> RowMap:
            task = dataclasses.replace(self.task, masking=masking)
            function = functools.partial(fill_in, task=task)
            return RowMap(function, self.mesh, rows_per_device=ENCODED_AT_A_TIME)

        return filler

    def _encode_rows(self, rows: Rows, method: str) -> Features:
        return self._encoders(method)(self.model, rows)

    @functools.cached_property
    def _encoders(self) -> Any:
        normalizer = self.task.normalizer

        @functools.cache
        def encoder(method: str) -> RowMap:
            def encode(model: M3AE, rows: Rows) -> Features:
                features = getattr(model, method)(make_inputs(rows, normalizer, jnp.float32))
                features = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), features)
                if method == "encode_layers":
                    features = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), features)
                return features

            return RowMap(encode, self.mesh, rows_per_device=ENCODED_AT_A_TIME)

        return encoder
