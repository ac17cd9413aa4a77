"""Classifier of the words in captions, without any encoder: what a probe is compared with."""

import warnings
from collections.abc import Sequence

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from m3ae_tpu.probing.scores import ProbeScore, Targets

STRENGTHS = (1.0, 10.0)
"""Weights of the loss against the penalty, `C` in scikit-learn."""


def bag_of_words_probe(
    targets: Targets, train: Sequence[str], test: Sequence[str]
) -> ProbeScore | None:
    """Scores a linear classifier of the words in a caption.

    Takes the words of at least two training captions, in lower case; None if there are none.
    """
    words = CountVectorizer(binary=True, min_df=2, token_pattern=r"\w+")
    try:
        counts = words.fit_transform(train)
    except ValueError:  # scikit-learn's way to say that no word is left.
        return None
    search = GridSearchCV(
        LogisticRegression(tol=1e-3, max_iter=2_000),
        {"C": STRENGTHS},
        cv=targets.folds,
        error_score="raise",  # pyright: ignore[reportArgumentType]  # Allowed beside numbers.
    )
    with warnings.catch_warnings():
        # Classes of few examples are still classes.
        warnings.filterwarnings("ignore", "The number of unique classes")
        predicted = search.fit(counts, targets.train).predict(words.transform(test))
    return ProbeScore.of(targets, predicted, float(search.best_score_), **search.best_params_)
