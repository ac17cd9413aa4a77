"""Needs of a run on many chips beside memory: loaders, a bucket, checkpoints, and failures."""

import math
from typing import NamedTuple

from m3ae_tpu.rehearsal.estimates import ROW_CPU_SECONDS

DAY = 86_400.0


class Assumptions(NamedTuple):
    """Facts about hosts, records and a bucket, which no rehearsal can say."""

    chips_per_host: int = 4
    host_days_between_failures: float = 264.0
    """Mean of one host: 419 unplanned stops in 54 days on 2,048 hosts (Llama Team 2024, §3.3.4)."""
    restart_seconds: float = 300.0
    """From a failure to the first new step."""
    stall_seconds: float = 2.0
    """For which a checkpoint stops the training: the copy to the hosts' memories."""
    example_bytes: float = 60e3
    """Bytes of one record in the shards."""
    example_cpu_seconds: float = ROW_CPU_SECONDS["paired"]
    """Time of the loader on one core."""
    read_bytes: float = 2**20
    """Bytes of one request to the bucket."""
    host_bytes_per_second: float = 1e9
    """Between one host and the bucket."""


class Growth(NamedTuple):
    """Needs of one run on so many chips."""

    chips: int
    hosts: int
    examples_per_second: float
    loader_examples_per_second_per_host: float
    host_cores: float
    bucket_reads_per_second: float
    """Requests of all hosts together."""
    bucket_bytes_per_second: float
    checkpoint_bytes: float
    checkpoint_seconds: float
    """From the hosts' memories to the bucket, all hosts at once."""
    seconds_between_failures: float
    seconds_between_checkpoints: float
    """Those that lose least."""
    goodput: float
    """Share of the time that trains: without stalls, lost steps and restarts."""


def growth(
    num_chips: int,
    *,
    num_parameters: int,
    examples_per_second_per_chip: float,
    assumed: Assumptions,
) -> Growth:
    """Computes what a run needs on so many chips, if each keeps its rate.

    A synchronous run stops with each failure of any host. A checkpoint is written behind the
    training, which it stalls only for the copy to the hosts' memories: that stall is a checkpoint's
    cost in the formulas of Young (1974) and Daly (2006).

    Args:
        num_chips: Chips of the run.
        num_parameters: Size of the model; each is 12 bytes of a checkpoint with AdamW's moments.
        examples_per_second_per_chip: The step's rate.
        assumed: Failures, records, the bucket.
    """
    hosts = math.ceil(num_chips / assumed.chips_per_host)
    rate = examples_per_second_per_chip * num_chips
    between = assumed.host_days_between_failures * DAY / hosts
    checkpoint_bytes = 12.0 * num_parameters
    written = checkpoint_bytes / (hosts * assumed.host_bytes_per_second)
    # What is still being written when a host fails is lost: no interval is shorter than the write.
    interval = max(best_interval(assumed.stall_seconds, between), written)
    return Growth(
        chips=num_chips,
        hosts=hosts,
        examples_per_second=rate,
        loader_examples_per_second_per_host=rate / hosts,
        host_cores=rate / hosts * assumed.example_cpu_seconds,
        bucket_reads_per_second=rate * assumed.example_bytes / assumed.read_bytes,
        bucket_bytes_per_second=rate * assumed.example_bytes,
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_seconds=written,
        seconds_between_failures=between,
        seconds_between_checkpoints=interval,
        goodput=goodput(
            interval,
            stall_seconds=assumed.stall_seconds,
            restart_seconds=assumed.restart_seconds,
            seconds_between_failures=between,
        ),
    )


def best_interval(stall_seconds: float, seconds_between_failures: float) -> float:
    """Returns the interval between checkpoints that loses least: √(2 x stall x time between
    failures) (Young 1974; the first order of Daly 2006).
    """
    return math.sqrt(2 * stall_seconds * seconds_between_failures)


def goodput(
    interval_seconds: float,
    *,
    stall_seconds: float,
    restart_seconds: float,
    seconds_between_failures: float,
) -> float:
    """Returns the share of the time that trains, with failures at random (Daly 2006, eq. 20).

    An interval and its stall are done again until no failure falls into them, after a restart each
    time: on average this takes M exp(R / M) (exp((τ + δ) / M) - 1), with M between failures.
    """
    mean = seconds_between_failures
    spent = mean * math.exp(restart_seconds / mean)
    spent *= math.expm1((interval_seconds + stall_seconds) / mean)
    return interval_seconds / spent
