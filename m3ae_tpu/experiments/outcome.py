"""The outcome of an experiment, and its tables as plain text: cells, findings, and remarks."""

import dataclasses
import datetime
from typing import Any

from m3ae_tpu.experiments.experiments import UNTRAINED
from m3ae_tpu.experiments.measuring import FIGURES, POOLING
from m3ae_tpu.experiments.summary import Comparison, Scores, compare, spreads
from m3ae_tpu.experiments.variant import Experiment
from m3ae_tpu.probing.scores import standard_error

_SECOND_FIGURE = "cross_validated"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Figures of an experiment's runs, and remarks that a reader must know."""

    experiment: Experiment
    scores: Scores
    """Figures by variant, or by name of a given model, and by seed."""
    num_steps: int | None
    """Steps of the longest run; None for given models."""
    num_test: int
    """Test examples."""
    command: str
    remark: str = ""
    images: str = ""
    """Sections of the page, as HTML."""

    @property
    def names(self) -> list[str]:
        """Variants in the experiment's order, then others."""
        known = [each.name for each in self.experiment.variants if each.name in self.scores]
        return [*known, *(name for name in self.scores if name not in known)]

    @property
    def figures(self) -> dict[str, str]:
        """Tabulated figures, described."""
        return dict(FIGURES[self.experiment.measure])

    @property
    def comparisons(self) -> list[Comparison]:
        return compare(self.experiment, self.scores)


def show_value(outcome: Outcome, figure: str, value: float) -> str:
    """Formats a value: shares as percent, other figures with three digits."""
    is_share = figure != "silhouette" and outcome.experiment.measure in (
        "probe",
        "ood",
        "embedding",
    )
    return f"{100 * value:.1f}" if is_share else f"{value:.3f}"


def cell(outcome: Outcome, name: str, figure: str) -> str:
    """Returns mean, deviation and each seed's value of a figure; "" if there is none."""
    spread = spreads(outcome.scores, name, figure)
    if spread is None:
        return ""
    each = ", ".join(show_value(outcome, figure, value) for value in spread.values)
    mean = show_value(outcome, figure, spread.mean)
    if len(spread.values) == 1:
        return mean
    return f"{mean} ± {show_value(outcome, figure, spread.deviation)} ({each})"


def paper_columns(outcome: Outcome) -> list[tuple[str, str]]:
    """Returns figure and version of each column of the paper's values."""
    columns: dict[tuple[str, str], None] = {}
    for variant in outcome.experiment.variants:
        for figure, by_version in variant.paper.items():
            columns |= dict.fromkeys((figure, version) for version in by_version)
    return list(columns)


def paper_value(outcome: Outcome, name: str, figure: str, version: str) -> str:
    """Returns a value of the paper, percent; "" if it gives none."""
    for variant in outcome.experiment.variants:
        if variant.name == name and version in variant.paper.get(figure, {}):
            return f"{variant.paper[figure][version]:.1f}"
    return ""


def table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Returns heads and rows: name, figures here, values of the paper."""
    figures = outcome.figures
    columns = paper_columns(outcome)
    heads = ["", *figures.values()]
    heads += [f"paper, {_short(figures[figure])} ({version})" for figure, version in columns]
    rows = [
        [
            name,
            *(cell(outcome, name, figure) for figure in figures),
            *(paper_value(outcome, name, figure, version) for figure, version in columns),
        ]
        for name in outcome.names
    ]
    return heads, rows


def findings_table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Returns heads and rows: finding, the paper's difference, ours, and the verdict."""
    heads = ["finding", "difference in the paper", "difference here", "verdict"]
    second = {}
    if _SECOND_FIGURE in outcome.figures:
        heads.insert(3, "the same, cross-validated")
        second = {
            each.finding.text: each
            for each in compare(outcome.experiment, outcome.scores, _SECOND_FIGURE)
        }
    rows = []
    for each in outcome.comparisons:
        paper = "; ".join(f"{points:+.1f} ({name})" for name, points in each.paper.items())
        row = [f"{each.finding.text} ({each.finding.better} against {each.finding.worse})"]
        row += [paper or "without a number", _difference(each)]
        row += [_difference(second[each.finding.text])] if second else []
        rows.append([*row, each.verdict])
    return heads, rows


def _difference(comparison: Comparison) -> str:
    error = comparison.standard_error
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return f"{100 * comparison.difference:+.1f}{spread}"


def notes(outcome: Outcome) -> list[str]:
    """Returns the sentences that qualify the figures."""
    sentences = [outcome.remark] if outcome.remark else []
    seeds = max((len(by_seed) for by_seed in outcome.scores.values()), default=0)
    if outcome.num_steps is not None:
        sentences.append(
            f"Config `paper_starter` and its variants, {outcome.num_steps} steps at most, seeds: "
            f"{seeds}. Equal seeds see equal images in the same order."
        )
    if outcome.experiment.measure == "probe":
        error = 100 * standard_error(0.5, outcome.num_test)
        sentences.append(
            f"Frozen features of single images (`{POOLING}`: class token, the middle block's mean, "
            "mean and maximum of the patches), chosen beforehand. A linear probe learns from the "
            "training images; its penalty, and whitening, are chosen by cross-validation there. "
            "All are scored on the same "
            f"{outcome.num_test:,} held-out images; a single accuracy on them has a standard error "
            f"of up to {error:.1f} points, which the spread over seeds does not contain."
        )
    sentences += _beside_untrained(outcome)
    if outcome.comparisons:
        sentences.append(
            "± of a row is the standard deviation over seeds. ± of a difference is its standard "
            "error, from the deviations of all variants together. A finding counts as seen if the "
            "difference is above two standard errors."
        )
    sentences += [f"{each.name}: {each.note}" for each in outcome.experiment.variants if each.note]
    if paper_columns(outcome):
        sentences.append(
            f"Values of the paper: {outcome.experiment.source}, read off its plots, ImageNet or "
            "CIFAR, percent. They are other data at another size: compare the order of the rows, "
            "not the numbers."
        )
    return sentences


def _beside_untrained(outcome: Outcome) -> list[str]:
    """Returns a sentence on what the runs have learned at all."""
    figure = next(iter(outcome.figures))
    untrained = spreads(outcome.scores, UNTRAINED, figure)
    if untrained is None:
        return []
    trained = {
        variant.name: spread
        for variant in outcome.experiment.variants
        if (spread := spreads(outcome.scores, variant.name, figure))
    }
    above = [name for name, spread in trained.items() if spread.mean > untrained.mean]
    if len(above) == len(trained):
        return [f"All variants are above the untrained encoder ({outcome.figures[figure]})."]
    which = (
        f"Above the untrained encoder are {', '.join(above)} alone"
        if above
        else ("No variant is above the untrained encoder")
    )
    return [
        f"{which} ({outcome.figures[figure]}): runs of so few steps have hardly begun to learn. "
        "More --minutes, or a faster machine, give more steps."
    ]


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Returns everything as plain data."""
    return {
        "experiment": outcome.experiment.name,
        "date": datetime.date.today().isoformat(),
        "command": outcome.command,
        "num_steps": outcome.num_steps,
        "scores": {
            name: {str(seed): dict(figures) for seed, figures in by_seed.items()}
            for name, by_seed in outcome.scores.items()
        },
        "means": {
            name: {
                figure: {"mean": spread.mean, "deviation": spread.deviation}
                for figure in outcome.figures
                if (spread := spreads(outcome.scores, name, figure))
            }
            for name in outcome.names
        },
        "paper": {
            each.name: {figure: dict(values) for figure, values in each.paper.items()}
            for each in outcome.experiment.variants
        },
        "source": outcome.experiment.source,
        "findings": [
            {
                "text": each.finding.text,
                "figure": each.finding.figure,
                "better": each.finding.better,
                "worse": each.finding.worse,
                "difference": each.difference,
                "standard_error": each.standard_error,
                "paper_points": dict(each.paper),
                "verdict": each.verdict,
            }
            for each in outcome.comparisons
        ],
        "notes": notes(outcome),
    }


def markdown(outcome: Outcome) -> str:
    """Returns both tables and the notes as a Markdown page."""
    parts = [f"# {outcome.experiment.title}", outcome.experiment.lead, _rows(*table(outcome))]
    if outcome.comparisons:
        parts.append(_rows(*findings_table(outcome)))
    return "\n\n".join([*parts, *notes(outcome), f"```\n{outcome.command}\n```"]) + "\n"


def _rows(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(description: str) -> str:
    return description.partition(",")[0] if "AUROC" not in description else description
