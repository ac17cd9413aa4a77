"""Guards the files of an outcome: tables, plot, findings and page say the same."""

import json
import xml.etree.ElementTree as ET

import pytest

from m3ae_tpu.experiments.experiments import EXPERIMENTS, UNTRAINED
from m3ae_tpu.experiments.measuring import FIGURES
from m3ae_tpu.experiments.outcome import Outcome, findings_table, markdown, table
from m3ae_tpu.experiments.page import write_outcome
from m3ae_tpu.experiments.plot import Dots, dot_plot


def make_outcome(name, num_seeds=3):
    """Returns an outcome in which each variant is a point better than the one before."""
    experiment = EXPERIMENTS[name]
    names = [UNTRAINED, *(variant.name for variant in experiment.variants)]
    return Outcome(
        experiment=experiment,
        scores={
            variant: {
                seed: dict.fromkeys(FIGURES[experiment.measure], 0.4 + 0.01 * place + 0.001 * seed)
                for seed in range(num_seeds)
            }
            for place, variant in enumerate(names)
        },
        num_steps=300,
        num_test=973,
        command="python -m pipelines.paper --experiment=<it>",
    )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_table_a_plot_and_a_page(name, tmp_path):
    outcome = make_outcome(name)
    write_outcome(tmp_path, outcome)
    results = json.loads((tmp_path / "results.json").read_text())
    names = [variant.name for variant in outcome.experiment.variants]
    assert results["scores"].keys() == {UNTRAINED, *names}
    assert len(results["findings"]) == len(outcome.experiment.findings)
    ET.fromstring((tmp_path / "plot.svg").read_text())
    page = (tmp_path / "report.html").read_text()
    assert all(each in page for each in names)
    assert "&lt;it&gt;" in page
    assert "$" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    # Every row of a table has as many cells as its head.
    lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if "|" in line]
    heads = [number for number, line in enumerate(lines) if set(line) <= set("| -")]
    for place, head in enumerate(heads):
        end = heads[place + 1] - 1 if place + 1 < len(heads) else len(lines)
        assert len({line.count("|") for line in lines[head - 1 : end]}) == 1


def test_a_row_has_mean_deviation_and_every_seed_beside_both_versions_of_the_paper():
    heads, rows = table(make_outcome("text_mask"))
    assert [head for head in heads if head.startswith("paper")] == [
        "paper, linear probe (June 2022)",
        "paper, linear probe (later version, second-hand)",
    ]
    assert rows[0][0] == "15 %"
    assert rows[0][1] == "41.1 ± 0.1 (41.0, 41.1, 41.2)"
    assert rows[0][-2:] == ["53.3", "45.9"]
    assert rows[-1][0] == UNTRAINED


def test_findings_say_what_is_seen_and_one_seed_says_nothing():
    _, rows = findings_table(make_outcome("text_mask"))
    assert rows[0] == [
        "75 % is better than 15 % (75 % against 15 %)",
        "+10.8 (June 2022); +18.2 (later version, second-hand)",
        "+2.0 ± 0.1",
        "+2.0 ± 0.1",
        "seen",
    ]
    text = markdown(make_outcome("text_mask", num_seeds=1))
    assert "one seed: nothing can be said" in text
    assert "±" not in text.splitlines()[4]


def test_dots_lie_on_one_scale():
    plot = dot_plot(
        [Dots(name="a", values=[0.0, 1.0]), Dots(name="<b>", values=[0.5])], show="{:.1f}".format
    )
    circles = [each for each in ET.fromstring(plot).iter() if each.tag == "circle"]
    low, high, middle = (float(each.get("cx", "0")) for each in circles)
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
