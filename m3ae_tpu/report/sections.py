"""The sections of the report, as HTML. A section says so if the run has nothing to show in it."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from m3ae_tpu.batch import mixture
from m3ae_tpu.charts import Bar, BarGroup, bar_chart
from m3ae_tpu.config import FinetuneConfig, PretrainConfig, RunConfig
from m3ae_tpu.config.tree import leaves
from m3ae_tpu.evaluation.evaluate import all_rows
from m3ae_tpu.evaluation.protocol import Row
from m3ae_tpu.model.masking import num_visible
from m3ae_tpu.page import missing, table, tile
from m3ae_tpu.probing.scores import standard_error
from m3ae_tpu.report.examples import ShownExample, Word
from m3ae_tpu.report.slider import at_stops, slider

NO_CHECKPOINT = "This run has no checkpoint yet, and without one there is nothing to show here."


def percent(share: float) -> str:
    """Formats a share of 1: 0.4567 as 45.7 %, with a narrow space."""
    return f"{100 * share:.1f}\u202f%"


def main_figures(evaluation: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the page's main figures, as far as they are there."""
    made = []
    for row in all_rows(evaluation):
        if row.level == "headline" and row.values:
            value = next(iter(row.values.values()))
            made.append(tile(row.title, _format(value, row), _beside(row)))
    scored = [line for line in metrics if "finetune/accuracy" in line]
    if scored:
        last = scored[-1]
        average = last.get("finetune/average/accuracy")
        others = f"running average of the weights {percent(average)} · " if average else ""
        count = f"{last['finetune/examples']:,.0f} test images, step {last['step']:,}"
        value = percent(last["finetune/accuracy"])
        made.append(tile("Accuracy after fine-tuning", value, others + count))
    speeds = sorted(speed for line in metrics if (speed := line.get("time/examples_per_second")))
    waits = sorted(
        wait for line in metrics if (wait := line.get("time/data_wait_fraction")) is not None
    )
    if speeds:
        value = f"{speeds[len(speeds) // 2]:,.0f}<small> examples/s</small>"
        waiting = f"waiting for data {percent(waits[len(waits) // 2])}" if waits else ""
        made.append(tile("Throughput, median", value, waiting))
    return made or [
        missing("There are no figures yet: the run has neither metrics nor an evaluation.")
    ]


def features(evaluation: Mapping[str, Any], workdir: str) -> str:
    """Returns the accuracies of the pretrained encoder's features beside their baselines."""
    if not evaluation:
        return _not_evaluated(workdir)
    charts = _comparisons(evaluation, "features")
    if not charts:
        return missing("This run saw no images, so there are no features of images to probe.")
    return (
        "<p>The encoder is frozen. A small classifier learns classes from its features of "
        f"{evaluation['examples/train']:,} training images and is scored on "
        f"{evaluation['examples/test']:,} test images. Features and the classifier's "
        "regularisation are chosen on training images alone. "
        "&ldquo;Untrained&rdquo; is the same network with random weights. Whiskers are one "
        f"standard error to each side.</p>{charts}"
    )


def reconstruction(
    examples: Sequence[ShownExample] | None,
    evaluation: Mapping[str, Any],
    config: PretrainConfig | FinetuneConfig,
) -> str:
    """Returns reconstruction errors, and examples: masked, reconstructed, with guessed words."""
    if examples is None:
        return missing(NO_CHECKPOINT)
    sentences = ["The first test examples of each class."]
    if isinstance(config, FinetuneConfig) or config.model.decoder.num_layers == 0:
        sentences.append("The model is an encoder without a decoder: it reconstructs nothing.")
    elif any(example.original for example in examples):
        num_patches = (config.data.image_size // config.model.patch_size) ** 2
        num_hidden = num_patches - num_visible(num_patches, config.masking.image_mask_ratio)
        sentences.append(
            f"In training {percent(num_hidden / num_patches)} of the patches are hidden from the "
            "encoder; the slider shows the same model with fewer and with more."
        )
        if config.loss.norm_pix_loss:
            sentences.append(
                "This run predicts patches normalised one by one, so each predicted patch is shown "
                "with the mean and the contrast of the original."
            )
    is_pretraining = isinstance(config, PretrainConfig)
    if is_pretraining and any(word.guesses for example in examples for word in example.words):
        ratio = percent(config.masking.text_mask_ratio)
        sentences.append(
            f"{ratio} of the caption's tokens are hidden: they are shaded, with the model's three "
            "best guesses below. A right guess is green."
        )
    cards = []
    for example in examples:
        images = f'<div class="triple">{_triple(example)}</div>' if example.original else ""
        caption = _grouped(example.words, [_token(word) for word in example.words])
        caption = f'<div class="caption">{caption}</div>' if caption else ""
        cards.append(
            f'<article class="card example">{_heading(example)}{images}{caption}</article>'
        )
    return (
        f"{_comparisons(evaluation, 'reconstruction')}<p>{' '.join(sentences)}</p>"
        f'{_mask_slider(examples)}<div class="gallery">{"".join(cards)}</div>'
    )


def _mask_slider(examples: Sequence[ShownExample]) -> str:
    """Returns the slider of mask ratios, at the run's own; nothing where there are no fills."""
    fills = next((example.fills for example in examples if example.fills), ())
    if not fills:
        return ""
    own = next((number for number, fill in enumerate(fills) if fill.is_own), 0)
    stops = [percent(fill.share) for fill in fills]
    return slider("mask-ratio", "Patches hidden from the encoder", stops, own)


def _triple(example: ShownExample) -> str:
    """Returns an image as it is, masked and reconstructed; of the last two one for each stop."""
    columns = {"original": f'<img class="image" src="{example.original}" alt="original">'}
    if example.fills:
        shares = [f"{percent(fill.share)} hidden" for fill in example.fills]
        columns["masked"] = at_stops(
            [fill.masked for fill in example.fills],
            "image hatched",
            [f"masked, {share}" for share in shares],
        )
        columns["reconstructed"] = at_stops(
            [fill.reconstructed for fill in example.fills],
            "image",
            [f"reconstructed, {share}" for share in shares],
        )
    return "".join(
        f"<figure>{images}<figcaption>{name}</figcaption></figure>"
        for name, images in columns.items()
    )


def attention(examples: Sequence[ShownExample] | None) -> str:
    """Returns images with captions: a word under the pointer shows its attention to the patches."""
    if examples is None:
        return missing(NO_CHECKPOINT)
    shown = [example for example in examples if any(word.attention for word in example.words)]
    if not shown:
        return missing(
            "Only a run with pairs of image and caption has attention between them, and only "
            "examples with captions show it."
        )
    cards = []
    for number, example in enumerate(shown):
        labels = []
        for place, word in enumerate(example.words):
            checked = " checked" if place == example.first_word else ""
            labels.append(
                f'<label><input type="radio" name="word{number}"{checked}>'
                f"<span>{html.escape(word.text.strip()) or '␣'}</span>"
                f'<img class="attention-map" src="{word.attention}" alt=""></label>'
            )
        name = html.escape(example.title or example.label)
        cards.append(
            f'<article class="card attention">{_heading(example)}<div class="stage">'
            f'<img class="image" src="{example.original}" alt="{name}">'
            f'<div class="words">{_grouped(example.words, labels)}</div></div></article>'
        )
    return (
        "<p>The attention of one word to the patches in the encoder's last block: the mean of all "
        "heads, with nothing hidden. Red patches get more than the word's average. Point at "
        "another word, or choose it, to see its attention.</p>"
        f'<div class="attentions">{"".join(cards)}</div>'
    )


def data(config: RunConfig, metrics: Sequence[Mapping[str, Any]]) -> str:
    """Returns how much a run saw of each source, and how much of it was broken or cut."""
    last = metrics[-1] if metrics else {}
    if not any(name.startswith("data/rows/") for name in last):
        return missing("This run has not logged yet what it saw of its sources.")
    rows = []
    for source in mixture(config.data, config.batch_size):
        total, epochs = last[f"data/rows/{source.name}"], last[f"data/epochs/{source.name}"]
        distinct = min(total, round(total / epochs))
        numbers = (f"{source.rows:,}", f"{total:,}", f"{distinct:,}", f"{epochs:.1f}")
        rows.append((source.kind, source.config.shards, *numbers))
    heads = ("kind", "shards", "rows of a batch", "rows seen", "distinct records", "epochs")
    note = _notes(metrics)
    note = f'<p class="note">{html.escape(note)}.</p>' if note else ""
    return f"{table(heads, rows, num_numbers=4)}{note}"


def settings(config: RunConfig, versions: Mapping[str, str]) -> str:
    """Returns every field of the config, folded, and the versions that made the run."""
    fields = "".join(
        f"<div><code>{html.escape(name)}</code><code>{html.escape(str(value))}</code></div>"
        for name, value in leaves(config).items()
    )
    return (
        f"{table((), [*versions.items()])}"
        f'<details><summary>The whole config</summary><div class="settings">{fields}</div>'
        "</details>"
    )


def _not_evaluated(workdir: str) -> str:
    command = html.escape(f"python -m pipelines.evaluate {workdir}")
    return missing(f"This run is not evaluated yet. To do so: <code>{command}</code>")


def _comparisons(evaluation: Mapping[str, Any], section: str) -> str:
    """Returns a chart for each row of a section, and its detail rows as folded tables."""
    rows = [row for row in all_rows(evaluation) if row.section == section]
    num_test = evaluation.get("examples/test", 0)
    cards = [_comparison(row, num_test) for row in rows if row.level != "detail"]
    details = [_detail(row) for row in rows if row.level == "detail"]
    charts = f'<div class="charts">{"".join(cards)}</div>' if cards else ""
    return charts + "".join(details)


def _comparison(row: Row, num_test: int) -> str:
    title = f"<h3>{html.escape(row.title)}</h3>"
    if not row.values:
        left_out = missing(f"Left out: {html.escape(row.note)}")
        return f'<figure class="card">{title}{left_out}</figure>'
    num_examples, bars = row.num_examples or num_test, []
    for number, (name, value) in enumerate(row.values.items()):
        error = standard_error(value, num_examples) if row.unit == "accuracy" else 0.0
        label = f"{_format(value, row)} ± {percent(error)}" if error else _format(value, row)
        bars.append(Bar(name=name, value=value, label=label, is_accented=number == 0, error=error))
    note = f'<p class="note">{html.escape(row.note)}</p>' if row.note else ""
    chart = bar_chart("", [BarGroup(title="", bars=bars)])
    return f'<figure class="card">{title}{chart}{note}</figure>'


def _detail(row: Row) -> str:
    rows = [(name, _format(value, row)) for name, value in row.values.items()]
    return (
        f"<details><summary>{html.escape(row.title)}</summary>"
        f'<p class="note">{html.escape(row.note)}</p>'
        f"{table((), rows, num_numbers=1)}</details>"
    )


def _beside(row: Row) -> str:
    """Returns the best of what a figure is compared with, and the encoder with random weights."""
    if not row.baselines:
        return "on held-out examples"
    best, *others = row.baselines
    named = [f"{'best baseline: ' if others else ''}{best[0]} {_format(best[1], row)}"]
    named += [f"{name} {_format(value, row)}" for name, value in others if name == "untrained"]
    return " · ".join(named)


def _format(value: float, row: Row) -> str:
    return f"{value:.3f}" if row.unit == "loss" else percent(value)


def _heading(example: ShownExample) -> str:
    label = html.escape(example.label.replace("_", " "))
    if not example.title:
        return f"<h3>{label}</h3>"
    return f"<h3>{html.escape(example.title)} <span>{label}</span></h3>"


def _grouped(words: Sequence[Word], elements: Sequence[str]) -> str:
    """Joins the elements of tokens, with those of one word in an element of their own."""
    groups: list[str] = []
    for word, element in zip(words, elements, strict=True):
        if word.text.startswith(" ") or not groups:
            groups.append("")
        groups[-1] += element
    return "".join(f'<span class="word">{group}</span>' for group in groups)


def _token(word: Word) -> str:
    text = html.escape(word.text.strip())
    if not word.guesses:
        return f'<span class="token">{text}</span>'
    lines = []
    for guess, prob in word.guesses:
        right = ' class="right"' if guess == word.text else ""
        lines.append(f"<i{right}>{html.escape(guess.strip()) or '␣'} {100 * prob:.0f}%</i>")
    return f'<span class="token hidden"><b>{text or "␣"}</b>{"".join(lines)}</span>'


def _notes(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Returns how many rows had a broken record or a text that was cut, by reason and source."""
    counts: dict[str, int] = {}
    for line in metrics:
        for name, value in line.items():
            if name.startswith(("data/broken/", "data/truncated_texts/")):
                counts[name] = counts.get(name, 0) + value
    notes = []
    for name, count in sorted(counts.items()):
        _, event, which = name.split("/")
        what = "had a text that was cut" if event == "truncated_texts" else "had a broken record"
        if count:
            notes.append(f"{count:,} rows {what} ({which.replace('_', ' ')})")
    return "; ".join(notes)
