"""The file of a run's evaluation, read back."""

import json
import pathlib
from typing import Any

from m3ae_tpu.errors import UserError

EVALUATION = "evaluation.json"


def read_evaluation(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns `evaluation.json`, or nothing before the run is evaluated.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / EVALUATION
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(
            f"{path} is not JSON. Write it again: python -m pipelines.evaluate {workdir}."
        ) from None
