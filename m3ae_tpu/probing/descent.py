"""Training of probe heads by gradient descent, at several learning rates in one pass.

Every example counts exactly once in an epoch, a score or a moment, whatever the batch size: batches
are filled up with rows that do not count.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from m3ae_tpu.parallel.mesh import by_example, num_batch_shards, replicated
from m3ae_tpu.parallel.share import as_numpy, known_batch
from m3ae_tpu.probing.heads import Head, Parameters, batch_loss, init_parameters, shares
from m3ae_tpu.probing.recipes import RATE_FACTORS, Recipe
from m3ae_tpu.probing.scores import ProbeScore, Targets

SCORED_ROWS = 256
"""Rows that a device scores at a time."""

type Progress = Callable[[float], None]
"""Called with the share of the work that is done."""


def as_they_are(whole: Any, rows: Any) -> Array:
    """Returns rows that are features already."""
    return rows


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples of a probe: features, or what an encoder makes them of inside the step."""

    rows: PyTree
    """NumPy arrays that share their first axis."""
    width: int
    """Width of the features."""
    embed: Callable[[Any, Any], Array] = as_they_are
    """Makes features of `whole` and some rows."""
    whole: PyTree = ()
    """An encoder, on the mesh; nothing for features."""

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.rows)[0])

    def take(self, indices: Int[np.ndarray, " taken"]) -> "Examples":
        """Returns the examples at `indices`."""
        rows = jax.tree.map(lambda array: array[indices], self.rows)
        return dataclasses.replace(self, rows=rows)


class Moments(NamedTuple):
    """Mean and variance of pooled features by learning rate, over all training examples."""

    mean: Float[Any, "rates features"]
    variance: Float[Any, "rates features"]


class Trained(NamedTuple):
    """Heads that were trained at several rates, and the moments of what they pool."""

    parameters: Parameters
    moments: Moments | None
    """None for a head that does not normalise."""


def descend(
    targets: Targets,
    train: Examples,
    test: Examples,
    *,
    head: Head,
    recipe: Recipe,
    mesh: Mesh,
    rate_factors: Sequence[float] = RATE_FACTORS,
    seed: int = 0,
    progress: Progress = lambda share: None,
) -> ProbeScore:
    """Scores a head that is trained on all training examples, at the best of several rates.

    The best is chosen on the first fold, after training on the other folds at all rates.

    Args:
        targets: Classes and folds.
        train: Training examples.
        test: Test examples.
        head: What is trained.
        recipe: How.
        mesh: Devices that share the rows.
        rate_factors: Multiples of the recipe's rate.
        seed: Decides the first values and the order of examples.
        progress: Called after every epoch.
    """
    fit = functools.partial(
        train_heads, head=head, recipe=recipe, mesh=mesh, seed=seed, num_classes=targets.num_classes
    )
    score = functools.partial(predict, head=head, recipe=recipe, mesh=mesh)
    others, held_out = targets.folds[0]
    trained = fit(
        train.take(others),
        targets.train[others],
        rate_factors=rate_factors,
        progress=lambda share: progress(share / 2),
    )
    is_right = score(trained, train.take(held_out)) == targets.train[held_out]
    accuracies = is_right.mean(axis=1)
    best = int(np.argmax(accuracies))
    trained = fit(
        train,
        targets.train,
        rate_factors=rate_factors[best : best + 1],
        progress=lambda share: progress((1 + share) / 2),
    )
    return ProbeScore.of(
        targets,
        score(trained, test)[0],
        float(accuracies[best]),
        rate_factor=rate_factors[best],
        epochs=recipe.epochs,
        batch_size=_batch_shape(len(train), recipe, mesh)[1],
    )


def train_heads(
    examples: Examples,
    labels: Int32[np.ndarray, " examples"],
    *,
    head: Head,
    recipe: Recipe,
    mesh: Mesh,
    num_classes: int,
    rate_factors: Sequence[float],
    seed: int,
    progress: Progress = lambda share: None,
) -> Trained:
    """Trains one head for each multiple of the recipe's rate, on the same batches."""
    steps, batch_size, rows = _batch_shape(len(examples), recipe, mesh)
    schedule = recipe.schedule(steps, batch_size)
    whole, data = replicated(mesh), by_example(mesh)

    def start(factors: Array) -> tuple[Parameters, optax.OptState]:
        parameters = init_parameters(
            head,
            jax.random.key(seed),
            width=examples.width,
            num_classes=num_classes,
            recipe=recipe,
        )
        # All rates start alike.
        state = recipe.optimizer(schedule).init(parameters)
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (len(factors), *leaf.shape)), (parameters, state)
        )

    @functools.partial(
        jax.jit, in_shardings=(whole, None, whole, data), out_shardings=whole, donate_argnums=0
    )
    def step(state, encoder, factors, batch):
        rows, labels, is_counted = batch
        features = examples.embed(encoder, rows)

        def update(parameters, state, factor):
            optimizer = recipe.optimizer(
                lambda count: factor * schedule(jnp.asarray(count, jnp.float32))
            )
            gradient = jax.grad(batch_loss, argnums=1)(
                head, parameters, features, labels, is_counted, recipe.epsilon
            )
            updates, state = optimizer.update(gradient, state, parameters)
            return optax.apply_updates(parameters, updates), state

        parameters, optimizer_state = state
        return jax.vmap(update)(parameters, optimizer_state, factors)

    factors = np.array(rate_factors, np.float32)
    with jax.default_matmul_precision("highest"):
        state = jax.jit(start, out_shardings=whole)(factors)
        for epoch in range(recipe.epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(examples))
            for indices, is_counted in batches(order, steps, rows):
                batch = (examples.take(indices).rows, labels[indices], is_counted)
                batch = known_batch(data, batch)
                # One step at a time: simulated devices that wait for each other in many would hang.
                state = step(jax.block_until_ready(state), examples.whole, factors, batch)
            progress((epoch + 1) / recipe.epochs)
        parameters: Parameters = state[0]
        moments = _moments(parameters, examples, head, mesh) if head.is_normalised else None
    return Trained(parameters, moments)


def predict(
    trained: Trained, examples: Examples, *, head: Head, recipe: Recipe, mesh: Mesh
) -> Int[np.ndarray, "rates examples"]:
    """Returns the class of each example by the head of each rate."""

    def classify(parameters: Parameters, moments: Moments | None, features: Array) -> Array:
        pooled = head.pool(parameters.pooling, features)
        if moments is not None:
            pooled = pooled - moments.mean[None]
            pooled /= jnp.sqrt(moments.variance + recipe.epsilon)[None]
        return jnp.argmax(pooled @ parameters.kernel + parameters.bias[None], axis=-1)

    @functools.partial(
        jax.jit, in_shardings=(None, None, by_example(mesh)), out_shardings=replicated(mesh)
    )
    def classify_all(trained, encoder, rows):
        features = examples.embed(encoder, rows)
        in_axes = (0, None if trained.moments is None else 0, None)
        return jax.vmap(classify, in_axes=in_axes)(trained.parameters, trained.moments, features)

    found = []
    with jax.default_matmul_precision("highest"):
        for batch, is_counted in _in_order(examples, mesh):
            classes = as_numpy(classify_all(trained, examples.whole, batch))
            found.append(classes[:, is_counted])
    return np.concatenate(found, axis=1)


def batches(
    order: Int[np.ndarray, " examples"], steps: int, rows: int
) -> Iterator[tuple[Int[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]]:
    """Yields indices in `order`, and which of them count: each once. The others fill batches up."""
    for part in np.array_split(order, steps):
        filling = np.repeat(part[:1], rows - len(part))
        yield np.concatenate([part, filling]), np.arange(rows) < len(part)


def _batch_shape(num_examples: int, recipe: Recipe, mesh: Mesh) -> tuple[int, int, int]:
    """Returns steps of an epoch, most examples of a step, and its rows with those that fill up."""
    steps = max(-(-num_examples // recipe.batch_size), min(recipe.min_steps, num_examples))
    batch_size, shards = -(-num_examples // steps), num_batch_shards(mesh)
    return steps, batch_size, -(-batch_size // shards) * shards


def _in_order(examples: Examples, mesh: Mesh) -> Iterator[tuple[Any, Bool[np.ndarray, " rows"]]]:
    rows = SCORED_ROWS * num_batch_shards(mesh)
    for start in range(0, len(examples), rows):
        part = np.arange(start, min(start + rows, len(examples)))
        ((indices, is_counted),) = batches(part, 1, rows)
        yield known_batch(by_example(mesh), examples.take(indices).rows), is_counted


def _moments(parameters: Parameters, examples: Examples, head: Head, mesh: Mesh) -> Moments:
    """Computes the moments of what is pooled of all examples, each counted once, in float64."""

    @functools.partial(
        jax.jit,
        in_shardings=(None, None, by_example(mesh), by_example(mesh)),
        out_shardings=replicated(mesh),
    )
    def of_batch(pooling, encoder, rows, is_counted):
        features = examples.embed(encoder, rows)
        pooled = jax.vmap(head.pool, in_axes=(0, None))(pooling, features)
        weights = shares(is_counted)
        mean = jnp.einsum("b,rbc->rc", weights, pooled)
        return mean, jnp.einsum("b,rbc->rc", weights, jnp.square(pooled - mean[:, None]))

    count, mean, square = 0, 0.0, 0.0
    for batch, is_counted in _in_order(examples, mesh):
        counted = known_batch(by_example(mesh), is_counted)
        found = as_numpy(of_batch(parameters.pooling, examples.whole, batch, counted))
        batch_mean, batch_variance = (array.astype(np.float64) for array in found)
        # Chan's formula for the moments of a union.
        added = int(is_counted.sum())
        total, shift = count + added, batch_mean - mean
        square = square + added * batch_variance + shift**2 * count * added / total
        mean, count = mean + shift * added / total, total
    return Moments(np.asarray(mean, np.float32), np.asarray(square / count, np.float32))


def standardised(
    train: Float[np.ndarray, "train_examples features"],
    test: Float[np.ndarray, "test_examples features"],
    epsilon: float,
) -> tuple[Examples, Examples]:
    """Returns fixed features as batch normalisation without scale and bias leaves them.

    Moments are those of all training examples, so the order of examples has no influence.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    deviation = np.sqrt(train.var(axis=0, dtype=np.float64) + epsilon)
    return tuple(
        Examples(((features - mean) / deviation).astype(np.float32), features.shape[1])
        for features in (train, test)
    )  # pyright: ignore[reportReturnType]
