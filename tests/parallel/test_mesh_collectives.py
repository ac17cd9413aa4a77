"""Guards what the devices of a mesh exchange in a step: what its layout calls for, to the byte."""

import collections
import functools
import math

import jax
import pytest

from m3ae_tpu.parallel.rules import axis_of, spec
from m3ae_tpu.rehearsal.collectives import collectives
from m3ae_tpu.train.pretraining import init_model
from tests.parallel.meshes import CONFIG, MESHES, compiled

TABLE = "text.embedding.table"
SCALARS = 600
"""Bytes that losses and counts may take, and the optimizer's norms: one number an array."""
SEEN_WORDS, HIDDEN_WORDS, SEEN, ALL = 6, 18, 11, 41
"""Tokens of an example: words, all that the encoder sees, and all."""


@functools.cache
def step_text(name):
    return compiled(name)[2].as_text()


def exchanged(name):
    """Returns the bytes of each collective of a step, by kind and axes."""
    found = collections.defaultdict(list)
    for line in collectives(step_text(name), dict(compiled(name)[0].shape)):
        found[line.kind, line.axis] += [line.bytes] * line.times
    return found


def parameters(name):
    """Yields name, bytes of what the devices of `tensor` share out, its runs and if `fsdp` cuts it,
    of each parameter; a stack's are those of one block, as often as there are blocks.
    """
    mesh = compiled(name)[0]
    model = jax.eval_shape(lambda: init_model(CONFIG.model, 0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        label = jax.tree_util.keystr(path, simple=True, separator=".")
        lies = spec(label, leaf.shape, 4, mesh)
        size = 4 * math.prod(leaf.shape)
        size //= mesh.shape["tensor"] if axis_of("tensor", lies) is not None else 1
        runs = leaf.shape[0] if ".blocks." in label else 1
        yield label, size // runs, runs, axis_of("fsdp", lies) is not None


def sums_of_gradients(name):
    """Returns the bytes of gradients that are added up, by the axes."""
    data, fsdp, _ = map(int, name.split(","))
    sums = collections.Counter()
    for _, size, runs, is_cut in parameters(name):
        size = runs * size // (fsdp if is_cut else 1)
        batch = {"data": data, "fsdp": 1 if is_cut else fsdp}
        axes = "+".join(axis for axis, length in batch.items() if length > 1)
        sums[axes] += size
    return {axes: size for axes, size in sums.items() if axes}


@pytest.mark.parametrize("name", MESHES)
def test_gradients_are_added_up_once_over_the_axes_that_do_not_cut_them(name):
    wanted = sums_of_gradients(name)
    got = {
        axes: sum(sizes)
        for (kind, axes), sizes in exchanged(name).items()
        if kind == "all-reduce" and "tensor" not in axes and sum(sizes) > SCALARS
    }
    assert got.keys() == wanted.keys()
    for axes, size in wanted.items():
        assert size <= got[axes] <= size + SCALARS


@pytest.mark.parametrize("name", ["1,8,1", "2,2,2"])
def test_matrices_are_gathered_in_the_loops_alone_and_their_gradients_scattered(name):
    fsdp, found = int(name.split(",")[1]), exchanged(name)
    matrices = [row for row in parameters(name) if row[3] and row[0] != TABLE]
    in_loop = sorted(
        line.bytes
        for line in collectives(step_text(name), dict(compiled(name)[0].shape))
        if line.kind == "all-gather" and line.is_in_loop
    )
    # Once in each direction.
    assert in_loop == sorted([size for label, size, *_ in matrices if ".blocks." in label] * 2)
    devices_rows = CONFIG.batch_size // math.prod(map(int, name.split(",")[:2]))
    ids = 4 * fsdp * devices_rows * SEEN_WORDS
    vectors = ids * CONFIG.model.encoder.width
    gathered, scattered = [ids, vectors], [vectors]
    for label, size, runs, _ in matrices:
        gathered += [size] * runs * (2 if ".blocks." in label else 1)
        scattered += [size] * runs
    assert sorted(found["all-gather", "fsdp"]) == sorted(gathered)
    assert sorted(found["reduce-scatter", "fsdp"]) == sorted(scattered)


@pytest.mark.parametrize("name", ["2,2,2", "4,1,2"])
def test_tensor_parallel_devices_add_up_what_megatrons_layout_says(name):
    rows = CONFIG.batch_size // math.prod(map(int, name.split(",")[:2]))
    encoder, decoder = CONFIG.model.encoder, CONFIG.model.decoder
    # After attention and MLP, in each direction.
    activations = 4 * encoder.num_layers * [4 * rows * SEEN * encoder.width]
    activations += 4 * decoder.num_layers * [4 * rows * ALL * decoder.width]
    words = [4 * rows * SEEN_WORDS * encoder.width]
    # For the text head's loss and accuracy six numbers a word, and the gradient of its input.
    head = [4 * rows * HIDDEN_WORDS * size for size in (6, decoder.width)]
    wanted = sum((*activations, *words, *head))
    got = sum(exchanged(name)["all-reduce", "tensor"])
    assert wanted <= got <= wanted + SCALARS


@pytest.mark.parametrize("name", MESHES)
def test_nothing_else_is_exchanged(name):
    _, fsdp, _ = map(int, name.split(","))
    kinds = {"all-reduce"} | ({"all-gather", "reduce-scatter"} if fsdp > 1 else set())
    found = exchanged(name)
    assert {kind for kind, _ in found} == kinds
    assert {axes for kind, axes in found if kind != "all-reduce"} <= {"fsdp"}
    assert all(sum(sizes) <= SCALARS for (_, axes), sizes in found.items() if "fsdp+tensor" in axes)
