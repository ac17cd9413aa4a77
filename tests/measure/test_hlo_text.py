"""Guards the reader of compiled programs: runs, memory traffic and work of their operations."""

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


LOOKUP = """HloModule lookup

%take.1 (p.0: f32[4000,128], p.1: s32[16]) -> f32[16,128] {
  %p.0 = f32[4000,128]{1,0:T(8,128)} parameter(0)
  %p.1 = s32[16]{0:T(128)S(1)} parameter(1)
  ROOT %rows.1 = f32[16,128]{1,0:T(8,128)S(1)} gather(%p.0, %p.1), slice_sizes={1,128}
}

%put.1 (p.2: f32[4000,128], p.3: s32[16], p.4: f32[16,128]) -> f32[4000,128] {
  %p.2 = f32[4000,128]{1,0:T(8,128)} parameter(0)
  %p.3 = s32[16]{0:T(128)S(1)} parameter(1)
  %p.4 = f32[16,128]{1,0:T(8,128)S(1)} parameter(2)
  ROOT %sum.1 = f32[4000,128]{1,0:T(8,128)} scatter(%p.2, %p.3, %p.4), to_apply=%add.1
}

ENTRY %main (p.5: f32[4000,128], p.6: s32[16]) -> f32[4000,128] {
  %p.5 = f32[4000,128]{1,0:T(8,128)} parameter(0)
  %p.6 = s32[16]{0:T(128)S(1)} parameter(1)
  %taken.1 = f32[16,128]{1,0:T(8,128)S(1)} fusion(%p.5, %p.6), kind=kCustom, calls=%take.1
  ROOT %put.2 = f32[4000,128]{1,0:T(8,128)} fusion(%p.5, %p.6, %taken.1), calls=%put.1
}
"""


def test_a_lookup_in_a_table_and_its_gradient_count_the_rows_that_they_touch():
    taken, put = operations(LOOKUP)
    assert taken.hbm_bytes == 16 * 128 * 4
    assert put.hbm_bytes == 2 * 16 * 128 * 4


PRODUCTS = """HloModule products

%fused.1 (p.0: bf16[4,6,8], p.1: bf16[8,16], p.2: bf16[16]) -> bf16[4,6,16] {
  %p.0 = bf16[4,6,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(1)
  %w.1 = bf16[1,8,16]{2,1,0:T(8,128)(2,1)} bitcast(%p.1)
  %p.2 = bf16[16]{0:T(256)(128)(2,1)} parameter(2)
  %b.1 = bf16[4,6,16]{2,1,0:T(8,128)(2,1)} broadcast(%p.2), dimensions={2}
  %y.1 = bf16[4,6,16]{2,1,0:T(8,128)(2,1)} convolution(%p.0, %w.1), window={size=1}, LABELS
  ROOT %out.1 = bf16[4,6,16]{2,1,0:T(8,128)(2,1)} add(%y.1, %b.1)
}

%sum.1 (p.3: bf16[4,6,16]) -> f32[16] {
  %p.3 = bf16[4,6,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %wide.1 = f32[4,6,16]{2,1,0:T(8,128)} convert(%p.3)
  %zero.1 = f32[]{:T(128)} constant(0)
  ROOT %sum.2 = f32[16]{0:T(128)} reduce(%wide.1, %zero.1), dimensions={0,1}, to_apply=%add.1
}

ENTRY %main (p.4: bf16[4,6,8], p.5: bf16[8,16], p.6: bf16[16]) -> f32[16] {
  %p.4 = bf16[4,6,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.5 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(1)
  %p.6 = bf16[16]{0:T(256)(128)(2,1)} parameter(2)
  %y.2 = bf16[4,6,16]{2,1,0:T(8,128)(2,1)S(1)} fusion(%p.4, %p.5, %p.6), calls=%fused.1, COST
  ROOT %s.1 = f32[16]{0:T(128)} fusion(%y.2), kind=kLoop, calls=%sum.1
}
""".replace("LABELS", "dim_labels=0bf_0io->0bf")


def test_products_and_sums_within_fusions_are_found():
    product, row_sum = operations(PRODUCTS)
    assert product.product_flops == 2 * 4 * 6 * 8 * 16
    assert not product.sums_rows
    assert product.reads_hbm
    assert row_sum.sums_rows
    assert not row_sum.reads_hbm
    assert row_sum.product_flops == 0
    (norm,) = operations(PRODUCTS.replace("dimensions={0,1}", "dimensions={2}"))[1:]
    assert not norm.sums_rows


@pytest.mark.parametrize(
    ("window", "result", "num_pairs"),
    [
        ("size=4", 1, 4),
        ("size=4 stride=3 pad=3_3 lhs_dilate=4", 4, 4),  # Examples that are multiplied apart.
        ("size=4 pad=3_3 rhs_reversal=1", 7, 16),
        ("size=2 pad=0_-1 rhs_dilate=2", 1, 2),
    ],
)
def test_products_with_padding_are_not_counted(window, result, num_pairs):
    text = PRODUCTS.replace("size=1", window).replace("[1,8,16]", f"[{window[5]},8,16]")
    product, _ = operations(text.replace("%y.1 = bf16[4,", f"%y.1 = bf16[{result},"))
    assert product.product_flops == 2 * 6 * 8 * 16 * num_pairs


@pytest.mark.parametrize(("cycles", "counted"), [("0", None), ("12", 12)])
def test_no_cycles_in_the_replay_are_none_that_it_could_count(cycles, counted):
    cost = f'backend_config={{"bundle_analysis_data":{{"estimated_cycles":"{cycles}"}}}}'
    product, _ = operations(PRODUCTS.replace("COST", cost))
    assert product.cycles == counted
