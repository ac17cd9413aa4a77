"""Calls of the `gcloud` command, and its errors in one message."""

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence

from m3ae_tpu.errors import UserError

_ACCOUNT = {
    r"active account|auth login|[Rr]eauthenticat|refreshing your|invalid_grant": (
        "Log in: gcloud auth login."
    ),
    r"property \[project\]|project ID .* invalid": (
        "Name the project: --project=ID, or gcloud config set project ID."
    ),
    r"ssh-add": (
        "Several hosts need the key in an agent: eval $(ssh-agent), then "
        "ssh-add ~/.ssh/google_compute_engine."
    ),
}
_RESOURCE = {
    r"SERVICE_DISABLED|has not been used|is disabled": (
        "Switch the API on: gcloud services enable tpu.googleapis.com."
    ),
    r"[Qq]uota|RESOURCE_EXHAUSTED": (
        "Ask for more (console.cloud.google.com/iam-admin/quotas), or take the zone and the kind "
        "(--spot) that your grant names."
    ),
    r"PERMISSION_DENIED|[Pp]ermission|\b403\b": (
        "Ask for the roles TPU Admin and Service Account User in this project."
    ),
    r"ALREADY_EXISTS|already exists": "Give another --name, or delete the old one.",
    r"INVALID_ARGUMENT|not found|NOT_FOUND": (
        "See what the zone has: gcloud compute tpus accelerator-types list --zone=ZONE."
    ),
}
"""Words in gcloud's errors that waiting does not mend, and the fix of each: of an account, in any
call, and of a queued resource."""


class GcloudError(Exception):
    """A call of gcloud that failed. It may succeed at another time."""


def shown(words: Sequence[str]) -> str:
    """Returns a call as a line for a shell."""
    return shlex.join(["gcloud", *words])


def call(*calls: Sequence[str]) -> str:
    """Makes calls of gcloud, all at once, and returns what they print.

    Raises:
        GcloudError: one failed.
        UserError: gcloud is not installed.
    """
    processes: list[subprocess.Popen[str]] = []
    printed = []
    try:
        for words in calls:
            processes.append(_start(words, stderr=subprocess.PIPE))
        for process in processes:
            output, errors = process.communicate()
            if process.returncode:
                raise GcloudError(_message(errors) or f"exit code {process.returncode}")
            printed.append(output)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
            process.wait()
    return "".join(printed)


def lines(words: Sequence[str]) -> Iterator[str]:
    """Calls gcloud and yields the lines that it prints, as they come. Its errors are shown.

    Raises:
        UserError: it is not installed.
    """
    with _start(words, stderr=None) as process:
        assert process.stdout is not None
        try:
            yield from process.stdout
        finally:
            process.terminate()


def explained(words: Sequence[str], error: GcloudError) -> UserError | None:
    """Returns the error for the user where waiting does not mend its cause, or None."""
    text = str(error)
    for pattern, fix in (_ACCOUNT | (_RESOURCE if "queued-resources" in words else {})).items():
        if re.search(pattern, text):
            verb = " ".join(words[2:4])
            return UserError(f"gcloud {verb} = {text[:400]}\n{fix}")
    return None


def _start(words: Sequence[str], *, stderr: int | None) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            ["gcloud", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            # Ctrl-C reaches this program alone, which then ends the call.
            start_new_session=True,
        )
    except FileNotFoundError:
        raise UserError(
            "gcloud is not installed, or not on PATH. "
            "Install it (cloud.google.com/sdk/docs/install), then: gcloud auth login."
        ) from None


def _message(errors: str) -> str:
    """Returns gcloud's own sentence, without its progress and its links."""
    found = re.search(r"ERROR: (.*)", errors, re.DOTALL)
    text = found[1] if found else "\n".join(errors.strip().split("\n")[-3:])
    text = re.sub(r"^\(gcloud\.[\w.-]+\) ", "", text.strip())
    return " ".join(text.split())
