"""The sentences of the report that say what its figures were measured on, and if they are stale."""

import html
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from m3ae_tpu.evaluation.evaluate import TEST_SHARDS, TRAIN_SHARDS
from m3ae_tpu.evaluation.examples import example_remarks
from m3ae_tpu.page import missing


class Shown(NamedTuple):
    """The newest checkpoint and the labelled shards that the report's examples are made of."""

    step: int
    shards: str
    digest: str


def measured(evaluation: Mapping[str, Any], shown: Shown | None, workdir: str) -> str:
    """Returns what the figures were measured on, and how that differs from what is shown, as HTML.

    Args:
        evaluation: The figures of `evaluation.json`; may be empty.
        shown: What the report's examples show; None for a run without a checkpoint.
        workdir: The run's directory, for the command that evaluates it again.
    """
    if not evaluation:
        return ""
    train, test = (evaluation.get(f"examples/{side}_shards") for side in ("train", "test"))
    sentences = [f"Evaluated at step {evaluation['run/step']:,}."]
    if train and test:
        sentences.append(
            f"Probes learned from {evaluation['examples/train']:,} examples of {train}; figures "
            f"are those of {evaluation['examples/test']:,} examples of {test}."
        )
    sentences += example_remarks(evaluation)
    text = f'<p class="note">{html.escape(" ".join(sentences))}</p>'
    stale = _differences(evaluation, shown)
    if stale:
        named = "".join(
            f" --{side}_shards={shlex.quote(shards)}"
            for side, shards, default in (
                ("train", train, TRAIN_SHARDS),
                ("test", test, TEST_SHARDS),
            )
            if shards not in (None, default)
        )
        command = html.escape(f"python -m pipelines.evaluate {workdir}{named}")
        stale = f"{html.escape(' '.join(stale))} To evaluate again: <code>{command}</code>"
        text += missing(stale)
    return text


def _differences(evaluation: Mapping[str, Any], shown: Shown | None) -> list[str]:
    """Returns a sentence for each difference between what was measured and what is shown."""
    if shown is None:
        return []
    found, step = [], evaluation["run/step"]
    if step != shown.step:
        found.append(
            f"The figures were measured at step {step:,}; the newest checkpoint, which the "
            f"examples below show, is step {shown.step:,}."
        )
    shards = evaluation.get("examples/test_shards", shown.shards)
    if shards != shown.shards:
        found.append(f"The figures are those of {shards}; the examples are of {shown.shards}.")
    elif evaluation.get("examples/test_digest", shown.digest) != shown.digest:
        found.append(f"The content of {shards} has changed since it was measured.")
    return found
