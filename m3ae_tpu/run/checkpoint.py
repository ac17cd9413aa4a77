"""Checkpoints: the whole state of a run, written in the background, complete or absent.

A step is a folder `WORKDIR/checkpoints/STEP`, on a disk or in a bucket, with the items `model`,
`optimizer` (with the number of steps), `data` (state of the data) and `run` (config and versions),
and the digests of their files. Arrays are stored under dotted names
(`encoder.blocks.mlp_in.kernel`), so that reading them needs only Orbax.
"""

import contextlib
import dataclasses
import errno
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from m3ae_tpu.config import CheckpointConfig
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.parallel import processes
from m3ae_tpu.run import digests
from m3ae_tpu.run.steps import steps_of
from m3ae_tpu.storage.mirror import address_of

_LOG = logging.getLogger(__name__)
ITEMS = ("model", "optimizer", "data", "run")

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

    def latest_step(self, before: float = math.inf) -> int | None:
        """Returns the newest undamaged step, None if there are no steps at all.

        With `before`, steps from that one on do not count.

        Damaged newer ones are named in a warning and skipped: the run computes those steps again,
        with the same bits. Of several processes the leader looks, and all get its answer.

        Raises:
            UserError: there are steps, and all of them are damaged. Only the user may decide to
                start from scratch.
        """
        return processes.from_leader(lambda: self._find_latest_step(before))

    def _find_latest_step(self, before: float) -> int | None:
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
        self, abstract_state: State, *, before: float = math.inf
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
            self._require_step(before), {"model": state.model, "optimizer": _optimizer_item(state)}
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

    def _require_step(self, before: float = math.inf) -> int:
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
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers())) as reader:
            return dict(
                reader.restore(self._stored.path(step), args=ocp.args.Composite(**arrays, **plain))
            )

    def _metadata(self, step: int) -> dict[str, Any]:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers())) as reader:
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


class Checkpointer(CheckpointReader):
    """Saves the state of a run in the background, and reads it back.

    One run at a time may use a workdir.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        config: CheckpointConfig,
        *,
        before_commit: Callable[[], None] = lambda: None,
    ):
        """Removes what unfinished saves left.

        Args:
            workdir: Folder of the run, or the mirror of one in a bucket.
            config: Steps to keep.
            before_commit: Called in the background, by the leader when all of a step is written,
                before it counts. Its error is raised by `wait`, and the step does not count then.
        """
        super().__init__(workdir)
        self._config, self._before_commit = config, before_commit
        self._saving = 0
        self._helper = ThreadPoolExecutor(1, "checkpoints")
        self._helped: list[Future[None]] = []
        if processes.is_leader():
            self._stored.make()
        self._writer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(**_handlers()),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
        )

    def save(self, step: int, state: Any, data_state: dict[str, Any], run: dict[str, Any]) -> None:
        """Starts to save a step; the arrays may be donated as soon as this returns.

        Steps from `step` on that are still there at the first save (damaged ones, which `restore`
        skipped) are removed first. Raises the error of an earlier step's write in the background.

        Args:
            step: Number of finished steps.
            state: With `step`, `model` and `optimizer_state`, see `train/step.py`.
            data_state: JSON from which the data resume, with their fingerprint.
            run: JSON of config and versions, see `workdir.describe_run`.
        """
        self.wait()  # `_saving` must not change while an earlier save is being written.
        with self._full_disk_error():
            if not self._saving:
                self._remove_from(step)
            self._saving = step
            self._faults.pop(step, None)
            if not processes.is_leader():
                self._helped.append(self._helper.submit(self._before_commit))
            self._writer.save(
                self._stored.path(step),
                args=ocp.args.Composite(
                    model=ocp.args.PyTreeSave(named_arrays(state.model)),
                    optimizer=ocp.args.PyTreeSave(named_arrays(_optimizer_item(state))),
                    data=ocp.args.JsonSave(data_state),
                    run=ocp.args.JsonSave(run),
                ),
            )

    def _write_digests(self) -> None:
        """Writes the digests when all files of a step are written, before it is committed.

        Orbax calls it in the background, in the leader only.
        """
        step = self._saving
        files = {
            name: file
            for name, file in self._stored.unfinished_files(step).items()
            if name.partition("/")[0] in ITEMS
        }
        content = digests.list_of_digests(files, self._stored.algorithm)
        self._stored.write_unfinished(step, digests.FILE_NAME, content)
        self._before_commit()

    def wait(self) -> None:
        """Waits until the step that `save` started is committed. Raises the error of its write."""
        with self._full_disk_error():
            self._writer.wait_until_finished()
            self._finish_help()
            if processes.is_leader() and self._saving:
                self._helped.append(self._helper.submit(self._remove_old, self._saving))

    def _finish_help(self) -> None:
        """Waits for what the helping thread does, and raises its error."""
        while self._helped:
            self._helped.pop(0).result()

    def _remove_from(self, step: int) -> None:
        """Removes the steps from `step` on."""
        if processes.is_leader():
            for stale in [*self.steps(), *self._stored.uncommitted()]:
                if stale >= step:
                    _LOG.warning("checkpoint %d is removed: the run resumed before it", stale)
                    self._stored.remove(stale)
        processes.wait_for_all("checkpoints are removed")

    def _remove_old(self, newest: int) -> None:
        """Removes what the config does not keep of the steps up to a committed one."""
        every = self._config.keep_every
        steps = [step for step in self.steps() if step <= newest]
        for step in steps[: -self._config.keep]:
            if not every or step % every:
                self._stored.remove(step)

    @contextlib.contextmanager
    def _full_disk_error(self) -> Iterator[None]:
        """Raises `OSError` (ENOSPC) for a full disk, in place of the various errors of Orbax."""
        try:
            yield
        except Exception as error:
            if "No space left on device" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.folder) from error

    def close(self) -> None:
        """Waits like `wait`, then frees the threads."""
        try:
            self.wait()
        finally:
            self._helper.shutdown()
            self._writer.close()
        self._finish_help()


def _handlers() -> dict[str, Any]:
    arrays, plain = ocp.PyTreeCheckpointHandler, ocp.JsonCheckpointHandler
    return {"model": arrays(), "optimizer": arrays(), "data": plain(), "run": plain()}


def _optimizer_item(state: Any) -> dict[str, PyTree]:
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
