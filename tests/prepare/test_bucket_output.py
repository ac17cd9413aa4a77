"""Guards that a set prepared into a bucket is the local one, appears whole, and is continued."""

import hashlib

import fake_gcs
import pytest

from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare import bucket
from m3ae_tpu.prepare.command import prepare_collection
from m3ae_tpu.prepare.local import task_of
from m3ae_tpu.prepare.options import CleaningOptions, PrepareOptions
from m3ae_tpu.prepare.pieces import find_pieces

OPTIONS = PrepareOptions(cleaning=CleaningOptions(kind="text"), num_shards=2)
OUTPUT = "gs://bucket/set"


@pytest.fixture
def server(tmp_path, monkeypatch):
    running = fake_gcs.shared_server()
    running.restart("bucket")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(bucket.tempfile, "tempdir", str(tmp_path / "temporary"))
    return running


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"line number {number} of a text\n" for number in range(50)))
    return str(path)


def content(server):
    return {
        name.removeprefix("set/"): stored for name, (stored, _) in server.buckets["bucket"].items()
    }


def test_set_in_a_bucket_has_the_bytes_of_a_local_one(server, texts, tmp_path):
    prepare_collection([texts], OUTPUT, OPTIONS)
    local = tmp_path / "local"
    prepare_collection([texts], str(local), OPTIONS)
    assert content(server) == {path.name: path.read_bytes() for path in local.iterdir()}
    assert len(open_shards(f"{OUTPUT}/*.array_record")) == 50
    assert list((tmp_path / "temporary").iterdir()) == []
    with pytest.raises(UserError, match=r"--output = gs://bucket/set holds a prepared set already"):
        prepare_collection([texts], OUTPUT, OPTIONS)


def test_interrupted_sending_goes_on_on_any_machine_with_what_is_missing(server, texts):
    prepare_collection([texts], OUTPUT, OPTIONS)
    objects, whole = server.buckets["bucket"], content(server)
    lost = "set/train-00001-of-00002.array_record"
    del objects[lost], objects["set/manifest.json"]
    task = hashlib.sha256(task_of(find_pieces([texts], "text"), OPTIONS).encode()).hexdigest()
    objects.put("set/.unfinished", task.encode(), {}, {})
    server.requests.clear()
    prepare_collection([texts], OUTPUT, OPTIONS)
    assert content(server) == whole
    # The mark of an unfinished set, the shard and the manifest.
    assert [method for method, *_ in server.requests].count("POST") == 3


def test_missing_permission_is_said_before_the_work(server, texts, tmp_path):
    server.failures.append(["POST", r"/upload/", 403, 10**6])
    with pytest.raises(UserError, match="may not be used with these credentials"):
        prepare_collection([texts], OUTPUT, OPTIONS)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_unfinished_set_of_other_input_is_refused(server, texts, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bucket, "_upload", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_collection([texts], OUTPUT, OPTIONS)
    assert list(content(server)) == [".unfinished"]
    other = PrepareOptions(cleaning=CleaningOptions(kind="text"), num_shards=2, seed=1)
    with pytest.raises(UserError, match="holds an unfinished preparation of other input"):
        prepare_collection([texts], OUTPUT, other)
    prepare_collection([texts], OUTPUT, OPTIONS)
    assert "manifest.json" in content(server)


def test_file_of_no_set_is_not_overwritten(server, texts):
    server.buckets["bucket"].put("set/dropped.jsonl", b"", {}, {})
    with pytest.raises(UserError, match=r"holds dropped.jsonl, which belongs to no prepared set"):
        prepare_collection([texts], OUTPUT, OPTIONS)
