"""Guards that a checkpoint of several processes restores on another number of them, bit for bit."""

import socket
import subprocess
import sys
import textwrap

import fake_gcs
import pytest
from repository import ROOT
from small_state import BY_ROW, RUN, abstract, assert_same, make_state

from m3ae_tpu.errors import UserError
from m3ae_tpu.run.checkpoint_reader import CheckpointReader
from m3ae_tpu.run.claim import files_of

SCRIPT = """
    import os, sys
    sys.path[:0] = ["tests"]
    port, count, index, what, place = sys.argv[1:]
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={8 // int(count)}"
    import jax
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))
    import pathlib
    import small_state
    from m3ae_tpu.config import CheckpointConfig
    from m3ae_tpu.run import claim
    from m3ae_tpu.run.checkpoint import Checkpointer

    workdir = claim.BucketClaim(place) if place.startswith("gs:") else None
    path = workdir.path if workdir else pathlib.Path(place)
    before_commit = workdir.before_commit if workdir else lambda: None
    checkpointer = Checkpointer(path, CheckpointConfig(keep=2), before_commit=before_commit)
    if what == "save":
        for step in (2, 4, 6):
            (path / f"mine-{index}.txt").write_text(f"{step}")
            state = small_state.make_state(step, sharding=small_state.BY_ROW)
            checkpointer.save(step, state, {"step": step}, small_state.RUN)
    else:
        shapes = small_state.abstract(small_state.make_state(0), sharding=small_state.BY_ROW)
        state, data_state, _ = checkpointer.restore(shapes)
        wanted = small_state.make_state(data_state["step"], sharding=small_state.BY_ROW)
        same = jax.jit(lambda one, other: (one == other).all())
        assert jax.tree.all(jax.tree.map(same, state, wanted))
        print("restored", data_state["step"])
    checkpointer.close()
    if workdir:
        workdir.release()
"""


def run(count, what, place):
    """Runs the script in some processes and returns what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(port), str(count)]
    processes = [
        subprocess.Popen(
            [*command, str(index), what, str(place)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    return [output for output, _ in outputs]


def restored(place):
    with files_of(place) as folder:
        return CheckpointReader(folder).restore(abstract(make_state(0), sharding=BY_ROW))


@pytest.mark.slow
def test_two_processes_save_in_a_bucket_and_one_or_four_restore():
    server = fake_gcs.shared_server()
    server.restart("bucket")
    place = "gs://bucket/run"
    run(2, "save", place)
    objects = server.buckets["bucket"]
    assert (objects["run/mine-0.txt"][0], objects["run/mine-1.txt"][0]) == (b"6", b"6")
    state, data_state, run_json = restored(place)
    assert (data_state, run_json) == ({"step": 6}, RUN)
    assert_same(state, make_state(6))
    name = next(name for name in objects if "/6/model/ocdbt.process_1/d/" in name)
    objects.put(name, objects[name][0][:-1], {}, {})
    assert restored(place)[1] == {"step": 4}
    assert all("restored 4\n" in output for output in run(4, "restore", place))


@pytest.mark.slow
def test_four_processes_save_on_a_disk_and_one_or_two_restore(tmp_path):
    run(4, "save", tmp_path)
    state, data_state, _ = restored(tmp_path)
    assert data_state == {"step": 6}
    assert_same(state, make_state(6))
    file = next((tmp_path / "checkpoints" / "6" / "optimizer" / "ocdbt.process_3" / "d").iterdir())
    file.write_bytes(b"")
    assert all("restored 4\n" in output for output in run(2, "restore", tmp_path))
    for step in (4, 6):
        (tmp_path / "checkpoints" / str(step) / "digests.json").unlink()
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        restored(tmp_path)
