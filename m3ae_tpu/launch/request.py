"""A slice and a program to run on it, and the `gcloud` calls for it, as plain words.

Nothing is called here: what `--dry_run` shows is what a launch calls.
"""

import dataclasses
import hashlib
import re
import shlex

from m3ae_tpu.errors import require
from m3ae_tpu.parallel.slices import TpuSlice

_TPUS = ("compute", "tpus")
_SCRIPT = "m3ae_tpu/launch/host.sh"
EXIT_CODE = "launch_tpu: exit code "
"""Beginning of the line that follows the log of a program that ended, as `host.sh` prints it."""
NOT_STARTED = f"{EXIT_CODE}none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A program to run on all hosts of one or more slices."""

    name: str
    """Name of the queued resource, and of its slice; several slices get a number each."""
    zone: str
    accelerator: TpuSlice
    command: tuple[str, ...]
    """Program and arguments, the same on every host."""
    project: str = ""
    """Project that pays; empty: gcloud's own setting."""
    num_slices: int = 1
    is_spot: bool = False
    """True for slices that Google may take back at any time."""
    create_flags: tuple[str, ...] = ()
    """Flags of `queued-resources create` to add."""
    setup_command: str = ""
    """Shell command to run once on every host, in the checkout, before the program."""

    @property
    def nodes(self) -> list[str]:
        """Names of the slices."""
        if self.num_slices == 1:
            return [self.name]
        return [f"{self.name}-{number}" for number in range(self.num_slices)]

    @property
    def folder(self) -> str:
        """Folder of the checkout on the hosts, in the user's home."""
        return f"m3ae-{self.name}"

    def create(self) -> list[str]:
        """Asks for the slices."""
        nodes = [f"--node-id={self.name}"]
        if self.num_slices > 1:
            nodes = [f"--node-count={self.num_slices}", f"--node-prefix={self.name}"]
        return [
            *self._queued("create"),
            *nodes,
            f"--accelerator-type={self.accelerator.accelerator_type}",
            f"--runtime-version={self.accelerator.runtime_version}",
            *(["--spot"] if self.is_spot else []),
            *self.create_flags,
            *self._place(),
        ]

    def describe(self) -> list[str]:
        """Asks for the state of the slices, as JSON."""
        return [*self._queued("describe"), "--format=json(state)", *self._place()]

    def delete(self) -> list[str]:
        """Gives the slices back."""
        return [*self._queued("delete"), "--force", *self._place()]

    def copy(self, node: str, archive: str) -> list[str]:
        """Copies the archive of the checkout to all hosts of a slice."""
        target = f"{node}:{self.folder}.tar.gz"
        return [*_TPUS, "tpu-vm", "scp", archive, target, "--worker=all", *self._place()]

    def install(self, node: str) -> list[str]:
        """Unpacks and installs the checkout on all hosts of a slice, and runs the set-up."""
        folder = self.folder
        setup = [self.setup_command] if self.setup_command else []
        # What was installed before stays: a second start on the same hosts takes seconds.
        text = f"mkdir -p {folder} && tar -xzf {folder}.tar.gz -C {folder} && "
        return self._ssh(node, "all", text + self._script("install", *setup))

    def start(self, node: str, code: str) -> list[str]:
        """Starts the program on all hosts of a slice, in the background."""
        return self._ssh(node, "all", self._script("start", self.run_id(code), *self.command))

    def follow(self, code: str, offset: int) -> list[str]:
        """Prints the log of the first host from a byte on, until the program ends."""
        words = self._script("follow", self.run_id(code), str(offset))
        script = f"{self.folder}/{_SCRIPT}"
        text = f"if [ -e {script} ]; then {words}; else echo '{NOT_STARTED}'; fi"
        return self._ssh(self.nodes[0], "0", text)

    def stop(self, node: str) -> list[str]:
        """Asks the program on all hosts of a slice to save and stop, and waits for its end."""
        return self._ssh(node, "all", self._script("stop"))

    def plan(self, code: str) -> list[tuple[str, list[list[str]]]]:
        """Returns the calls of a launch in order, each group with the occasion of it.

        Args:
            code: Digest of the archive.
        """
        archive = [self.copy(node, "checkout.tar.gz") for node in self.nodes]
        return [
            ("unless it exists", [self.create()]),
            ("until the state is ACTIVE", [self.describe()]),
            ("on a new slice", [*archive, *(self.install(node) for node in self.nodes)]),
            ("at each start of the program", [self.start(node, code) for node in self.nodes]),
            ("until the program ends", [self.follow(code, 1)]),
            ("when slices are taken back (SUSPENDED) or FAILED, before new ones", [self.delete()]),
            ("on Ctrl-C while it runs", [self.stop(node) for node in self.nodes]),
            ("at the end, unless --keep", [self.delete()]),
        ]

    def run_id(self, code: str) -> str:
        """Returns the name of this program with this code: a running one is known again by it.

        Args:
            code: Digest of the archive.
        """
        words = "\0".join((code, self.setup_command, *self.command))
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def _queued(self, verb: str) -> list[str]:
        return [*_TPUS, "queued-resources", verb, self.name]

    def _ssh(self, node: str, worker: str, text: str) -> list[str]:
        words = [f"--worker={worker}", f"--command={text}", *self._place()]
        return [*_TPUS, "tpu-vm", "ssh", node, *words]

    def _script(self, *words: str) -> str:
        return shlex.join(["bash", f"{self.folder}/{_SCRIPT}", *words])

    def _place(self) -> list[str]:
        project = [f"--project={self.project}"] if self.project else []
        return [f"--zone={self.zone}", *project, "--quiet"]


def require_name(name: str) -> None:
    """Checks the name of a queued resource.

    Raises:
        UserError: gcloud does not take it.
    """
    require(
        re.fullmatch(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", name) is not None,
        f"--name = {name} is not a name for gcloud. Take up to 50 small letters, digits and "
        "dashes, a letter first.",
    )
