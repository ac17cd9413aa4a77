"""Guards probes by gradient descent: examples count once, devices agree, recipes are exact."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.parallel.mesh import make_mesh
from m3ae_tpu.probing import recipes
from m3ae_tpu.probing.descent import (
    Examples,
    batches,
    descend,
    predict,
    standardised,
    train_heads,
)
from m3ae_tpu.probing.heads import LINEAR, attentive_head, batch_loss, init_parameters
from m3ae_tpu.probing.scores import Targets

CLASSES, WIDTH = 3, 8
QUICK = dataclasses.replace(recipes.MAE, epochs=12, warmup_epochs=2)


def clusters(seed, examples=101, tokens=0):
    """Returns noisy features around a centre for each class, and labels."""
    centres = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, examples).astype(np.int32)
    shape = (examples, tokens, WIDTH) if tokens else (examples, WIDTH)
    features = random.normal(size=shape).astype(np.float32)
    if tokens:  # One token tells the class.
        features[:, 0] += 3 * centres[labels]
    else:
        features += centres[labels]
    return features.astype(np.float32), labels


def targets(labels, test_labels):
    return Targets.of(labels, test_labels, np.arange(len(labels), dtype=np.int32))


@pytest.mark.parametrize("batch_size", [1, 7, 32, 100, 101, 5_000])
def test_every_example_counts_once_whatever_the_batch_size(batch_size):
    steps = -(-101 // batch_size)
    order = np.random.default_rng(0).permutation(101)
    found = list(batches(order, steps, rows=max(batch_size, -(-101 // steps))))
    counted = np.concatenate([indices[is_counted] for indices, is_counted in found])
    np.testing.assert_array_equal(counted, order)
    assert len({len(indices) for indices, _ in found}) == 1


@pytest.mark.parametrize("head", [LINEAR, attentive_head()], ids=["linear", "attentive"])
def test_rows_that_do_not_count_have_no_influence(head):
    tokens = 0 if head is LINEAR else 5
    features, labels = clusters(0, 9, tokens)
    parameters = init_parameters(
        head, jax.random.key(0), width=WIDTH, num_classes=CLASSES, recipe=QUICK
    )

    def gradient(*rows):
        batch = map(jnp.asarray, rows)
        return jax.grad(batch_loss, argnums=1)(head, parameters, *batch, 1e-6)

    alone = gradient(features[:6], labels[:6], np.ones(6, bool))
    padded = gradient(features, labels, np.arange(9) < 6)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_eight_devices_train_like_one():
    labels, found = clusters(0)[1], []
    for devices in (jax.devices(), jax.devices()[:1]):
        mesh = make_mesh(devices=devices)
        for head, tokens in ((LINEAR, 0), (attentive_head(), 4)):
            examples = Examples(clusters(0, tokens=tokens)[0], WIDTH)
            trained = train_heads(
                examples,
                labels,
                head=head,
                recipe=dataclasses.replace(QUICK, batch_size=30, epochs=3),
                mesh=mesh,
                num_classes=CLASSES,
                rate_factors=(1.0, 30.0),
                seed=0,
            )
            unseen = Examples(clusters(1, tokens=tokens)[0], WIDTH)
            classes = predict(trained, unseen, head=head, recipe=QUICK, mesh=mesh)
            assert classes.shape == (2, 101)
            found.append((trained, classes))
    for eight, one in zip(found[:2], found[2:], strict=True):
        for a, b in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_moments_are_those_of_all_examples():
    head, mesh = attentive_head(), make_mesh()
    tokens, labels = clusters(0, 300, tokens=4)
    trained = train_heads(
        Examples(tokens, WIDTH),
        labels,
        head=head,
        recipe=dataclasses.replace(QUICK, epochs=2),
        mesh=mesh,
        num_classes=CLASSES,
        rate_factors=(1.0,),
        seed=0,
    )
    pooling = jax.tree.map(lambda leaf: leaf[0], trained.parameters.pooling)
    pooled = np.asarray(head.pool(pooling, jnp.asarray(tokens)), np.float64)
    assert trained.moments is not None
    np.testing.assert_allclose(trained.moments.mean[0], pooled.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(trained.moments.variance[0], pooled.var(axis=0), rtol=1e-4)


def reference_training(features, labels, recipe, factor):
    """Trains the linear head in float64 as the published code does, on the whole set at a time."""
    schedule = recipe.schedule(1, len(features))
    start = init_parameters(
        LINEAR, jax.random.key(0), width=WIDTH, num_classes=CLASSES, recipe=recipe
    )
    weights = [np.asarray(start.kernel, np.float64), np.asarray(start.bias, np.float64)]
    momenta = [np.zeros_like(each) for each in weights]
    one_hot = np.eye(CLASSES)[labels]
    for step in range(recipe.epochs):
        scores = features @ weights[0] + weights[1]
        probs = np.exp(scores - scores.max(axis=1, keepdims=True))
        residual = probs / probs.sum(axis=1, keepdims=True) - one_hot
        gradients = [features.T @ residual / len(labels), residual.mean(axis=0)]
        rate = factor * np.asarray(schedule(step)).item()
        for place, gradient in enumerate(gradients):
            norms = np.linalg.norm(weights[place]), np.linalg.norm(gradient)
            is_adapted = recipe.is_bias_adapted or gradient.ndim > 1
            ratio = 0.001 * norms[0] / norms[1] if is_adapted and all(norms) else 1.0
            if recipe.is_bias_adapted:  # The paper: the rate is inside of the momentum.
                momenta[place] = 0.9 * momenta[place] - rate * ratio * gradient
                weights[place] = weights[place] + momenta[place]
            else:
                momenta[place] = 0.9 * momenta[place] + ratio * gradient
                weights[place] = weights[place] - rate * momenta[place]
    return weights


@pytest.mark.parametrize("name", ["MAE", "M3AE"])
def test_recipes_descend_as_the_published_code(name):
    recipe = dataclasses.replace(getattr(recipes, name), epochs=12, warmup_epochs=3)
    features, labels = clusters(0)
    (examples, _) = standardised(features, features, recipe.epsilon)
    np.testing.assert_allclose(examples.rows.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(examples.rows.std(axis=0), 1, atol=1e-4)
    trained = train_heads(
        examples,
        labels,
        head=LINEAR,
        recipe=recipe,
        mesh=make_mesh(),
        num_classes=CLASSES,
        rate_factors=(0.5, 30.0),
        seed=0,
    )
    for number, factor in enumerate((0.5, 30.0)):
        kernel, bias = reference_training(examples.rows.astype(np.float64), labels, recipe, factor)
        np.testing.assert_allclose(trained.parameters.kernel[number], kernel, atol=1e-5)
        np.testing.assert_allclose(trained.parameters.bias[number], bias, atol=1e-5)


def test_published_rates_follow_the_batch_size():
    assert recipes.MAE.batch_size == 16_384
    mae, paper = recipes.MAE.schedule(78, 16_384), recipes.M3AE.schedule(626, 2_048)
    assert np.asarray(mae(780)) == pytest.approx(6.4)
    assert np.asarray(paper(6_260)) == pytest.approx(0.8)
    assert np.asarray(mae(0)) == 0


@pytest.mark.parametrize("batch_size", [40, 1_000])
def test_a_linear_head_learns_at_one_of_the_rates(batch_size):
    (train, labels), (test, test_labels) = clusters(0), clusters(1)
    recipe = dataclasses.replace(recipes.M3AE, batch_size=batch_size, epochs=40)
    shares = []
    score = descend(
        targets(labels, test_labels),
        *standardised(train, test, 1e-6),
        head=LINEAR,
        recipe=recipe,
        mesh=make_mesh(),
        progress=shares.append,
    )
    assert score.accuracy > 0.65  # scikit-learn's reaches 0.84.
    assert len(score.predicted) == len(test)
    assert score.settings["rate_factor"] in recipes.RATE_FACTORS
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.slow
def test_attentive_pooling_finds_the_token_that_tells():
    (train, labels), (test, test_labels) = clusters(0, 200, tokens=6), clusters(1, 100, tokens=6)
    cached = Examples(train.astype(np.float16), WIDTH), Examples(test.astype(np.float16), WIDTH)
    scale = jnp.float32(2.0)
    encoded = [
        Examples(each / 2, WIDTH, lambda scale, rows: scale * rows, scale) for each in (train, test)
    ]
    scores = [
        descend(
            targets(labels, test_labels),
            *examples,
            head=attentive_head(),
            recipe=dataclasses.replace(recipes.EFFICIENT, epochs=30, warmup_epochs=2),
            mesh=make_mesh(),
            rate_factors=(100.0, 1000.0),
        )
        for examples in (cached, encoded)
    ]
    assert scores[0].accuracy > 0.85
    # Cached tokens and tokens encoded inside the step give the same probe.
    assert scores[1].accuracy == pytest.approx(scores[0].accuracy, abs=0.02)
