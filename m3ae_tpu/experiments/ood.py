"""Detection of foreign images by features: four scores, and the area under the ROC curve of each.

Mahalanobis: Lee et al. 2018; nearest neighbours: Sun et al. 2022; maximum softmax: Hendrycks and
Gimpel 2017; energy: Liu et al. 2020.
"""

from collections.abc import Mapping

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import scipy.stats
import sklearn.datasets
from jaxtyping import Float, Int32, UInt8
from scipy.special import logsumexp
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.probing.logistic_regression import LogisticRegression

FIGURES = {
    "mahalanobis": "AUROC, Mahalanobis distance",
    "softmax": "AUROC, maximum softmax",
    "knn": "AUROC, nearest neighbours",
    "energy": "AUROC, energy",
}
NUM_COMPONENTS = 64
NUM_NEIGHBORS = 10
_STRENGTH = 0.01  # C of the classifier, as cross-validation often chooses it on these features.
_SHUFFLED_SIDE = 16
_MOST_IMAGES = 500


def aurocs(
    train: Float[np.ndarray, "train_examples features"],
    labels: Int32[np.ndarray, " train_examples"],
    known: Float[np.ndarray, "known_examples features"],
    foreign: Mapping[str, Float[np.ndarray, "_ features"]],
) -> dict[str, float]:
    """Returns the AUROC of each score: its mean over the foreign sets, and of each set.

    Args:
        train: Features of known images, from which all scores learn.
        labels: Their classes.
        known: Features of other known images.
        foreign: Features of foreign images, by set.
    """
    score = fit_scores(train, labels)
    of_known, figures = score(known), {}
    by_set = {name: score(features) for name, features in foreign.items()}
    for name in FIGURES:
        each = {where: auroc(of_known[name], scores[name]) for where, scores in by_set.items()}
        figures[name] = float(np.mean(list(each.values())))
        figures |= {f"{name}/{where}": value for where, value in each.items()}
    return figures


def auroc(known: Float[np.ndarray, " known"], foreign: Float[np.ndarray, " foreign"]) -> float:
    """Returns the probability that a foreign example scores higher than a known one; ties half."""
    ranks = scipy.stats.rankdata(np.concatenate([known, foreign]))
    count = len(foreign)
    above = ranks[len(known) :].sum() - count * (count + 1) / 2
    return float(above / (len(known) * count))


def fit_scores(
    train: Float[np.ndarray, "examples features"], labels: Int32[np.ndarray, " examples"]
):
    """Returns a function from features to scores by name: high ones are foreign."""
    components = min(NUM_COMPONENTS, *train.shape)
    reduce = make_pipeline(StandardScaler(), PCA(components, svd_solver="full"))
    train = np.asarray(reduce.fit_transform(train))
    classes, rows = np.unique(labels, return_inverse=True)
    means = np.stack([train[labels == label].mean(axis=0) for label in classes])
    covariance = np.cov((train - means[rows]).T).reshape(components, components)
    ridge = 1e-3 * np.trace(covariance) / components
    precision = np.linalg.inv(covariance + ridge * np.eye(components))
    classifier = LogisticRegression(C=_STRENGTH).fit(train, labels)
    directions = _directions(train)

    def score(features: Float[np.ndarray, "examples features"]) -> dict[str, np.ndarray]:
        reduced = np.asarray(reduce.transform(features))
        away = reduced[:, None] - means[None]
        distances = np.einsum("ncd,de,nce->nc", away, precision, away, optimize=True)
        cosines = _directions(reduced) @ directions.T
        nearest = np.sort(cosines, axis=1)[:, -min(NUM_NEIGHBORS, cosines.shape[1])]
        logits = reduced @ classifier.coef_.T + classifier.intercept_
        sums = np.asarray(logsumexp(logits, axis=1))
        return {
            "mahalanobis": distances.min(axis=1),
            "knn": 1 - nearest,
            "softmax": -np.exp(logits.max(axis=1) - sums),
            "energy": -sums,
        }

    return score


def foreign_sets(
    known: LabelledExamples,
) -> dict[str, UInt8[np.ndarray, "_ size size 3"]]:
    """Returns images that are not of a known set: the same for the same examples.

    - `digits`: scikit-learn's handwritten digits, enlarged.
    - `noise`: uniform random pixels.
    - `shuffled`: known images with their patches in random order.
    - `text`: captions, or random letters, in black on white.
    """
    random = np.random.default_rng(20_220_528)
    count, size = min(len(known), _MOST_IMAGES), known.images.shape[1]
    digits = sklearn.datasets.load_digits().images[:count] * (255 / 16)  # pyright: ignore
    captions = [text.strip() or _letters(random) for text in known.captions[:count]]
    return {
        "digits": np.stack([_enlarged(digit.astype(np.uint8), size) for digit in digits]),
        "noise": random.integers(0, 256, (count, size, size, 3), np.uint8),
        "shuffled": np.stack([_shuffled(image, random) for image in known.images[:count]]),
        "text": np.stack([_written(text, size) for text in captions]),
    }


def _enlarged(digit: UInt8[np.ndarray, "height width"], size: int) -> np.ndarray:
    image = PIL.Image.fromarray(digit).resize((size, size), PIL.Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGB"))


def _shuffled(
    image: UInt8[np.ndarray, "size size 3"], random: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    size = image.shape[0]
    side = next(side for side in range(min(_SHUFFLED_SIDE, size), 0, -1) if size % side == 0)
    tiles = image.reshape(size // side, side, size // side, side, 3).swapaxes(1, 2)
    tiles = random.permutation(tiles.reshape(-1, side, side, 3))
    tiles = tiles.reshape(size // side, size // side, side, side, 3)
    return tiles.swapaxes(1, 2).reshape(size, size, 3)


def _written(text: str, size: int) -> np.ndarray:
    image = PIL.Image.new("RGB", (size, size), "white")
    font = PIL.ImageFont.load_default(max(8, size // 6))
    draw, across = PIL.ImageDraw.Draw(image), max(1, size // max(5, size // 11))
    lines = [text[start : start + across] for start in range(0, len(text), across)]
    draw.multiline_text((2, 2), "\n".join(lines[:6]), fill="black", font=font, spacing=1)
    return np.asarray(image)


def _letters(random: np.random.Generator) -> str:
    return "".join(random.choice(list("abcdefghijklmnopqrstuvwxyz "), 40))


def _directions(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
