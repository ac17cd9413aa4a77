"""Guards that shards, tokenizer and config in a bucket give what local ones give, bit for bit."""

import dataclasses
import pathlib
import subprocess
import sys

import fake_gcs
import numpy as np
import pytest
from repository import ROOT

from m3ae_tpu.config import DataConfig, PretrainConfig, SourceConfig
from m3ae_tpu.data.manifest import STARTER, resolve
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.errors import UserError
from m3ae_tpu.overrides import load_named_config
from m3ae_tpu.storage.folder import RemoteFolder

LOCAL = DataConfig(sources=(SourceConfig(text_length=24),), image_size=32, num_workers=0)
REMOTE = dataclasses.replace(
    LOCAL,
    sources=(SourceConfig(text_length=24, shards="gs://bucket/set/train-*"),),
    tokenizer="gs://bucket/set/tokenizer.model",
)


@pytest.fixture
def server():
    """A server with the starter set in the folder `set` of its bucket."""
    running = fake_gcs.shared_server()
    running.restart("bucket")
    folder = RemoteFolder("gs://bucket/set")
    for path in [*STARTER.glob("train-*"), STARTER / "manifest.json", STARTER / "tokenizer.model"]:
        folder.upload(path.name, path)
    return running


def opened(config):
    return open_data(config, batch_size=96, seed=0, vocab_size=4_000)


def assert_same_batches(one, other):
    for (batch, info), (expected, its_info) in zip(one, other, strict=True):
        assert info == its_info
        for kind, rows in expected.items():
            for array, wanted in zip(batch[kind], rows, strict=True):
                np.testing.assert_array_equal(array, wanted)


def batches(data, count=3):
    loader = data.loader()
    made = [next(loader) for _ in range(count)]
    loader.close()
    return made


def test_batches_and_fingerprint_are_those_of_local_files_and_many_reads_wait_together(server):
    local = opened(LOCAL)
    remote = opened(REMOTE)
    assert remote.fingerprint() == local.fingerprint()
    server.most_at_once, server.hold_until = 0, 33
    assert_same_batches(batches(remote), batches(local))
    assert server.most_at_once >= 33


@pytest.mark.slow
def test_a_worker_process_reads_the_same(server):
    remote = opened(dataclasses.replace(REMOTE, num_workers=1))
    server.latency_seconds = 0.05
    assert_same_batches(batches(remote), batches(opened(LOCAL)))


def test_globs_of_objects_match_as_those_of_files_do(server):
    folder = RemoteFolder("gs://bucket")
    for name in ("set/sub/train-x", "other/a-00000-of-00002.array_record"):
        folder.write(name, b"")
    names = [f"gs://bucket/set/train-0000{shard}-of-00002.array_record" for shard in (0, 1)]
    assert resolve("gs://bucket/set/train-*") == names
    assert resolve("gs://bucket/s*/train-0000[01]*") == names
    assert resolve(names[1]) == names[1:]
    with pytest.raises(UserError, match=r"gs://bucket/none-\* matches no object"):
        resolve("gs://bucket/none-*")
    with pytest.raises(UserError, match=r"lacks .*a-00001-of-00002"):
        resolve("gs://bucket/other/*")


def test_object_that_is_no_shard_is_named(server):
    RemoteFolder("gs://bucket").write("set/train-x", b"text")
    with pytest.raises(UserError, match=r"gs://bucket/set/train-x is not an ArrayRecord shard"):
        open_shards("gs://bucket/set/train-*")


def test_shard_that_is_gone_meanwhile_is_named(server):
    shards = open_shards("gs://bucket/set/train-*")
    del server.buckets["bucket"]["set/train-00000-of-00002.array_record"]
    with pytest.raises(UserError, match=r"gs://.*/train-00000-of-00002.array_record is gone"):
        shards[0]


def test_config_in_a_bucket_is_read(server):
    content = pathlib.Path(ROOT / "configs" / "debug.py").read_bytes()
    RemoteFolder("gs://bucket").write("mine.py", content)
    named = load_named_config("debug", PretrainConfig)
    assert load_named_config("gs://bucket/mine.py", PretrainConfig) == named
    with pytest.raises(UserError, match=r"--config = gs://bucket/other.py does not exist"):
        load_named_config("gs://bucket/other.py", PretrainConfig)


def test_tokenizer_that_is_missing_is_named(server):
    missing = dataclasses.replace(REMOTE, tokenizer="gs://bucket/none.model")
    with pytest.raises(UserError, match=r"data.tokenizer = gs://bucket/none.model cannot be read"):
        opened(missing)


def test_local_data_need_nothing_of_googles(tmp_path):
    script = """
        import sys
        for name in ("gcsfs", "google.cloud", "google.api_core", "google.auth", "google_crc32c"):
            sys.modules[name] = None
        from m3ae_tpu.data.sources import open_data
        from m3ae_tpu.config import DataConfig
        open_data(DataConfig(num_workers=0), batch_size=8, seed=0, vocab_size=9_000).fingerprint()
        import m3ae_tpu.run.workdir, m3ae_tpu.run.checkpoint
    """.replace("\n        ", "\n")
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
