"""Guards the summary: spreads over seeds, differences with their errors, and verdicts."""

import math
import statistics

import pytest

from m3ae_tpu.errors import UserError
from m3ae_tpu.experiments.plan import Plan, fitting_steps, read_plan, write_plan
from m3ae_tpu.experiments.summary import compare, pooled_deviation, spreads
from m3ae_tpu.experiments.variant import Experiment, Finding, Setting, Variant

SETTING = Setting(config="paper_starter")
EXPERIMENT = Experiment(
    name="toy",
    title="Toy",
    lead="A toy.",
    source="nowhere",
    variants=tuple(
        Variant(name=name, starter=SETTING, full=None, paper={"linear_probe": {"June": value}})
        for name, value in {"good": 60.0, "bad": 50.0}.items()
    ),
    findings=(Finding(text="good is better", better="good", worse="bad"),),
)


def scores(good, bad):
    return {
        name: {seed: {"linear_probe": value} for seed, value in enumerate(values)}
        for name, values in {"good": good, "bad": bad}.items()
    }


def verdict(good, bad):
    (comparison,) = compare(EXPERIMENT, scores(good, bad))
    return comparison


def test_a_difference_has_the_error_of_all_deviations_together():
    good, bad = (0.5, 0.52, 0.54), (0.4, 0.41, 0.45)
    comparison = verdict(good, bad)
    pooled = math.sqrt((statistics.variance(good) + statistics.variance(bad)) / 2)
    assert comparison.difference == pytest.approx(0.1)
    assert comparison.standard_error == pytest.approx(pooled * math.sqrt(2 / 3))
    assert comparison.paper == {"June": pytest.approx(10.0)}
    assert comparison.verdict == "seen"


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        ((0.50, 0.54), (0.49, 0.53), "not seen at this scale"),
        ((0.40, 0.41), (0.50, 0.51), "the opposite is seen"),
        ((0.6,), (0.4,), "one seed: nothing can be said"),
    ],
)
def test_the_verdict_follows_the_error(good, bad, expected):
    assert verdict(good, bad).verdict == expected


def test_a_variant_without_scores_is_compared_with_nothing():
    assert compare(EXPERIMENT, {"good": {0: {"linear_probe": 0.5}}}) == []
    assert spreads({}, "good", "linear_probe") is None
    assert pooled_deviation([]) is None


def test_as_many_steps_are_taken_as_fit_into_the_time():
    steps = fitting_steps(
        seconds=1_200.0, num_runs=15, work=12.0, seconds_per_step=0.2, seconds_per_run=20.0
    )
    assert steps == 360
    assert 15 * 20 + 12 * steps * 0.2 <= 1_200
    slow = fitting_steps(
        seconds=60.0, num_runs=15, work=12.0, seconds_per_step=3.0, seconds_per_run=20.0
    )
    assert slow == 40


def test_a_plan_is_kept_and_another_experiment_or_length_refused(tmp_path):
    plan = Plan(experiment="size", num_steps=300, seconds_per_step=0.1, seconds_per_run=9.0)
    assert read_plan(tmp_path, "size", None) is None
    write_plan(tmp_path, plan)
    assert read_plan(tmp_path, "size", None) == read_plan(tmp_path, "size", 300) == plan
    with pytest.raises(UserError, match=r"holds the experiment size\. Name another"):
        read_plan(tmp_path, "epochs", None)
    with pytest.raises(UserError, match="--num_steps = 40 differs from the 300"):
        read_plan(tmp_path, "size", 40)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_plan(tmp_path, "size", None)
