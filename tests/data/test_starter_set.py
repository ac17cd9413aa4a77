"""Guards the starter set: its manifest, its split, and that it can be made again."""

import hashlib
import json
import subprocess
import sys

from m3ae_tpu.data.manifest import STARTER
from m3ae_tpu.data.shards import open_shards


def test_the_starter_set_is_what_its_manifest_says():
    lines = json.loads((STARTER / "manifest.json").read_text())
    assert lines["records"] == {"train": 3894, "heldout": 973, "images": 300, "texts": 10672}
    for name, shard in lines["shards"].items():
        assert hashlib.sha256((STARTER / name).read_bytes()).hexdigest() == shard["sha256"]
        assert len(open_shards(str(STARTER / name))) == shard["records"]


def test_no_near_duplicate_of_a_held_out_image_is_trained_on():
    train, heldout = open_shards("starter/train-*"), open_shards("starter/heldout-*")
    assert not {record.group for record in train} & {record.group for record in heldout}
    assert not {record.id for record in train} & {record.id for record in heldout}


def make_starter_set(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "m3ae_tpu.pipelines.make_starter_set", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_starter_set_is_made_again_bit_for_bit_and_not_replaced_by_accident(tmp_path):
    made = make_starter_set(f"--output={tmp_path}")
    assert made.returncode == 0, made.stderr
    for name in (
        "manifest.json",
        "ATTRIBUTION.md",
        *json.loads((STARTER / "manifest.json").read_text())["shards"],
    ):
        assert (tmp_path / name).read_bytes() == (STARTER / name).read_bytes(), name
    refused = make_starter_set(f"--output={tmp_path}")
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: --output = {tmp_path} holds a set already. "
        "Name another folder, or add --overwrite.\n"
    )


def test_a_folder_without_the_source_form_is_refused(tmp_path):
    refused = make_starter_set(f"--source={tmp_path}", f"--output={tmp_path}/out")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: --source = {tmp_path} holds no pairs.jsonl.gz.")
