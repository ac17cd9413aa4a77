"""Guards the search of block sizes: where it ends, and that what it enters is what dispatch finds."""

import dataclasses

import pytest

from m3ae_tpu.kernels.attention import block_sizes
from m3ae_tpu.measure import tuning

START = block_sizes.blocks_for("attention_backward", "TPU v5 lite", 321, "bfloat16")


def test_search_ends_at_the_best_and_measures_nothing_twice():
    best = dataclasses.replace(START, unroll=2, lags=(3, 4, 12))
    seen = []

    def measure(blocks):
        seen.append(blocks)
        if blocks.rows != START.rows:
            return None  # Does not compile.
        steps = [tuning._LAGS.index(lag) for lag in (*blocks.lags, *best.lags)]
        lags = sum(abs(a - b) for a, b in zip(steps[:3], steps[3:], strict=True))
        return 10.0 + lags + abs(blocks.unroll - best.unroll) + (blocks.key_tile != best.key_tile)

    found = tuning.hill_climb(START, measure)
    assert found.blocks == best
    assert found.after < found.before
    assert found.tries == len(seen) == len(set(seen))


def test_a_start_that_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="cannot be measured"):
        tuning.hill_climb(START, lambda blocks: None)


@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_what_is_entered_is_found_for_that_chip_alone(chip, monkeypatch):
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
        is_meant = (
            kernel == "attention_backward"
            and kind == block_sizes.CHIPS[chip]
            and 128 < tokens <= 512
        )
        assert block_sizes.blocks_for(kernel, kind, tokens, "bfloat16") == (
            blocks if is_meant else old
        )
    assert len(table) == len(block_sizes.table())
    again = tuning.with_row(table, "attention_backward", chip, 300, START, "another")
    assert len(again) == len(table)


def test_the_shipped_table_is_as_the_search_writes_it():
    path = block_sizes.__file__.replace(".py", ".json")
    with open(path, encoding="utf-8") as file:
        assert file.read() == tuning.dumps(block_sizes.table())


def test_chosen_block_sizes_count_while_they_are_chosen():
    other = dataclasses.replace(START, unroll=1)
    with block_sizes.override_blocks("attention_backward", other):
        assert block_sizes.blocks_for("attention_backward", "TPU v6 lite", 81, "bfloat16") == other
    assert block_sizes.blocks_for("attention_backward", "TPU v5 lite", 321, "bfloat16") == START
