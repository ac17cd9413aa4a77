"""Weights of the paper's code, with text or of images alone."""

from typing import Any

from m3ae_tpu.config import Kind, MaskingConfig, ModelConfig, TransformerConfig
from m3ae_tpu.errors import require
from m3ae_tpu.weights import m3ae_names
from m3ae_tpu.weights.imported import (
    IMAGENET,
    NO_DECODER,
    Choices,
    Imported,
    Rgb,
    heads_of,
    mlp_ratio_of,
    model_folder_config,
    statistics_of,
)
from m3ae_tpu.weights.m3ae_pickle import PaperCheckpoint
from m3ae_tpu.weights.matching import count_blocks, match, require_some
from m3ae_tpu.weights.parameters import TOKEN, Parameter
from m3ae_tpu.weights.tensors import Tensors, in_memory

CC12M: tuple[Rgb, Rgb] = (0.5762, 0.5503, 0.5213), (0.3207, 0.3169, 0.3307)
_NONE: tuple[Rgb, Rgb] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_STATISTICS = {"cc12m": CC12M, "imagenet": IMAGENET, "none": _NONE}
_TYPES = {
    "debug": (1024, 16),
    "small": (384, 6),
    "base": (768, 12),
    "large": (1024, 16),
    "huge": (1280, 16),
}
"""Width and heads of the encoder by `model_type`; the decoder's are always the same."""
_DECODER = 512, 16
_DEEP_HEAD = (
    "a head of several layers (output_head_depth > 0), and our heads have one. "
    "Such a model cannot be imported"
)
_REASONS = {
    r"decoder_(image|text)_output/(LayerNorm_|Dense_[1-9])": _DEEP_HEAD,
}


def read_m3ae(checkpoint: PaperCheckpoint, choices: Choices, vocab_size: int | None) -> Imported:
    """Makes one of our models of the paper's parameters.

    Args:
        checkpoint: As its file is read.
        choices: The user's.
        vocab_size: Words of the vocabulary that the user has given, if any.

    Raises:
        UserError: a parameter is missing or has no place, the vocabulary is another, or the number
            of heads is unknown.
    """
    tensors, remarks, settings = in_memory(checkpoint.parameters), [], _Settings(checkpoint.flags)
    require_some(
        tensors,
        {"image_embedding/kernel": 2, "encoder/Block_0/TransformerMLP_0/fc1/kernel": 2},
    )
    num_values, width = tensors.shape("image_embedding/kernel")
    patch_size = round((num_values / 3) ** 0.5)
    has_text = "text_embedding/embedding" in tensors
    if has_text:
        require_some(tensors, {"text_embedding/embedding": 2})
    has_decoder = "decoder_input_projection/kernel" in tensors
    parameters = m3ae_names.encoder_names(has_text=has_text)
    decoder = NO_DECODER
    dropped: dict[str, str] = {}
    if has_decoder and _predicts_codes(tensors, num_values):
        has_decoder = False
        dropped[r"decoder|image_mask|text_mask"] = (
            "a decoder that predicts codes of a tokenizer of images"
        )
    if has_decoder:
        require_some(
            tensors,
            {
                "decoder_input_projection/kernel": 2,
                "decoder/Block_0/TransformerMLP_0/fc1/kernel": 2,
            },
        )
        parameters += m3ae_names.decoder_names(has_text=has_text)
        narrow = tensors.shape("decoder_input_projection/kernel")[1]
        decoder = TransformerConfig(
            num_layers=count_blocks(tensors, m3ae_names.DECODER_STACK),
            width=narrow,
            num_heads=heads_of(
                narrow,
                settings.decoder_heads(narrow),
                choices.decoder_num_heads,
                "--decoder_num_heads",
                remarks,
            ),
            mlp_ratio=mlp_ratio_of(
                tensors.shape("decoder/Block_0/TransformerMLP_0/fc1/kernel")[1], narrow
            ),
        )
    vocab = tensors.shape("text_embedding/embedding")[0] if has_text else 0
    require(
        vocab_size is None or vocab_size == vocab,
        f"--vocab has {vocab_size} words and the source {vocab or 'no text'}. "
        + ("Name its own, that of bert-base-uncased." if has_text else "Leave --vocab out."),
    )
    model = ModelConfig(
        patch_size=patch_size,
        vocab_size=vocab,
        encoder=TransformerConfig(
            num_layers=count_blocks(tensors, m3ae_names.ENCODER_STACK),
            width=width,
            num_heads=heads_of(
                width, settings.heads(width), choices.num_heads, "--num_heads", remarks
            ),
            mlp_ratio=mlp_ratio_of(
                tensors.shape("encoder/Block_0/TransformerMLP_0/fc1/kernel")[1], width
            ),
        ),
        decoder=decoder,
        compute_dtype="float32",
    )
    absent: dict[str, str] = {}
    for ours, theirs in m3ae_names.TYPES.items():
        is_part = (has_text or "text." not in ours) and (has_decoder or "decoder" not in ours)
        if is_part and theirs in tensors:
            parameters.append(Parameter(ours, (theirs,), TOKEN))
        elif is_part:
            absent[ours] = "0: trained without type vectors"
    matched = match(tensors, parameters, model, dropped=dropped, absent=absent, reasons=_REASONS)
    if has_text and vocab_size is None:
        remarks.append(
            "Without --vocab the model takes no text. Its vocabulary is that of bert-base-uncased: "
            "--vocab=vocab.txt."
        )
    config = model_folder_config(
        model,
        image_size=settings.image_size(patch_size),
        statistics=statistics_of(settings.statistics(), CC12M, choices, remarks),
        # Without a vocabulary nothing can give it text.
        kinds=settings.kinds() if vocab_size else None,
        masking=settings.masking(),
    )
    return Imported(
        config=config,
        arrays=matched.arrays,
        lines=matched.lines,
        remarks=remarks,
        step=checkpoint.step,
    )


class _Settings:
    """The flags of the paper's programs: `m3ae.depth` with text, `mae.depth` without."""

    def __init__(self, flags: dict[str, Any]):
        self._flags = flags

    def heads(self, width: int) -> int | None:
        """Returns the encoder's heads; `model_type` overrides the sizes beside it."""
        typed = _TYPES.get(str(self._model("model_type")))
        return typed[1] if typed and typed[0] == width else self._model("num_heads")

    def decoder_heads(self, width: int) -> int | None:
        """Returns the decoder's heads, likewise."""
        is_typed = str(self._model("model_type")) in _TYPES and width == _DECODER[0]
        return _DECODER[1] if is_typed else self._model("dec_num_heads")

    def image_size(self, patch_size: int) -> int:
        """Returns the side of the images, 256 unless the flags say another."""
        size = self._data("image_size")
        is_size = isinstance(size, int) and size > 0 and size % patch_size == 0
        return size if is_size else max(patch_size, 256 // patch_size * patch_size)

    def statistics(self) -> tuple[Any, Any] | None:
        """Returns mean and standard deviation of the images; None: the flags do not say them."""
        name = str(self._data("image_normalization")).lower()
        if name == "custom":
            texts = (str(self._data(f"custom_image_{each}")) for each in ("mean", "std"))
            try:
                mean, std = ([float(part) for part in text.split("-")] for text in texts)
            except ValueError:
                return None
            return mean, std
        return _STATISTICS.get(name)

    def masking(self) -> MaskingConfig:
        """Returns the mask ratios of the training."""
        image, text = (self._model(f"{name}_mask_ratio") for name in ("image", "text"))
        return MaskingConfig(
            image_mask_ratio=image if isinstance(image, float) else 0.75,
            text_mask_ratio=text if isinstance(text, float) else 0.75,
        )

    def kinds(self) -> dict[Kind, int]:
        """Returns what a model with text has learned from, with the tokens of a text."""
        lengths: dict[Kind, tuple[Any, int]] = {"paired": (self._data("tokenizer_max_length"), 64)}
        if self._flags.get("unpaired_text_loss_weight"):
            lengths["text"] = self._flags.get("unpaired_text_data.tokenizer_max_length"), 256
        return {
            kind: length if isinstance(length, int) and length > 0 else default
            for kind, (length, default) in lengths.items()
        }

    def _model(self, name: str) -> Any:
        return self._flags.get(f"m3ae.{name}", self._flags.get(f"mae.{name}"))

    def _data(self, name: str) -> Any:
        other = f"{self._flags.get('dataset')}_data.{name}"
        return self._flags.get(f"data.{name}", self._flags.get(other))


def _predicts_codes(tensors: Tensors, num_values: int) -> bool:
    """Returns whether the image head has another number of outputs than a patch has values."""
    head, deep = (f"decoder_image_output/{name}" for name in ("Dense_0/bias", "LayerNorm_0/scale"))
    return deep not in tensors and head in tensors and tensors.shape(head) != (num_values,)
