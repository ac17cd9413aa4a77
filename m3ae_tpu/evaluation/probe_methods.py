"""The methods of `pipelines.probe`, by name, on the features of one encoder."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from jax.sharding import Mesh

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.evaluation.probe_sources import Source
from m3ae_tpu.probing import recipes
from m3ae_tpu.probing.descent import Progress, descend, standardised
from m3ae_tpu.probing.few_shot import FewShotScore, few_shot_probe
from m3ae_tpu.probing.heads import LINEAR, attentive_head
from m3ae_tpu.probing.linear import linear_probe
from m3ae_tpu.probing.neighbors import neighbors_probe
from m3ae_tpu.probing.scores import ProbeScore, Targets, choose

TITLES = {
    "knn": "Nearest neighbours",
    "linear": "Linear probe",
    "lars_mae": "Linear, MAE's LARS",
    "lars_m3ae": "Linear, the paper's LARS",
    "efficient": "Efficient (attentive)",
    "few_shot": "Few-shot",
}
"""Methods that are known, by name."""

PUBLISHED = {"lars_mae": recipes.MAE, "lars_m3ae": recipes.M3AE}
EFFICIENT_RATE_FACTORS = (1.0, 10.0, 100.0, 1000.0)
"""Fewer than for vectors: tokens cost as many times more as there are."""
TOKENS = "patches"
"""Name of the pooling of `efficient`, which is learned."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Choice of methods, and their settings."""

    methods: Sequence[str]
    pooling: str
    """Pooling of the features, for all methods; empty: each method's own choice."""
    shots: Sequence[int]
    draws: int
    epochs: int
    """Epochs of methods that descend; 0: as published."""
    batch_size: int
    """Most examples of their steps; 0: as published."""
    seed: int

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in TITLES]
        require(
            bool(self.methods) and not unknown,
            f"--method = {','.join(self.methods)} names {', '.join(unknown) or 'nothing'}. "
            f"Use one of: {', '.join(TITLES)}.",
        )
        require(
            bool(self.shots) and min(self.shots) >= 1 and self.draws >= 1,
            f"--shots = {','.join(map(str, self.shots))} with --draws = {self.draws}: numbers must "
            "be positive. Set --shots=1,5,10 --draws=5.",
        )

    def recipe(self, published: recipes.Recipe) -> recipes.Recipe:
        """Returns a recipe with the epochs and the batch size that were asked for."""
        recipe = dataclasses.replace(published, epochs=self.epochs or published.epochs)
        if self.batch_size:
            recipe = dataclasses.replace(recipe, batch_size=self.batch_size, min_steps=1)
        return recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodScores:
    """The scores of one method."""

    method: str
    pooling: str
    """Pooling of the first source's features."""
    scores: Mapping[str, ProbeScore]
    """By source; none of `few_shot`."""
    few_shot: Mapping[str, Sequence[FewShotScore]]
    """By source, for each number of examples; of `few_shot` alone."""

    @property
    def title(self) -> str:
        """Name of the method, for people."""
        return TITLES[self.method]


def run_method(
    method: str,
    sources: Sequence[Source],
    targets: Targets,
    options: ProbeOptions,
    mesh: Mesh,
    report: Callable[[str], Progress],
) -> MethodScores:
    """Scores a method on every source.

    Args:
        method: Its name.
        sources: The first decides the pooling, by cross-validation on training examples.
        targets: Classes and folds.
        options: Settings of all methods.
        mesh: Devices that share the rows.
        report: Called with a line at each stage; returns a function for its progress.

    Raises:
        UserError: the sources lack what the method needs.
    """
    if method == "efficient":
        return _efficient(sources, targets, options, mesh, report)
    first = sources[0]
    report(f"features: {first.name}")
    own = first.vectors()
    if not own:
        raise UserError(
            f"--method = {method} needs one vector for each example, and the features are tokens. "
            "Extract features of another pooling, or set --method=efficient."
        )
    score = functools.partial(_score, method, targets, options, mesh)
    poolings = _poolings(method, list(own), options.pooling)
    results = {
        pooling: score(*own[pooling], report(f"{method}: {first.name}, {pooling}"))
        for pooling in poolings
    }
    few_shot = method == "few_shot"
    chosen = poolings[0] if few_shot else choose(results)  # pyright: ignore[reportArgumentType]
    by_source = {first.name: results[chosen]}
    for source in sources[1:]:
        report(f"features: {source.name}")
        vectors = source.vectors()
        pooling = chosen if chosen in vectors else next(iter(vectors))
        progress = report(f"{method}: {source.name}")
        by_source[source.name] = score(*vectors[pooling], progress)
    return MethodScores(
        method=method,
        pooling=chosen,
        scores={} if few_shot else by_source,  # pyright: ignore[reportArgumentType]
        few_shot=by_source if few_shot else {},  # pyright: ignore[reportArgumentType]
    )


def _poolings(method: str, known: list[str], wanted: str) -> list[str]:
    """Returns the poolings that a method tries."""
    if wanted:
        require(
            wanted in known,
            f"--pooling = {wanted} is not among the features {', '.join(known)}. Name one of them.",
        )
        return [wanted]
    # Published recipes take the class token; a few examples allow no choice.
    own = {"lars_mae": "cls", "lars_m3ae": "cls", "few_shot": "mean"}.get(method)
    if own is None:
        return known
    return [own if own in known else known[0]]


def _score(method, targets, options, mesh, train, test, progress):
    if method == "knn":
        return neighbors_probe(targets, train, test, mesh=mesh)
    if method == "linear":
        return linear_probe(targets, train, test)
    if method == "few_shot":
        return few_shot_probe(
            targets,
            train,
            test,
            shots=options.shots,
            num_draws=options.draws,
            seed=options.seed,
        )
    recipe = options.recipe(PUBLISHED[method])
    return descend(
        targets,
        *standardised(train, test, recipe.epsilon),
        head=LINEAR,
        recipe=recipe,
        mesh=mesh,
        seed=options.seed,
        progress=progress,
    )


def _efficient(
    sources: Sequence[Source],
    targets: Targets,
    options: ProbeOptions,
    mesh: Mesh,
    report: Callable[[str], Progress],
) -> MethodScores:
    scores = {}
    for source in sources:
        if source.tokens is None:
            require(
                source is not sources[0],
                "--method = efficient needs all tokens of each example: an array [examples, "
                "tokens, width]. Extract features with --pooling=tokens, or name a --model.",
            )
            continue
        report(f"tokens: {source.name}")
        train, test = source.tokens()
        scores[source.name] = descend(
            targets,
            train,
            test,
            head=attentive_head(),
            recipe=options.recipe(recipes.EFFICIENT),
            mesh=mesh,
            rate_factors=EFFICIENT_RATE_FACTORS,
            seed=options.seed,
            progress=report(f"efficient: {source.name}"),
        )
    return MethodScores(method="efficient", pooling=TOKENS, scores=scores, few_shot={})
