"""Guards what the report says of its figures' step and sets, and that stale figures are named."""

import re

from m3ae_tpu.report.measured import Shown, measured

EVALUATION = {
    "run/step": 800,
    "examples/train": 60,
    "examples/test": 20,
    "examples/train_shards": "my set/train-*",
    "examples/test_shards": "my set/<b>-*",
    "examples/test_digest": "aa",
    "examples/train_with_captions": 60,
    "examples/test_with_captions": 7,
    "examples/test_seen_in_train": 0,
}
SHOWN = Shown(800, "my set/<b>-*", "aa")


def text_of(evaluation, shown):
    page = measured(evaluation, shown, "runs/x")
    assert "<b>" not in page
    return re.sub(r"<[^>]+>", "", page).replace("&lt;b&gt;", "<b>").replace("&#x27;", "'")


def test_figures_are_said_to_be_of_their_step_and_sets():
    text = text_of(EVALUATION, SHOWN)
    assert "step 800" in text
    assert "60 examples of my set/train-*" in text
    assert "20 examples of my set/<b>-*" in text
    assert "60 of 60 training and 7 of 20 test examples have captions" in text
    assert "To evaluate again" not in text
    assert measured({}, SHOWN, "runs/x") == ""


def test_figures_of_another_step_are_stale():
    text = text_of(EVALUATION, SHOWN._replace(step=1_200))
    assert "measured at step 800; the newest checkpoint" in text
    assert "step 1,200" in text
    assert "runs/x --train_shards='my set/train-*' --test_shards='my set/<b>-*'" in text


def test_figures_of_another_set_are_named():
    assert "the examples are of other-*" in text_of(EVALUATION, SHOWN._replace(shards="other-*"))
    assert "content of my set/<b>-* has changed" in text_of(EVALUATION, SHOWN._replace(digest="b"))


def test_an_evaluation_of_an_earlier_version_has_a_step():
    text = text_of({"run/step": 5, "examples/train": 1, "examples/test": 1}, SHOWN)
    assert text.startswith("Evaluated at step 5.")
    assert "The figures were measured at step 5; the newest checkpoint" in text
