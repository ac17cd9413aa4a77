"""Guards runs of several processes: who they are, what they share, and equal results."""

import json
import os
import shutil
import socket
import subprocess
import sys

import fake_gcs
import numpy as np
import pytest
import several

from m3ae_tpu.errors import UserError
from m3ae_tpu.files import place
from m3ae_tpu.parallel.exit_codes import PEER_DIED, PREEMPTED
from m3ae_tpu.parallel.joining import require_consistent
from m3ae_tpu.parallel.processes import gathered, total
from m3ae_tpu.run.claim import files_of

MIXED = """
import dataclasses
from m3ae_tpu.config import SourceConfig
from m3ae_tpu.configs import debug

SOURCES = (
    SourceConfig(text_length=24, weight=2.0),
    SourceConfig(kind="image", shards="starter/images-*"),
    SourceConfig(kind="text", shards="starter/texts-*", text_length=32),
)
DATA = dataclasses.replace(debug.CONFIG.data, sources=SOURCES)
CONFIG = dataclasses.replace(debug.CONFIG, data=DATA)
"""
# Two processes share numbers and texts; then one of them fails.
SHARED = """
import json, sys
from m3ae_tpu.parallel.joining import join_processes

join_processes(sys.argv[1], 2, int(sys.argv[2]))
from m3ae_tpu.parallel.failures import shared_fate
import numpy as np
from m3ae_tpu.parallel.processes import (
    array_from_leader, gathered, is_leader, total, wait_for_all,
)

def ask():
    assert is_leader()
    return np.arange(6, dtype=np.float32).reshape(2, 3) / 4

with shared_fate():
    shared = [total([2**40 + 1, 3]), gathered("ab" if is_leader() else "\\u00e9")]
    shared += [array_from_leader("an array", ask, (2, 3)).tolist()]
    print("SHARED" + json.dumps(shared), flush=True)
    wait_for_all("shared")
    if not is_leader():
        raise ValueError("a fault of the test")
    import time
    time.sleep(100)
"""


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((None, 2, 0), r"--coordinator_address is missing"),
        (("a:1", None, None), r"--num_processes is missing"),
        (("a:1", 2, None), r"--process_id is missing"),
        (("a", 2, 0), r"--coordinator_address = a is not HOST:PORT"),
        (("a:99999", 2, 0), r"--coordinator_address = a:99999 is not HOST:PORT"),
        (("a:1", 0, 0), r"--num_processes = 0 is less than 1"),
        (("a:1", 2, 2), r"--process_id = 2 is not in \[0, 2\)"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused_by_name(members, message):
    with pytest.raises(UserError, match=message):
        require_consistent(*members)


def test_one_process_is_joined_by_none():
    require_consistent(None, None, None)
    assert (total([5]), gathered("a")) == ([5], ["a"])


def test_jax_still_has_its_key_value_store_and_barriers_where_they_are_taken_from():
    """JAX 0.11.2 has them in a module that is not public: look there first after an update."""
    from jax._src import distributed
    from jax._src.clusters import ClusterEnv
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    state = distributed.global_state
    assert {"client", "coordinator_address"} <= set(vars(type(state)) | vars(state))
    client = _jax.DistributedRuntimeClient
    methods = "key_value_set key_value_try_get key_value_dir_get wait_at_barrier"
    assert all(hasattr(client, name) for name in methods.split())
    assert callable(ClusterEnv.auto_detect_unset_distributed_params)


def test_two_processes_share_large_numbers_texts_and_arrays_and_an_error_ends_both():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, address, str(index)],
            cwd=several.ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=90)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        shared = output.partition("SHARED")[2].partition("\n")[0]
        array = [[0.0, 0.25, 0.5], [0.75, 1.0, 1.25]]
        assert json.loads(shared) == [[2**41 + 2, 6], ["ab", "\u00e9"], array], output
        assert process.returncode == 1
        assert "the run ends: process 1: ValueError: a fault of the test" in output


@pytest.mark.slow
def test_a_process_whose_leader_does_not_come_says_so():
    code = """
import sys
from m3ae_tpu.parallel import joining

joining._JOIN_SECONDS, joining._QUIET_SECONDS = 3, 0.2
joining.join_processes(sys.argv[1], 2, 1)
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ended = subprocess.run(
        [sys.executable, "-c", code, address],
        cwd=several.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == PEER_DIED
    assert f"process 1 of 2 waits at {address} for the others, up to 3 seconds" in ended.stdout
    message = f"error: process 1 of 2 cannot join the others at {address}. Check that all processes"
    assert message in ended.stderr


@pytest.mark.long
def test_two_and_four_processes_have_equal_bits_and_one_agrees(tmp_path):
    config = tmp_path / "mixed.py"
    config.write_text(MIXED)
    flags = [f"--config={config}", "--mesh.fsdp=2", "--log_record_ids"]
    runs = {count: tmp_path / str(count) for count in (1, 2, 4)}
    for count, workdir in runs.items():
        several.run(workdir, *flags, count=count)
    one, two, four = (several.metrics(workdir) for workdir in runs.values())
    assert two == four
    assert len(one) == 12
    for line, other in zip(one, two, strict=True):
        np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=1e-6)
    ids = [(workdir / "record_ids.jsonl").read_bytes() for workdir in runs.values()]
    assert ids[0] == ids[1] == ids[2]
    assert not list(runs[4].glob("metrics*-*")) + list(runs[4].glob("config*-*"))
    assert sorted(path.name for path in runs[4].glob("log*")) == [
        "log-001.txt",
        "log-002.txt",
        "log-003.txt",
        "log.txt",
    ]


@pytest.fixture(params=["disk", "bucket"])
def workdirs(request, tmp_path):
    """Returns the address of a workdir by its name, on a disk or in a bucket."""
    if request.param == "disk":
        return lambda name: str(tmp_path / name)
    fake_gcs.shared_server().restart("bucket")
    return lambda name: f"gs://bucket/{name}"


def copy(old, new):
    """Copies a workdir."""
    if not old.startswith("gs:"):
        shutil.copytree(old, new)
        return
    objects = fake_gcs.shared_server().buckets["bucket"]
    old, new = (address.removeprefix("gs://bucket/") for address in (old, new))
    for name in list(objects):
        if name.startswith(f"{old}/"):
            objects.put(new + name.removeprefix(old), objects[name][0], {}, {})


def read(address, name):
    """Returns a small file of a workdir."""
    with files_of(place("workdir", address)) as folder:
        return (folder / name).read_bytes()


@pytest.mark.long
def test_a_run_of_four_processes_goes_on_in_two_and_in_one(workdirs, tmp_path):
    config = tmp_path / "mixed.py"
    config.write_text(MIXED)
    flags = [f"--config={config}", "--mesh.fsdp=2", "--log_record_ids"]
    whole, stopped = workdirs("whole"), workdirs("stopped")
    several.run(whole, *flags, count=4)
    codes, outputs = several.Started(
        stopped, *flags, count=4, action=several.TERMINATE, step=6, process=3
    ).finish()
    assert codes == [PREEMPTED] * 4, outputs
    expected = several.metrics(whole)
    done = len(several.metrics(stopped))
    assert 6 <= done < 12
    for count, name in ((2, "two"), (1, "one"), (1, "again")):
        copy(stopped, workdirs(name))
        several.run(workdirs(name), *flags, count=count)
        assert read(workdirs(name), "record_ids.jsonl") == read(whole, "record_ids.jsonl")
    # On the same mesh two processes have the bits of four; one adds up in another order.
    assert several.metrics(workdirs("two")) == expected
    one = several.metrics(workdirs("one"))
    assert one == several.metrics(workdirs("again"))
    assert one[:done] == expected[:done]
    # The first step from the restored state: its loss and norms see every parameter.
    for line, other in zip(one, expected, strict=True):
        np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=1e-6)
