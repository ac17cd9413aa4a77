"""Checkpoints: the whole state of a run, written in the background, complete or absent.

A step is a folder `WORKDIR/checkpoints/STEP`, on a disk or in a bucket, with the items `model`,
`optimizer` (with the number of steps), `data` (state of the data) and `run` (config and versions),
and the digests of their files. Arrays are stored under dotted names
(`encoder.blocks.mlp_in.kernel`), so that reading them needs only Orbax.
"""

import contextlib
import errno
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import orbax.checkpoint as ocp

from m3ae_tpu.config import CheckpointConfig
from m3ae_tpu.parallel import processes
from m3ae_tpu.run import digests
from m3ae_tpu.run.checkpoint_reader import CheckpointReader, handlers, named_arrays, optimizer_item

_LOG = logging.getLogger(__name__)
ITEMS = ("model", "optimizer", "data", "run")


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
            ocp.CompositeCheckpointHandler(**handlers()),
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
                    optimizer=ocp.args.PyTreeSave(named_arrays(optimizer_item(state))),
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
