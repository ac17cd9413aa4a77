"""Guards the parser of compiled programs: runs and memory traffic of a loop's operations."""

import pytest

from m3ae_tpu.measure.hlo_text import NotCountedError, operations

PROGRAM = """HloModule step

%n (arg.1: (s32[], f32[5,8,128])) -> (s32[], f32[5,8,128]) {
  %arg.1 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %stack.1 = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%arg.1), index=1
  %new.1 = f32[5,8,128]{2,1,0:T(8,128)} fusion(%stack.1, %i.1), kind=kLoop, calls=%fused.1
  ROOT %out.1 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}) tuple(%i.1, %new.1)
}

%inner.1 (p.3: f32[5,8,128], p.4: s32[]) -> f32[1,8,128] {
  %p.3 = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %p.4 = s32[]{:T(128)} parameter(1)
  ROOT %cut.1 = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p.3, %p.4, %p.4, %p.4)
}

%fused.1 (p.0: f32[5,8,128], p.1: s32[]) -> f32[5,8,128] {
  %p.0 = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %slice.1 = f32[1,8,128]{2,1,0:T(8,128)} fusion(%p.0, %p.1), kind=kLoop, calls=%inner.1
  ROOT %put.1 = f32[5,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%p.0, %slice.1, %p.1, %p.1, %p.1)
}

%m (arg.2: (s32[], f32[5,8,128])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(5)
  %arg.2 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%arg.2), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i.2, %limit.1), direction=LT
}

ENTRY %main (p.2: (s32[], f32[5,8,128])) -> (s32[], f32[5,8,128]) {
  %p.2 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  ROOT %loop.1 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}) while(%p.2), condition=%m, body=%n
}
"""


def test_a_loop_over_a_stack_counts_the_slices_that_it_touches():
    (operation,) = operations(PROGRAM)
    slice_bytes = 8 * 128 * 4
    assert operation.times == 5
    assert abs(operation.hbm_bytes - 2 * slice_bytes) <= 4 * 128  # Beside the counter's tile.


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(NotCountedError, match=r"loop\.1: the number of iterations is not known"):
        operations(PROGRAM.replace("direction=LT", "direction=NE"))
