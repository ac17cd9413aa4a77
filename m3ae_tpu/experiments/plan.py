"""The length of an experiment's runs: as many steps as fit into the time, written down once."""

import dataclasses
import json
import math
import pathlib
from typing import Any

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_write

FILE_NAME = "plan.json"
LEAST_STEPS, MOST_STEPS = 40, 7_000
_ROUND = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Length and cost of the runs, which every later call in the same folder keeps."""

    experiment: str
    num_steps: int
    """Steps of the longest run."""
    seconds_per_step: float
    """Step of the costliest variant, on the machine that made the plan."""
    seconds_per_run: float
    """Start, compilation and scoring of a run, there."""


def fitting_steps(
    *, seconds: float, num_runs: int, work: float, seconds_per_step: float, seconds_per_run: float
) -> int:
    """Returns the steps of the longest run with which all runs fit into the time.

    Between 40 and 7,000, a multiple of 20.

    Args:
        seconds: The time for all runs.
        num_runs: Number of runs that train.
        work: Sum over the runs of their share of the longest run's steps times their cost of a
            step, in units of the costliest variant's.
        seconds_per_step: A step of the costliest variant.
        seconds_per_run: Time of a run beside its steps.
    """
    left = seconds - num_runs * seconds_per_run
    steps = math.floor(left / (work * seconds_per_step) / _ROUND) * _ROUND
    return min(MOST_STEPS, max(LEAST_STEPS, steps))


def read_plan(output: pathlib.Path, experiment: str, num_steps: int | None) -> Plan | None:
    """Returns the plan in a folder, None if it has none.

    Raises:
        UserError: it is another experiment's, or has another number of steps, or is damaged.
    """
    path = output / FILE_NAME
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        plan = Plan(**values)
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError):
        raise UserError(
            f"{path} is damaged. Remove the folder, or name another --output."
        ) from None
    require(
        plan.experiment == experiment,
        f"--output = {output} holds the experiment {plan.experiment}. Name another folder.",
    )
    require(
        num_steps in (None, plan.num_steps),
        f"--num_steps = {num_steps} differs from the {plan.num_steps} of {path}. "
        "Leave it out, or name another --output.",
    )
    return plan


def write_plan(output: pathlib.Path, plan: Plan) -> None:
    """Writes the plan into the folder."""
    atomic_write(output / FILE_NAME, json.dumps(dataclasses.asdict(plan), indent=2) + "\n")
