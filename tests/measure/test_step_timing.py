"""Guards the benchmark of train steps: real steps, FLOPs and traffic by component, no rest."""

import pytest

from m3ae_tpu.configs import debug
from m3ae_tpu.measure.hlo_text import NotCountedError, operations
from m3ae_tpu.measure.rehearsal import config_batch_shapes
from m3ae_tpu.measure.step_cost import COMPONENTS, component_of, flops_by_component
from m3ae_tpu.measure.step_timing import images_per_step, timed_step
from m3ae_tpu.train.card import reference_model
from m3ae_tpu.train.flops import flops_by_scope
from m3ae_tpu.train.pretraining import pretraining


def test_steps_run_and_take_time():
    timing = timed_step(debug.CONFIG, "xla", rounds=2)
    assert timing.seconds > 0
    assert timing.temporary_bytes
    assert images_per_step(debug.CONFIG) == debug.CONFIG.batch_size


def test_every_product_belongs_to_a_component():
    components = flops_by_component(debug.CONFIG)
    loss, shapes = pretraining(debug.CONFIG).loss, config_batch_shapes(debug.CONFIG)
    scopes = flops_by_scope(loss, reference_model(debug.CONFIG), shapes)
    assert sum(components.values()) == sum(scopes.values())
    assert components["rest"] == components["optimizer"] == components["encoder: norms"] == 0
    assert all(
        components[f"{stack}: {component}"]
        for stack in ("encoder", "decoder")
        for component in ("attention", "MLP")
    )


@pytest.mark.parametrize(
    ("scope", "component"),
    [
        (
            "jit(train_step)/transpose(jvp(encoder))/while/body/mlp/mlp/checkpoint/norm/mul",
            "encoder: norms",
        ),
        (
            "jit(train_step)/jvp(decoder)/while/body/attention/cond/branch_0_fun/pallas_call",
            "decoder: attention",
        ),
        ("jit(train_step)/jvp(decoder)/while/body/dot_general", "decoder: projections"),
        ("jit(train_step)/optimizer/mul", "optimizer"),
        ("", "rest"),
    ],
)
def test_scopes_name_components(scope, component):
    assert component_of(scope) == component
    assert component in COMPONENTS


PROGRAM = """HloModule step

%body (arg.1: (s32[], f32[5,8,128])) -> (s32[], f32[5,8,128]) {
  %arg.1 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %stack.1 = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%arg.1), index=1
  %new.1 = f32[5,8,128]{2,1,0:T(8,128)} fusion(%stack.1, %i.1), kind=kLoop, calls=%fused.1
  ROOT %out.1 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}) tuple(%i.1, %new.1)
}

%inner.1 (p.3: f32[5,8,128], p.4: s32[]) -> f32[1,8,128] {
  %p.3 = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %p.4 = s32[]{:T(128)} parameter(1)
  ROOT %cut.1 = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p.3, %p.4, %p.4, %p.4), dynamic_slice_sizes={1,8,128}
}

%fused.1 (p.0: f32[5,8,128], p.1: s32[]) -> f32[5,8,128] {
  %p.0 = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %slice.1 = f32[1,8,128]{2,1,0:T(8,128)} fusion(%p.0, %p.1), kind=kLoop, calls=%inner.1
  ROOT %put.1 = f32[5,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%p.0, %slice.1, %p.1, %p.1, %p.1)
}

%condition (arg.2: (s32[], f32[5,8,128])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(5)
  %arg.2 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%arg.2), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i.2, %limit.1), direction=LT
}

ENTRY %main (p.2: (s32[], f32[5,8,128])) -> (s32[], f32[5,8,128]) {
  %p.2 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  ROOT %loop.1 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}) while(%p.2), condition=%condition, body=%body
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
