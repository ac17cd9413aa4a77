"""Guards the figures that follow from the compiler's: memory, collectives, times, loaders."""

import dataclasses
import math

import pytest

from m3ae_tpu.configs import m3ae_base
from m3ae_tpu.rehearsal.collectives import BETWEEN_SLICES, Collective
from m3ae_tpu.rehearsal.compiled import Compiled
from m3ae_tpu.rehearsal.estimates import collective_seconds, figures, grouped
from m3ae_tpu.rehearsal.topologies import HARDWARE, parse_slice

V5E = parse_slice("v5e:16x16")
MESH = {"data": 16, "fsdp": 16, "tensor": 1}
GATHER = Collective(
    "all-gather", "fsdp", "bf16", 24 * 2**20, 24, True, True, "jvp(encoder)/while/body"
)
SUM = Collective("all-reduce", "data", "f32", 100 * 2**20, 1, False, False, "transpose(jvp(embed))")
COMPILED = Compiled(
    mesh=MESH,
    num_hosts=64,
    num_parameters=25,
    parameter_bytes=100,
    optimizer_bytes=200,
    batch_bytes=10,
    capacity_bytes=1_000,
    peak_bytes=900,
    fits=True,
    flops=4e12,
    model_flops=3e12,
    compile_seconds=1.0,
    compiler_memory_bytes=1,
    argument_bytes=320,
    hbm_bytes=1e9,
    compute_seconds=0.1,
    compute_ceiling_seconds=0.15,
    collectives=(GATHER, SUM),
)


def test_a_gather_takes_its_bytes_over_both_links_of_a_ring():
    link = HARDWARE["v5e"].link_bytes_per_second
    seconds = collective_seconds("all-gather", "fsdp", 2**30, MESH, V5E)
    assert seconds == pytest.approx(2**30 * 15 / 16 / (2 * link))
    assert collective_seconds("all-reduce", "fsdp", 2**30, MESH, V5E) == 2 * seconds


def test_one_device_exchanges_nothing():
    assert collective_seconds("all-reduce", "tensor", 2**30, MESH, V5E) == 0


def test_what_leaves_a_slice_takes_the_slower_way():
    two = parse_slice("v5e:16x16x2slices")
    seconds = collective_seconds("all-reduce", BETWEEN_SLICES, 2**30, MESH, two)
    assert seconds == 2**30 / HARDWARE["v5e"].slice_bytes_per_second


def test_collectives_behind_work_cost_nothing_and_others_are_waited_for():
    result = figures(m3ae_base.CONFIG, V5E, COMPILED)
    assert result["overlapped_collective_seconds"] < 0.1
    waited = result["waited_collective_seconds"]
    assert waited == collective_seconds("all-reduce", "data", SUM.bytes, MESH, V5E)
    assert result["step_seconds"] == 0.1 + waited
    assert result["step_ceiling_seconds"] == 0.15 + waited


def test_rates_and_lengths_follow_from_the_step():
    result = figures(m3ae_base.CONFIG, V5E, COMPILED)
    seconds = result["step_seconds"]
    assert result["examples_per_second"] == 4_096 / seconds
    assert result["loader_examples_per_second_per_host"] == 4_096 / seconds / 64
    assert result["mfu"] == pytest.approx(3e12 / seconds / 197e12)
    assert result["mfu_bound"] == pytest.approx(3e12 / 4e12)  # Only remat is in the way.
    assert result["days"] == pytest.approx(146_000 * seconds / 86_400)
    assert result["chip_hours"] == pytest.approx(result["days"] * 24 * 256)
    assert result["host_cores"] == pytest.approx(4_096 / seconds / 64 * 1.05e-3)


def test_every_figure_says_whose_it_is():
    result = figures(m3ae_base.CONFIG, V5E, COMPILED)
    settings = "topology chips hosts mesh batch_size remat accumulation_steps num_steps"
    others = {*settings.split(), "num_parameters", "sources"}
    assert set(result) - others == set(result["sources"])
    assert set(result["sources"].values()) == {"compiler", "estimate"}
    assert result["sources"]["peak_bytes_per_chip"] == "compiler"
    assert result["sources"]["step_seconds"] == "estimate"


def test_activations_are_what_is_left_of_the_peak():
    assert figures(m3ae_base.CONFIG, V5E, COMPILED)["activation_bytes_per_chip"] == 590


def test_a_refused_step_has_no_times():
    refused = dataclasses.replace(
        COMPILED,
        fits=False,
        compute_seconds=None,
        compute_ceiling_seconds=None,
        hbm_bytes=None,
        collectives=(),
    )
    result = figures(m3ae_base.CONFIG, V5E, refused)
    assert result["step_seconds"] is None
    assert result["days"] is None
    assert result["collectives"] == []


def test_collectives_of_a_kind_and_place_are_one_entry():
    groups = grouped([GATHER, GATHER._replace(bytes=2**20), SUM])
    assert [group["kind"] for group in groups] == ["all-gather", "all-reduce"]
    gathers, sums = groups
    assert (gathers["count"], gathers["bytes"]) == (2, 25 * 2**20)
    assert gathers["where"] == "in the loop"
    assert (gathers["stack"], gathers["direction"]) == ("encoder", "forward")
    assert math.isclose(gathers["bytes_per_step"], 24 * 25 * 2**20)
    assert (sums["where"], sums["direction"]) == ("outside", "backward")
