"""A small model with random weights, as a run that was trained."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from m3ae_tpu.config import DataConfig, ModelConfig, PretrainConfig, SourceConfig, TransformerConfig
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.parallel.mesh import make_mesh
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.pretrained.task import ReconstructionTask
from m3ae_tpu.run.checkpoint import Checkpointer
from m3ae_tpu.run.workdir import describe_run, prepare_workdir
from m3ae_tpu.train.pretraining import init_model
from m3ae_tpu.train.step import init_state

SMALL = TransformerConfig(num_layers=2, width=16, num_heads=2)
CONFIG = PretrainConfig(
    model=ModelConfig(
        patch_size=8, vocab_size=4_000, encoder=SMALL, decoder=SMALL, compute_dtype="float32"
    ),
    data=DataConfig(image_size=32, sources=(SourceConfig(text_length=8),)),
)


def with_source(kind):
    """Returns the config of a run that learned from one kind of examples."""
    source = SourceConfig(kind=kind, text_length=8)
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, sources=(source,)))


def without_decoder(config=CONFIG):
    """Returns the config of an encoder alone, as weights of another library may be."""
    decoder = dataclasses.replace(SMALL, num_layers=0)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))


def trained_run(config=CONFIG):
    """Returns a run whose weights NumPy draws: they differ from the initial ones, and nothing is
    compiled to draw them.
    """
    mesh, random = make_mesh(), np.random.default_rng(0)
    shapes = jax.eval_shape(
        functools.partial(init_model, config.model, config.seed, Operations(mesh))
    )
    model = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.2, leaf.shape), leaf.dtype), shapes
    )
    tokenizer = None
    if ReconstructionTask.of_run(config).has_texts:
        tokenizer = Tokenizer(config.data.tokenizer)
    return Pretrained(
        config=config, step=3, model=model, mesh=mesh, tokenizer=tokenizer, versions={}
    )


def save_run(folder, run):
    """Writes a run's directory, with a checkpoint of its model."""
    tokenizer = run.tokenizer.model if run.tokenizer is not None else b""
    workdir = prepare_workdir(folder, run.config, tokenizer=tokenizer)
    workdir.record(run.config, tokenizer=tokenizer)
    checkpointer = Checkpointer(folder, run.config.checkpoint)
    state = init_state(run.model, optax.sgd(0.1))
    state = eqx.tree_at(lambda state: state.step, state, jnp.int32(run.step))
    checkpointer.save(run.step, state, {}, describe_run(run.config, tokenizer=tokenizer))
    checkpointer.close()
    workdir.unlock()
