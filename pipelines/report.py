"""Writes WORKDIR/report.html: one page that shows how a run went and what it learned.

    python -m pipelines.report runs/quickstart

Works for any run, finished or not. The page says what is missing: an evaluation, or a checkpoint.
For the results of probes run `python -m pipelines.evaluate` first.
"""

from m3ae_tpu.command_line import one_place, run_program
from m3ae_tpu.files import Place
from m3ae_tpu.option_flags import define_flag

_WORKDIR = define_flag(
    "workdir",
    Place,
    None,
    "Folder of the run, also gs://BUCKET/FOLDER; may be given without the flag's name.",
)
_TEST = define_flag(
    "test_shards",
    str,
    "",
    "Labelled shards whose examples are shown; empty: those of the evaluation, or the starter "
    "set's.",
)
_OUTPUT = define_flag(
    "output",
    Place,
    None,
    "Folder of report.html, also gs://BUCKET/FOLDER, made if missing, where WORKDIR may not be "
    "written. If it holds an evaluation.json, that one is shown.",
)


def main(argv: list[str]) -> None:
    """Reports on the run that the command line names."""
    workdir = one_place(argv, _WORKDIR.value, "python -m pipelines.report WORKDIR")
    from m3ae_tpu.report.page import report_workdir
    from m3ae_tpu.run.claim import files_of, output_folder
    from m3ae_tpu.storage.mirror import address_of

    with files_of(workdir) as folder, output_folder(_OUTPUT.value) as output:
        page = report_workdir(folder, _TEST.value, output=output)
        print(f"report: {address_of(page.parent)}/{page.name}")


def run() -> None:
    """Entry point of the installed command `m3ae-report`."""
    run_program(main)


if __name__ == "__main__":
    run()
