"""The forms in which each kind of device computes what all compute alike: the one table of them.

A rewrite that makes the compiled step faster on one kind of device makes it slower on another. Each
such choice is a field here, which the model reads from its `Operations`. Results differ by rounding
alone, and parameters, gradients and checkpoints have the same shapes and names in every form.
"""

from typing import NamedTuple


class Forms(NamedTuple):
    """Choices of one kind of device. The defaults are those of a CPU."""

    keeps_token_axis: bool = False
    """Products take activations as [batch, tokens, width], not as rows [batch * tokens, width].

    Where a tile of 8 does not divide the tokens, rows on a TPU are a copy of the activation.
    Without it a product writes its part of the stacks that a scan keeps. On CPUs a gradient that
    contracts batch and tokens separately takes 1.5 times as long.
    """


_FORMS = {"tpu": Forms(keeps_token_axis=True)}


def forms_of(platform: str) -> Forms:
    """Returns the forms for devices of a platform, as JAX names it: "cpu", "gpu", "tpu"."""
    return _FORMS.get(platform, Forms())
