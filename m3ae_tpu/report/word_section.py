"""The section of the report on what an image adds to the guess of its hidden words, as HTML."""

import html
import math
from collections.abc import Sequence

from m3ae_tpu.charts import Bar, BarGroup, bar_chart
from m3ae_tpu.page import missing, table
from m3ae_tpu.report.uris import thumbnail_uri
from m3ae_tpu.report.word_gains import LEAST_CAPTIONS, Caption, Gain, HiddenPiece, WordGains

_SIDE = 96
_MOST_BARS, _MOST_ROWS = 12, 16
_OFTEN = f"hidden in {LEAST_CAPTIONS} captions or more"
_TIMES = "\u00d7\u202f"


def word_section(gains: WordGains | str) -> str:
    """Returns bars by kind of word and by word, and captions with each hidden word.

    Args:
        gains: Result of `measure_word_gains`, or a sentence that says why there is none.
    """
    if isinstance(gains, str):
        return missing(html.escape(gains))
    total = gains.total
    direction = "more" if total.mean >= 0 else "less"
    explained = (
        f"<p>The hidden words of {total.num_captions:,} held-out captions, predicted twice: beside "
        "their own image, and with the same words and patches hidden beside the image of another "
        "example, of another class as far as there are enough of them. Beside its own image a "
        f"hidden token is {_factor(total)} times as probable (the geometric mean of "
        f"{total.num_pieces:,}): {abs(total.mean):.3f} ± {total.error:.3f} nats {direction}.</p>"
    )
    return (
        f'{explained}<div class="charts">{_kinds(gains.kinds)}{_words(gains.words)}</div>'
        f"{_all_words(gains.words)}{_captions(gains, gains.drawn, _DRAWN)}"
        f"{_captions(gains, gains.chosen, _CHOSEN)}"
    )


_DRAWN = "Captions drawn at random"
_CHOSEN = "Chosen: the captions that gain most from their image"
_WHISKERS = (
    f"Length: nats. {_TIMES}1: nothing gained. In brackets: the number of hidden tokens. "
    "Whiskers: one standard error."
)


def _kinds(kinds: Sequence[Gain]) -> str:
    return _chart("By kind of word", kinds, _WHISKERS)


def _words(words: Sequence[Gain]) -> str:
    shown = [gain for gain in words if gain.mean > 0][:_MOST_BARS]
    if not shown:
        none = missing(f"No word that was {_OFTEN} gained.")
        return f'<figure class="card"><h3>Words that gain most</h3>{none}</figure>'
    note = (
        f"The largest gains of {len(words):,} words that were {_OFTEN}. The largest of many "
        "are partly luck: see the whiskers, and all words below."
    )
    return _chart("Words that gain most", shown, note)


def _chart(title: str, gains: Sequence[Gain], note: str) -> str:
    bars = [
        Bar(
            name=_short(gain.name),
            value=max(gain.mean, 0.0),
            label=f"{_TIMES}{_factor(gain)} ({gain.num_pieces:,})",
            is_accented=True,
            error=gain.error if gain.mean > 0 else 0.0,
        )
        for gain in gains
    ]
    chart = bar_chart("", [BarGroup(title="", bars=bars)])
    return f'<figure class="card"><h3>{title}</h3>{chart}<p class="note">{note}</p></figure>'


def _all_words(words: Sequence[Gain]) -> str:
    if not words:
        return ""
    heads = ("word", "captions", "right image", "wrong image", "ratio", "nats")
    rows = [
        (
            gain.name,
            f"{gain.num_captions:,}",
            *(_percent(prob) for prob in gain.probs),
            f"{_TIMES}{_factor(gain)}",
            f"{gain.mean:+.2f} ± {gain.error:.2f}",
        )
        for gain in words
    ]
    return (
        f"<details><summary>All {len(words):,} words that were {_OFTEN}"
        '</summary><p class="note">Probabilities of a word\'s tokens, geometric means.</p>'
        f"{table(heads, rows, num_numbers=5)}</details>"
    )


def _captions(gains: WordGains, captions: Sequence[Caption], title: str) -> str:
    if not captions:
        return ""
    cards = "".join(_card(gains, caption) for caption in captions)
    return f'<h3 class="strips-title">{title}</h3><div class="gains">{cards}</div>'


def _card(gains: WordGains, caption: Caption) -> str:
    examples = gains.examples
    names = [
        html.escape(
            examples.titles[row] or examples.label_names[examples.labels[row]].replace("_", " ")
        )
        for row in (caption.other, caption.example)
    ]
    images = [
        f'<img class="image" src="{thumbnail_uri(examples.images[row], _SIDE)}" alt="{name}">'
        for row, name in zip((caption.other, caption.example), names, strict=True)
    ]
    text = "".join(
        _marked(piece) if place in caption.hidden else html.escape(piece)
        for place, piece in enumerate(caption.pieces)
    )
    shown = list(caption.hidden.values())[:_MOST_ROWS]
    rows = "".join(_row(piece) for piece in shown)
    more = len(caption.hidden) - len(shown)
    note = f'<p class="note">and {more} more hidden tokens</p>' if more else ""
    return (
        f'<article class="card gain"><p class="hiding">{text.strip()}</p><table>'
        f"<tr><th>hidden</th><th>{images[0]}wrong image</th><th>{images[1]}right image</th>"
        f'<th class="number">its probability, wrong → right</th></tr>{rows}</table>'
        f"{note}</article>"
    )


def _row(piece: HiddenPiece) -> str:
    cells = "".join(
        f"<td{' class="right"' if guess.text == piece.text else ''}>"
        f"{html.escape(guess.text.strip()) or '␣'} <small>{_percent(guess.prob)}</small></td>"
        for guess in (piece.wrong, piece.right)
    )
    wrong, right = (_percent(math.exp(guess.true_log_prob)) for guess in (piece.wrong, piece.right))
    tint = "var(--right)" if piece.gain > 0 else "var(--second)"
    strength = min(abs(piece.gain), 2.0) / 2.0 * 45
    style = f"background: color-mix(in srgb, {tint} {strength:.0f}%, transparent)"
    return (
        f"<tr><th>{html.escape(piece.text.strip()) or '␣'}</th>{cells}"
        f'<td class="number" style="{style}"><span>{wrong} →</span> <span>{right}</span></td></tr>'
    )


def _marked(piece: str) -> str:
    space = " " if piece.startswith(" ") else ""
    return f"{space}<mark>{html.escape(piece.strip())}</mark>"


def _factor(gain: Gain) -> str:
    return f"{math.exp(gain.mean):.2f}"


def _percent(share: float) -> str:
    percent = 100 * share
    if percent < 0.01:
        return "<\u202f0.01\u202f%"
    digits = 0 if percent >= 9.95 else 1 if percent >= 0.95 else 2
    return f"{percent:.{digits}f}\u202f%"


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"
