"""Guards that the end of a worker and the loss of a shard end the run with their cause."""

import multiprocessing
import os
import signal

import jax
import pytest
from small_sets import numbered, pairs_of

from m3ae_tpu.data.loader import Loader
from m3ae_tpu.data.prefetch import Prefetcher
from m3ae_tpu.data.shards import write_shards
from m3ae_tpu.data.workers import explain_worker_error
from m3ae_tpu.errors import DataError

# Python 3.12 may collect a batch's shared memory within a call of its own resource tracker, and
# warns of it; nothing is lost.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def loader_of(folder, *, num_shards: int = 1) -> Loader:
    """A loader with one worker; shards of 18 pairs."""
    write_shards(folder, "pairs", numbered(18), num_shards=num_shards)
    return pairs_of(folder, num_workers=1).loader()


@pytest.mark.parametrize("event", ["gone", "cut"])
def test_a_shard_that_vanishes_or_changes_ends_the_run_by_name(tmp_path, event):
    # A worker opens the file again; this process still holds it open.
    loader = loader_of(tmp_path, num_shards=2)
    second = tmp_path / "pairs-00001-of-00002.array_record"
    half = second.stat().st_size // 2
    second.unlink() if event == "gone" else os.truncate(second, half)
    problem = "is gone" if event == "gone" else f"has {half:,} bytes now, .* at the start"
    with pytest.raises(DataError, match=rf"^{second} {problem}"):
        next(loader)
    with pytest.raises(RuntimeError, match="closed or has failed; make a new one"):
        next(loader)


def worker_pid() -> int:
    [worker] = [child for child in multiprocessing.active_children() if "grain" in child.name]
    assert worker.pid is not None
    return worker.pid


def take(batches, n: int) -> None:
    """Takes batches, of which the first few lie ready."""
    for _ in range(n):
        next(batches)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGBUS, r"/dev/shm has .* MB.*\n.*--shm-size.*num_workers"),
        (signal.SIGKILL, "ended from outside, often for lack of memory"),
    ],
)
def test_the_end_of_a_worker_is_explained(tmp_path, number, message):
    loader = loader_of(tmp_path)
    next(loader)
    os.kill(worker_pid(), number)
    with pytest.raises(DataError, match=message):
        take(loader, 20)


def test_a_stopped_worker_ends_the_run_with_its_state(tmp_path):
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batches = Prefetcher(loader_of(tmp_path), sharding)
    next(batches)
    pid = worker_pid()
    os.kill(pid, signal.SIGSTOP)
    # Only now: starting a worker may take long.
    batches._timeout_seconds = 1.0
    with pytest.raises(DataError, match=rf"no batch for 1 seconds: worker {pid} is stopped"):
        take(batches, 20)
    batches.close()


def test_other_errors_keep_their_message():
    assert explain_worker_error(RuntimeError("a shard is gone")) == "a shard is gone"
