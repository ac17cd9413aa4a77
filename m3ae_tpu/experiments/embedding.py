"""Features of images in a plane, by t-SNE, and numbers that say how far classes lie apart."""

import html

import numpy as np
from jaxtyping import Float, Int32
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from m3ae_tpu.data.labelled import LabelledExamples

FIGURES = {
    "neighbors_in_plot": "nearest neighbours in the plot that share the class",
    "neighbors": "nearest neighbours by all features that share the class",
    "silhouette": "silhouette of the classes by all features",
}
NUM_NEIGHBORS = 10
_MOST_CLASSES, _MOST_EXAMPLES, _NUM_COMPONENTS = 10, 1_000, 50
_SIDE = 480
_HUES = (178, 22, 252, 95, 330, 48, 205, 0, 140, 290)


def shown_examples(examples: LabelledExamples) -> LabelledExamples:
    """Returns the examples of the ten most frequent classes, at most a thousand."""
    labels, counts = np.unique(examples.labels, return_counts=True)
    largest = labels[np.lexsort((labels, -counts))][:_MOST_CLASSES]
    return examples.take(np.flatnonzero(np.isin(examples.labels, largest))[:_MOST_EXAMPLES])


def figures(
    features: Float[np.ndarray, "examples features"], labels: Int32[np.ndarray, " examples"]
) -> dict[str, float]:
    """Returns the figures of `FIGURES` for features of examples.

    Neighbours: the share of examples whose ten nearest others vote for its own class.
    """
    reduced = _reduced(features)
    return {
        "neighbors_in_plot": _own_class(plane(features), labels),
        "neighbors": _own_class(reduced, labels),
        "silhouette": float(silhouette_score(reduced, labels)),
    }


def plane(features: Float[np.ndarray, "examples features"]) -> Float[np.ndarray, "examples 2"]:
    """Returns places in a plane, by t-SNE of the largest principal components; seeded."""
    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=0, n_jobs=1)
    return tsne.fit_transform(_reduced(features))


def scatter_plot(
    places: Float[np.ndarray, "examples 2"],
    labels: Int32[np.ndarray, " examples"],
    label_names: tuple[str, ...],
    titles: tuple[str, ...],
) -> str:
    """Returns an SVG element: a dot an example, coloured by class, with its title to read."""
    low, high = places.min(axis=0), places.max(axis=0)
    at = 12 + (_SIDE - 24) * (places - low) / np.maximum(high - low, 1e-9)
    present = np.unique(labels)
    colours = {
        label: f"hsl({_HUES[number % len(_HUES)]} 62% 48%)" for number, label in enumerate(present)
    }
    height = _SIDE + 20 * -(-len(present) // 3)
    elements = [f'<svg class="chart" viewBox="0 0 {_SIDE} {height}" role="img">']
    for (x, y), label, title in zip(at, labels, titles, strict=True):
        name = label_names[label].replace("_", " ")
        shown = html.escape(f"{title} ({name})" if title else name)
        elements.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="{colours[label]}" '
            f'fill-opacity="0.75"><title>{shown}</title></circle>'
        )
    for number, label in enumerate(present):
        x, y = 8 + (number % 3) * _SIDE // 3, _SIDE + 14 + 20 * (number // 3)
        name = html.escape(label_names[label].replace("_", " "))
        elements.append(
            f'<circle cx="{x}" cy="{y - 4}" r="5" fill="{colours[label]}"/>'
            f'<text x="{x + 10}" y="{y}">{name}</text>'
        )
    return "".join([*elements, "</svg>"])


def _reduced(features: Float[np.ndarray, "examples features"]) -> np.ndarray:
    components = min(_NUM_COMPONENTS, *features.shape)
    reduce = make_pipeline(StandardScaler(), PCA(components, svd_solver="full"))
    return reduce.fit_transform(features)


def _own_class(places: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of examples whose nearest others vote for its class."""
    count = min(NUM_NEIGHBORS, len(labels) - 1)
    nearest = KNeighborsClassifier(count).fit(places, labels).kneighbors(return_distance=False)
    votes = labels[nearest]
    classes = np.unique(labels)
    counted = np.stack([(votes == label).sum(axis=1) for label in classes], axis=1)
    return float(np.mean(classes[counted.argmax(axis=1)] == labels))
