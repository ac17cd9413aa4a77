"""The short card that a run shows before its first step."""

import math
from typing import Any

import jax
import numpy as np

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.mixture import rows_per_source
from m3ae_tpu.model.masking import num_visible
from m3ae_tpu.train.flops import flops_per_example
from m3ae_tpu.train.reconstruction import Batch
from m3ae_tpu.train.step import TrainState


def run_card(
    config: PretrainConfig, state: TrainState, batch: Batch, fingerprint: dict[str, Any]
) -> list[tuple[str, str]]:
    """Returns names and values: size, cost and length of a run.

    Args:
        config: The run's.
        state: Its state, or the shapes of one.
        batch: One global batch, or the shapes of one.
        fingerprint: Of the data, see `data/loader.py`: counts the records.
    """
    model = state.model
    devices = jax.devices()
    card = [
        ("parameters", f"{size(model):,}"),
        (
            "  encoder, embeddings",
            f"{size(model.encoder):,}, {size((model.image_embedding, model.text_embedding)):,}",
        ),
        (
            "  decoder, heads",
            f"{size(model.decoder):,}, {size((model.image_head, model.text_head)):,}",
        ),
        (
            "FLOPs per example",
            f"{flops_per_example(config, batch) / 1e9:.3g} G, forward and backward",
        ),
    ]
    for source, rows, counted in zip(
        config.data.sources, rows_per_source(config), fingerprint["sources"], strict=True
    ):
        encoder, decoder = tokens_seen(config, source.kind, source.text_length)
        records = counted["records"]
        epochs = rows * config.num_steps / records
        card.append(
            (
                f"{source.kind} rows",
                f"{rows} of {config.batch_size}, from {records:,} records: {epochs:.1f} epochs",
            )
        )
        card.append(("  tokens", f"{encoder} in the encoder, {decoder} in the decoder"))
    return [
        *card,
        ("steps", f"{config.num_steps:,}, of which {int(state.step):,} are done"),
        ("devices", f"{len(devices)} x {devices[0].device_kind}"),
        (
            "dtypes",
            f"{config.model.compute_dtype} compute, {config.model.parameter_dtype} parameters",
        ),
    ]


def size(tree: Any) -> int:
    """Returns the number of parameters in a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def tokens_seen(config: PretrainConfig, kind: str, text_length: int) -> tuple[int, int]:
    """Returns how many tokens of one example the encoder and the decoder compute, class token
    included.
    """
    encoder = decoder = 1
    if kind != "text":
        patches, masking = (config.data.image_size // config.model.patch_size) ** 2, config.masking
        visible = num_visible(patches, masking.image_mask_ratio)
        encoder += visible
        decoder += visible + math.ceil((patches - visible) * masking.image_predicted_share)
    if kind != "image":
        encoder += num_visible(text_length, config.masking.text_mask_ratio)
        decoder += text_length
    return encoder, decoder
