"""Guards the program of probes: sets of a user's own, files of features, refusals, its page."""

import dataclasses
import io
import json

import numpy as np
import pytest
from labelled_sets import write_labelled
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from small_run import trained_run, with_source
from threadpoolctl import threadpool_limits

from m3ae_tpu.errors import UserError
from m3ae_tpu.evaluation.probe import print_results, probe, write_probe
from m3ae_tpu.evaluation.probe_files import read_feature_files
from m3ae_tpu.evaluation.probe_methods import TITLES, ProbeOptions
from m3ae_tpu.evaluation.probe_sources import file_task, model_task
from m3ae_tpu.report.probe_page import write_page

OPTIONS = ProbeOptions(
    methods=("linear",), pooling="", shots=(1, 2), draws=2, epochs=2, batch_size=7, seed=0
)
DIGITS, DIGIT_LABELS = load_digits(return_X_y=True)


def no_folder(path):
    raise AssertionError(f"{path} is no folder")


def task_of(folder, features, labels, test=None):
    np.save(folder / "x.npy", features)
    np.save(folder / "y.npy", labels)
    train = read_feature_files("--train", folder / "x.npy", folder / "y.npy", no_folder)
    if test is not None:
        np.savez(folder / "test.npz", features=test[0], labels=test[1])
        test = read_feature_files("--test", folder / "test.npz", None, no_folder)
    return file_task(train, test)


def options(*methods, **changes):
    return dataclasses.replace(OPTIONS, methods=methods, **changes)


@pytest.mark.parametrize("seed", range(3))
def test_digits_are_probed_like_scikit_learn_does(tmp_path, seed):
    train, test, labels, test_labels = train_test_split(
        DIGITS, DIGIT_LABELS, test_size=0.25, random_state=seed, stratify=DIGIT_LABELS
    )
    task = task_of(tmp_path, train, labels, (test, test_labels))
    results = probe(task, options("linear"))
    with threadpool_limits(limits=1, user_api="blas"):
        theirs = LogisticRegression(max_iter=5_000).fit(train, labels).score(test, test_labels)
    ours = results["methods"]["linear"]["sources"]["these features"]["accuracy"]
    assert ours >= theirs - 0.01
    assert ours > 0.94
    assert np.sum(results["methods"]["linear"]["confusion"]["matrix"]) == len(test)


@pytest.mark.slow
def test_a_folder_of_classes_is_probed_by_every_method(tmp_path, capsys):
    train = write_labelled(tmp_path, "train", ["cat", "dog"] * 13)
    test = write_labelled(tmp_path, "test", ["cat", "dog"] * 5, seed=1)
    task = model_task(
        trained_run(), "runs/mine", train, test, has_baselines=True, max_cache_bytes=2**20
    )
    methods = [name for name in TITLES if name != "lars_m3ae"]  # A second one of its kind.
    results = probe(task, options(*methods))
    assert list(results["methods"]) == methods
    for name, method in results["methods"].items():
        baselines = {"pretrained", "untrained"} | ({"raw pixels"} if name != "efficient" else set())
        assert method["sources"].keys() == baselines
    assert results["methods"]["lars_mae"]["pooling"] == "cls"
    assert results["methods"]["few_shot"]["sources"]["pretrained"].keys() == {"1", "2"}
    assert results["test"] == {"shards": test, "examples": 10} | {
        "digest": results["test"]["digest"]
    }
    print_results(results)
    printed = capsys.readouterr().out
    assert "26 training and 10 test examples of 2 classes" in printed

    write_probe(results, tmp_path)
    assert json.loads((tmp_path / "probe.json").read_text())["labels"] == ["cat", "dog"]
    page = write_page(results, task.images, tmp_path).read_text()
    assert "taken for" in page
    assert "data:image/webp;base64," in page
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_tokens_are_encoded_in_the_step_where_memory_is_short(tmp_path):
    train = write_labelled(tmp_path, "train", ["cat", "dog"] * 10)
    scores = [
        probe(
            model_task(
                trained_run(), "m", train, train, has_baselines=False, max_cache_bytes=limit
            ),
            options("efficient", epochs=3),
        )["methods"]["efficient"]["sources"]["pretrained"]
        for limit in (0, 2**30)
    ]
    # float16 may decide an example at the border.
    assert scores[0]["accuracy"] == pytest.approx(scores[1]["accuracy"], abs=0.1)


def test_without_a_test_set_a_fifth_is_held_out(tmp_path):
    task = task_of(tmp_path, DIGITS[:100], DIGIT_LABELS[:100])
    assert task.facts["test"]["features"].startswith("a fifth of ")
    assert task.facts["train"]["examples"] + task.facts["test"]["examples"] == 100
    pattern = write_labelled(tmp_path, "all", ["cat", "dog"] * 10)
    task = model_task(trained_run(), "m", pattern, "", has_baselines=False, max_cache_bytes=0)
    assert task.facts["test"]["examples"] == 4
    assert task.images is not None
    assert len(task.images) == 4


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.ones((10, 3)), np.zeros(10, int), "a single class, 0"),
        (np.ones((10, 3)), np.zeros(9, int), "10 rows, and there are 9 labels"),
        (np.full((10, 3), np.nan), np.arange(10) % 2, "row 0 that is not finite"),
        (np.ones(10), np.arange(10) % 2, r"array float64 \[10\]\. Give numbers \[examples"),
        (np.ones((0, 3)), np.zeros(0, int), r"array float64 \[0, 3\]"),
        (np.ones((10, 3)), np.zeros(10), "are float64 .* whole number or text"),
        (np.ones((10, 3)), np.array(["a", ""] * 5), "5 rows without a label"),
        (np.ones((2, 3)), np.arange(2), "too little for cross-validation"),
    ],
)
def test_files_that_cannot_be_probed_are_refused(tmp_path, features, labels, message):
    with pytest.raises(UserError, match=message) as refusal:
        task_of(tmp_path, features, labels)
    assert str(refusal.value).count("\n") < 4


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    features, labels = DIGITS[:40], DIGIT_LABELS[:40]
    with pytest.raises(UserError, match="label 77, which is not among the 10 classes"):
        task_of(tmp_path, features, labels, (features, np.full(40, 77)))
    with pytest.raises(UserError, match=r"shape features \[60\], and .* of features \[64\]"):
        task_of(tmp_path, features, labels, (features[:, :60], labels))
    with pytest.raises(UserError, match="needs all tokens of each example"):
        probe(task_of(tmp_path, features, labels), options("efficient"))
    tokens = task_of(tmp_path, features.reshape(40, 8, 8), labels)
    with pytest.raises(UserError, match="the features are tokens"):
        probe(tokens, options("linear"))
    with pytest.raises(UserError, match="--shots = 9 is more than the training examples of class"):
        probe(task_of(tmp_path, features, labels), options("few_shot", shots=(9,)))
    with pytest.raises(UserError, match="--pooling = cls is not among the features features"):
        probe(task_of(tmp_path, features, labels), options("linear", pooling="cls"))


def damaged_npz():
    """A compressed file with changed bytes in its first array."""
    file = io.BytesIO()
    np.savez_compressed(file, features=DIGITS, labels=DIGIT_LABELS)
    content = bytearray(file.getvalue())
    content[60:90] = bytes(30)
    return bytes(content)


def damaged_npy():
    """An array whose header is not to be read."""
    file = io.BytesIO()
    np.save(file, DIGITS)
    return file.getvalue().replace(b"descr", b"de\0cr")


@pytest.mark.parametrize(
    "content", [b"", b"no array", b"PK\x03\x04 cut off", damaged_npz(), damaged_npy()]
)
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not an array of NumPy"):
        read_feature_files("--train", path, None, no_folder)


def test_files_without_labels_or_features_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", DIGITS)
    np.savez(tmp_path / "other.npz", data=DIGITS)
    np.savez(tmp_path / "labels.npz", labels=DIGIT_LABELS)
    for name, message in {
        "x.npy": "has no labels beside it",
        "other.npz": "holds the arrays data",
        "labels.npz": "holds labels only",
        "missing.npy": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=message):
            read_feature_files("--train", tmp_path / name, None, no_folder)


@pytest.mark.slow
def test_tokens_in_files_are_probed_by_attention(tmp_path):
    tokens = DIGITS.reshape(-1, 8, 8)[:200] / 16
    results = probe(task_of(tmp_path, tokens, DIGIT_LABELS[:200]), options("efficient"))
    assert 0 <= results["methods"]["efficient"]["sources"]["these features"]["accuracy"] <= 1


def test_labels_as_lines_of_text_stand_for_rows(tmp_path):
    np.save(tmp_path / "x.npy", DIGITS[:30])
    (tmp_path / "y.txt").write_text("\n".join(f"digit {label}" for label in DIGIT_LABELS[:30]))
    files = read_feature_files("--train", tmp_path / "x.npy", tmp_path / "y.txt", no_folder)
    assert files.labels[0] == f"digit {DIGIT_LABELS[0]}"


def test_models_that_do_not_fit_are_refused(tmp_path):
    pattern = write_labelled(tmp_path, "train", ["cat", "dog"] * 10)
    other = write_labelled(tmp_path, "other", ["cat", "cow"] * 10)
    texts = dataclasses.replace(trained_run(), config=with_source("text"))
    with pytest.raises(UserError, match="has learned texts only"):
        model_task(texts, "m", pattern, "", has_baselines=False, max_cache_bytes=0)
    with pytest.raises(UserError, match="label cow, which is not among"):
        model_task(trained_run(), "m", pattern, other, has_baselines=False, max_cache_bytes=0)
    with pytest.raises(UserError, match="--method = forest names forest"):
        options("forest")
