"""Guards the search of block sizes: its result, and that the kernels find the rows it writes."""

import dataclasses

import pytest

from m3ae_tpu.kernels.attention import block_sizes
from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure import tuning

OFFSETS = tuning._OFFSETS
START = block_sizes.blocks_for("attention_backward", "TPU v5 lite", 321, "bfloat16")


def test_search_ends_at_the_best_and_measures_nothing_twice():
    best = dataclasses.replace(START, unroll=2, stage_offsets=(3, 4, 12))
    seen = []

    def measure(blocks):
        seen.append(blocks)
        if blocks.rows != START.rows:
            return None  # Does not compile.
        pairs = zip(blocks.stage_offsets, best.stage_offsets, strict=True)
        steps = sum(abs(OFFSETS.index(a) - OFFSETS.index(b)) for a, b in pairs)
        return 10.0 + steps + abs(blocks.unroll - best.unroll) + (blocks.key_tile != best.key_tile)

    found = tuning.hill_climb(START, measure)
    assert found.blocks == best
    assert found.after < found.before
    assert found.tries == len(seen) == len(set(seen))


def test_a_start_that_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="cannot be measured"):
        tuning.hill_climb(START, lambda blocks: None)


@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_a_new_row_is_found_for_its_chip_alone(chip, monkeypatch):
    blocks = dataclasses.replace(START, unroll=2)
    table = tuning.with_row(block_sizes.table(), "attention_backward", chip, 321, blocks, "a test")
    before = {
        (kernel, kind, tokens): block_sizes.blocks_for(kernel, kind, tokens, "bfloat16")
        for kernel in ("attention_forward", "attention_backward")
        for kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite")
        for tokens in (81, 257, 321, 1024)
    }
    monkeypatch.setattr(block_sizes, "table", lambda: table)
    for (kernel, kind, tokens), old in before.items():
        is_new = (
            kernel == "attention_backward"
            and kind == CHIPS[chip].device_kind
            and 128 < tokens <= 512
        )
        want = blocks if is_new else old
        assert block_sizes.blocks_for(kernel, kind, tokens, "bfloat16") == want
    assert len(table) == len(block_sizes.table())
    again = tuning.with_row(table, "attention_backward", chip, 300, START, "another")
    assert len(again) == len(table)


def test_the_shipped_table_is_as_the_search_writes_it():
    path = block_sizes.__file__.replace(".py", ".json")
    with open(path, encoding="utf-8") as file:
        assert file.read() == tuning.dumps(block_sizes.table())


def test_overridden_block_sizes_apply_inside_the_with_block():
    other = dataclasses.replace(START, unroll=1)
    with block_sizes.override_blocks("attention_backward", other):
        assert block_sizes.blocks_for("attention_backward", "TPU v6 lite", 81, "bfloat16") == other
    assert block_sizes.blocks_for("attention_backward", "TPU v5 lite", 321, "bfloat16") == START
