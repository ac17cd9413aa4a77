"""The replay of one step of a run, with its exact data: what it saw, and the loss of each row."""

import io
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from m3ae_tpu.config import RunConfig
from m3ae_tpu.data.sources import OpenData, differences
from m3ae_tpu.errors import require
from m3ae_tpu.files import atomic_write
from m3ae_tpu.parallel.mesh import by_example, make_mesh, num_batch_shards
from m3ae_tpu.parallel.share import global_batch
from m3ae_tpu.run.checkpoint_reader import CheckpointReader
from m3ae_tpu.run.workdir import Workdir
from m3ae_tpu.train.objective import Objective
from m3ae_tpu.train.program import make_program
from m3ae_tpu.train.step import steps_key

_LOG = logging.getLogger(__name__)


def replay(
    config: RunConfig, objective: Objective, data: OpenData, workdir: Workdir, step: int
) -> pathlib.Path:
    """Runs a step again from the checkpoint before it, and writes `WORKDIR/replay-STEP.npz`.

    The file has, by kind of rows, the batch, the ids of its records, the masks, and loss and
    metrics of each row alone, before the step's update; and the metrics of the whole step. The run
    itself is left as it is.

    Raises:
        UserError: the run has other data now, no such step, or only damaged checkpoints.
    """
    require(
        0 < step <= config.num_steps,
        f"--replay_step = {step} is not in [1, num_steps = {config.num_steps}]. Name a step of the "
        "run.",
    )
    mesh = make_mesh(config.mesh)
    program = make_program(config, objective, mesh)
    reader = CheckpointReader(workdir.path)
    if reader.latest_step(before=step) is None:
        state = program.init()
    else:
        state, data_state, _ = reader.restore(program.abstract, before=step)
        changes = differences(data.fingerprint(), data_state["fingerprint"])
        require(
            not changes,
            f"the data are not those of the checkpoint: {'; '.join(changes[:3])}. "
            "Put the old data back: a replay with others would be of another step.",
        )
    loader, start = data.loader(), int(state.step)
    _LOG.info("replaying step %d from step %d on", step, start)
    for number in range(start, step - 1):
        batch, _ = loader.batch_at(number)
        state, _ = program.step(state, global_batch(by_example(mesh), batch))
    batch, info = loader.batch_at(step - 1)
    seen = _named({kind: {"batch": rows} for kind, rows in batch.items()})
    seen |= {f"{kind}/ids": np.array(ids) for kind, ids in info.ids.items()}
    on_mesh = global_batch(by_example(mesh), batch)
    step_key = jax.random.fold_in(steps_key(config.seed), step - 1)
    places = {kind: np.arange(len(ids)) for kind, ids in info.ids.items()}
    masks = jax.jit(objective.masks)(state.model, on_mesh, places, step_key)
    seen |= _named({kind: {"masks": values} for kind, values in masks.items()})
    by_row = _by_row(objective, mesh, state.model, batch, step_key)
    seen |= by_row
    state, metrics = program.step(state, on_mesh)
    seen |= _named({"step": metrics.means | metrics.counts})
    path = workdir.path / f"replay-{step}.npz"
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **seen)
    atomic_write(path, content.getvalue())
    for name, value in sorted(metrics.means.items()):
        _LOG.info("  %s %s", name, float(value))
    for kind, ids in info.ids.items():
        bad = np.flatnonzero(~np.isfinite(seen[f"{kind}/rows/loss"]))
        shown = ", ".join(ids[row] for row in bad[:3])
        _LOG.info(
            "  %s: %d of %d rows are not finite%s",
            kind,
            len(bad),
            len(ids),
            f": {shown}" if shown else "",
        )
    _LOG.info("wrote %s", path.name)
    return path


def _by_row(
    objective: Objective, mesh: Mesh, model: PyTree, batch: dict[Any, Any], key: jax.Array
) -> dict[str, np.ndarray]:
    """Returns loss and means of each row, computed alone with the mask that it has in the batch."""
    copies = num_batch_shards(mesh)  # One on each device, as a mesh takes no fewer rows.
    found = {}
    for kind, rows in batch.items():

        def of_row(row: PyTree, place: jax.Array, kind: Any = kind) -> dict[str, jax.Array]:
            def repeat(array: jax.Array) -> jax.Array:
                return jnp.repeat(array[None], copies, axis=0)

            repeated = jax.tree.map(repeat, row)
            loss, metrics = objective.loss(model, {kind: repeated}, {kind: repeat(place)}, key)
            return {"loss": loss} | metrics.means

        num_rows = len(jax.tree.leaves(rows)[0])
        results = jax.jit(
            lambda rows, of_row=of_row, num_rows=num_rows: jax.lax.map(
                lambda arguments: of_row(*arguments), (rows, jnp.arange(num_rows))
            )
        )(rows)
        found |= _named({kind: {"rows": results}})
    return found


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    """Returns the arrays of a tree by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }
