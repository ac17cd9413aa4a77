"""An objective: the model and the loss that step, loop and checkpoints take as arguments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jaxtyping import PyTree

from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.train.step import Loss


class Objective(NamedTuple):
    """A model to begin with, and a loss to minimise."""

    init_model: Callable[[Operations], PyTree]
    """Draws the initial model, an Equinox module, for the operations of a mesh."""
    loss: Loss
    """Takes that model, a batch, the rows' places and a key; see `train/step.py`."""
    describe: Callable[[PyTree, Any], list[tuple[str, str]]] = lambda model, batch: []
    """Names and values about a model and a batch, for the card that a run shows first."""
    masks: Callable[[PyTree, Any, dict[Any, Any], Any], PyTree] = lambda *arguments: {}
    """Returns what the loss hides of a batch, for the replay of a step; takes the same arguments.
    """
    count_flops: Callable[[Any], int] = lambda batch: 0
    """FLOPs of a batch, forward and backward, for the utilisation of the chips; 0 if unknown."""
    with_weights: Callable[[PyTree], PyTree] | None = None
    """Returns the initial model, arrays on the mesh, with weights from elsewhere; None: it stays.
    """
    after_optimizer: optax.GradientTransformation | None = None
    """Goes on with the updates that the optimizer makes, as with rates by layer."""
