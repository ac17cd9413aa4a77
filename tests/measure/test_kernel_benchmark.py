"""Guards the benchmark of kernels: a line for each measurement, and tables and charts of them."""

import jax
import pytest

from m3ae_tpu.kernels.attention.shapes import AttentionShape
from m3ae_tpu.measure import tables
from m3ae_tpu.measure.kernel_benchmark import SHAPES, time_kernels

SCHEDULED = [
    {"device": "v5e", "shape": "s", "backward": False, "implementation": "ours"}
    | {"us": 1.0, "bound": "memory", "cycles": 10.0, "hbm_bytes": 2e3},
    {"device": "v5e", "shape": "s", "backward": False, "implementation": "xla"}
    | {"us": 2.0, "hbm_bytes": 4e3, "at_least": True, "reason": "the replay aborts"},
    {"device": "v6e", "shape": "s", "backward": True, "implementation": "xla"}
    | {"reason": "the replay aborts"},
]


def test_each_implementation_has_figures_or_a_reason():
    reports = []
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention needs it.
        lines = time_kernels(
            ["ours", "xla", "cudnn"],
            {"tiny": AttentionShape(tokens=9, num_heads=2, head_dim=16)},
            batch=2,
            rounds=2,
            is_masked=True,
            report=reports.append,
        )
    assert reports == ["tiny cpu forward", "tiny cpu both"]
    assert [line["implementation"] for line in lines] == ["ours", "xla", "cudnn"] * 2
    for line in lines:
        if line["implementation"] == "cudnn":
            assert "no NVIDIA GPU is here" in line["reason"]
        else:
            assert line["us"] > 0
            assert line["flops"] > 0


@pytest.mark.parametrize("width", [80, 120])
def test_tables_show_figures_bounds_and_reasons(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("rich._console", None)
    tables.print_tables("attention", SCHEDULED, "scheduled")
    output = capsys.readouterr().out
    assert "≥ 2.00" in output
    assert "xla (v5e), xla (v6e): the replay aborts" in output
    assert ("█" in output) == (width == 120)


def test_charts_group_lines_by_device_shape_and_direction():
    chart = tables.chart("attention", SCHEDULED, "scheduled")
    assert chart.index("s, forward, v5e") < chart.index("s, forward and backward, v6e")
    assert "≥ 2.00 us" in chart
    assert "no figure" in chart


def test_shapes_are_named_for_every_operation():
    assert "encoder_large" in SHAPES["attention"]
    assert "text_head" in SHAPES["cross_entropy"]
