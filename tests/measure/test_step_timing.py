"""Guards the benchmark of train steps: real steps, FLOPs and traffic by component, no rest."""

import pytest

from m3ae_tpu.configs import debug
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
    scopes = flops_by_scope(loss, reference_model(debug.CONFIG.model), shapes)
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
