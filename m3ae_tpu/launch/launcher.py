"""The life of a launched run: slices are awaited, installed, started, watched, and given back."""

import json
import pathlib
import re
import tempfile
import time
from collections.abc import Callable

from m3ae_tpu.errors import UserError
from m3ae_tpu.launch import gcloud
from m3ae_tpu.launch.checkout import write_archive
from m3ae_tpu.launch.gcloud import GcloudError
from m3ae_tpu.launch.request import EXIT_CODE, Request
from m3ae_tpu.parallel.exit_codes import MEANINGS, PREEMPTED, USER_ERROR

_MOST_TRIES = 3
"""Calls in a row that may fail before it counts as a failure."""
_WORKED_SECONDS = 3600.0
"""A failure after so long is the first of a new count: runs of weeks meet some."""
_REPORT_SECONDS = 600.0
"""Time between two lines while nothing changes."""


class Launcher:
    """Runs a program on slices to its end, through preemptions and a number of failures."""

    def __init__(
        self,
        request: Request,
        *,
        poll_seconds: float,
        max_failures: int,
        show: Callable[[str], None],
    ):
        """Calls nothing yet.

        Args:
            request: The slices and the program.
            poll_seconds: Time between two looks at the state, and before a new try.
            max_failures: Failures after which the launch ends; preemptions are none.
            show: Shows a line.
        """
        self._request, self._poll_seconds, self._show = request, poll_seconds, show
        self._max_failures, self._num_failures, self._failed_at = max_failures, 0, 0.0
        self._exists = self._is_installed = False
        self._is_running: bool | None = None
        """None where an earlier launch may have started it."""
        self._offset = 1
        """Byte of the first host's log from which it is not shown yet."""
        self._folder = tempfile.TemporaryDirectory(prefix="m3ae-launch-")
        self._archive = str(pathlib.Path(self._folder.name) / "checkout.tar.gz")
        self._code = write_archive(pathlib.Path(self._archive))

    def run(self) -> None:
        """Returns when the program has ended well.

        Raises:
            UserError: gcloud refused, the program ended by a user's mistake, or failed too often.
        """
        if self._state()[0]:
            self._show(f"{self._request.name} exists: it is used, and given back at the end")
        while True:
            self._wait_until_active()
            try:
                code = self._run_program()
            except GcloudError as error:
                if self._state()[0] == "ACTIVE":
                    self._fail(f"the hosts cannot be reached: {error}")
                continue
            if code == USER_ERROR:
                raise UserError(
                    f"the program = {' '.join(self._request.command)[:200]} ended with exit code "
                    f"{code}: its last lines say why. Correct that, and launch again."
                )
            meaning = "it ended well" if code == 0 else MEANINGS.get(code, "it failed")
            self._show(f"the program ended with exit code {code}: {meaning}")
            # A slice that is taken back is ACTIVE for a while, and a run of one process that is
            # asked to stop ends with 0. Started again, a finished one ends at once.
            time.sleep(self._poll_seconds)
            if self._state()[0] != "ACTIVE":
                continue
            if code == 0:
                return
            if code != PREEMPTED:
                self._fail(f"the program ended with exit code {code}: {meaning}")

    def clean_up(self, *, is_kept: bool) -> None:
        """Gives the slices back, or says what stays; a running program saves first."""
        if not self._exists:
            self._show("nothing was created, nothing is left")
        elif is_kept:
            self._show(f"{self._request.name} is kept and costs go on. The same command goes on")
            self._show(f"with it. To give it back: {gcloud.shown(self._request.delete())}")
        else:
            try:
                if self._is_running:
                    self._show("the program saves and stops")
                    gcloud.call(*map(self._request.stop, self._request.nodes))
            except GcloudError as error:
                self._show(f"the program could not be stopped: {error}")
            self._delete()
        self._folder.cleanup()

    def _wait_until_active(self) -> None:
        """Creates the slices where they are missing, and waits for them."""
        began, shown, shown_at = time.monotonic(), "", 0.0
        while True:
            state, cause = self._state()
            now = time.monotonic()
            if state != shown or now - shown_at > _REPORT_SECONDS:
                minutes = f", waiting for {(now - began) / 60:.0f} min" if shown else ""
                self._show(f"{self._request.name}: {state or 'does not exist'}{minutes}")
                shown, shown_at = state, now
            match state:
                case "ACTIVE":
                    return
                case "":
                    self._create()
                case "SUSPENDED":
                    self._show("the slices were taken back; asking for new ones")
                    self._delete()
                    time.sleep(self._poll_seconds)
                case "FAILED":
                    self._delete()
                    self._fail(f"the slices could not be made: {cause or 'no cause is given'}")
                case _:
                    time.sleep(self._poll_seconds)

    def _state(self) -> tuple[str, str]:
        """Returns the state of the queued resource, "" if there is none, and the cause of it."""
        words = self._request.describe()
        for _ in range(_MOST_TRIES):
            try:
                found = json.loads(gcloud.call(words))["state"]
            except GcloudError as error:
                if _is_missing(error):
                    self._exists = self._is_installed = self._is_running = False
                    return "", ""
                if explained := gcloud.explained(words, error):
                    raise explained from None
                self._show(f"the state is not known: {error}")
                time.sleep(self._poll_seconds)
                continue
            self._exists = True
            cause = found.get("failedData", {}).get("error", {}).get("message", "")
            return found["state"], cause
        raise UserError(
            f"gcloud describe = {_MOST_TRIES} failures in a row. Check the network, launch again."
        )

    def _create(self) -> None:
        words = self._request.create()
        self._show(gcloud.shown(words))
        self._exists = True  # An interrupted call may have made them.
        try:
            gcloud.call(words)
        except GcloudError as error:
            self._exists = False
            if explained := gcloud.explained(words, error):
                raise explained from None
            self._fail(f"the slices cannot be asked for: {error}")

    def _delete(self) -> None:
        """Gives the slices back.

        Raises:
            UserError: several calls in a row failed.
        """
        words = self._request.delete()
        self._show(gcloud.shown(words))
        for attempt in range(1, _MOST_TRIES + 1):
            try:
                gcloud.call(words)
                break
            except GcloudError as error:
                if _is_missing(error):
                    break
                self._show(f"not given back: {error}")
                if attempt == _MOST_TRIES:
                    raise UserError(
                        f"--name = {self._request.name} still exists, and costs. "
                        f"Give it back: {gcloud.shown(words)}"
                    ) from None
                time.sleep(self._poll_seconds)
        self._exists = self._is_installed = self._is_running = False

    def _run_program(self) -> int:
        """Installs and starts the program unless that is done. Returns its exit code.

        Raises:
            GcloudError: the slices were taken back, or the hosts could not be reached several times
                in a row.
        """
        request, num_tries, shown = self._request, 0, self._offset
        while True:
            try:
                # First of all: it may run since an earlier launch.
                if self._is_running is not False and (code := self._follow()) is not None:
                    return code
                if not self._is_installed:
                    self._show(f"installing on {self._hosts()}")
                    gcloud.call(*(request.copy(node, self._archive) for node in request.nodes))
                    gcloud.call(*map(request.install, request.nodes))
                    self._is_installed = True
                self._show(f"starting: {' '.join(request.command)}")
                gcloud.call(*(request.start(node, self._code) for node in request.nodes))
                self._is_running, self._offset = True, 1
            except GcloudError as error:
                if explained := gcloud.explained(request.start("", ""), error):
                    raise explained from None
                num_tries = 1 if self._offset != shown else num_tries + 1
                shown = self._offset
                if num_tries == _MOST_TRIES or self._state()[0] != "ACTIVE":
                    raise
                self._show(f"{error}; trying again")
                time.sleep(self._poll_seconds)

    def _follow(self) -> int | None:
        """Shows the first host's log. Returns the exit code at its end; None without a program.

        Raises:
            GcloudError: the connection broke before the program ended.
        """
        for line in gcloud.lines(self._request.follow(self._code, self._offset)):
            if line.startswith(EXIT_CODE):
                code = line.removeprefix(EXIT_CODE).strip()
                self._is_running = False
                return int(code) if code.isdigit() else None
            self._is_running = True
            self._offset += len(line.encode())
            print(line, end="", flush=True)
        raise GcloudError("the connection to the first host broke")

    def _hosts(self) -> str:
        accelerator, number = self._request.accelerator, self._request.num_slices
        each = "each " if number > 1 else ""
        slices = f"{number} slices of " if number > 1 else ""
        return (
            f"{slices}{accelerator.num_hosts} hosts {each}with {accelerator.chips_per_host} chips"
        )

    def _fail(self, reason: str) -> None:
        """Counts a failure, and waits before the next try.

        Raises:
            UserError: there were too many.
        """
        now = time.monotonic()
        if now - self._failed_at > _WORKED_SECONDS:
            self._num_failures = 0
        self._num_failures, self._failed_at = self._num_failures + 1, now
        if self._num_failures > self._max_failures:
            raise UserError(
                f"--max_failures = {self._max_failures} is exceeded: {reason}.\n"
                "See the lines above, and the run's log.txt; then launch again."
            )
        self._show(f"{reason}; try {self._num_failures + 1} of {self._max_failures + 1}")
        time.sleep(self._poll_seconds)


def _is_missing(error: GcloudError) -> bool:
    return re.search(r"NOT_FOUND|not found", str(error)) is not None
