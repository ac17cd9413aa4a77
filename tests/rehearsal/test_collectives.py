"""Guards the reader of collectives: kinds, mesh axes, bytes, runs, in each spelling of a text."""

import numpy as np
import pytest

from m3ae_tpu.rehearsal.collectives import BETWEEN_SLICES, collectives

MESH = {"data": 2, "fsdp": 4, "tensor": 1}


def program(*lines, more=""):
    """A program with these instructions, and more computations before it."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule step\n\n{more}\n\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


@pytest.mark.parametrize(
    ("groups", "axis"),
    [
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}", "fsdp"),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", "data"),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", "fsdp"),
        ("mesh['axis_0'=8] {'axis_0':(1)2}", "data"),
        ("[2,4]<=[8]", "fsdp"),
        ("[4,2]<=[2,4]T(1,0)", "data"),
        ("[1,8]<=[8]", "data+fsdp"),
        ("{{0,1,2,3},{4,5,6,7}}", "fsdp"),
        ("{{4,0},{5,1},{6,2},{7,3}}", "data"),
        ("{{0,1},{2,3},{4,5},{6,7}}", "?"),
    ],
)
def test_each_spelling_of_the_groups_names_its_mesh_axis(groups, axis):
    line = f"%r.1 = bf16[3,5]{{1,0:T(8,128)}} all-reduce(%p), channel_id=7, replica_groups={groups}"
    (found,) = collectives(program(line), MESH)
    assert (found.kind, found.axis, found.bytes, found.dtypes) == ("all-reduce", axis, 30, "bf16")
    assert (found.times, found.is_in_loop, found.is_asynchronous) == (1, False, False)


def test_a_permutation_is_along_the_axis_in_which_its_pairs_differ():
    line = "%c.1 = f32[4]{0} collective-permute(%p), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}"
    (found,) = collectives(program(line), MESH)
    assert (found.kind, found.axis, found.bytes) == ("collective-permute", "fsdp", 16)


LOOP = """%gather.1 (q: bf16[2,8]) -> bf16[8,8] {
  %q = bf16[2,8]{1,0} parameter(0)
  ROOT %g.1 = bf16[8,8]{1,0:T(8,128)} all-gather(%q), channel_id=3, replica_groups=[2,4]<=[8]
}

%gather.2 (q: bf16[2,8]) -> bf16[8,8] {
  %q.2 = bf16[2,8]{1,0} parameter(0)
  ROOT %g.2 = bf16[8,8]{0,1} all-gather(%q.2), channel_id=3, replica_groups=[2,4]<=[8]
}

%all-reduce-scatter.5 (q: f32[8,8]) -> f32[2,8] {
  %q.3 = f32[8,8]{1,0} parameter(0)
  %s.1 = f32[8,8]{1,0} all-reduce(%q.3), channel_id=4, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %cut = f32[2,8]{1,0} dynamic-slice(%s.1, %q.3, %q.3), dynamic_slice_sizes={2,8}
}

%body (a: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %a = (s32[], bf16[2,8]) parameter(0)
  %x = bf16[2,8]{1,0} get-tuple-element(%a), index=1
  %async-collective-start.1 = (bf16[2,8], bf16[8,8]) fusion(%x), kind=kCustom, calls=%gather.1
  %async_collective_fusion.1 = bf16[8,8]{1,0} fusion(%x), kind=kOutput, calls=%gather.2
  %scatter.1 = f32[2,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.5
  ROOT %out = (s32[], bf16[2,8]) tuple(%x, %x)
}

%condition (a: (s32[], bf16[2,8])) -> pred[] {
  %a.2 = (s32[], bf16[2,8]) parameter(0)
  %i = s32[] get-tuple-element(%a.2), index=0
  %limit = s32[] constant(24)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}"""


def test_a_gather_behind_work_counts_once_and_a_loop_multiplies_its_runs():
    loop = "%w = (s32[], bf16[2,8]) while(%p), condition=%condition, body=%body"
    gather, scatter = collectives(program(loop, more=LOOP), MESH)
    assert (gather.kind, gather.axis, gather.bytes) == ("all-gather", "fsdp", 128)
    assert gather.is_asynchronous
    assert (scatter.kind, scatter.axis, scatter.bytes) == ("reduce-scatter", "fsdp", 256)
    assert not scatter.is_asynchronous
    assert {line.times for line in (gather, scatter)} == {24}
    assert all(line.is_in_loop for line in (gather, scatter))


def test_a_start_counts_its_result_and_its_end_nothing():
    start = "%s = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), channel_id=1, "
    start += "replica_groups=[2,4]<=[8]"
    end = "%d = f32[8]{0} all-gather-done(%s)"
    (found,) = collectives(program(start, end), MESH)
    assert (found.kind, found.bytes, found.is_asynchronous) == ("all-gather", 32, True)


def test_a_scatter_counts_what_is_scattered():
    line = "%s = f32[2]{0} reduce-scatter(%p), channel_id=1, replica_groups=[2,4]<=[8]"
    (found,) = collectives(program(line), MESH)
    assert (found.kind, found.bytes) == ("reduce-scatter", 32)


def test_several_arrays_of_one_operation_add_up():
    line = "%r = (bf16[4]{0}, /*index=1*/f32[2,2]{1,0:T(2,128)S(1)}) all-reduce(%p, %p), "
    (found,) = collectives(program(line + "channel_id=1, replica_groups=[1,8]<=[8]"), MESH)
    assert (found.bytes, found.dtypes) == (4 * 2 + 4 * 4, "bf16+f32")


def test_what_leaves_a_slice_is_told_apart():
    send = "%s = (bf16[6]{0}, u32[], token[]) send(%p, %t), channel_id=9, is_host_transfer=true, "
    send += 'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
    (found,) = collectives(program(send), MESH)
    assert (found.kind, found.axis, found.bytes) == ("all-reduce", BETWEEN_SLICES, 12)


def test_groups_of_a_real_mesh_are_those_of_its_axes():
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    devices = np.arange(8).reshape(2, 2, 2)
    rows = devices.transpose(1, 0, 2).reshape(2, 4)  # data and tensor vary within a group.
    text = "{" + ",".join("{" + ",".join(map(str, row)) + "}" for row in rows) + "}"
    line = f"%r = f32[4]{{0}} all-reduce(%p), channel_id=1, replica_groups={text}"
    (found,) = collectives(program(line), sizes)
    assert found.axis == "data+tensor"
