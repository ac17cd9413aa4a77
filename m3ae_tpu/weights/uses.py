"""Uses of an encoder: what it may be given, as far as the model has learned it."""

from typing import NamedTuple

from m3ae_tpu.pretrained.pretrained import Pretrained


class Use(NamedTuple):
    """Inputs of an encoder."""

    name: str
    """Name of its file."""
    has_image: bool
    has_text: bool


_USES = (Use("image", True, False), Use("text", False, True), Use("image_text", True, True))


def uses_of(pretrained: Pretrained) -> list[Use]:
    """Returns what a model can encode: images and texts together only if it has learned pairs."""
    task = pretrained.task
    learned = {"image": task.has_images, "text": task.has_texts, "image_text": task.has_pairs}
    return [use for use in _USES if learned[use.name]]
