"""The lease on a folder in a bucket: one process works in it, and says so again and again.

The lease is the object `.lock`. Its holder rewrites it every few seconds; a holder that is killed
stops doing so, and the next process takes the lease over. Clocks of two machines are never
compared: a process counts by its own clock for how long the object stays as it is.
"""

import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable

from m3ae_tpu.errors import UserError
from m3ae_tpu.storage.folder import ChangedError, RemoteFolder

FILE_NAME = ".lock"
LEASE_SECONDS = 30.0
"""Time without a sign of life after which the holder counts as dead."""
_RENEW_SECONDS = 5.0
_LOOK_SECONDS = 2.0


class Lease:
    """A folder's lease, held from its construction until `release` or the end of the process."""

    def __init__(self, folder: RemoteFolder, *, option: str, show: Callable[[str], None] = print):
        """Takes the lease; waits for up to `LEASE_SECONDS` for a sign of life of its last holder.

        Args:
            folder: The folder.
            option: The flag that names it, for messages.
            show: Called with a message while it waits.

        Raises:
            UserError: another process holds it.
        """
        self._folder, self._option, self._show = folder, option, show
        self._owner = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), **_this_process()}
        self._is_lost = False
        self._turn = threading.Lock()
        self._generation = self._take()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, daemon=True)
        self._thread.start()

    def confirm(self) -> None:
        """Renews the lease. To be called before a write that two runs must not both make.

        Raises:
            UserError: another process has taken it over.
            OSError: the storage cannot be reached.
        """
        with self._turn:
            self._renew()
        if self._is_lost:
            raise UserError(
                f"{self._option} = {self._folder.address} was taken over by another process while "
                "this one gave no sign of life. Let that one go on."
            )

    def release(self) -> None:
        """Lets other processes take the lease at once."""
        self._stop.set()
        self._thread.join()
        if not self._is_lost:
            self._folder.remove([FILE_NAME], generation=self._generation)

    def _take(self) -> int:
        """Returns the generation of the lease that this process wrote."""
        seen, holder, since = 0, {}, time.monotonic()
        while True:
            is_gone = seen and (_is_dead(holder) or time.monotonic() - since > LEASE_SECONDS)
            try:
                return self._write(seen if is_gone else 0)
            except ChangedError:
                pass
            try:
                text, generation = self._folder.read_generation(FILE_NAME)
            except FileNotFoundError:  # Released just now.
                seen = 0
                continue
            if generation != seen:
                is_alive, holder = bool(seen), _parsed(text)
                if self._is_own(holder):  # The answer to the write was lost on its way.
                    return generation
                seen, since = generation, time.monotonic()
                who = f"process {holder.get('pid')} on {holder.get('host')}"
                if is_alive:
                    raise UserError(
                        f"{self._option} = {self._folder.address} is in use by {who}. "
                        f"Wait for it, stop it, or give another {self._option}."
                    )
                if not _is_dead(holder):
                    self._show(
                        f"{self._folder.address} was in use by {who}: waiting for up to "
                        f"{LEASE_SECONDS:.0f} s for a sign of life"
                    )
            if not _is_dead(holder):
                time.sleep(_LOOK_SECONDS)

    def _write(self, generation: int) -> int:
        content = json.dumps(self._owner | {"time": time.time()}).encode()
        return self._folder.write(FILE_NAME, content, generation=generation)

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(_RENEW_SECONDS) and not self._is_lost:
            try:
                with self._turn:
                    self._renew()
            except (OSError, UserError):
                continue  # The next turn, or `confirm`, may reach the storage.

    def _renew(self) -> None:
        if self._is_lost:
            return
        try:
            self._generation = self._write(self._generation)
        except ChangedError:
            try:
                text, generation = self._folder.read_generation(FILE_NAME)
            except FileNotFoundError:
                text, generation = b"", 0
            self._is_lost = not self._is_own(_parsed(text))
            self._generation = generation

    def _is_own(self, holder: dict[str, object]) -> bool:
        return holder.get("owner") == self._owner["owner"]


def _parsed(text: bytes) -> dict[str, object]:
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _this_process() -> dict[str, object]:
    """Returns what tells this process from every other one on any machine."""
    return {"machine": _machine(), "pid": os.getpid(), "started": _start_time(os.getpid())}


def _machine() -> str:
    """Returns the boot of this machine and the space of process numbers; "" where unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_time(pid: object) -> str:
    """Returns when a process of this machine began; "" if there is none, or a zombie."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _is_dead(holder: dict[str, object]) -> bool:
    """Returns whether a holder ran on this machine, and has ended."""
    if not holder.get("machine") or holder["machine"] != _machine():
        return False
    return _start_time(holder.get("pid")) != holder.get("started")
