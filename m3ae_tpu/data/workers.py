"""The loader's worker processes: setup, state, and the causes of their end."""

import errno
import multiprocessing
import multiprocessing.process
import os
import pathlib
import shutil
import signal
import threading

from m3ae_tpu.allocator import keep_image_buffers

_STATES = {
    "R": "running",
    "S": "asleep",
    "D": "waiting for a disk",
    "T": "stopped",
    "t": "traced",
    "Z": "dead",
}


def set_up_worker(index: int, count: int) -> None:
    """Ends the worker with its parent, and lets it keep the memory of images."""
    del index, count
    end_with_parent()
    keep_image_buffers()


def end_with_parent() -> None:
    """Makes this worker process exit when its parent dies.

    Otherwise it waits for ever, or works beside the workers of the next start.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _workers() -> list[multiprocessing.process.BaseProcess]:
    # Grain has no public list of its processes; they are found by their name.
    return [
        child
        for child in multiprocessing.active_children()
        if child.name.startswith("grain-process")
    ]


def describe_workers() -> str:
    """Returns the state of each worker of this process, for messages."""
    states = []
    for worker in _workers():
        stat = pathlib.Path(f"/proc/{worker.pid}/stat")
        # The state follows the program's name, which is in brackets.
        letter = stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else "?"
        states.append(f"worker {worker.pid} is {_STATES.get(letter, 'alive')}")
    return ", ".join(states) or "no worker process is alive"


def kill_workers() -> None:
    """Ends this process's workers, also those that are stopped."""
    for worker in _workers():
        worker.kill()


def explain_worker_error(error: Exception) -> str:
    """Returns the cause and the fix where Grain's error names only a worker's exit code."""
    if isinstance(error, StopIteration):
        return "the stream of batches ended: a data worker stopped early. Start again."
    _, has_ended, code = str(error).partition("exit code ")
    lacks_room = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if lacks_room or (has_ended and code.startswith(f"-{signal.SIGBUS.value}.")):
        shm = shutil.disk_usage("/dev/shm")
        return (
            f"a data worker ran out of shared memory ({error}): /dev/shm has "
            f"{shm.total / 2**20:,.0f} MB, {shm.free / 2**20:,.0f} MB of it free.\n"
            "Give it more (docker run --shm-size=8g ...), or set fewer --data.num_workers; "
            "0 needs none."
        )
    if has_ended:
        number = code.partition(".")[0]
        cause = ", often for lack of memory" if number == f"-{signal.SIGKILL.value}" else ""
        return (
            f"a data worker was ended from outside{cause} (exit code {number}). Start again: the "
            "run resumes from its newest checkpoint. If it happens again, set fewer "
            "--data.num_workers; 0 needs none."
        )
    return str(error)
