"""Joining of the processes of a run: by launch flags, or as the cluster's environment says."""

import os
import re
import sys
import threading

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.parallel.exit_codes import PEER_DIED

_HEARTBEAT_SECONDS = 60
"""Silence after which JAX ends all; `failures` names a silent process before."""
_SHUTDOWN_SECONDS = 30
"""The longest that a process which has finished waits for the others."""
_JOIN_SECONDS = 300
"""The longest that a process waits for the others: machines may start minutes apart."""
_QUIET_SECONDS = 15
"""Time after which it says that it waits."""
_FLAGS = "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I"


def join_processes(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the other processes of a run, before any device is used; does nothing alone.

    Without flags, JAX looks for a TPU slice, Slurm, Open MPI or Kubernetes.

    Args:
        coordinator_address: HOST:PORT of process 0, as the others reach it.
        num_processes: Number of processes.
        process_id: This one's number, from 0.

    Raises:
        UserError: flags that do not fit together, or a port that is taken. Where the others do not
            come in time, JAX ends the process; it says so first.
    """
    require_consistent(coordinator_address, num_processes, process_id)
    import jax
    from jax._src.clusters import ClusterEnv  # Tells the number of processes before they join.

    local_device_ids = None
    if num_processes is None:
        coordinator_address, num_processes, process_id, local_device_ids = (
            ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, _HEARTBEAT_SECONDS
            )
        )
    if (num_processes or 1) == 1:
        return
    from m3ae_tpu.parallel.failures import call_at_abort

    refusal = (
        f"process {process_id} of {num_processes} cannot join the others at {coordinator_address}. "
        "Check that all processes were started, each with a --process_id of its own, and that the "
        "port is free on the host of process 0, and open to the others"
    )
    waiting = threading.Timer(
        _QUIET_SECONDS,
        print,
        [
            f"process {process_id} of {num_processes} waits at {coordinator_address} for the "
            f"others, up to {_JOIN_SECONDS} seconds"
        ],
        {"flush": True},
    )
    waiting.start()

    def end() -> None:
        print(f"error: {refusal}.", file=sys.stderr, flush=True)
        os._exit(PEER_DIED)

    call_at_abort(end)  # JAX aborts where the others do not come in time.
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            local_device_ids=local_device_ids,
            # Nothing is left to detect.
            cluster_detection_method="deactivate",
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"{refusal} ({str(error).partition(chr(10))[0][:200]}).") from error
    finally:
        waiting.cancel()


def require_consistent(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Checks that the flags fit together.

    Raises:
        UserError: they do not.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if all(value is None for value in given.values()):
        return
    for name, value in given.items():
        require(
            value is not None,
            f"--{name} is missing. Give {_FLAGS} together; or none of them, for one process or a "
            "cluster that JAX knows.",
        )
    assert coordinator_address is not None
    assert num_processes is not None
    assert process_id is not None
    port = re.fullmatch(r".+:(\d{1,5})", coordinator_address)
    require(
        port is not None and 0 < int(port[1]) < 65_536,
        f"--coordinator_address = {coordinator_address} is not HOST:PORT. "
        "Write the host of process 0 and a free port, as 10.0.0.2:8476.",
    )
    require(num_processes >= 1, f"--num_processes = {num_processes} is less than 1. Set 1 or more.")
    require(
        0 <= process_id < num_processes,
        f"--process_id = {process_id} is not in [0, {num_processes}), as --num_processes = "
        f"{num_processes}. Number the processes from 0.",
    )
