"""Guards the arithmetic of large clusters against a simulation of failures."""

import numpy as np

from m3ae_tpu.rehearsal.growth import Assumptions, best_interval, goodput, growth


def simulated_goodput(interval, stall, restart, mean, intervals=4_000):
    """The share of the time that trains, with failures drawn at random."""
    rng = np.random.default_rng(0)
    spent = done = 0.0
    left = rng.exponential(mean)
    while done < intervals * interval:
        if left >= interval + stall:
            left -= interval + stall
            spent += interval + stall
            done += interval
            continue
        spent += left
        left = rng.exponential(mean)
        while left < restart:  # It fails again while it starts.
            spent += left
            left = rng.exponential(mean)
        spent += restart
        left -= restart
    return done / spent


def test_goodput_is_that_of_random_failures():
    mean, interval, stall, restart = 20_000.0, 1_500.0, 60.0, 300.0
    expected = goodput(
        interval, stall_seconds=stall, restart_seconds=restart, seconds_between_failures=mean
    )
    assert abs(simulated_goodput(interval, stall, restart, mean) - expected) < 0.01


def test_the_best_interval_loses_less_than_its_neighbours():
    mean, stall = 50_000.0, 10.0
    best = best_interval(stall, mean)
    shares = [
        goodput(f * best, stall_seconds=stall, restart_seconds=300.0, seconds_between_failures=mean)
        for f in (0.5, 1.0, 2.0)
    ]
    assert max(shares) == shares[1]


def test_more_hosts_fail_more_often_and_serve_the_same_rate_each():
    small, large = (
        growth(
            chips,
            num_parameters=10**9,
            examples_per_second_per_chip=500.0,
            assumed=Assumptions(),
        )
        for chips in (1_000, 10_000)
    )
    assert (small.hosts, large.hosts) == (250, 2_500)
    assert small.loader_examples_per_second_per_host == 2_000.0
    assert large.loader_examples_per_second_per_host == 2_000.0
    assert large.examples_per_second == 10 * small.examples_per_second
    assert large.goodput < small.goodput < 1
    assert small.checkpoint_bytes == large.checkpoint_bytes == 12e9
    assert small.seconds_between_failures == 10 * large.seconds_between_failures


def test_no_interval_is_shorter_than_the_write_of_a_checkpoint():
    slow = Assumptions(host_bytes_per_second=1e3)
    grown = growth(8, num_parameters=10**9, examples_per_second_per_chip=500.0, assumed=slow)
    assert grown.seconds_between_checkpoints == grown.checkpoint_seconds == 12e9 / 2e3
