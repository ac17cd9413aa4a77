"""Guards the plan of the batches: exact shares, and the same rows for any number of processes."""

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from m3ae_tpu.batch import Source, mixture
from m3ae_tpu.config import DataConfig, Kind, SourceConfig
from m3ae_tpu.data.plan import Plan
from m3ae_tpu.errors import UserError


def rows_of(weights: Sequence[float], batch_size: int) -> tuple[int, ...]:
    sources = tuple(SourceConfig(weight=float(weight)) for weight in weights)
    return tuple(source.rows for source in mixture(DataConfig(sources=sources), batch_size))


def sources_of(kinds: Sequence[Kind], rows: Sequence[int]) -> list[Source]:
    return [
        Source(kind, count, SourceConfig(kind=kind))
        for kind, count in zip(kinds, rows, strict=True)
    ]


@pytest.mark.parametrize(
    ("weights", "batch_size", "rows"),
    [
        ((1,), 7, (7,)),
        ((2, 1, 1), 512, (256, 128, 128)),
        ((1, 1, 1), 8, (3, 3, 2)),
        ((0.6, 0.3, 0.1), 8, (5, 2, 1)),
        ((3, 1), 6, (5, 1)),
    ],
)
def test_rows_go_to_the_largest_remainders(weights, batch_size, rows):
    assert rows_of(weights, batch_size) == rows


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(6, 500))
def test_shares_are_within_one_row_of_the_weights_and_add_up(weights, batch_size):
    shares = [batch_size * weight / sum(weights) for weight in weights]
    assume(min(shares) >= 1)
    rows = rows_of(weights, batch_size)
    assert sum(rows) == batch_size
    assert all(abs(n - share) < 1 for n, share in zip(rows, shares, strict=True))


def test_a_source_without_a_row_is_refused():
    with pytest.raises(
        UserError, match=r"weight = 0\.01 of source starter/train-\* gives it no row .* of 8"
    ):
        rows_of((1, 0.01), 8)


@st.composite
def layouts(draw):
    count = draw(st.sampled_from([1, 2, 3, 4]))
    kinds = draw(st.lists(st.sampled_from(["paired", "image", "text"]), min_size=1, max_size=4))
    rows = [draw(st.integers(1, 12)) for _ in kinds]
    for kind in set(kinds):
        assume(sum(n for other, n in zip(kinds, rows, strict=True) if other == kind) % count == 0)
    return kinds, rows, count


def rows_of_kinds(plan: Plan, kinds: list[Kind], step: int) -> dict[str, list[tuple[int, int]]]:
    return {kind: [row for row in plan.rows(step) if kinds[row[0]] == kind] for kind in kinds}


@given(layouts(), st.integers(0, 1000))
def test_the_rows_of_all_processes_are_the_batch_of_one(layout, step):
    kinds, rows, count = layout
    whole = rows_of_kinds(Plan(sources_of(kinds, rows)), kinds, step)
    processes = [
        rows_of_kinds(Plan(sources_of(kinds, rows), parts=[index], num_parts=count), kinds, step)
        for index in range(count)
    ]
    assert whole == {kind: [row for rows in processes for row in rows[kind]] for kind in whole}
    assert all(len(rows[kind]) == len(whole[kind]) // count for rows in processes for kind in whole)


@given(layouts(), st.integers(1, 5))
def test_each_source_is_walked_without_gaps_or_repeats(layout, num_steps):
    kinds, rows, _ = layout
    plan = Plan(sources_of(kinds, rows))
    seen = [row for step in range(num_steps) for row in plan.rows(step)]
    for source, n in enumerate(rows):
        places = [place for other, place in seen if other == source]
        assert sorted(places) == list(range(num_steps * n))


@given(layouts(), st.integers(0, 1000), st.randoms())
def test_parts_may_be_anywhere_in_the_batch(layout, step, random):
    kinds, rows, count = layout
    parts = sorted(random.sample(range(count), random.randint(1, count)))
    some = Plan(sources_of(kinds, rows), parts=parts, num_parts=count)
    each = [Plan(sources_of(kinds, rows), parts=[part], num_parts=count) for part in parts]
    of_kinds = [rows_of_kinds(plan, kinds, step) for plan in each]
    assert rows_of_kinds(some, kinds, step) == {
        kind: [row for one in of_kinds for row in one[kind]] for kind in dict.fromkeys(kinds)
    }


def test_rows_that_do_not_divide_over_processes_are_refused():
    with pytest.raises(
        UserError, match=r"5 rows of kind 'paired' in a batch do not divide into 2 parts"
    ):
        Plan(sources_of(["paired", "text"], [5, 4]), num_parts=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("weight", float("inf")), ("weight", float("nan")), ("split", (0.5, 0.5))],
)
def test_sources_that_mean_nothing_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"^{field} = .* is not "):
        SourceConfig(**{field: value})
