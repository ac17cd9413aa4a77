"""Guards that a run opens each file of its data once, from its first line to its last step."""

import json
import subprocess
import sys

# Counts calls of what opens files, then trains two steps on two sources of the same shards, which
# the probe reads too.
PROGRAM = """
import collections, dataclasses, json, os, pathlib, sys

import sentencepiece
from absl import flags
from array_record.python.array_record_data_source import ArrayRecordDataSource

from m3ae_tpu.config import ProbeConfig, SourceConfig
from m3ae_tpu.configs import debug
from m3ae_tpu.data import shards

counts = collections.Counter()


def count_calls(owner, name, describe):
    original = getattr(owner, name)

    def counting(*args, **options):
        counts[describe(*args)] += 1
        return original(*args, **options)

    setattr(owner, name, counting)


count_calls(ArrayRecordDataSource, "__init__", lambda self, paths: os.path.basename(paths[0]))
count_calls(sentencepiece.SentencePieceProcessor, "__init__", lambda self: "tokenizer")
count_calls(shards, "open_shards", lambda pattern: pattern)
flags.FLAGS.mark_as_parsed()

from m3ae_tpu.pipelines.pretrain import pretrain

sources = (
    SourceConfig(text_length=24, split=(0.0, 0.5)),
    SourceConfig(kind="text", text_length=24, split=(0.5, 1.0)),
)
data = dataclasses.replace(debug.CONFIG.data, sources=sources)
probe = ProbeConfig(every_steps=1, max_examples=100)
config = dataclasses.replace(debug.CONFIG, data=data, probe=probe, num_steps=2)
pretrain(config, pathlib.Path(sys.argv[1]))
pathlib.Path(sys.argv[1], "counts.json").write_text(json.dumps(counts))
"""


def test_shards_and_tokenizer_are_opened_once_in_a_run(tmp_path):
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True)
    assert json.loads((tmp_path / "counts.json").read_text()) == {
        "starter/train-*": 1,
        "train-00000-of-00002.array_record": 1,
        "train-00001-of-00002.array_record": 1,
        "tokenizer": 1,
    }
