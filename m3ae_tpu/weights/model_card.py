"""The model card that lies beside exported and imported weights: `README.md`."""

import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any

from m3ae_tpu.config import PretrainConfig, TransformerConfig
from m3ae_tpu.evaluation.evaluate import all_rows
from m3ae_tpu.files import atomic_write
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.train.card import size

CARD = "README.md"

_ABOUT = """\
A multimodal masked autoencoder (M3AE, [Geng et al. 2022](https://arxiv.org/abs/2205.14204)): one
encoder for patches of images and words of texts, trained to fill in what was hidden of them. It was
made with m3ae-tpu. A medical model in PyTorch, by other authors, is called M3AE too; its weights
and code have nothing to do with these.
"""
_LIMITS = """\
- The features are those of an autoencoder. Take them with a trained head (linear, attentive) or
  fine-tune the encoder; nearest neighbours and zero-shot use are weak.
- Images and texts share an encoder but no contrastive space: the similarity of an image's and a
  text's features means nothing.
- Other image sizes than the one above, other means and deviations, and another tokenizer give other
  features.
- The model has seen what its training data held, with all gaps and biases. It was not checked for
  uses that affect people.
"""
_STARTER_LICENCES = """\
The starter set, which ships with m3ae-tpu, holds drawings under Apache-2.0 (Noto Emoji), MIT
(Fluent Emoji) and in the public domain (Open Clip Art), with texts of WordNet 3.0, Unicode CLDR and
emojibase; `ATTRIBUTION.md` of the set names all of them.
"""


def write_card(
    folder: pathlib.Path,
    pretrained: Pretrained,
    *,
    usage: str,
    header: str = "",
    source: str = "",
    figures: Mapping[str, Any] | None = None,
    checks: str = "",
    weights_licence: str = "",
) -> None:
    """Writes the model card into a folder.

    Args:
        folder: The folder of the weights.
        pretrained: The model.
        usage: Markdown that shows how the files are loaded.
        header: The block of YAML that model hubs read; may be empty.
        source: The origin of imported weights and their licence, a line; empty for an own run.
        figures: Those of the run's `evaluation.json`.
        checks: Markdown on how the files were compared with the model; may be empty.
        weights_licence: A sentence on the licence of an own run's weights; empty: their owner's.
    """
    config = pretrained.config
    encoder = config.model.encoder
    parts = [
        f"{header}# M3AE encoder: {_blocks(encoder)} of {encoder.width} channels, patches "
        f"of {config.model.patch_size}, images of {config.data.image_size}",
        _ABOUT,
        f"## Use\n\n{usage}",
        f"## Model\n\n{_model_table(pretrained)}",
        f"## Training\n\n{_training(pretrained, source)}",
        f"## Scores\n\n{_scores(figures or {})}",
        f"## Checks\n\n{checks}" if checks else "",
        f"## Limits\n\n{_LIMITS}",
        f"## Licence\n\n{_licence(config, source, weights_licence)}",
    ]
    text = "\n".join(part.rstrip("\n") + "\n" for part in parts if part)
    atomic_write(folder / CARD, text)


def _model_table(pretrained: Pretrained) -> str:
    model, data = pretrained.config.model, pretrained.config.data
    positions = "stored" if model.stored_image_positions else "computed, sine and cosine"
    rows = {
        "parameters": f"{size(pretrained.model):,}",
        "encoder": _stack(model.encoder),
        "decoder": _stack(model.decoder) if model.decoder.num_layers else "none",
        "patches": f"{model.patch_size} x {model.patch_size} pixels",
        "activation, epsilon of norms": f"{model.activation}, {model.norm_epsilon:g}",
        "position codes of patches": positions,
        "images": f"{data.image_size} x {data.image_size} pixels, red, green, blue: the shorter "
        "side resized (bicubic), the centre cropped",
        "mean of channels": _numbers(data.image_mean),
        "deviation of channels": _numbers(data.image_std),
        "vocabulary": f"{model.vocab_size:,} pieces" if pretrained.task.has_texts else "no texts",
        "tokens of a text": f"{pretrained.text_length}, padded with 0, without begin and end"
        if pretrained.task.has_texts
        else "",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _stack(stack: TransformerConfig) -> str:
    return (
        f"{_blocks(stack)}, {stack.width} channels, {stack.num_heads} heads, "
        f"MLP of {stack.width * stack.mlp_ratio}"
    )


def _blocks(stack: TransformerConfig) -> str:
    return "1 block" if stack.num_layers == 1 else f"{stack.num_layers} blocks"


def _training(pretrained: Pretrained, source: str) -> str:
    config = pretrained.config
    if source:
        return f"Imported: {source}"
    hidden = []
    if pretrained.task.has_images:
        hidden.append(f"{config.masking.image_mask_ratio:.0%} of the patches")
    if pretrained.task.has_texts:
        hidden.append(f"{config.masking.text_mask_ratio:.0%} of the words")
    if pretrained.task.has_pairs and config.masking.text_dropout > 0:
        hidden[-1] += f" (all of them in {config.masking.text_dropout:.0%} of the pairs)"
    shards = [f"- `{each.shards}`, {each.kind}" for each in config.data.sources]
    return "\n".join(
        [
            f"{pretrained.step:,} steps of {config.batch_size:,} examples. Hidden: "
            f"{' and '.join(hidden)}. Data:",
            "",
            *shards,
            "",
            _versions(pretrained.versions),
        ]
    )


def _versions(versions: Mapping[str, str]) -> str:
    names = [f"{name} {version}" for name, version in versions.items()]
    return textwrap.fill(f"Trained with {', '.join(names)}.", 100) if names else ""


def _scores(figures: Mapping[str, Any]) -> str:
    rows = [row for row in all_rows(figures) if row.values] if figures else []
    if not rows:
        return (
            "Not measured. `python -m pipelines.evaluate` and `python -m pipelines.probe` do that."
        )
    lines = []
    for row in rows:
        if row.level != "detail":
            own = next(iter(row.values.values()))
            beside = ", ".join(f"{name} {value:.3f}" for name, value in row.baselines)
            lines.append(f"| {row.title} | {own:.3f} | {beside} |")
    head = ["| on held-out examples | this model | compared with |", "| --- | --- | --- |"]
    return "\n".join([*head, *lines, "", f"Test examples: {figures['examples/test']:,}."])


def _licence(config: PretrainConfig, source: str, weights_licence: str) -> str:
    code = "The code that made these files is under Apache-2.0."
    if source:
        return f"{code} The weights keep the licence of their source: {source}\n"
    weights = weights_licence or "The weights have the one that their owner gives them."
    text = f"{textwrap.fill(f'{code} {weights}', 100)}\n"
    if any(source.shards.startswith("starter/") for source in config.data.sources):
        text += f"\n{_STARTER_LICENCES}"
    return text + "\nThe licences of the training data are named by whoever made its shards.\n"


def _numbers(values: tuple[float, float, float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
