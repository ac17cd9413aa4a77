"""The loader's worker processes: how they are set up, how they are doing, and what their end means."""

import ctypes
import errno
import multiprocessing
import multiprocessing.process
import os
import pathlib
import shutil
import signal
import threading

_STATES = {
    "R": "running",
    "S": "asleep",
    "D": "waiting for a disk",
    "T": "stopped",
    "t": "traced",
    "Z": "dead",
}


def set_up_worker(index: int, count: int) -> None:
    """Ties a worker process to its parent, and lets glibc keep image-sized buffers."""
    del index, count
    end_with_parent()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # They would be mapped and faulted in anew for every row.
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


def end_with_parent() -> None:
    """Has this worker process exit when its parent dies, instead of waiting for ever or working
    beside the workers of the next start.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _workers() -> list[multiprocessing.process.BaseProcess]:
    # Grain keeps its processes to itself, but gives them a name.
    return [
        child
        for child in multiprocessing.active_children()
        if child.name.startswith("grain-process")
    ]


def describe_workers() -> str:
    """Returns what each worker of this process is doing, for messages."""
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
    """Returns what went wrong, and what to do, where Grain says only how a worker ended."""
    _, is_end, code = str(error).partition("exit code ")
    has_no_room = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if has_no_room or (is_end and code.startswith(f"-{signal.SIGBUS.value}.")):
        shm = shutil.disk_usage("/dev/shm")
        return (
            f"a data worker ended for want of shared memory ({error}): /dev/shm has {shm.total / 2**20:,.0f} MB, "
            f"{shm.free / 2**20:,.0f} MB of it free.\n"
            "Give it more (docker run --shm-size=8g ...), or set fewer --data.num_workers; 0 needs none."
        )
    if is_end:
        number = code.partition(".")[0]
        why = ", often for want of memory" if number == f"-{signal.SIGKILL.value}" else ""
        return (
            f"a data worker was ended from outside{why} (exit code {number}). Start again: the run goes on "
            "from its newest checkpoint. If it comes again, set fewer --data.num_workers; 0 needs none."
        )
    return str(error)
