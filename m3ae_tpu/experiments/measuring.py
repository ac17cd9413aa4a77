"""The figures of a trained encoder, by the measure of an experiment."""

import dataclasses
import functools
import html
from collections.abc import Callable, Mapping

import numpy as np
from jax.sharding import Mesh

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.labelled import LabelledExamples, read_labelled
from m3ae_tpu.data.shards import Shards, open_shards
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import require
from m3ae_tpu.evaluation.features import Pooled, pool_images
from m3ae_tpu.experiments import attention, embedding, ood, reconstruct
from m3ae_tpu.experiments.variant import Measure
from m3ae_tpu.model.inputs import Normalizer
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.probing.folds import explain_no_folds
from m3ae_tpu.probing.linear import linear_probe
from m3ae_tpu.probing.neighbors import neighbors_probe
from m3ae_tpu.probing.scores import Targets

POOLING = "cls_mean_max"
"""Features of images in all experiments: fixed beforehand, so that nothing is chosen by a score."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Labelled examples, the same for every run of an experiment."""

    train: LabelledExamples
    test: LabelledExamples
    foreign: LabelledExamples | None = None
    """Images that are foreign to both; None: made ones, see `ood`."""

    @functools.cached_property
    def targets(self) -> Targets:
        return Targets.of(self.train.labels, self.test.labels, self.train.groups)


def read_examples(
    config: PretrainConfig,
    tokenizer: Tokenizer | None,
    *,
    train_shards: str,
    test_shards: str,
    foreign_shards: str = "",
) -> Examples:
    """Reads labelled examples as a model takes them.

    Raises:
        UserError: shards that cannot be read, or hold too little for a probe.
    """
    lengths = [source.text_length for source in config.data.sources if source.kind == "paired"]

    def read(shards: Shards, label_names: tuple[str, ...] | None = None) -> LabelledExamples:
        return read_labelled(
            shards,
            image_size=config.data.image_size,
            tokenizer=tokenizer,
            text_length=max(lengths, default=0),
            label_names=label_names,
        )

    opened = open_shards(train_shards)
    train = read(opened)
    examples = Examples(
        train=train,
        test=read(open_shards(test_shards), train.label_names),
        foreign=read(open_shards(foreign_shards)) if foreign_shards else None,
    )
    require(
        bool(examples.targets.folds),
        explain_no_folds(train.labels, train.groups, train.label_names, opened.pattern),
    )
    return examples


def image_features(run: Pretrained, images: np.ndarray) -> np.ndarray:
    """Returns the features of images alone, float32 [images, features]; nothing is hidden."""
    return _pool(run.task.normalizer, run.mesh)(run.model, images)[POOLING]


def measure(name: Measure, run: Pretrained, examples: Examples) -> dict[str, float]:
    """Returns the figures of a measure; `FIGURES` names them."""
    return _MEASURES[name](run, examples)


def show_images(name: Measure, runs: Mapping[str, Pretrained], examples: Examples) -> str:
    """Returns sections of a page, as HTML, that show what a measure is about.

    Args:
        name: The measure; see `SHOWN`.
        runs: Models by name.
        examples: Test examples are shown.
    """
    if name == "embedding":
        return _plots(runs, examples)
    show = {"attention": attention.show, "reconstruct": reconstruct.show}.get(name)
    return "".join(show(run, examples.test) for run in runs.values()) if show else ""


SHOWN: tuple[Measure, ...] = ("embedding", "attention", "reconstruct")
"""Measures of which there is something to see."""

FIGURES: Mapping[Measure, Mapping[str, str]] = {
    "probe": {
        "linear_probe": "linear probe, held out",
        "cross_validated": "linear probe, cross-validated on train",
        "knn": "nearest neighbours, held out",
    },
    "ood": ood.FIGURES,
    "embedding": embedding.FIGURES,
    "attention": attention.FIGURES,
    "reconstruct": reconstruct.FIGURES,
}
"""Figures that are tabulated, described; the first is plotted. `measure` may return more."""


def _probe(run: Pretrained, examples: Examples) -> dict[str, float]:
    train, test = (image_features(run, each.images) for each in (examples.train, examples.test))
    linear = linear_probe(examples.targets, train, test)
    return {
        "linear_probe": linear.accuracy,
        "cross_validated": linear.validation_accuracy,
        "knn": neighbors_probe(examples.targets, train, test).accuracy,
    }


def _ood(run: Pretrained, examples: Examples) -> dict[str, float]:
    known, test = examples.train, examples.test
    sets = {"given": examples.foreign.images} if examples.foreign else ood.foreign_sets(test)
    features = functools.partial(image_features, run)
    return ood.aurocs(
        features(known.images),
        known.labels,
        features(test.images),
        {name: features(images) for name, images in sets.items()},
    )


def _embedding(run: Pretrained, examples: Examples) -> dict[str, float]:
    shown = embedding.shown_examples(examples.test)
    return embedding.figures(image_features(run, shown.images), shown.labels)


def _plots(runs: Mapping[str, Pretrained], examples: Examples) -> str:
    shown, cards = embedding.shown_examples(examples.test), []
    for name, run in runs.items():
        places = embedding.plane(image_features(run, shown.images))
        plot = embedding.scatter_plot(places, shown.labels, shown.label_names, shown.titles)
        cards.append(f'<figure class="card"><h3>{html.escape(name)}</h3>{plot}</figure>')
    return (
        "<section><h2>Features in a plane</h2><p>t-SNE of the features of single images, without "
        "captions. Point at a dot to read what it shows.</p>"
        f'<div class="charts">{"".join(cards)}</div></section>'
    )


_MEASURES: Mapping[Measure, Callable[[Pretrained, Examples], dict[str, float]]] = {
    "probe": _probe,
    "ood": _ood,
    "embedding": _embedding,
    "attention": lambda run, examples: attention.figures(run, examples.test),
    "reconstruct": lambda run, examples: reconstruct.figures(run, examples.test),
}


@functools.cache
def _pool(normalizer: Normalizer, mesh: Mesh) -> RowMap:
    """Returns one function for all runs, so that equal models are compiled once."""

    def pool(model, images) -> Pooled:
        return {POOLING: pool_images(model, images, normalizer=normalizer)[POOLING]}

    return RowMap(pool, mesh)
