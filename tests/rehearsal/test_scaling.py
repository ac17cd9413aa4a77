"""Guards the estimate of a step on other numbers of chips."""

import pytest

from m3ae_tpu.rehearsal.estimates import collective_seconds
from m3ae_tpu.rehearsal.rehearse import grown
from m3ae_tpu.rehearsal.scaling import scaled, usual_slice
from m3ae_tpu.rehearsal.topologies import HARDWARE, parse_slice

SUM = {
    "kind": "all-reduce",
    "axis": "data",
    "bytes_per_step": 2**30,
    "is_asynchronous": False,
}
MESH = {"data": 256, "fsdp": 1, "tensor": 1}
RESULT = {
    "topology": "v5e:16x16",
    "chips": 256,
    "batch_size": 4_096,
    "num_parameters": 10**8,
    "mesh": MESH,
    "compute_seconds": 0.1,
    "collectives": [SUM],
}


@pytest.mark.parametrize(
    ("generation", "chips", "name"),
    [
        ("v5e", 1, "v5e:1x1"),
        ("v5e", 128, "v5e:8x16"),
        ("v5e", 512, "v5e:16x16x2slices"),
        ("v5e", 1_000, "v5e:16x16x4slices"),
        ("v4", 4, "v4:2x2x1"),
        ("v4", 128, "v4:4x4x8"),
        ("v4", 512, "v4:8x8x8"),
    ],
)
def test_so_many_chips_are_a_usual_slice(generation, chips, name):
    assert usual_slice(generation, chips).name == name


def test_one_chip_waits_for_nothing():
    assert scaled(RESULT, 1).efficiency == 1.0


def test_the_same_number_of_chips_takes_the_rehearsed_time():
    waited = collective_seconds("all-reduce", "data", 2**30, MESH, parse_slice("v5e:16x16"))
    assert scaled(RESULT, 256).step_seconds == 0.1 + waited


def test_what_is_behind_work_costs_nothing_until_it_takes_longer():
    hidden = RESULT | {"collectives": [SUM | {"is_asynchronous": True}]}
    assert scaled(hidden, 256).efficiency == 1.0
    assert scaled(hidden | {"compute_seconds": 1e-6}, 256).efficiency < 0.1


def test_slices_exchange_the_sums_that_each_chip_of_a_slice_holds():
    two = scaled(RESULT, 512)
    assert two.between_slices_bytes == 2 * 0.5 * 2**30 / 256
    one = scaled(RESULT, 256)
    more = two.between_slices_bytes / HARDWARE["v5e"].slice_bytes_per_second
    assert two.step_seconds == pytest.approx(one.step_seconds + more)


def test_needs_follow_from_the_scaled_step():
    (row,) = grown(RESULT, [1_000])
    assert row["examples_per_second"] == pytest.approx(16 * 1_000 / row["step_seconds"])
    assert row["hosts"] == 250
    assert row["checkpoint_bytes"] == 12e8
    assert 0 < row["goodput"] < 1
