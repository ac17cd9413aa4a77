"""Pre-training as an objective: the model and the reconstruction loss of a config."""

import functools

from m3ae_tpu.config import ModelConfig, PretrainConfig
from m3ae_tpu.errors import require
from m3ae_tpu.model.inputs import Normalizer
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.train.card import count_flops, model_card
from m3ae_tpu.train.objective import Objective
from m3ae_tpu.train.reconstruction import batch_masks, reconstruction_loss
from m3ae_tpu.train.step import model_key


def pretraining(config: PretrainConfig) -> Objective:
    """Returns the objective of a pre-training run.

    Raises:
        UserError: the config's model has no decoder.
    """
    require(
        config.model.decoder.num_layers > 0,
        "model.decoder.num_layers = 0 leaves nothing that reconstructs hidden tokens. "
        "Set at least 1.",
    )
    normalizer = Normalizer.of_data(config.data)
    loss = functools.partial(
        reconstruction_loss,
        masking=config.masking,
        weights=config.loss,
        normalizer=normalizer,
    )
    return Objective(
        init_model=functools.partial(init_model, config.model, config.seed),
        loss=loss,
        masks=functools.partial(batch_masks, masking=config.masking, normalizer=normalizer),
        count_flops=lambda batch: count_flops(config.model, loss, batch),
        describe=functools.partial(model_card, config.model, config.masking, loss),
    )


def init_model(config: ModelConfig, seed: int, operations: Operations = Operations()) -> M3AE:
    """Draws the initial model of a run from the model's settings and the run's seed."""
    return M3AE(config, key=model_key(seed), operations=operations)
