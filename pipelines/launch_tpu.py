"""Rents TPU slices, runs a program on all of their hosts to its end, and gives them back.

    python -m pipelines.launch_tpu --name=large --zone=us-west4-a --accelerator=v5litepod-256 \\
        --spot -- python -m pipelines.pretrain --config=m3ae_large --workdir=gs://bucket/large

Needs Google's `gcloud` command, logged in, and a checkout of this repository: the hosts get the
files that git tracks, and the versions of constraints.txt. --dry_run shows every call and makes
none. Slices that are taken back are asked for again, and the program is started again: it resumes
from its newest checkpoint. The page docs/pods.md has the whole way.
"""

import pathlib
import signal
import tempfile
from typing import NoReturn

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import require
from m3ae_tpu.option_flags import define_flag

_NAME = define_flag(
    "name", str, None, "Name of the queued resource, and of its slice.", required=True
)
_ZONE = define_flag("zone", str, None, "Zone of the slices, as us-west4-a.", required=True)
_ACCELERATOR = define_flag(
    "accelerator", str, None, "Accelerator type of a slice, as v5litepod-256.", required=True
)
_PROJECT = define_flag("project", str, "", "Project that pays; empty: gcloud's own setting.")
_NUM_SLICES = define_flag("num_slices", int, 1, "Slices that train together.", at_least=1)
_SPOT = define_flag("spot", bool, False, "Take slices that Google may take back at any time.")
_CREATE_FLAGS = define_flag(
    "create_flags",
    list,
    [],
    "Flags to add to `queued-resources create`, as --reserved,--service-account=NAME.",
)
_SETUP_COMMAND = define_flag(
    "setup_command",
    str,
    "",
    "Shell command to run once on every host, in the checkout, before the program: to copy data.",
)
_POLL_SECONDS = define_flag(
    "poll_seconds", float, 60.0, "Time between two looks at the slices, and before a new try."
)
_MAX_FAILURES = define_flag(
    "max_failures",
    int,
    5,
    "Failures after which to give up. Slices that are taken back are none; after an hour of work "
    "counting begins again.",
    at_least=0,
)
_KEEP = define_flag("keep", bool, False, "Keep the slices at the end. They cost.")
_DRY_RUN = define_flag("dry_run", bool, False, "Show every call of gcloud, and make none.")

_COMMAND: list[str] = []


def main(argv: list[str]) -> None:
    """Launches the program that stands after `--` on the command line."""
    from m3ae_tpu.launch import gcloud
    from m3ae_tpu.launch.checkout import untracked_files, write_archive
    from m3ae_tpu.launch.launcher import Launcher
    from m3ae_tpu.launch.request import Request, require_name
    from m3ae_tpu.parallel.slices import find_slice

    require(
        bool(_COMMAND) and not argv[1:],
        "Write the program after the flags and `--`: -- python -m pipelines.pretrain --config=...",
    )
    require_name(_NAME.value)
    request = Request(
        name=_NAME.value,
        zone=_ZONE.value,
        accelerator=find_slice(_ACCELERATOR.value),
        command=tuple(_COMMAND),
        project=_PROJECT.value,
        num_slices=_NUM_SLICES.value,
        is_spot=_SPOT.value,
        create_flags=tuple(_CREATE_FLAGS.value),
        setup_command=_SETUP_COMMAND.value,
    )
    for warning in _warnings(request.command, untracked_files()):
        _show(warning)
    if _DRY_RUN.value:
        with tempfile.TemporaryDirectory() as folder:
            code = write_archive(pathlib.Path(folder) / "checkout.tar.gz")
        for occasion, calls in request.plan(code):
            print(f"# {occasion}")
            for words in calls:
                print(gcloud.shown(words))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # As Ctrl-C.
    launcher = Launcher(
        request,
        poll_seconds=_POLL_SECONDS.value,
        max_failures=_MAX_FAILURES.value,
        show=_show,
    )
    try:
        launcher.run()
    finally:
        launcher.clean_up(is_kept=_KEEP.value)


def _warnings(command: tuple[str, ...], untracked: list[str]) -> list[str]:
    found = []
    if untracked:
        more = f" and {len(untracked) - 2} more" if len(untracked) > 2 else ""
        found.append(f"not copied, as git does not track them: {', '.join(untracked[:2])}{more}")
    workdirs = [word for word in command if word.startswith("--workdir=")]
    if any(not word.startswith("--workdir=gs://") for word in workdirs):
        found.append(f"{workdirs[0]} is on the hosts' disks, and is lost with them; take gs://")
    return found


def _show(line: str) -> None:
    print(f"launch_tpu: {line}", flush=True)


def run() -> NoReturn:
    """Entry point of the installed command `m3ae-launch-tpu`."""
    run_program(main, command=_COMMAND)


if __name__ == "__main__":
    run()
