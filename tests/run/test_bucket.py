"""Guards that a run in a bucket resumes, finds damage, and is used by one process at a time."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import fake_gcs
import pytest
from repository import ROOT
from small_state import RUN, abstract, assert_same, make_state

from m3ae_tpu.config import CheckpointConfig
from m3ae_tpu.errors import UserError
from m3ae_tpu.run import claim
from m3ae_tpu.run.checkpoint import Checkpointer
from m3ae_tpu.run.checkpoint_reader import CheckpointReader
from m3ae_tpu.storage import lease
from m3ae_tpu.storage.folder import RemoteFolder
from m3ae_tpu.storage.mirror import address_of

ADDRESS = "gs://bucket/runs/a"


@pytest.fixture
def server():
    running = fake_gcs.shared_server()
    running.restart("bucket")
    return running


@pytest.fixture
def objects(server):
    return server.buckets["bucket"]


def save(*steps, **config):
    """Saves steps in the bucket, as a run does."""
    workdir = claim.claim_workdir(ADDRESS)
    checkpointer = Checkpointer(
        workdir.path, CheckpointConfig(**config), before_commit=workdir.before_commit
    )
    for step in steps:
        (workdir.path / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
        checkpointer.save(step, make_state(step), {"step": step}, RUN)
    checkpointer.close()
    workdir.release()


def restore():
    with claim.files_of(ADDRESS) as folder:
        state, data_state, run = CheckpointReader(folder).restore(abstract(make_state(0)))
    assert run == RUN
    return state, data_state["step"]


def test_state_comes_back_bit_for_bit(objects):
    save(2, 4, 6, 8, keep=2, keep_every=4)
    assert {name.split("/")[3] for name in objects if "/checkpoints/" in name} == {"4", "6", "8"}
    state, step = restore()
    assert step == 8
    assert_same(state, make_state(8))
    assert objects["runs/a/metrics.jsonl"][0] == b'{"step": 8}\n'
    assert "runs/a/.lock" not in objects


def test_step_without_its_marker_is_named_and_saved_again(objects, caplog):
    save(2, 4)
    del objects["runs/a/checkpoints/4/commit_success.txt"]
    assert restore()[1] == 2
    assert "checkpoint 4 is skipped: gs://bucket/runs/a/checkpoints/4 was not saved" in caplog.text
    save(4)
    assert restore()[1] == 4


@pytest.mark.slow
def test_failures_of_the_storage_that_pass_are_waited_for(server, objects):
    server.failures += [["POST", "uploadType=media", 503, 3], ["POST", "resumable", 429, 2]]
    save(2)
    server.failures += [["GET", "alt=media", 503, 3], ["GET", r"/o\?", 503, 1]]
    assert restore()[1] == 2


def test_permission_for_the_bucket_itself_is_not_needed(server):
    server.failures += [["GET", r"/b/bucket(\?|$)", 403, 10**6]]
    save(2, 4, 6, keep=1)
    assert restore()[1] == 6


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (["GET", r"/o\?", 403, 9], r"gs://bucket/runs/a may not be used with these credentials"),
        (["POST", "upload", 403, 9], r"gs://bucket/runs/a/.lock may not be used"),
        (["GET", r"/o\?", 404, 9], r"bucket bucket, which does not exist.* buckets create"),
    ],
)
def test_what_is_missing_is_said_in_one_message(server, failure, message):
    server.failures.append(failure)
    with pytest.raises(UserError, match=message) as caught:
        claim.claim_workdir(ADDRESS)
    assert str(caught.value).count("\n") < 4


def test_missing_package_is_named_with_its_command(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"package gcsfs, .*pip install 'm3ae-tpu\[gcs\]'"):
        RemoteFolder(ADDRESS)


def holder(ending):
    """Starts a process that holds the workdir, then does what `ending` says."""
    script = f"""
        import os, signal, sys, time
        from m3ae_tpu.run import claim
        from m3ae_tpu.storage import lease
        lease._RENEW_SECONDS = 0.2
        held = claim.claim_workdir({ADDRESS!r})
        print("held", flush=True)
        {ending}
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def fast_lease(monkeypatch):
    for name, seconds in {
        "LEASE_SECONDS": 2.0,
        "_LOOK_SECONDS": 0.1,
        "_RENEW_SECONDS": 0.2,
    }.items():
        monkeypatch.setattr(lease, name, seconds)


def test_second_start_is_refused_while_one_runs_and_let_in_after_it(server, fast_lease):
    with holder("time.sleep(60)") as process:
        with pytest.raises(UserError, match=rf"is in use by process {process.pid} on .*--workdir"):
            claim.claim_workdir(ADDRESS)
        process.kill()
    # Killed on this machine: known to be dead at once.
    start = time.monotonic()
    claim.claim_workdir(ADDRESS).release()
    assert time.monotonic() - start < 1.5


def test_clean_end_frees_the_workdir(server, objects):
    with holder("held.release()") as process:
        assert process.wait() == 0
    assert "runs/a/.lock" not in objects


def test_dead_holder_of_another_machine_is_followed_after_a_while(server, objects, fast_lease):
    gone = {"owner": "x", "host": "h", "pid": 1, "machine": "elsewhere", "started": "1"}
    objects.put("runs/a/.lock", json.dumps(gone).encode(), {}, {})
    start = time.monotonic()
    claim.claim_workdir(ADDRESS).release()
    assert 2 < time.monotonic() - start < 10


def test_holder_that_was_frozen_commits_nothing_after_it_wakes(server, objects, monkeypatch):
    workdir = claim.claim_workdir(ADDRESS)
    checkpointer = Checkpointer(
        workdir.path, CheckpointConfig(), before_commit=workdir.before_commit
    )
    other = {"owner": "x", "host": "h", "pid": 1, "machine": "elsewhere", "started": "1"}
    objects.put("runs/a/.lock", json.dumps(other).encode(), {}, {})
    checkpointer.save(2, make_state(2), {}, RUN)
    with pytest.raises(UserError, match="was taken over by another process"):
        checkpointer.close()
    assert CheckpointReader(workdir.path).steps() == []
    with pytest.raises(UserError, match="was taken over"):
        workdir.release()
    assert json.loads(objects["runs/a/.lock"][0]) == other


@pytest.mark.slow
def test_kill_before_a_commit_leaves_the_former_step(server, objects):
    save(2)
    script = f"""
        import os, sys
        sys.path[:0] = ["tests", "tests/run"]
        import conftest, test_bucket
        from m3ae_tpu.run.checkpoint import Checkpointer

        class Killed(Checkpointer):
            def _write_digests(self):
                super()._write_digests()  # Only the marker is missing.
                os.kill(os.getpid(), {signal.SIGKILL.value})

        test_bucket.Checkpointer = Killed
        test_bucket.save(4)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "runs/a/checkpoints/4/digests.json" in objects
    assert restore()[1] == 2
    save(4)
    assert restore()[1] == 4


def test_mirror_sends_what_changed_and_removes_what_was_removed(objects):
    workdir = claim.claim_workdir(ADDRESS)
    assert address_of(workdir.path) == ADDRESS
    (workdir.path / "log.txt").write_text("a\n")
    (workdir.path / "tokenizer.model").write_bytes(b"x")
    workdir.before_commit()
    (workdir.path / "tokenizer.model").unlink()
    with (workdir.path / "log.txt").open("a") as file:
        file.write("b\n")
    workdir.release()
    assert not workdir.path.exists()
    assert objects["runs/a/log.txt"][0] == b"a\nb\n"
    assert set(objects) == {"runs/a/log.txt"}
    assert os.environ["EPATH_USE_TF"] == "false"
