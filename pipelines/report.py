"""Writes WORKDIR/report.html: one page that shows how a run went and what it learned.

    python -m pipelines.report runs/quickstart

Works for any run, finished or not. The page says what is missing: an evaluation, or a checkpoint.
For the results of probes run `python -m pipelines.evaluate` first.
"""

import pathlib

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import require

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; may also be given without the flag's name."
)
_TEST = flags.DEFINE_string(
    "test_shards", "starter/heldout-*", "Labelled shards whose examples are shown."
)


def main(argv: list[str]) -> None:
    """Reports on the run that the command line names."""
    named = [*([_WORKDIR.value] if _WORKDIR.value else []), *argv[1:]]
    require(len(named) == 1, "Name one workdir: python -m pipelines.report WORKDIR.")
    from m3ae_tpu.report.page import report_workdir

    print(f"report: {report_workdir(pathlib.Path(named[0]), _TEST.value)}")


def run() -> None:
    """Entry point of the installed command `m3ae-report`."""
    run_program(main)


if __name__ == "__main__":
    run()
