"""The card that a run shows before its first step: size, cost and length."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from m3ae_tpu.batch import Batch, Source
from m3ae_tpu.config import Kind, PretrainConfig, RunConfig
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
        config: Of the run.
        sources: Its data.
        num_records: Of each source.
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


def model_card(config: PretrainConfig, loss: Loss, model: M3AE, batch: Batch) -> Card:
    """Returns a model's size, dtypes, and its cost for one example of each kind.

    Args:
        config: Of the run.
        loss: Whose gradient is counted.
        model: Or its shapes.
        batch: One global batch, or its shapes.
    """
    heads = [modality.head for modality in (model.image, model.text) if modality is not None]
    embeddings = [m.embedding for m in (model.image, model.text) if m is not None]
    flops = sum(flops_by_scope(loss, reference_model(config), batch).values()) / config.batch_size
    card = [
        ("parameters", f"{size(model):,}"),
        ("  encoder, embeddings", f"{size(model.encoder):,}, {size(embeddings):,}"),
        ("  decoder, heads", f"{size(model.decoder):,}, {size(heads):,}"),
        ("FLOPs per example", f"{flops / 1e9:.3g} G, forward and backward"),
    ]
    for kind, rows in batch.items():
        text_length = 0 if rows.text_ids is None else rows.text_ids.shape[1]
        encoder, decoder = num_tokens(config, kind, text_length)
        card.append((f"{kind} tokens", f"{encoder} in the encoder, {decoder} in the decoder"))
    dtypes = f"{config.model.compute_dtype} compute, {config.model.parameter_dtype} parameters"
    return [*card, ("dtypes", dtypes)]


def reference_model(config: PretrainConfig) -> M3AE:
    """Returns the shapes of a config's model without remat, on the reference operations."""
    plain = dataclasses.replace(config.model, remat=False)
    return jax.eval_shape(lambda: M3AE(plain, key=jax.random.key(0)))


def size(tree: Any) -> int:
    """Returns the number of parameters in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_tokens(config: PretrainConfig, kind: Kind, text_length: int) -> tuple[int, int]:
    """Returns how many tokens of an example encoder and decoder compute, class token included."""
    encoder = decoder = 1
    masking = config.masking
    if kind != "text":
        num_patches = (config.data.image_size // config.model.patch_size) ** 2
        visible = num_visible(num_patches, masking.image_mask_ratio)
        encoder += visible
        decoder += visible + math.ceil((num_patches - visible) * masking.image_predicted_share)
    if kind != "image":
        encoder += num_visible(text_length, masking.text_mask_ratio)
        decoder += text_length
    return encoder, decoder
