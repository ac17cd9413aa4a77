"""Guards the arithmetic of large clusters against a simulation of failures."""

import numpy as np

from m3ae_tpu.rehearsal.growth import Cluster, best_interval, goodput, growth


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
        growth(Cluster(chips), num_parameters=1e9, examples_per_second_per_chip=500.0)
        for chips in (1_000, 10_000)
    )
    assert small.loader_examples_per_second_per_host == 2_000.0
    assert large.loader_examples_per_second_per_host == 2_000.0
    assert large.examples_per_second == 10 * small.examples_per_second
    assert large.goodput < small.goodput < 1
    assert small.checkpoint_bytes == large.checkpoint_bytes == 12e9
    assert Cluster(1_000).seconds_between_failures == 4 * 86_400.0
