"""Guards the output of a preparation, and that it overwrites nothing of the user."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from prepare_forms import run, write_folder, write_sidecars, write_tars

from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare.command import prepare_collection
from m3ae_tpu.prepare.options import PrepareOptions


def test_duplicates_that_are_dropped_are_named_and_not_in_the_histograms(pairs, tmp_path):
    write_folder(
        tmp_path / "given", [pairs[0], pairs[0], (pairs[0][0], "another caption"), pairs[0]]
    )
    manifest = run(tmp_path / "given", tmp_path / "set", num_shards=1, drop_duplicates=True)
    assert (manifest["kept"], manifest["dropped"]) == (2, {"duplicate": 2})
    lines = [
        json.loads(line) for line in (tmp_path / "set" / "dropped.jsonl").read_text().splitlines()
    ]
    kept = {record.id for record in open_shards(f"{tmp_path / 'set'}/train-*")}
    assert [line["reason"] for line in lines] == ["duplicate"] * 2
    assert {line["place"].removeprefix("a copy of record ") for line in lines} < kept
    for histogram in ("shorter_side_pixels", "caption_characters"):
        assert sum(manifest[histogram].values()) == 2


def test_files_of_the_user_are_not_overwritten(pairs, tmp_path):
    write_sidecars(tmp_path / "given", pairs[:2])
    for name in ("dropped.jsonl", "train-00000-of-00001.array_record"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("mine")
        with pytest.raises(UserError, match=f"holds {name}"):
            run(tmp_path / "given", tmp_path / name, num_shards=1)
        assert (tmp_path / name / name).read_text() == "mine"


def test_a_call_that_kept_nothing_does_not_stand_in_the_way(pairs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jpg").write_bytes(b"<html>")
    with pytest.raises(UserError, match="none is fit"):
        run(tmp_path / "empty", tmp_path / "set")
    write_sidecars(tmp_path / "given", pairs[:2])
    assert run(tmp_path / "given", tmp_path / "set", num_shards=1)["kept"] == 2


def test_few_large_records_fill_every_shard_that_was_not_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 255, (700, 700, 3), np.uint8)).save(
            tmp_path / f"{number}.jpg", quality=95
        )
    manifest = run(tmp_path, tmp_path / "set", kind="image", num_shards=0, shard_megabytes=1)
    assert manifest["kept"] == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output="], "error: --output is empty."),
        (
            ["--output=given/set"],
            "error: --output = given/set lies in --input = given and would become part",
        ),
        (
            ["--output=set", "--max_shorter_side=4"],
            "error: --max_shorter_side = 4 is less than --min_shorter",
        ),
        (["--output=set", "--license=\udcff"], r"error: --license = '\udcff' is not UTF-8."),
        (["--output=set", "--input="], "error: --input is empty."),
        (["--output=set", f"--name={'x' * 300}"], "error: --name = 'xxx"),
        (
            ["--output=list.txt/set"],
            "error: --output = list.txt/set cannot be made (Not a directory).",
        ),
    ],
)
def test_the_program_refuses_in_one_line(flags, message, pairs, tmp_path):
    write_sidecars(tmp_path / "given", pairs[:1])
    (tmp_path / "list.txt").touch()
    command = [sys.executable, "-m", "m3ae_tpu.pipelines.prepare_data", *flags]
    command += [] if "--input=" in flags else ["--input=given"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (ended.returncode, ended.stderr[: len(message)]) == (2, message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "list.txt"]


def test_the_outcome_is_printed(pairs, tmp_path, capsys):
    write_tars(tmp_path / "given", pairs[:4])
    (tmp_path / "given" / "error.tar").write_bytes(b"<html>not found</html>")
    prepare_collection([f"{tmp_path}/given"], f"{tmp_path}/set", PrepareOptions())
    outcome, *passed_over, dropped, files = capsys.readouterr().out.splitlines()
    assert outcome.startswith("5 given, 4 kept in 1 shard, ")
    assert passed_over == [
        "  passed over 2 files: 00000.parquet, 00001.parquet "
        "(holds addresses of images, not images)",
        "  passed over 2 files: 00000_stats.json, 00001_stats.json (file of a system or a tool)",
    ]
    listed = (tmp_path / "set" / "passed_over.jsonl").read_text().splitlines()
    assert [os.path.basename(json.loads(line)["place"]) for line in listed] == [
        *("00000.parquet", "00000_stats.json", "00001.parquet", "00001_stats.json")
    ]
    assert dropped == "  dropped 1: HTML is not read"
    assert files.startswith(f"{tmp_path}/set/manifest.json; everything dropped is in")
