"""Measures how fast a config's data can be made, by stage, and how many cores feed a chip.

    python -m pipelines.benchmark_data --config=m3ae_base
    --data.sources.0.shards='data/cc12m/train-*' python -m pipelines.benchmark_data
    --config=quickstart --examples_per_second=3000 --json=rates.json

Every field of the config can be set by its dotted name. Times are CPU time of one process, all its
threads together: a busy machine changes them less than wall time. Compare ratios, which come from
one interleaved run. Files are read from the page cache.
"""

import dataclasses
import json
import os
import pathlib
from typing import TYPE_CHECKING

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.errors import require
from m3ae_tpu.files import atomic_write
from m3ae_tpu.overrides import load_named_config, override

if TYPE_CHECKING:
    from m3ae_tpu.measure.data_rates import Rates

_CONFIG = flags.DEFINE_string(
    "config", "quickstart", "Named config to start from, or path of a file like it."
)
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Batches per stage.", lower_bound=1)
_EXAMPLES = flags.DEFINE_float(
    "examples_per_second",
    1_000.0,
    "What a chip takes: `examples_per_second` of a run's metrics.",
    lower_bound=0,
)
_DECODE_SHARDS = flags.DEFINE_string(
    "decode_shards",
    "",
    "Shards for the decode-only limit, instead of the config's: originals of smaller images.",
)
_JSON = flags.DEFINE_string("json", "", "File that gets the figures too; none if empty.")


def show(rates: "Rates", examples_per_second: float) -> None:
    """Prints the figures as a table."""
    import rich
    import rich.table

    from m3ae_tpu.measure.data_rates import DECODE_ONLY, WHOLE, WHOLE_AGAIN

    table = rich.table.Table(
        title=f"one core, a row of a batch of {rates.batch_size}; {rates.images_per_row:.0%} of the rows have an image",
        title_justify="left",
    )
    for heading in ("stage", "CPU time", "records/s", "images/s", "share"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    whole = rates.cpu_seconds[WHOLE]
    parts = [name for name in rates.cpu_seconds if name not in (DECODE_ONLY, WHOLE, WHOLE_AGAIN)]
    rest = whole - sum(rates.cpu_seconds[name] for name in parts)

    def add(name: str, seconds: float, *, style: str = "") -> None:
        rate = f"{1 / seconds:,.0f}" if seconds > 0 else "-"
        images = (
            f"{rates.images_per_row / seconds:,.0f}"
            if seconds > 0 and rates.images_per_row
            else "-"
        )
        table.add_row(
            name, f"{seconds * 1e6:,.0f} us", rate, images, f"{seconds / whole:.0%}", style=style
        )

    for name in parts:
        add(name, rates.cpu_seconds[name])
    add("the rest", rest)
    table.add_section()
    add(WHOLE, whole, style="bold")
    add(WHOLE_AGAIN, rates.cpu_seconds[WHOLE_AGAIN])
    if DECODE_ONLY in rates.cpu_seconds:
        add(DECODE_ONLY, rates.cpu_seconds[DECODE_ONLY])
    rich.print(table)
    if rates.fraction_of_decode_only is not None:
        rich.print(
            f"The loader reaches [bold]{rates.fraction_of_decode_only:.0%}[/] of the rate of decoding alone."
        )
    rich.print(
        f"Copy to {rates.device}: {rates.copy_seconds * 1e6:,.1f} us a row, while the step before computes."
    )
    rich.print(
        f"A chip that takes {examples_per_second:,.0f} examples/s needs "
        f"[bold]{rates.cores_for(examples_per_second):.1f} cores[/] like this one "
        f"(--examples_per_second); there are {os.cpu_count()} here."
    )


def as_json(rates: "Rates", examples_per_second: float) -> str:
    """Returns all figures for programs: seconds a row by stage, and what follows from them."""
    figures = dataclasses.asdict(rates) | {
        "rows_per_second_per_core": {stage: rates.per_core(stage) for stage in rates.cpu_seconds},
        "examples_per_second": examples_per_second,
        "cores_needed": rates.cores_for(examples_per_second),
    }
    return json.dumps(figures, indent=2) + "\n"


def main(argv: list[str]) -> None:
    """Measures the config that the command line describes, with a progress bar."""
    config = override(load_named_config(_CONFIG.value, PretrainConfig), argv[1:])
    path = pathlib.Path(_JSON.value)
    require(
        not _JSON.value or path.parent.is_dir(),
        f"--json = {path} lies in no folder. Make {path.parent} first, or name another file.",
    )
    require(
        not _JSON.value or not path.is_dir(), f"--json = {path} is a folder. Name a file in it."
    )
    import rich.progress

    from m3ae_tpu.measure.data_rates import measure

    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(), transient=True
    ) as bars:
        task = bars.add_task("measuring", total=_ROUNDS.value)
        rates = measure(
            config,
            rounds=_ROUNDS.value,
            decode_shards=_DECODE_SHARDS.value or "",
            report=lambda done: bars.update(task, completed=done),
        )
    show(rates, _EXAMPLES.value)
    if _JSON.value:
        atomic_write(path, as_json(rates, _EXAMPLES.value))


def run() -> None:
    """Entry point of the installed command `m3ae-benchmark-data`."""
    run_program(main)


if __name__ == "__main__":
    run()
