"""Rehearsals of a config on slices: one, a sweep of settings, or the sizes of a grant."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.config.tree import replaced
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.measure.compiler_process import CompilerProcess, ReplayFailedError
from m3ae_tpu.rehearsal.changes import fitting_changes, flags_of, grid_of_sweep
from m3ae_tpu.rehearsal.compiled import compile_step_for
from m3ae_tpu.rehearsal.estimates import Figures, figures
from m3ae_tpu.rehearsal.growth import Assumptions, growth
from m3ae_tpu.rehearsal.scaling import scaled
from m3ae_tpu.rehearsal.topologies import Slice, parse_slice

type Say = Callable[[str], None]
"""Tells the user what is being compiled."""


class Rehearser:
    """Rehearses steps in a child process, since the TPU compiler needs an environment of its own.

    Args:
        say: Called with what is compiled next.
    """

    def __init__(self, say: Say):
        self._process, self._say = CompilerProcess(replay=False), say

    def __call__(self, config: PretrainConfig, on: Slice, changes: str = "") -> Figures:
        """Returns the figures of a config's step on a slice. Takes minutes.

        Raises:
            UserError: the slice is unknown, or mesh and batch do not divide over it.
        """
        self._say(f"{on.name}: compiling {changes}".rstrip())
        try:
            return figures(config, on, self._process.run(compile_step_for, config, on))
        except ReplayFailedError:
            raise UserError(
                f"--topology = {on.name}: the TPU compiler's process ended. "
                "It needs up to 6 GB of memory: free some, then start again."
            ) from None

    def close(self) -> None:
        """Ends the child process."""
        self._process.close()


def rehearse(config: PretrainConfig, on: Slice, rehearser: Rehearser) -> Figures:
    """Returns the figures of a config on a slice; if it does not fit, with `changes` that do."""
    result = rehearser(config, on)
    result["changes"] = []
    if not result["fits"]:
        tries = fitting_changes(
            config, on, result, lambda other: rehearser(other, on, "with a change to fit")
        )
        result["changes"] = [{"flags": change.flags, "figures": tried} for change, tried in tries]
    return result


def sweep(config: PretrainConfig, on: Slice, rehearser: Rehearser) -> list[Figures]:
    """Returns the figures of several mesh shapes, each with and without remat, quickest first."""
    rows = []
    for fields in grid_of_sweep(config, on):
        try:
            row = rehearser(replaced(config, fields), on, flags_of(fields))
        except UserError as error:
            row = {"topology": on.name, "fits": False, "refused": str(error)}
        rows.append(row | {"flags": flags_of(fields)})
    return sorted(rows, key=lambda row: (not row["fits"], row.get("step_seconds") or 0.0))


class Grant(NamedTuple):
    """Chips for a number of days."""

    on: Slice
    days: float


def parse_grant(text: str) -> Grant:
    """Returns the grant of `v5e:16x16,days=30`.

    Raises:
        UserError: it names no slice, or no number of days.
    """
    match = re.fullmatch(r"([^,]+),\s*days=(\d+(?:\.\d+)?)", text.strip())
    if match is None:
        raise UserError(f"--target = {text} is not a grant. Write it as v5e:16x16,days=30.")
    days = float(match.group(2))
    require(days > 0, f"--target = {text}: a grant has more than 0 days. Set days=30.")
    return Grant(parse_slice(match.group(1)), days)


def sizes_for(
    grant: Grant, configs: Sequence[tuple[str, PretrainConfig]], rehearser: Rehearser
) -> list[Figures]:
    """Returns for each config what the grant trains of it, at the rehearsal's rate.

    A config that does not fit counts with the cheapest change that does.
    """
    rows: list[dict[str, Any]] = []
    for name, config in configs:
        result = rehearse(config, grant.on, rehearser)
        flags = ""
        if not result["fits"] and result["changes"]:
            cheapest = min(result["changes"], key=lambda change: change["figures"]["step_seconds"])
            result, flags = cheapest["figures"], cheapest["flags"]
        row = result | {"config": name, "flags": flags, "grant_days": grant.days}
        if result["fits"]:
            examples = result["examples_per_second"] * grant.days * 86_400
            row |= {
                "examples_in_grant": examples,
                "steps_in_grant": examples / config.batch_size,
                "share_of_run": grant.days / result["days"],
            }
        rows.append(row)
    return rows


def grown(result: Figures, chips: Sequence[int]) -> list[dict[str, Any]]:
    """Returns what a rehearsed config that fits needs on other numbers of chips, as figures of
    `Scaled` and `Growth`; each chip keeps its rows.
    """
    rows_of_chip = result["batch_size"] / result["chips"]
    rows = []
    for count in chips:
        step = scaled(result, count)
        needs = growth(
            count,
            num_parameters=result["num_parameters"],
            examples_per_second_per_chip=rows_of_chip / step.step_seconds,
            assumed=Assumptions(),
        )
        rows.append(step._asdict() | {"on": step.on.name} | needs._asdict())
    return rows
