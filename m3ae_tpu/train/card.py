"""The card that a run shows before its first step: size, cost and length."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from m3ae_tpu.batch import Batch, Source
from m3ae_tpu.config import MaskingConfig, ModelConfig, RunConfig
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.masking import num_visible
from m3ae_tpu.train.flops import flops_by_scope
from m3ae_tpu.train.step import Loss

type Card = list[tuple[str, str]]
"""Names and values."""


def run_card(
    config: RunConfig, sources: Sequence[Source], num_records: Sequence[int], *, start_step: int
) -> Card:
    """Returns a run's data, length and devices, whatever its objective.

    Args:
        config: The run's settings.
        sources: The run's sources.
        num_records: Number of records of each source.
        start_step: Finished steps.
    """
    card = []
    for source, count in zip(sources, num_records, strict=True):
        epochs = source.rows * config.num_steps / count
        rows = f"{source.rows} of {config.batch_size}"
        card.append((f"{source.name} rows", f"{rows}, from {count:,} records: {epochs:.1f} epochs"))
    devices = jax.devices()
    return [
        *card,
        ("steps", f"{config.num_steps:,}, of which {start_step:,} are done"),
        ("devices", f"{len(devices)} x {devices[0].device_kind}"),
    ]


def model_card(
    config: ModelConfig, masking: MaskingConfig, loss: Loss, model: M3AE, batch: Batch
) -> Card:
    """Returns a model's size, dtypes, and its cost for one example.

    Args:
        config: The model's settings.
        masking: Mask ratios; with the batch's shapes they decide the numbers of tokens.
        loss: The function whose gradient is counted.
        model: The model, or its shapes.
        batch: One global batch, or its shapes.
    """
    modalities = [modality for modality in (model.image, model.text) if modality is not None]
    embeddings = [modality.embedding for modality in modalities]
    heads = [modality.head for modality in modalities]
    num_rows = sum(jax.tree.leaves(rows)[0].shape[0] for rows in batch.values())
    flops = count_flops(config, loss, batch) / num_rows
    card = [
        ("parameters", f"{size(model):,}"),
        ("  encoder, embeddings", f"{size(model.encoder):,}, {size(embeddings):,}"),
        ("  decoder, heads", f"{size(model.decoder):,}, {size(heads):,}"),
        ("FLOPs per example", f"{flops / 1e9:.3g} G, forward and backward"),
    ]
    for kind, rows in batch.items():
        num_patches = text_length = 0
        if rows.images is not None:
            height, width = rows.images.shape[1:3]
            num_patches = (height // config.patch_size) * (width // config.patch_size)
        if rows.text_ids is not None:
            text_length = rows.text_ids.shape[1]
        encoder, decoder = num_tokens(num_patches, text_length, masking)
        card.append((f"{kind} tokens", f"{encoder} in the encoder, {decoder} in the decoder"))
    dtypes = f"{config.compute_dtype} compute, {config.parameter_dtype} parameters"
    return [*card, ("dtypes", dtypes)]


def count_flops(config: ModelConfig, loss: Loss, batch: Batch) -> int:
    """Returns the FLOPs of a model's matrix products for a batch, forward and backward.

    What remat computes again is not counted.
    """
    return sum(flops_by_scope(loss, reference_model(config), batch).values())


def reference_model(config: ModelConfig) -> M3AE:
    """Returns the shapes of a model without remat, on the reference operations."""
    plain = dataclasses.replace(config, remat=False)
    return jax.eval_shape(lambda: M3AE(plain, key=jax.random.key(0)))


def size(tree: Any) -> int:
    """Returns the number of parameters in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_tokens(num_patches: int, text_length: int, masking: MaskingConfig) -> tuple[int, int]:
    """Returns how many tokens of an example encoder and decoder compute, class token included.

    Args:
        num_patches: Patches of its image; 0 for a text alone.
        text_length: Tokens of its text, padding included; 0 for an image alone.
        masking: Mask ratios, and the share of hidden patches that is predicted.
    """
    visible_patches = num_visible(num_patches, masking.image_mask_ratio)
    hidden_patches = math.ceil((num_patches - visible_patches) * masking.image_predicted_share)
    encoder = 1 + visible_patches + num_visible(text_length, masking.text_mask_ratio)
    return encoder, 1 + visible_patches + hidden_patches + text_length
