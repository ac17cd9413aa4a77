"""Means over seeds, their spread, and the differences that the paper's findings are about."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from m3ae_tpu.experiments.variant import Experiment, Finding

type Scores = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Figures by variant and seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """The values of a figure over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation of a single seed; 0 for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finding of the paper, and the difference that was measured here."""

    finding: Finding
    difference: float
    """Mean of the better variant less that of the worse."""
    standard_error: float | None
    """From the deviations over seeds of all variants together; None for one seed."""
    paper: Mapping[str, float]
    """The paper's difference, points, by version; empty if it gives no number."""

    @property
    def verdict(self) -> str:
        """Says if the difference is seen: above two of its standard errors."""
        if self.standard_error is None:
            return "one seed: nothing can be said"
        if self.difference > 2 * self.standard_error:
            return "seen"
        if self.difference < -2 * self.standard_error:
            return "the opposite is seen"
        return "not seen at this scale"


def spreads(scores: Scores, variant: str, figure: str) -> Spread | None:
    """Returns a variant's values of a figure in the order of the seeds; None if it has none."""
    by_seed = scores.get(variant, {})
    values = tuple(by_seed[seed][figure] for seed in sorted(by_seed) if figure in by_seed[seed])
    return Spread(values=values) if values else None


def compare(experiment: Experiment, scores: Scores, figure: str = "") -> list[Comparison]:
    """Returns the experiment's findings beside what was measured, as far as both variants are.

    Args:
        experiment: Its findings.
        scores: Figures of its variants.
        figure: Compares this figure instead of the finding's own.
    """
    by_name = {variant.name: variant for variant in experiment.variants}
    compared = []
    for finding in experiment.findings:
        name = figure or finding.figure
        better, worse = (spreads(scores, each, name) for each in (finding.better, finding.worse))
        if better is None or worse is None:
            continue
        stated, other = (
            by_name[each].paper.get(finding.figure, {}) for each in (finding.better, finding.worse)
        )
        deviation = pooled_deviation(
            [spread for each in by_name if (spread := spreads(scores, each, name))]
        )
        error = None
        if deviation is not None:
            error = deviation * math.sqrt(1 / len(better.values) + 1 / len(worse.values))
        compared.append(
            Comparison(
                finding=finding,
                difference=better.mean - worse.mean,
                standard_error=error,
                paper={
                    version: stated[version] - other[version]
                    for version in stated
                    if version in other
                },
            )
        )
    return compared


def pooled_deviation(groups: Sequence[Spread]) -> float | None:
    """Returns the standard deviation within groups, all together; None if none has two values."""
    degrees = sum(len(group.values) - 1 for group in groups)
    if degrees == 0:
        return None
    squares = sum(group.deviation**2 * (len(group.values) - 1) for group in groups)
    return math.sqrt(squares / degrees)
