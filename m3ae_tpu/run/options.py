"""Options of a start of a run: launch flags of all training programs."""

import dataclasses

from m3ae_tpu.errors import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Ways to start, watch and join a run; they decide none of its bits."""

    log_record_ids: bool = False
    """Write the ids of each step's records to WORKDIR/record_ids.jsonl."""
    allow_changed_data: bool = False
    """Resume a run although its shards or sources have changed."""
    coordinator_address: str | None = None
    """HOST:PORT of process 0, for a run of several processes."""
    num_processes: int | None = None
    """Processes of the run, over all machines."""
    process_id: int | None = None
    """Number of this process, from 0. On TPU slices and under Slurm the three are found out."""
    hang_seconds: float = 600.0
    """End the run, with the stacks of all threads, when no step has ended for so long, and for 20
    times the usual time of a step. 0: never. Compiling, saving and probes do not count.
    """
    replay_step: int | None = None
    """Only run this step again, from the checkpoint before it, and save its batch, ids, masks and
    the loss of each row to WORKDIR/replay-N.npz. For a loss that was not finite; one process.
    """
    profile_steps: tuple[int, int] | None = None
    """First and last step to profile, as 100,110: a trace for xprof and Perfetto in
    WORKDIR/profile.
    """

    def __post_init__(self) -> None:
        require(
            self.hang_seconds >= 0,
            f"--hang_seconds = {self.hang_seconds} is less than 0. Default: --hang_seconds=600.0.",
        )
