"""The processes of a run that trains on several machines: the leader, sums over all, a common stop.

Alone, a process is the leader and its sums are its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # Has the barriers; Orbax takes them from here too.
from jax.experimental import multihost_utils

from m3ae_tpu.errors import UserError

_NOTHING, _FAILED = -1, -2
_WAIT_MILLISECONDS = 3_600_000
"""The longest that processes may be apart, as where one of them has to compile for long."""


def is_alone() -> bool:
    """Returns whether the run has one process."""
    return jax.process_count() == 1


def is_leader() -> bool:
    """Returns whether this process writes the files that all processes share."""
    return jax.process_index() == 0


def file_suffix() -> str:
    """Returns the suffix of files that each process has: "" for the leader, else as "-003"."""
    return "" if is_leader() else f"-{jax.process_index():03d}"


def total(values: Sequence[int]) -> list[int]:
    """Returns the sum of each value over all processes, which must call this together."""
    if is_alone():
        return list(values)
    # As bytes: JAX would cut 64-bit integers to 32 bits.
    local = np.array(values, np.int64).view(np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(local))
    return np.ascontiguousarray(gathered).view(np.int64).sum(axis=0).tolist()


def gathered(text: str) -> list[str]:
    """Returns the texts of all processes, in their order; all must call this together."""
    if is_alone():
        return [text]
    local = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.array([local.size], np.int32)))
    padded = np.zeros(max(1, lengths.max()), np.uint8)
    padded[: local.size] = local
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths[:, 0], strict=True)]


def from_leader(find: Callable[[], int | None]) -> int | None:
    """Returns in every process what `find` returns in the leader: nothing, or a number from 0 on.

    All must call this together.

    Raises:
        UserError: the leader's `find` raised it.
    """
    if is_alone():
        return find()
    number, refusal = _NOTHING, None
    if is_leader():
        try:
            found = find()
            number = _NOTHING if found is None else found
        except UserError as error:
            number, refusal = _FAILED, error
    number = int(multihost_utils.broadcast_one_to_all(np.int32(number)))
    if number == _FAILED:
        raise refusal or UserError("process 0 cannot go on; its messages say why.")
    return None if number == _NOTHING else number


def array_from_leader(
    place: str, compute: Callable[[], np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    """Returns in every process the float32 array that `compute` returns in the leader.

    All must call this together; what `compute` raises ends the leader, and so the run.

    Args:
        place: A name of its own.
        compute: May take minutes.
        shape: The array's.
    """
    if is_alone():
        return compute()
    array = compute() if is_leader() else np.zeros(shape, np.float32)
    wait_for_all(place)
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def leader_first[Result](place: str, call: Callable[[], Result]) -> Result:
    """Returns what `call` returns in each process; the leader's has returned before the others'.

    Args:
        place: A name of its own.
        call: May find files that the leader's call has made.
    """
    if is_leader():
        result = call()
        wait_for_all(place)
        return result
    wait_for_all(place)
    return call()


def wait_for_all(place: str) -> None:
    """Waits until every process has come to this place, whose name is used once.

    Not over the devices: on CPUs they give up where one process comes half a minute after another.
    """
    if not is_alone():
        client: Any = distributed.global_state.client
        client.wait_at_barrier(f"m3ae_tpu/{place}", _WAIT_MILLISECONDS)


def compiled_together(function: Any, *arguments: Any) -> Any:
    """Returns a jitted function compiled for arguments, when all processes have compiled it.

    Alone, a process compiles it when it calls it.
    """
    if is_alone():
        return function
    compiled = function.lower(*arguments).compile()
    wait_for_all("the step is compiled")
    return compiled


def is_preempted(step: int) -> bool:
    """Returns whether the scheduler takes machines back: the same answer in every process.

    JAX's preemption service makes all processes agree on one step, so all must call this after the
    same steps.
    """
    return multihost_utils.reached_preemption_sync_point(step)
