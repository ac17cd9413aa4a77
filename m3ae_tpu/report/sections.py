"""The parts of the report's page, as HTML. Each says so where a run has nothing to show."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from m3ae_tpu import batch
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.config.tree import leaves
from m3ae_tpu.evaluation import probes
from m3ae_tpu.evaluation.features import IMAGE_POOLINGS, PAIR_POOLINGS
from m3ae_tpu.report.examples import Picture, Word

_NOT_EVALUATED = "This run has no evaluation.json yet. Make it: <code>python -m pipelines.evaluate --workdir=…</code>"


def missing(reason: str) -> str:
    """Returns a box that says why something is not shown; `reason` is HTML."""
    return f'<p class="missing">{reason}</p>'


def percent(share: float) -> str:
    """Formats a share of 1: 0.4567 as 45.7 %, with a narrow space."""
    return f"{100 * share:.1f}\u202f%"


def tiles(evaluation: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page's main figures, those that there are."""
    made = []

    def tile(name: str, value: str, beside: str) -> None:
        made.append(
            f'<div class="card tile"><p class="name">{name}</p><p class="value">{value}</p>'
            f'<p class="beside">{beside}</p></div>'
        )

    if "linear_probe/pretrained" in evaluation:
        beside = " · ".join(
            f"{name.replace('_', ' ')} {percent(evaluation[f'linear_probe/{name}'])}"
            for name in ("untrained", "raw_pixels")
        )
        tile("Linear probe, images alone", percent(evaluation["linear_probe/pretrained"]), beside)
    if "linear_probe_image_and_text/pretrained" in evaluation:
        words = percent(evaluation["linear_probe_image_and_text/bag_of_words"])
        value = percent(evaluation["linear_probe_image_and_text/pretrained"])
        tile("Linear probe, images with captions", value, f"words of the caption alone {words}")
    if "heldout/image_loss_of_visible_mean" in evaluation:
        loss, baseline = (
            evaluation["heldout/image_loss"],
            evaluation["heldout/image_loss_of_visible_mean"],
        )
        tile(
            "Error at hidden patches",
            f"{loss / baseline:.2f}<small> &times;</small>",
            "that of the visible patches' mean colour",
        )
    if "heldout/text_accuracy" in evaluation:
        other = evaluation.get("heldout/text_accuracy_with_other_image")
        beside = "held-out texts" if other is None else f"beside a wrong image {percent(other)}"
        tile("Hidden words guessed right", percent(evaluation["heldout/text_accuracy"]), beside)
    speeds = sorted(speed for line in metrics if (speed := line.get("time/examples_per_second")))
    if speeds:
        waits = sorted(
            wait for line in metrics if (wait := line.get("time/data_wait_fraction")) is not None
        )
        beside = (
            f"waiting for data {percent(waits[len(waits) // 2])}"
            if waits
            else "median of all lines"
        )
        tile("Throughput", f"{speeds[len(speeds) // 2]:,.0f}<small> examples/s</small>", beside)
    return "\n".join(made) or missing(
        "No figures yet: the run has neither metrics nor an evaluation."
    )


def probe_bars(evaluation: Mapping[str, Any]) -> str:
    """Returns the probes of the pretrained encoder beside untrained encoder and raw input, with
    standard errors.
    """
    groups = (
        (
            "linear_probe",
            "Linear probe · images",
            ("pretrained", "untrained", "raw_pixels"),
            IMAGE_POOLINGS,
        ),
        (
            "knn",
            "10 nearest neighbours · images",
            ("pretrained", "untrained", "raw_pixels"),
            IMAGE_POOLINGS,
        ),
        (
            "linear_probe_image_and_text",
            "Linear probe · images with captions",
            ("pretrained", "untrained", "bag_of_words"),
            PAIR_POOLINGS,
        ),
    )
    shown = [group for group in groups if f"{group[0]}/pretrained" in evaluation]
    if not evaluation:
        return missing(_NOT_EVALUATED)
    if not shown:
        return missing("This run saw no images, so there are no features of images to probe.")
    num_test = evaluation["examples/test"]
    cards = []
    for prefix, title, names, poolings in shown:
        most = max(evaluation[f"{prefix}/{name}"] for name in names) * 1.12
        bars = [_bar(name, evaluation[f"{prefix}/{name}"], most, num_test) for name in names]
        note = f"Features: {html.escape(poolings.get(evaluation[f'{prefix}/pooling'], ''))}."
        cards.append(
            f'<div class="card"><h3>{title}</h3>{"".join(bars)}<p class="note">{note}</p></div>'
        )
    intro = (
        "The encoder is frozen; a small classifier learns the class from its features of "
        f"{evaluation['examples/train']:,} training images and is scored on {num_test:,} that neither it nor "
        "pre-training has seen. Features and the classifier's regularisation are chosen on training images "
        "alone. &ldquo;Untrained&rdquo; is the same network before its first step. Whiskers: one standard error to "
        "each side."
    )
    return f'<p>{intro}</p><div class="probes">{"".join(cards)}</div>{_pooling_table(evaluation)}'


def _bar(name: str, accuracy: float, most: float, num_test: int) -> str:
    error = probes.standard_error(accuracy, num_test)
    left, wide = 100 * (accuracy - error) / most, 100 * 2 * error / most
    return (
        f'<div class="bar{" ours" if name == "pretrained" else ""}" title="{percent(accuracy)} ± {percent(error)}">'
        f'<span>{name.replace("_", " ")}</span><span class="track">'
        f'<span class="fill" style="width:{100 * accuracy / most:.1f}%"></span>'
        f'<span class="error" style="left:{left:.1f}%;width:{wide:.1f}%"></span></span>'
        f'<span class="number">{percent(accuracy)}</span></div>'
    )


def _pooling_table(evaluation: Mapping[str, Any]) -> str:
    """Returns every pooling's accuracy, folded in."""
    rows = []
    for pooling, meaning in IMAGE_POOLINGS.items():
        cells = [
            evaluation.get(f"poolings/{probe}/pretrained/{pooling}")
            for probe in ("linear_probe", "knn")
        ]
        if None not in cells:
            numbers = "".join(
                f'<td class="number">{percent(cell)}</td>' for cell in cells if cell is not None
            )
            chosen = ' class="chosen"' if pooling == evaluation.get("linear_probe/pooling") else ""
            rows.append(f"<tr{chosen}><td>{html.escape(meaning)}</td>{numbers}</tr>")
    if not rows:
        return ""
    heads = ("linear probe", "nearest neighbours")
    head = "".join(f'<th class="number">{name}</th>' for name in heads)
    return (
        "<details><summary>All features of images</summary><p class='note'>Test accuracy; the coloured row was "
        "chosen for the linear probe on training images. The best cell is not a result: picking it would be "
        "choosing on test.</p>"
        f"<div class='scroll'><table><tr><th>features</th>{head}</tr>{''.join(rows)}</table></div></details>"
    )


def gallery(pictures: Sequence[Picture] | None, config: PretrainConfig) -> str:
    """Returns held-out examples: original, masked, reconstructed, and the guesses at the hidden
    words.
    """
    if pictures is None:
        return missing("This run has no checkpoint yet, so there is no model to ask.")
    has_words = any(picture.words for picture in pictures)
    intro = []
    if any(picture.original for picture in pictures):
        intro.append(
            f"{percent(config.masking.image_mask_ratio)} of the patches are hidden from the encoder."
        )
        if config.loss.norm_pix_loss:
            intro.append(
                "This run predicts patches normalised one by one, so each predicted patch is shown with the mean and "
                "the contrast of the original."
            )
    if has_words:
        intro.append(
            f"{percent(config.masking.text_mask_ratio)} of the caption's pieces are hidden: the shaded ones, with the "
            "model's three best guesses below them; a right one is green."
        )
    cards = []
    for picture in pictures:
        images = ""
        if picture.original:
            images = "".join(
                f'<figure><img class="image{" holes" if name == "masked" else ""}" src="{source}" alt="{name}">'
                f"<figcaption>{name}</figcaption></figure>"
                for name, source in (
                    ("original", picture.original),
                    ("masked", picture.masked),
                    ("reconstructed", picture.reconstructed),
                )
            )
            images = f'<div class="triple">{images}</div>'
        caption = "".join(_piece(word) for word in picture.words)
        caption = f'<div class="caption">{caption}</div>' if caption else ""
        cards.append(
            f'<article class="card example">{_heading(picture)}{images}{caption}</article>'
        )
    kind = "Examples of the held-out part, the first ones of each class in turn." if cards else ""
    return f'<p>{kind} {" ".join(intro)}</p><div class="gallery">{"".join(cards)}</div>'


def _heading(picture: Picture) -> str:
    return f"<h3>{html.escape(picture.title)} <span>{html.escape(picture.label.replace('_', ' '))}</span></h3>"


def _piece(word: Word) -> str:
    start = " start" if word.text.startswith(" ") else ""
    text = html.escape(word.text.strip())
    if not word.guesses:
        return f'<span class="piece{start}">{text}</span>'
    lines = []
    for guess, prob in word.guesses:
        right = ' class="right"' if guess == word.text else ""
        lines.append(f"<i{right}>{html.escape(guess.strip()) or '␣'} {100 * prob:.0f}%</i>")
    return f'<span class="piece hidden{start}"><b>{text or "␣"}</b>{"".join(lines)}</span>'


def attention(pictures: Sequence[Picture] | None) -> str:
    """Returns images whose words can be pointed at to see which patches they attend to."""
    if pictures is None:
        return missing("This run has no checkpoint yet, so there is no model to ask.")
    shown = [picture for picture in pictures if any(word.heat for word in picture.words)]
    if not shown:
        return missing("Only a run with pairs of image and caption has words that look at images.")
    cards = []
    for number, picture in enumerate(shown):
        labels = []
        for place, word in enumerate(picture.words):
            checked = " checked" if place == picture.looking else ""
            start = ' class="start"' if word.text.startswith(" ") else ""
            labels.append(
                f'<label><input type="radio" name="look{number}"{checked}><span{start}>'
                f'{html.escape(word.text.strip()) or "␣"}</span><img class="heat" src="{word.heat}" alt=""></label>'
            )
        cards.append(
            f'<article class="card look">{_heading(picture)}<div class="stage">'
            f'<img class="image" src="{picture.original}" alt="{html.escape(picture.title)}">'
            f'<div class="words">{"".join(labels)}</div></div></article>'
        )
    return (
        "<p>The marked word's attention to the image in the encoder's last block, mean of all heads, with nothing "
        "hidden. Red is above that word's average. Point at another word, or choose it, to see where it looks.</p>"
        f'<div class="looks">{"".join(cards)}</div>'
    )


def mixture(config: PretrainConfig, metrics: Sequence[Mapping[str, Any]]) -> str:
    """Returns what a run saw of each source, and which of it was broken or cut."""
    seen = metrics[-1] if metrics else {}
    if not any(name.startswith("data/rows/") for name in seen):
        return missing("This run has not logged yet what it saw of its sources.")
    rows = []
    for source in batch.mixture(config.data, config.batch_size):
        total, epochs = seen[f"data/rows/{source.name}"], seen[f"data/epochs/{source.name}"]
        cells = (source.rows, total, min(total, round(total / epochs)), f"{epochs:.1f}")
        numbers = "".join(
            f'<td class="number">{cell if isinstance(cell, str) else f"{cell:,}"}</td>'
            for cell in cells
        )
        rows.append(
            f"<tr><td>{source.kind}</td><td><code>{html.escape(source.config.shards)}</code></td>{numbers}</tr>"
        )
    heads = "".join(
        f'<th class="number">{head}</th>'
        for head in ("rows of a batch", "rows seen", "distinct records", "epochs")
    )
    counted: dict[str, int] = {}
    for line in metrics:
        for name, value in line.items():
            if name.startswith(("data/broken/", "data/truncated_texts/")):
                counted[name] = counted.get(name, 0) + value
    notes = [
        f"{value:,} rows {'whose text was cut' if kind == 'truncated_texts' else 'met a broken record'} "
        f"({name.replace('_', ' ')})"
        for (kind, name), value in (
            (full.split("/")[1:], value) for full, value in sorted(counted.items())
        )
        if value
    ]
    note = f'<p class="note">{html.escape("; ".join(notes))}.</p>' if notes else ""
    return f'<div class="scroll"><table><tr><th>kind</th><th>shards</th>{heads}</tr>{"".join(rows)}</table></div>{note}'


def settings(config: PretrainConfig, versions: Mapping[str, str]) -> str:
    """Returns every field of the config, folded in, and the versions that made the run."""
    fields = "".join(
        f"<div><code>{html.escape(name)}</code><code>{html.escape(str(value))}</code></div>"
        for name, value in leaves(config).items()
    )
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td><code>{html.escape(version)}</code></td></tr>"
        for name, version in versions.items()
    )
    return (
        f'<div class="scroll"><table>{rows}</table></div>'
        f'<details><summary>The whole config</summary><div class="settings">{fields}</div></details>'
    )
