"""Options of an extraction. The flags of `extract_features` are made of these fields."""

import dataclasses
from typing import Literal, get_args

from m3ae_tpu.errors import require

type ExampleKind = Literal["image", "text", "both"]
type Pooling = Literal["cls", "image_mean", "text_mean", "mean", "tokens"]
type Norm = Literal["last", "none", "all"]
type FileFormat = Literal["npy", "safetensors", "parquet"]
type Precision = Literal["float32", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Features to compute, and the form of their files."""

    kind: Literal["auto", "image", "text", "both"] = "auto"
    """Content of an example: an image alone, a text alone, or an image and its text encoded
    together. auto: what the model has learned and the first example has.
    """
    pooling: str = "auto"
    """Vectors to make of an example's tokens, separated by commas: cls (the class token),
    image_mean (mean of the patches), text_mean (of the words), mean (of both), tokens (all of
    them). auto: image_mean, for texts alone text_mean.
    """
    layers: str = "-1"
    """Layers, separated by commas: 1 is the first, -1 the last; or all."""
    norm: Literal["last", "none", "all"] = "last"
    """Layers that get the encoder's final norm: the last one, as in training; none; or all."""
    concatenate: bool = False
    """Put poolings and layers side by side in one array, instead of an array for each."""
    image_size: int = 0
    """Side of the square images, pixels; 0 is that of the training. Others are good within about
    a factor of 2.
    """
    part_size: int = 1_024
    """Inputs of a part. A part is held in memory, and is what an interruption loses."""
    format: Literal["npy", "safetensors", "parquet"] = "npy"
    """Form of a part's files. parquet also holds id, place and label of each row."""
    dtype: Literal["float32", "float16"] = "float32"
    """Numbers in the files."""

    def __post_init__(self) -> None:
        require(self.part_size >= 1, f"--part_size = {self.part_size} is not positive. Set 1024.")
        require(
            self.image_size >= 0,
            f"--image_size = {self.image_size} is negative. Set 0 for the size of the training.",
        )

    def poolings(self, kind: ExampleKind) -> tuple[Pooling, ...]:
        """Returns the poolings by name, each once.

        Args:
            kind: The examples' content.

        Raises:
            UserError: a name is unknown, or the examples do not have what it pools.
        """
        if self.pooling == "auto":
            return ("text_mean",) if kind == "text" else ("image_mean",)
        known = get_args(Pooling.__value__)
        names = tuple(dict.fromkeys(_words(self.pooling)))
        unknown = [name for name in names if name not in known]
        require(
            bool(names) and not unknown,
            f"--pooling = {self.pooling} names {', '.join(unknown) or 'nothing'}. "
            f"Use one of: {', '.join(known)}.",
        )
        missing = {"image": "text_mean", "text": "image_mean"}.get(kind)
        require(
            missing not in names,
            f"--pooling = {self.pooling} asks for {missing}, but the examples are of kind {kind}. "
            "Leave it out, or set another --kind.",
        )
        require(
            not self.concatenate or "tokens" not in names or names == ("tokens",),
            f"--pooling = {self.pooling} cannot be concatenated: tokens have another shape. "
            "Name tokens alone, or leave out --concatenate.",
        )
        return names  # pyright: ignore[reportReturnType]

    def layer_numbers(self, num_layers: int) -> tuple[int, ...]:
        """Returns the layers as numbers from 1 on, in the order given, each once.

        Raises:
            UserError: one is not a number, or the encoder does not have it.
        """
        if self.layers == "all":
            return tuple(range(1, num_layers + 1))
        numbers = []
        for word in _words(self.layers):
            try:
                number = int(word)
            except ValueError:
                number = 0
            require(
                1 <= abs(number) <= num_layers,
                f"--layers = {self.layers} names layer {word}, and the encoder has the layers "
                f"1 to {num_layers}. Name those, -1 for the last, or all.",
            )
            numbers.append(number if number > 0 else num_layers + 1 + number)
        require(bool(numbers), f"--layers = {self.layers} names nothing. Set -1 for the last.")
        return tuple(dict.fromkeys(numbers))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
