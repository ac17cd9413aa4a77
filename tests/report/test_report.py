"""Guards the report: one page that needs nothing else, for every kind of run and any part that is
missing.
"""

import dataclasses
import html.parser
import json
import re
import shutil
import types

import pytest
from small_run import save_run, trained_run, with_source

from m3ae_tpu.charts import Level, Series, line_chart, nice_ticks
from m3ae_tpu.config import DataConfig, Kind, ModelConfig, PretrainConfig, SourceConfig
from m3ae_tpu.evaluation import evaluate
from m3ae_tpu.evaluation.protocol import Row
from m3ae_tpu.report import neighbours, word_gains
from m3ae_tpu.report.examples import ShownExample, Word
from m3ae_tpu.report.fills import Fill
from m3ae_tpu.report.page import report_workdir, write_report
from m3ae_tpu.report.sections import reconstruction

DOT = "data:image/png;base64,iVBORw0KGgo="
FILLS = tuple(
    Fill(share=share, is_own=share == 0.75, masked=DOT, reconstructed=DOT)
    for share in (0.5, 0.75, 0.9)
)
EXAMPLE = ShownExample(
    title="salt & <pepper>",
    label="food_drink",
    original=DOT,
    fills=FILLS,
    words=(
        Word(text=" salt", guesses=((" salt", 0.5), (" <b>", 0.2)), attention=DOT),
        Word(text="y", guesses=(), attention=DOT),
    ),
    first_word=0,
)
METRICS = [
    {
        "step": step,
        "train/loss": 3.0 / step,
        "train/image_loss": 1.0 / step,
        "time/examples_per_second": 100.0,
    }
    for step in range(1, 400)
]
EVALUATION = {
    "run/step": 399,
    "run/num_parameters": 2_000_000,
    "examples/train": 4_000,
    "examples/test": 1_000,
    "linear_probe/pretrained": 0.5,
    "linear_probe/untrained": 0.4,
    "linear_probe/raw_pixels": 0.41,
    "linear_probe/pooling": "cls_quarters",
    "heldout/image_loss": 0.5,
    "heldout/image_loss_of_visible_mean": 1.0,
}


def page(
    tmp_path,
    *,
    kind: Kind = "paired",
    metrics=METRICS,
    evaluation=EVALUATION,
    examples=(EXAMPLE,),
    seconds=None,
):
    config = PretrainConfig(num_steps=400, data=DataConfig(sources=(SourceConfig(kind=kind),)))
    path = write_report(
        tmp_path,
        config,
        metrics=metrics,
        evaluation=evaluation,
        examples=examples,
        gains="no words",
        neighbours="no neighbours",
        versions={"jax": "0.11.2"},
        seconds=seconds,
        path=tmp_path / "report.html",
    )
    return path.read_text()


class Checker(html.parser.HTMLParser):
    """Collects links and checks that what is opened is closed."""

    VOID = frozenset({"meta", "link", "img", "input"})

    def __init__(self):
        super().__init__()
        self.links, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [
            value for name, value in attrs if name in {"src", "href", "srcset", "action"}
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text):
    """Checks that a page is well formed and needs nothing but itself."""
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert [link for link in checker.links if not link.startswith("data:")] == []
    assert not re.search(r"https?://|@import|url\((?!data:)", text)


def test_page_needs_nothing_but_itself(tmp_path):
    check(page(tmp_path))


def test_training_examples_that_cannot_be_read_leave_the_rest_of_the_report(tmp_path):
    path = tmp_path / "run"
    save_run(path, trained_run(with_source("text")))
    figures = {"examples/train_shards": str(tmp_path / "gone-*")}
    (path / "evaluation.json").write_text(json.dumps(EVALUATION | figures))
    text = report_workdir(path, "starter/heldout-*").read_text()
    assert "The training examples cannot be searched" in text
    assert "Only a run that has learned images with captions" in text


def test_page_shows_the_figures_with_their_errors(tmp_path):
    text = page(tmp_path)
    assert "50.0\u202f%" in text
    assert "50.0\u202f% ± 1.6\u202f%" in text
    assert "maximum of the patches in each quarter" in text
    assert "visible mean 1.000" in text


def test_text_from_data_cannot_become_markup(tmp_path):
    text = page(tmp_path)
    assert "<pepper>" not in text
    assert "salt &amp; &lt;pepper&gt;" in text
    assert "&lt;b&gt; 20%" in text


def test_parts_that_a_run_lacks_are_said_to_be_missing(tmp_path):
    text = page(tmp_path, metrics=[], evaluation={}, examples=None)
    assert text.count('class="missing"') == 8
    assert "pipelines.evaluate" in text


@pytest.mark.parametrize("kind", ["image", "text"])
def test_runs_of_one_modality_have_a_page(tmp_path, kind):
    keys = ("run/step", "run/num_parameters", "examples/train", "examples/test")
    evaluation = {key: EVALUATION[key] for key in keys} | {"heldout/text_accuracy": 0.25}
    words = EXAMPLE.words if kind == "text" else ()
    plain = tuple(Word(text=word.text, guesses=word.guesses, attention="") for word in words)
    image = DOT if kind == "image" else ""
    example = ShownExample(
        title="t",
        label="l",
        original=image,
        fills=FILLS if image else (),
        words=plain,
        first_word=0,
    )
    text = page(tmp_path, kind=kind, evaluation=evaluation, examples=(example,))
    assert "Only a run with pairs" in text
    assert ("reconstructed" in text) == (kind == "image")


def test_a_figure_that_was_left_out_says_why(tmp_path):
    left_out = {
        "left_out/linear_probe_image_and_text": "set-* hold no caption.",
        "left_out/heldout/text_accuracy": "set-* hold no <captions>.",
    }
    text = page(tmp_path, evaluation=EVALUATION | left_out)
    assert text.count("Left out: set-* hold no") == 2
    assert "no &lt;captions&gt;" in text
    assert text.count('class="card tile"') == 3  # Two figures and the speed; no tile without one.


def test_hidden_patches_are_counted_not_rounded(tmp_path):
    config = PretrainConfig(
        data=DataConfig(image_size=32, sources=(SourceConfig(text_length=8),)),
        model=ModelConfig(patch_size=32),
    )
    text = reconstruction([EXAMPLE], {}, config)
    assert "100.0\u202f% of the patches are hidden" in text


def test_the_slider_moves_by_keyboard_from_the_runs_own_ratio(tmp_path):
    text = page(tmp_path)
    control = re.search(r'<fieldset class="slider">.*?</fieldset>', text, re.DOTALL)
    assert control is not None
    assert "<legend>Patches hidden from the encoder</legend>" in control[0]
    # Radio buttons of one name: arrow keys move among them without a script.
    stops = re.findall(
        r'<input type="radio" name="mask-ratio" value="(\d)"( checked)?>', control[0]
    )
    assert stops == [("0", ""), ("1", " checked"), ("2", "")]
    assert "50.0\u202f%" in control[0]
    assert "<script" not in text
    for number in range(3):
        assert len(re.findall(rf'<img class="image[a-z ]* stop-{number}"', text)) == 2
        assert f'[value="{number}"]:checked) .stop-{number}' in text


def test_there_is_no_slider_without_reconstructions(tmp_path):
    text = page(tmp_path, examples=(dataclasses.replace(EXAMPLE, fills=()),))
    assert "<fieldset" not in text
    assert 'alt="original"' in text


def test_values_that_were_not_finite_are_left_out_of_charts(tmp_path):
    metrics = [*METRICS[:3], {"step": 4, "train/loss": None}]
    assert "nan" not in page(tmp_path, metrics=metrics).lower()


def test_chart_of_a_long_run_stays_small():
    series = [
        Series(
            name="loss",
            points=[(float(step), 1 / step) for step in range(1, 20_001)],
            is_noisy=True,
        )
    ]
    chart = line_chart(series, levels=[Level(name="held out", value=0.5)])
    assert len(chart) < 100_000
    assert "held out 0.5" in chart
    assert "step 20,000" in chart


def test_chart_of_one_constant_point_is_drawn():
    assert "<circle" in line_chart([Series(name="loss", points=[(1.0, 0.0)])])


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.37, 0.42), (1e-6, 3e-3), (5.0, 5.0), (-2.0, 30_000.0)]
)
def test_ticks_are_few_and_cover_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low
    assert high < ticks[-1] + 2 * (ticks[1] - ticks[0])


def test_the_page_says_what_was_seen_of_each_source_and_what_was_cut(tmp_path):
    seen = {"data/rows/paired": 1_600_000, "data/epochs/paired": 400.0}
    lost = {"data/truncated_texts/paired": 2, "data/broken/undecodable_image": 1}
    metrics = [line | seen | lost for line in METRICS[-3:]]
    text = page(tmp_path, metrics=metrics)
    table = re.search(r'<section id="data">.*?</section>', text, re.DOTALL)
    assert table is not None
    shown = re.sub(r"<[^>]+>", " ", table[0])
    # Rows of a batch, rows seen, distinct records, epochs.
    assert re.search(r"paired\s+starter/train-\*\s+4,096\s+1,600,000\s+4,000\s+400\.0", shown)
    assert "6 rows had a text that was cut (paired)" in shown
    assert "3 rows had a broken record (undecodable image)" in shown


def test_an_added_evaluation_is_measured_printed_and_shown(tmp_path, monkeypatch, capsys):
    row = Row(
        title="Zero-shot",
        values={"pretrained": 0.25, "chance": 0.125},
        section="features",
        unit="accuracy",
        level="headline",
    )
    added = types.SimpleNamespace(
        start=lambda subject: lambda: {"zero": 0.25}, rows=lambda figures: [row]
    )
    monkeypatch.setattr(evaluate, "EVALUATIONS", (*evaluate.EVALUATIONS, added))
    evaluate.print_figures(EVALUATION)
    assert re.search(r"Zero-shot.*0\.250.*chance 0\.125", capsys.readouterr().out)
    text = page(tmp_path)
    assert '<p class="name">Zero-shot</p><p class="value">25.0\u202f%</p>' in text
    assert "<h3>Zero-shot</h3>" in text


def test_the_report_of_a_directory_shows_its_checkpoint_or_does_without(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "MOST_SEARCHED", 50)
    monkeypatch.setattr(word_gains, "MOST_EXAMPLES", 20)
    run = trained_run()
    for folder in ("saved", "empty"):
        path = tmp_path / folder
        save_run(path, run)
        if folder == "empty":
            shutil.rmtree(path / "checkpoints")
        text = report_workdir(path, "starter/heldout-*").read_text()
        assert ("reconstructed" in text) == (folder == "saved")
        assert ("neighbours are of the query" in text) == (folder == "saved")
        assert ("Captions drawn at random" in text) == (folder == "saved")
        check(text)
        assert f"python -m pipelines.evaluate {path}" in text
    other = tmp_path / "other"
    other.mkdir()
    (other / "evaluation.json").write_text(json.dumps(EVALUATION))
    written = report_workdir(tmp_path / "empty", "starter/heldout-*", output=other)
    assert written == other / "report.html"
    assert "python -m pipelines.evaluate" not in written.read_text()


def test_the_wall_time_of_a_run_is_split_into_bars(tmp_path):
    seconds = {"steps": 5400.0, "startup": 600.0, "data_wait": 0.0, "checkpoint": 0.0}
    seconds |= {"probe": 0.0, "lost": 600.0, "down": 600.0}
    text = page(tmp_path, seconds=seconds)
    assert "Wall time since the first start: 2.0 h" in text
    assert "75.0\u202f%, 90.0 min" in text
    assert "Wall time since" not in page(tmp_path)
