"""Reading of checkpoints: the newest undamaged step, into any sharding or as NumPy arrays."""

import dataclasses
import logging
import math
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.parallel import processes
from m3ae_tpu.run import digests
from m3ae_tpu.run.steps import steps_of
from m3ae_tpu.storage.mirror import address_of

_LOG = logging.getLogger(__name__)
type Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredStep:
    """The content of one step, as plain data."""

    model: dict[str, np.ndarray]
    """Parameters by dotted name."""
    optimizer: dict[str, np.ndarray]
    """`step`, and the optimizer's state by dotted name."""
    data: dict[str, Any]
    """JSON given to `Checkpointer.save` as `data_state`."""
    run: dict[str, Any]
    """JSON given to `Checkpointer.save` as `run`."""


class CheckpointReader:
    """Reads the checkpoints of a workdir. It never writes: the run may be training."""

    def __init__(self, workdir: pathlib.Path):
        """Takes a workdir, or the mirror of one in a bucket."""
        self._stored = steps_of(workdir)
        self.folder = self._stored.address
        self._workdir = address_of(workdir)
        self._faults: dict[int, str] = {}

    def steps(self) -> list[int]:
        """Returns the saved steps, damaged ones too, oldest first."""
        return self._stored.committed()

    def fault(self, step: int) -> str:
        """Returns the damaged file of a step and its damage, or "", and remembers the answer.

        Reads every byte on a disk; a bucket tells the digests of its objects.
        """
        if step not in self._faults:
            self._faults[step] = digests.find_damage(
                self._stored.files(step),
                lambda name: self._stored.read(step, name),
                f"{self.folder}/{step}",
            )
        return self._faults[step]

    def latest_step(self, before: int | float = math.inf) -> int | None:
        """Returns the newest undamaged step, None if there are no steps at all.

        With `before`, steps from that one on do not count.

        Damaged newer ones are named in a warning and skipped: the run computes those steps again,
        with the same bits. Of several processes the leader looks, and all get its answer.

        Raises:
            UserError: there are steps, and all of them are damaged. Only the user may decide to
                start from scratch.
        """
        return processes.from_leader(lambda: self._find_latest_step(before))

    def _find_latest_step(self, before: int | float) -> int | None:
        for step in self._stored.uncommitted():
            _LOG.warning(
                "checkpoint %d is skipped: %s/%d was not saved to its end", step, self.folder, step
            )
        steps = [step for step in self.steps() if step < before]
        for step in reversed(steps):
            is_unchecked = step not in self._faults
            if not self.fault(step):
                return step
            if is_unchecked:
                _LOG.warning("checkpoint %d is damaged and skipped: %s", step, self.fault(step))
        require(
            not steps,
            f"{self.folder} holds no undamaged checkpoint: "
            f"{self.fault(steps[-1]) if steps else ''}. "
            "Copy it again from a backup, or start over with another --workdir.",
        )
        return None

    def restore[State](
        self, abstract_state: State, *, before: int | float = math.inf
    ) -> tuple[State, dict[str, Any], dict[str, Any]]:
        """Restores the newest undamaged step, before another one if asked for.

        Args:
            abstract_state: `jax.ShapeDtypeStruct` leaves, with the shardings to give the arrays.

        Returns:
            The state, and `data_state` and `run` as they were given to `save`.

        Raises:
            UserError: there is no undamaged step, or it holds other arrays (name, shape or dtype).
        """
        state: Any = abstract_state
        restored = self._restore(
            self._require_step(before), {"model": state.model, "optimizer": optimizer_item(state)}
        )
        optimizer = restored["optimizer"]
        state = dataclasses.replace(
            state,
            step=optimizer["step"],
            model=restored["model"],
            optimizer_state=optimizer["state"],
        )
        return state, restored["data"], restored["run"]

    def restore_model[Model](self, abstract_model: Model) -> tuple[int, Model, dict[str, Any]]:
        """Restores step, model and `run` of the newest undamaged step, without the optimizer.

        Leaves without a sharding go to the first device. Raises like `restore`.
        """
        step = self._require_step()
        restored = self._restore(step, {"model": abstract_model})
        return step, restored["model"], restored["run"]

    def read(self, step: int) -> StoredStep:
        """Reads one step to host memory, without config, model or devices of the run.

        Does not look for damage.
        """
        stored = self._metadata(step)
        as_numpy = {
            item: ocp.args.PyTreeRestore(
                restore_args={
                    name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored[item]
                }
            )
            for item in ("model", "optimizer")
        }
        return StoredStep(**self._read(step, as_numpy))

    def _require_step(self, before: int | float = math.inf) -> int:
        step = self.latest_step(before)
        if step is None:
            raise UserError(
                f"{self.folder} holds no checkpoint. Check the workdir, or let the run save first."
            )
        return step

    def _restore(self, step: int, trees: dict[str, PyTree]) -> dict[str, Any]:
        """Restores items into trees of the given structure, and `data` and `run` as plain JSON."""
        wanted = {item: named_arrays(tree) for item, tree in trees.items()}
        self._require_fit(step, wanted)
        placed = {}
        for item, arrays in wanted.items():
            placed[item] = ocp.args.PyTreeRestore(
                restore_args=ocp.checkpoint_utils.construct_restore_args(_placed(arrays))
            )
        result = self._read(step, placed)
        for item, tree in trees.items():
            leaves = [result[item][name] for name in wanted[item]]
            result[item] = jax.tree.unflatten(jax.tree.structure(tree), leaves)
        return result

    def _read(self, step: int, arrays: dict[str, Any]) -> dict[str, Any]:
        """Reads the items of arrays by their restore arguments, and the two items of JSON."""
        plain = {item: ocp.args.JsonRestore() for item in ("data", "run")}
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers())) as reader:
            return dict(
                reader.restore(self._stored.path(step), args=ocp.args.Composite(**arrays, **plain))
            )

    def _metadata(self, step: int) -> dict[str, Any]:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers())) as reader:
            return dict(reader.metadata(self._stored.path(step)).item_metadata)

    def _require_fit(self, step: int, wanted: dict[str, Arrays]) -> None:
        """Raises `UserError` unless the step's arrays have the names, shapes and dtypes of
        `wanted`.

        Orbax would cast to another dtype silently, and report other structures on a whole page.
        """
        metadata = self._metadata(step)
        faults = []
        for item, arrays in wanted.items():
            stored = metadata[item]
            for name in sorted(arrays.keys() | stored.keys()):
                there, here = (
                    _form(tree[name]) if name in tree else "missing" for tree in (stored, arrays)
                )
                if there != here:
                    faults.append(f"{item} {name} is {there} there and {here} here")
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        require(
            not faults,
            f"{self.folder}/{step} does not fit the config: {'; '.join(faults[:2])}{more}. "
            f"Set the values of {self._workdir}/config.json, or another --workdir.",
        )


def handlers() -> dict[str, Any]:
    """Returns Orbax's handler of each item of a step."""
    arrays, plain = ocp.PyTreeCheckpointHandler, ocp.JsonCheckpointHandler
    return {"model": arrays(), "optimizer": arrays(), "data": plain(), "run": plain()}


def optimizer_item(state: Any) -> dict[str, PyTree]:
    """Returns what the item `optimizer` holds of a training state."""
    return {"step": state.step, "state": state.optimizer_state}


def named_arrays(tree: PyTree) -> Arrays:
    """Returns the leaves of a tree by their dotted path, in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _placed(arrays: Arrays) -> Arrays:
    """Gives abstract arrays without a sharding the first device.

    Orbax would take the sharding that they were saved with.
    """
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        name: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or first
        )
        for name, leaf in arrays.items()
    }


def _form(array: Any) -> str:
    return f"{np.dtype(array.dtype).name} {list(array.shape)}"
