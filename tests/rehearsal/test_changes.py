"""Guards the search for changes that make a step fit: the cheapest come first, and are tried."""

import dataclasses

import pytest

from m3ae_tpu.configs import m3ae_huge
from m3ae_tpu.rehearsal.changes import fitting_changes, flags_of, grid_of_sweep
from m3ae_tpu.rehearsal.topologies import parse_slice

GIB = 2**30
SLICE = parse_slice("v5e:16x16")
MODEL = dataclasses.replace(m3ae_huge.CONFIG.model, remat=False)
CONFIG = dataclasses.replace(m3ae_huge.CONFIG, model=MODEL)


def memory(config, *, state=8.0, activations=11.0):
    """Figures of a step whose memory follows a simple rule; `tried` lists what was asked for."""
    shards = config.mesh.fsdp
    share = (0.3 if config.model.remat else 1.0) / config.optimizer.accumulation_steps
    peak = state / shards + activations * share
    return {
        "fits": peak <= 15.75,
        "peak_bytes_per_chip": round(peak * GIB),
        "capacity_bytes_per_chip": round(15.75 * GIB),
        "parameter_bytes_per_chip": round(state * GIB / 3 / shards),
        "optimizer_bytes_per_chip": round(state * GIB * 2 / 3 / shards),
        "model_flops_per_chip": 5.9e12,
        "mesh": {"data": 256 // shards, "fsdp": shards, "tensor": 1},
    }


def search(config=CONFIG, **sizes):
    tried = []

    def rehearse(other):
        tried.append(other)
        return memory(other, **sizes)

    found = fitting_changes(config, SLICE, memory(config, **sizes), rehearse)
    return [change.flags for change, _ in found], found, tried


def test_two_changes_of_different_kinds_are_found_and_each_was_compiled():
    flags, found, tried = search()
    assert len(flags) == 2
    assert all(figures["fits"] for _, figures in found)
    assert len({tuple(change.fields) for change, _ in found}) == 2
    assert len(tried) <= 6


def test_sharding_alone_is_enough_where_the_state_is_what_is_large():
    flags, _, _ = search(state=30.0, activations=4.0)
    assert flags[0] == "--mesh.fsdp=16"


def test_two_fields_change_where_one_is_not_enough():
    flags, found, _ = search(state=40.0, activations=60.0)
    assert flags
    assert all(len(change.fields) == 2 for change, _ in found)


def test_nothing_is_found_where_nothing_fits():
    assert search(state=40_000.0, activations=60.0)[0] == []


def test_flags_are_those_of_the_command_line():
    assert flags_of({"mesh.fsdp": 16, "model.remat": True}) == "--mesh.fsdp=16 --model.remat=true"


@pytest.mark.parametrize(("name", "sizes"), [("v5e:2x2", {1, 4}), ("v5e:16x16", {1, 4, 16, 64})])
def test_a_sweep_has_the_shapes_that_divide_a_slice_with_and_without_remat(name, sizes):
    rows = grid_of_sweep(CONFIG, parse_slice(name))
    assert {row["mesh.fsdp"] for row in rows} == sizes
    assert {row["model.remat"] for row in rows} == {False, True}
    assert {row["mesh.tensor"] for row in rows} == {1, 2}
