"""The gain of hidden words by their own image: their probability beside it and beside another."""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.evaluation.heldout import other_rows, title_tokens
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.report.guesses import Guesses, guess_words

MOST_EXAMPLES = 400
"""Held-out captions whose words are hidden."""
LEAST_CAPTIONS = 5
"""A word is listed that was hidden in as many captions."""
SEED = 7
"""Decides the examples: any; the same for every run."""
_NUM_DRAWN, _NUM_CHOSEN = 4, 2
_KINDS = ("title words", "other words", "punctuation")


class Guess(NamedTuple):
    """The best guess at a hidden token, and the probability of the true one."""

    text: str
    prob: float
    true_log_prob: float
    """Nats."""


class HiddenPiece(NamedTuple):
    """One hidden token of a caption, and the guesses beside the right image and a wrong one."""

    text: str
    """As it reads; a leading space starts a new word."""
    word: str
    """The whole word, in lower case."""
    kind: str
    right: Guess
    wrong: Guess

    @property
    def gain(self) -> float:
        """Rise of the log-probability by the right image, nats."""
        return self.right.true_log_prob - self.wrong.true_log_prob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption with some of its tokens hidden."""

    example: int
    other: int
    """The example whose image is the wrong one."""
    pieces: tuple[str, ...]
    """All its tokens, as they read."""
    hidden: dict[int, HiddenPiece]
    """The hidden ones, by place."""

    @property
    def gain(self) -> float:
        """Mean gain of its hidden tokens, nats."""
        return sum(piece.gain for piece in self.hidden.values()) / len(self.hidden)


class Gain(NamedTuple):
    """The gain of some hidden tokens."""

    name: str
    num_pieces: int
    num_captions: int
    mean: float
    """Mean over the tokens, nats."""
    error: float
    """Its standard error, with captions as the units that are drawn; 0 for a single caption."""
    probs: tuple[float, float]
    """Geometric means of the probabilities beside the right image and the wrong one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordGains:
    """Gains over all captions, by kind and by word, and some captions."""

    examples: LabelledExamples
    total: Gain
    kinds: tuple[Gain, ...]
    words: tuple[Gain, ...]
    """Words that were hidden in `LEAST_CAPTIONS` or more, the largest gain first."""
    drawn: tuple[Caption, ...]
    """Captions drawn at random."""
    chosen: tuple[Caption, ...]
    """Those of the largest mean gain among all others."""


def measure_word_gains(run: Pretrained, test: LabelledExamples) -> WordGains | str:
    """Hides words of held-out captions and predicts them beside their own and beside another image.

    The same words and the same patches are hidden both times; the other image is of another class
    as far as there are enough of them.

    Args:
        run: Its model predicts.
        test: Held-out examples.

    Returns:
        The gains, or a sentence that says why there are none.
    """
    if not run.task.has_pairs or run.tokenizer is None:
        return "Only a run that has learned images with captions can read words off an image."
    if run.model.decoder is None:
        return "The model is an encoder without a decoder: it predicts no words."
    examples = test.with_captions()
    if len(examples) < 2:
        return "This takes two test examples with captions: one lends its image to the other."
    random = np.random.default_rng(SEED)
    order = random.permutation(len(examples))[:MOST_EXAMPLES]
    examples = examples.take(order)
    captions = [caption for caption in _captions(run, run.tokenizer, examples) if caption.hidden]
    if not captions:
        ratio = run.task.masking.text_mask_ratio
        return f"masking.text_mask_ratio = {ratio} hid no word of the test examples."
    words = [
        gain
        for gain in _gains(captions, "word").values()
        if gain.num_captions >= LEAST_CAPTIONS and _has_letters(gain.name)
    ]
    kinds = _gains(captions, "kind")
    # The order of the examples is random already.
    drawn, others = captions[:_NUM_DRAWN], captions[_NUM_DRAWN:]
    return WordGains(
        examples=examples,
        total=_gain("all", [[*caption.hidden.values()] for caption in captions]),
        kinds=tuple(kinds[kind] for kind in _KINDS if kind in kinds),
        words=tuple(sorted(words, key=lambda gain: (-gain.mean, gain.name))),
        drawn=tuple(drawn),
        chosen=tuple(sorted(others, key=lambda caption: -caption.gain)[:_NUM_CHOSEN]),
    )


def _captions(run: Pretrained, tokenizer: Tokenizer, examples: LabelledExamples) -> list[Caption]:
    rows, others = run.task.rows(examples), other_rows(examples.labels)
    right = guess_words(run, rows)
    wrong = guess_words(run, rows._replace(images=examples.images[others]))
    is_title = title_tokens(examples, tokenizer)

    def read(ids: np.ndarray) -> list[str]:
        return [piece.replace("▁", " ") for piece in tokenizer.pieces(ids)]

    captions = []
    for row in range(len(examples)):
        pieces = read(examples.text_ids[row][examples.is_valid[row]])
        words, hidden = whole_words(pieces), {}
        for place, is_word in enumerate(right.is_word[row].tolist()):
            if is_word:
                number = int(right.places[row, place])
                text = pieces[number]
                hidden[number] = HiddenPiece(
                    text=text,
                    word=words[number],
                    kind=_kind(text, bool(is_title[row, number])),
                    right=_guess(right, row, place, read),
                    wrong=_guess(wrong, row, place, read),
                )
        captions.append(
            Caption(
                example=row,
                other=int(others[row]),
                pieces=tuple(pieces),
                hidden=dict(sorted(hidden.items())),
            )
        )
    return captions


def _guess(
    guesses: Guesses, row: int, place: int, read: Callable[[np.ndarray], list[str]]
) -> Guess:
    return Guess(
        text=read(guesses.ids[row, place, :1])[0],
        prob=float(guesses.probs[row, place, 0]),
        true_log_prob=float(guesses.log_prob[row, place]),
    )


def whole_words(pieces: Sequence[str]) -> list[str]:
    """Returns for each token the word that it is a part of, in lower case.

    Punctuation is a word of its own.
    """
    groups: list[list[int]] = []
    for place, piece in enumerate(pieces):
        is_split = not groups or piece.startswith(" ") or not _has_letters(piece)
        if is_split or not _has_letters(pieces[place - 1]):
            groups.append([])
        groups[-1].append(place)
    return [
        "".join(pieces[place] for place in group).strip().lower() for group in groups for _ in group
    ]


def _kind(piece: str, is_title: bool) -> str:
    if not _has_letters(piece):
        return _KINDS[2]
    return _KINDS[0] if is_title else _KINDS[1]


def _has_letters(piece: str) -> bool:
    return any(letter.isalnum() for letter in piece)


def _gains(captions: Sequence[Caption], field: Literal["word", "kind"]) -> dict[str, Gain]:
    """Returns the gain of the hidden tokens that share a word, or a kind."""
    groups = collections.defaultdict(list)
    for caption in captions:
        own = collections.defaultdict(list)
        for piece in caption.hidden.values():
            own[getattr(piece, field)].append(piece)
        for name, pieces in own.items():
            groups[name].append(pieces)
    return {name: _gain(name, by_caption) for name, by_caption in groups.items()}


def _gain(name: str, by_caption: Sequence[Sequence[HiddenPiece]]) -> Gain:
    pieces = [piece for own in by_caption for piece in own]
    mean = sum(piece.gain for piece in pieces) / len(pieces)
    # Tokens of one caption share its image: their deviations add up before they are squared.
    deviations = [sum(piece.gain - mean for piece in own) for own in by_caption]
    count, error = len(by_caption), 0.0
    if count > 1:
        variance = sum(value**2 for value in deviations) * count / (count - 1)
        error = math.sqrt(variance) / len(pieces)
    logs = [[piece.right.true_log_prob, piece.wrong.true_log_prob] for piece in pieces]
    right, wrong = np.exp(np.array(logs, np.float64).mean(axis=0)).tolist()
    return Gain(name, len(pieces), count, mean, error, (right, wrong))
