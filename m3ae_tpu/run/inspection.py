"""Contents of a run's checkpoints: sizes, digests, versions and config of each kept step."""

import pathlib
from typing import Any

from m3ae_tpu.errors import require
from m3ae_tpu.run.checkpoint_reader import CheckpointReader
from m3ae_tpu.run.digests import arrays_sha256, json_sha256


def inspect(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the contents of each kept step, oldest first, ready for JSON.

    Keys: `step`; `damage`, the damaged file and its damage, or null; and, null in a damaged step,
    `parameters` and `parameter_bytes` of the model, `model_sha256`, `optimizer_sha256` (covers the
    number of steps too), `data_sha256` of the data state, `tokenizer_sha256`, `versions` and the
    `config` that made it.

    Raises:
        UserError: there is no such folder, or no checkpoint in it.
    """
    require(
        workdir.is_dir(),
        f"WORKDIR = {workdir} is not a folder. Name the workdir of a run, such as runs/quickstart.",
    )
    reader = CheckpointReader(workdir)
    steps = reader.steps()
    require(
        bool(steps),
        f"WORKDIR = {workdir} holds no checkpoint. Check the path, or let the run save first.",
    )
    return [_describe(reader, step) for step in steps]


def _describe(reader: CheckpointReader, step: int) -> dict[str, Any]:
    names = ("parameters", "parameter_bytes", "model_sha256", "optimizer_sha256", "data_sha256")
    names += ("tokenizer_sha256", "versions", "config")
    damage = reader.fault(step)
    if damage:
        return {"step": step, "damage": damage, **dict.fromkeys(names)}
    stored = reader.read(step)
    values = (
        sum(array.size for array in stored.model.values()),
        sum(array.nbytes for array in stored.model.values()),
        arrays_sha256(stored.model),
        arrays_sha256(stored.optimizer),
        json_sha256(stored.data),
        *(stored.run.get(name) for name in ("tokenizer_sha256", "versions", "config")),
    )
    return {"step": step, "damage": None, **dict(zip(names, values, strict=True))}
