"""Failures in a run of several processes: an error, a death or a hang of one ends all of them.

The cause goes through the key-value store of JAX's coordination service, which process 0 serves, to
the log of every process. JAX alone ends the others late or never, and does not say why.
"""

import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn

import jax

# JAX has no public way to the key-value store; Orbax takes it from here too. A test names the
# version for which this holds.
from jax._src import distributed

from m3ae_tpu.errors import UserError
from m3ae_tpu.parallel.exit_codes import HUNG, PEER_DIED, USER_ERROR
from m3ae_tpu.parallel.processes import is_alone, is_leader

_LOG = logging.getLogger(__name__)
_BEAT_SECONDS = 1.0
_SILENCE_SECONDS = 30.0
"""Time without a sign of life after which a process counts as dead."""
_DOUBT_SECONDS = 4.0
"""Wait for the cause of a failed connection: by then a dead process has missed several beats."""
_FAREWELL_SECONDS = 5.0
"""The longest that process 0, which keeps the cause, waits until the others have read it."""
_CAUSE, _ALIVE, _PROGRESS, _READ = (
    f"m3ae_tpu/{name}" for name in ("cause", "alive", "progress", "read")
)


@contextlib.contextmanager
def shared_fate() -> Iterator[None]:
    """Context in which a failure of this or of another process ends this one, with the cause.

    Does nothing for one process.
    """
    if is_alone():
        yield
        return
    _name_lost_leader()
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(stop,), name="failures", daemon=True)
    watcher.start()
    try:
        with contextlib.ExitStack() as stack:
            stack.push(end_all)
            yield
    finally:
        stop.set()
        watcher.join()


@contextlib.contextmanager
def called_at_end(call: Callable[[], None]) -> Iterator[None]:
    """Context that calls a function at its end, also where a failure ends the process in it."""
    _AT_END.append(call)
    try:
        yield
    finally:
        _AT_END.remove(call)
        call()


def end_all(
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> None:
    """Ends all processes if there is an error, as the exit of a context; does nothing for one.

    Pushed on an `ExitStack` last, it acts before contexts that would wait for the others.
    """
    del kind, traceback
    if error is None or is_alone():
        return
    if isinstance(error, SystemExit) and not error.code:
        return
    cause, code = _describe(error)
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        _LOG.error("an error in this process", exc_info=error)
        other = _cause_elsewhere()
        if other is not None:
            _end(*other)
    end_with(cause, code)


def end_with(cause: str, code: int) -> NoReturn:
    """Ends all processes for a cause in this one, with an exit code."""
    cause = f"process {jax.process_index()}: {cause}"
    if not is_alone():
        # Of several causes the first counts.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _store().key_value_set(_CAUSE, json.dumps([cause, code]))
        cause, code = _published_cause() or (cause, code)
    _end(cause, code)


def publish_progress(text: str) -> None:
    """Lets the other processes know how far this one is."""
    if not is_alone():
        _store().key_value_set(f"{_PROGRESS}/{jax.process_index()}", text, allow_overwrite=True)


def all_progress() -> list[str]:
    """Returns what each process has published of its progress, in their order."""
    if is_alone():
        return []
    progress = _by_process(_PROGRESS)
    return [
        f"process {index}: {progress.get(index, 'not known')}"
        for index in range(jax.process_count())
    ]


_AT_END: list[Callable[[], None]] = []
_ENDING = threading.Lock()


def _end(cause: str, code: int) -> NoReturn:
    if not _ENDING.acquire(blocking=False):
        threading.Event().wait()  # Another thread ends this process.
    if code == HUNG:
        # In every process: the one that hangs may learn from another that all wait for it.
        _LOG.error("stacks of all threads:\n%s", _stacks())
    _LOG.error("the run ends: %s", cause)
    closing = threading.Thread(target=_close, daemon=True)
    closing.start()
    closing.join(_FAREWELL_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Python's own exit would wait for the other processes.
    os._exit(code)


def _stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().rstrip()


def _close() -> None:
    if not is_alone():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _store().key_value_set(f"{_READ}/{jax.process_index()}", "", allow_overwrite=True)
    for at_end in _AT_END:
        at_end()
    end = time.monotonic() + _FAREWELL_SECONDS
    while not is_alone() and is_leader() and time.monotonic() < end:
        if len(_by_process(_READ)) == jax.process_count():
            return
        time.sleep(0.1)


def _describe(error: BaseException) -> tuple[str, int]:
    if isinstance(error, UserError):
        return str(error), USER_ERROR
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C", 128 + signal.SIGINT
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used ({error.strerror})", USER_ERROR
    return f"{type(error).__name__}: {str(error)[:500]}", 1


def _watch(stop: threading.Event) -> None:
    """Gives signs of life, and ends this process when another one has failed or fallen silent."""
    beat, heard = 0, _Heard()
    while not stop.wait(_BEAT_SECONDS):
        beat += 1
        try:
            _store().key_value_set(f"{_ALIVE}/{jax.process_index()}", str(beat), True)
            published = _published_cause()
            silent = heard.silent(_SILENCE_SECONDS)
        except jax.errors.JaxRuntimeError as error:
            if stop.is_set():
                return
            _LOG.error("the connection to process 0 failed: %s", error)
            _end(_LOST_LEADER, PEER_DIED)
        if published is not None:
            _end(*published)
        if silent:
            end_with(_silence(silent, _SILENCE_SECONDS), PEER_DIED)


class _Heard:
    """The last signs of life of the other processes: all of them in process 0, else its own."""

    def __init__(self) -> None:
        self._signs: dict[int, tuple[str, float]] = {}

    def silent(self, seconds: float, *, everyone: bool = False) -> list[int]:
        """Returns the processes that gave signs, but none for so many seconds."""
        now = time.monotonic()
        if everyone or is_leader():
            signs = _by_process(_ALIVE)
        else:  # A thousand processes that read a thousand signs would overload process 0.
            sign = _try_get(f"{_ALIVE}/0")
            signs = {} if sign is None else {0: sign}
        for process, sign in signs.items():
            if self._signs.get(process, ("", 0.0))[0] != sign:
                self._signs[process] = sign, now
        return [
            process
            for process, (_, since) in self._signs.items()
            if now - since >= seconds and process != jax.process_index()
        ]


def _cause_elsewhere() -> tuple[str, int] | None:
    """Returns the cause where an error here only follows from the failure of another process."""
    heard = _Heard()
    end = time.monotonic() + _DOUBT_SECONDS
    try:
        while time.monotonic() < end:
            heard.silent(_DOUBT_SECONDS, everyone=True)
            published = _published_cause()
            if published is not None:
                return published
            time.sleep(_BEAT_SECONDS / 4)
        silent = heard.silent(_DOUBT_SECONDS - _BEAT_SECONDS, everyone=True)
    except jax.errors.JaxRuntimeError:
        return _LOST_LEADER, PEER_DIED
    if not silent:
        return None
    cause = _silence(silent, _DOUBT_SECONDS - _BEAT_SECONDS)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _store().key_value_set(_CAUSE, json.dumps([cause, PEER_DIED]))
    return _published_cause() or (cause, PEER_DIED)


_LOST_LEADER = (
    "process 0, which coordinates the run, is gone: it was killed, or its machine was lost. "
    "Start all again: the run resumes from its newest checkpoint"
)


def _silence(processes: list[int], seconds: float) -> str:
    shown = ", ".join(map(str, processes[:10])) + (" and more" if len(processes) > 10 else "")
    return (
        f"no sign of life from process {shown} for {seconds:g} seconds: killed, stopped, or its "
        "machine was lost. Start all again: the run resumes from its newest checkpoint"
    )


def _published_cause() -> tuple[str, int] | None:
    published = _try_get(_CAUSE)
    return None if published is None else tuple(json.loads(published))


def _try_get(key: str) -> str | None:
    try:
        return _store().key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def _by_process(folder: str) -> dict[int, str]:
    entries = _store().key_value_dir_get(folder)
    return {int(key.rpartition("/")[2]): value for key, value in entries}


def _store() -> Any:
    return distributed.global_state.client


def _name_lost_leader() -> None:
    """Logs the cause where JAX aborts this process, as it does at once when process 0 dies."""
    address = distributed.global_state.coordinator_address

    def end() -> None:
        if is_leader():
            cause = "JAX has aborted this process; its messages on stderr say why"
        else:
            cause = f"{_LOST_LEADER} (it served {address})"
        _end(cause, PEER_DIED)

    call_at_abort(end)


def call_at_abort(call: Callable[[], None]) -> None:
    """Calls a function where JAX aborts this process, in place of the function given before.

    By a handler in C: the abort comes in a thread of JAX, and Python's handlers would run too late.
    """

    def handle(number: int) -> None:
        del number
        call()

    _HANDLERS.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(handle))
    ctypes.CDLL(None).signal(signal.SIGABRT, _HANDLERS[-1])


_HANDLERS: list[Any] = []
"""C functions must not be collected while the system may call them."""
