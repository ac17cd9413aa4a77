"""Saves and restores checkpoints of the small state in several processes, for tests."""

import socket
import subprocess
import sys
import textwrap

from repository import ROOT

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
