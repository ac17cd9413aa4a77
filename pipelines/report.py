"""Writes WORKDIR/report.html: one page that shows how a run went and what it learned.

    python -m pipelines.report runs/quickstart

Works for any run, finished or not; what is not there yet (an evaluation, a checkpoint), the page
says. For the probe table run `python -m pipelines.evaluate` first.
"""

import pathlib

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; may also be given without the flag's name."
)
_TEST = flags.DEFINE_string(
    "test_shards", "starter/heldout-*", "Labelled shards whose examples are shown."
)


def report(workdir: pathlib.Path, test_shards: str) -> pathlib.Path:
    """Writes the page and returns its path."""
    import rich

    from m3ae_tpu.config import PretrainConfig
    from m3ae_tpu.evaluation.evaluate import read_examples
    from m3ae_tpu.evaluation.trained_run import has_checkpoint, load_trained_run, read_evaluation
    from m3ae_tpu.report.examples import make_pictures
    from m3ae_tpu.report.page import write_report
    from m3ae_tpu.run.metrics import read_metrics
    from m3ae_tpu.run.workdir import load_run_config

    config = load_run_config(workdir, PretrainConfig)
    pictures, versions = None, {}
    with rich.get_console().status("reconstructing some held-out examples"):
        if has_checkpoint(workdir):
            run = load_trained_run(workdir)
            examples = read_examples(run, test_shards)
            pictures, versions = (
                make_pictures(run.model, examples, config, run.tokenizer),
                run.versions,
            )
    return write_report(
        workdir,
        config,
        metrics=read_metrics(workdir),
        evaluation=read_evaluation(workdir),
        pictures=pictures,
        versions=versions,
    )


def main(argv: list[str]) -> None:
    """Reads the command line; everything else is `report`."""
    named = [*([_WORKDIR.value] if _WORKDIR.value else []), *argv[1:]]
    if len(named) != 1:
        raise UserError("Name one workdir: python -m pipelines.report WORKDIR.")
    print(f"report: {report(pathlib.Path(named[0]), _TEST.value)}")


def run() -> None:
    """Entry point of the installed command `m3ae-report`."""
    run_program(main)


if __name__ == "__main__":
    run()
