"""Few-shot probes: a linear classifier of a few examples of each class, over several draws."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32
from sklearn.preprocessing import StandardScaler

from m3ae_tpu.errors import require
from m3ae_tpu.probing.logistic_regression import LogisticRegression
from m3ae_tpu.probing.scores import ProbeScore, Targets, TestFeatures, TrainFeatures

SHOTS = (1, 5, 10)
NUM_DRAWS = 5
STRENGTH = 0.1
"""`C` of the logistic regression: a few examples allow no choice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotScore:
    """Accuracies of probes of `shots` examples a class, as shares of 1."""

    shots: int
    draws: tuple[ProbeScore, ...]
    """One for each draw of examples."""

    @property
    def mean(self) -> float:
        """Mean accuracy of the draws."""
        return float(np.mean([draw.accuracy for draw in self.draws]))

    @property
    def deviation(self) -> float:
        """Standard deviation of the accuracy over the draws; 0 for a single one."""
        accuracies = [draw.accuracy for draw in self.draws]
        return float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0


def few_shot_probe(
    targets: Targets,
    train: TrainFeatures,
    test: TestFeatures,
    *,
    shots: Sequence[int] = SHOTS,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> list[FewShotScore]:
    """Scores logistic regression of `k` drawn training examples of each class, for each `k`.

    Features are standardised by all training examples, whose classes this does not use. The
    examples of a draw depend on seed, `k` and the draw's number alone.
    """
    scaler = StandardScaler()
    train, test = (np.asarray(scaler.fit(train).transform(each)) for each in (train, test))
    scores = []
    for count in shots:
        draws = []
        for draw in range(num_draws):
            chosen = draw_examples(targets.train, count, seed=(seed, count, draw))
            classifier = LogisticRegression(STRENGTH).fit(train[chosen], targets.train[chosen])
            draws.append(ProbeScore.of(targets, classifier.predict(test), 0.0))
        scores.append(FewShotScore(shots=count, draws=tuple(draws)))
    return scores


def require_shots(
    labels: Int32[np.ndarray, " examples"], label_names: Sequence[str], shots: Sequence[int]
) -> None:
    """Checks that every class has as many training examples as are drawn.

    Raises:
        UserError: one has fewer.
    """
    numbers, counts = np.unique(labels, return_counts=True)
    fewest = int(np.argmin(counts))
    require(
        max(shots) <= int(counts[fewest]),
        f"--shots = {max(shots)} is more than the training examples of class "
        f"{label_names[numbers[fewest]]}: {counts[fewest]}. Set --shots to at most that, or leave "
        "the class out.",
    )


def draw_examples(
    labels: Int32[np.ndarray, " examples"], count: int, *, seed: tuple[int, ...]
) -> Int[np.ndarray, " chosen"]:
    """Draws `count` examples of each class without repetition."""
    random = np.random.default_rng(seed)
    return np.concatenate(
        [
            random.choice(np.flatnonzero(labels == label), count, replace=False)
            for label in np.unique(labels)
        ]
    )
