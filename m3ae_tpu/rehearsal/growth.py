"""What a run needs on many chips beside memory: loaders, a bucket, checkpoints, and failures."""

import math
from typing import NamedTuple

DAY = 86_400.0


class Cluster(NamedTuple):
    """Chips, and the hosts and the bucket that serve them."""

    num_chips: int
    chips_per_host: int = 4
    host_mean_days_between_failures: float = 1_000.0
    """Of one host: 1,000 days are a failure of some host a day on 1,000 hosts."""
    bucket_bytes_per_second: float = 1e9
    """What one host writes to or reads from a bucket."""

    @property
    def num_hosts(self) -> int:
        return math.ceil(self.num_chips / self.chips_per_host)

    @property
    def seconds_between_failures(self) -> float:
        """Mean time between failures of any host; a synchronous run stops with each of them."""
        return self.host_mean_days_between_failures * DAY / self.num_hosts


class Growth(NamedTuple):
    """What one run needs of a cluster."""

    examples_per_second: float
    loader_examples_per_second_per_host: float
    host_cores: float
    bucket_reads_per_second: float
    """Requests of all hosts together."""
    bucket_bytes_per_second: float
    checkpoint_bytes: float
    checkpoint_seconds: float
    """From the copy in the hosts' memories to the bucket, all hosts at once."""
    best_seconds_between_checkpoints: float
    goodput: float
    """Share of the time that trains: without stalls, lost steps and restarts."""


def growth(
    cluster: Cluster,
    *,
    num_parameters: float,
    examples_per_second_per_chip: float,
    restart_seconds: float = 300.0,
    stall_seconds: float = 2.0,
    example_bytes: float = 60e3,
    example_cpu_seconds: float = 1.45e-3,
    read_bytes: float = 2**20,
) -> Growth:
    """Computes what a run needs on a cluster.

    A checkpoint is written behind the training, which it stalls only for the copy to the hosts'
    memories. Then Young (1974) and Daly (2006) apply with that stall as a checkpoint's cost.

    Args:
        cluster: The chips.
        num_parameters: Of the model; each is 12 bytes of a checkpoint with its moments.
        examples_per_second_per_chip: The step's rate.
        restart_seconds: From a failure to the first new step.
        stall_seconds: For which a checkpoint stops the training.
        example_bytes: Of one record in the shards.
        example_cpu_seconds: Of the loader, one core.
        read_bytes: Of one request to the bucket.
    """
    rate = examples_per_second_per_chip * cluster.num_chips
    per_host = rate / cluster.num_hosts
    checkpoint_bytes = 12 * num_parameters
    written = checkpoint_bytes / (cluster.num_hosts * cluster.bucket_bytes_per_second)
    # What is being written when a host fails is lost too: no interval is shorter than the write.
    interval = max(best_interval(stall_seconds, cluster.seconds_between_failures), written)
    return Growth(
        examples_per_second=rate,
        loader_examples_per_second_per_host=per_host,
        host_cores=per_host * example_cpu_seconds,
        bucket_reads_per_second=rate * example_bytes / read_bytes,
        bucket_bytes_per_second=rate * example_bytes,
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_seconds=written,
        best_seconds_between_checkpoints=interval,
        goodput=goodput(
            interval,
            stall_seconds=stall_seconds,
            restart_seconds=restart_seconds,
            seconds_between_failures=cluster.seconds_between_failures,
        ),
    )


def best_interval(stall_seconds: float, seconds_between_failures: float) -> float:
    """Returns the interval between checkpoints that loses least, √(2 x stall x time between
    failures) (Young 1974, the first order of Daly 2006), stall not included.
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

    The time for one interval and its stall, done again until no failure falls into it, is
    M exp(R / M) (exp((τ + δ) / M) - 1), with M between failures, R of a restart.
    """
    mean = seconds_between_failures
    spent = mean * math.exp(restart_seconds / mean)
    spent *= math.expm1((interval_seconds + stall_seconds) / mean)
    return interval_seconds / spent
