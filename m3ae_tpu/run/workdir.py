"""A run's directory: which run it holds, and which config changes may resume it."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import re
from typing import Any

import m3ae_tpu
from m3ae_tpu.config import RunConfig
from m3ae_tpu.config.tree import differences, from_json, leaves
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import Place, atomic_write, is_remote, require_writable_file
from m3ae_tpu.parallel.processes import is_leader
from m3ae_tpu.run.claim import Claim, claim_workdir
from m3ae_tpu.run.shipped import require_model_there, require_not_shipped
from m3ae_tpu.run.steps import steps_of
from m3ae_tpu.storage.mirror import address_of

CONFIG, TOKENIZER = "config.json", "tokenizer.model"
# Beginnings of the fields that a resumed run may change; another value elsewhere makes it another
# run. The tokenizer is compared by content: its file may move.
_CHANGEABLE = (
    "num_steps",
    "optimizer.",
    "model.unroll",
    "mesh.",
    "checkpoint.",
    "logging.",
    "probe.",
    "evaluation.",
    "data.num_workers",
    "data.tokenizer",
    "data.max_broken_fraction",
    "data.timeout_seconds",
)
# Shards may move: the checkpoint knows the names of their files and the numbers of their records.
_MOVABLE = re.compile(r"data\.sources\.\d+\.shards")
_PACKAGES = ("equinox", "grain", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workdir:
    """A run's directory, claimed until `unlock` or the end of the process."""

    path: pathlib.Path
    """Folder of its small files on this machine; a mirror where the run's directory is remote."""
    is_new: bool
    """True for a first start. Otherwise the run resumes from its newest checkpoint or, without one,
    from step 0.
    """
    changes: list[str]
    """Fields that the config changes in a resumed run, each as a phrase to show."""
    claim: Claim
    """Keeps other runs out."""

    @property
    def address(self) -> str:
        """Path or address of the directory as the user knows it."""
        return address_of(self.path)

    def record(self, config: RunConfig, *, tokenizer: bytes = b"") -> None:
        """Writes `config.json` and `tokenizer.model`, in the leader. Called after all checks."""
        if not is_leader():
            return
        with _unwritable_folder_named(self.path):
            atomic_write(
                self.path / CONFIG, json.dumps(dataclasses.asdict(config), indent=2) + "\n"
            )
            if tokenizer:
                atomic_write(self.path / TOKENIZER, tokenizer)
            else:  # A failed start with a tokenizer may have left one.
                (self.path / TOKENIZER).unlink(missing_ok=True)

    def unlock(self) -> None:
        """Stores the small files, and lets other processes use the directory."""
        self.claim.release()


def prepare_workdir(
    address: Place,
    config: RunConfig,
    *,
    tokenizer: bytes = b"",
    allow_changed_data: bool = False,
) -> Workdir:
    """Makes or checks the directory of a run, and claims it.

    Args:
        address: The directory, also in a bucket; made if missing.
        config: The run's, all overrides applied.
        tokenizer: The content of `config.data.tokenizer`; empty for a run without text.
        allow_changed_data: Lets all of `data.sources` change.

    Raises:
        UserError: the directory cannot be written, holds another run, a run with another tokenizer
            or a `config.json` that cannot be read, or another process uses it.
    """
    with _unwritable_folder_named(address), contextlib.ExitStack() as stack:
        claim = claim_workdir(address)
        stack.callback(claim.release)
        path = claim.path
        is_new = not _holds_run(path, type(config))
        changes = [] if is_new else _compare(path, config, tokenizer, allow_changed_data)
        stack.pop_all()  # Keeps the claim: nothing was refused.
    return Workdir(path=path, is_new=is_new, changes=changes, claim=claim)


@contextlib.contextmanager
def _unwritable_folder_named(address: Place):
    try:
        yield
    except OSError as error:
        if is_remote(address):  # Its errors name the address already.
            raise
        raise UserError(
            f"--workdir = {address} cannot be written ({error.strerror}: {error.filename}). "
            "Name a folder that you may write to."
        ) from None


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps of which there are checkpoints, damaged ones too, oldest first.

    Raises:
        OSError: the folder of checkpoints may not be read. It must not count as empty.
    """
    return steps_of(workdir).committed()


def result_file(workdir: pathlib.Path, output: pathlib.Path | None, name: str) -> pathlib.Path:
    """Returns the file for findings about a run, after checking that it can be written.

    Args:
        workdir: Directory of the run.
        output: Another folder for the file, made if missing.
        name: Name of the file.

    Raises:
        UserError: there is no such directory, or the file cannot be written.
    """
    require_model_there("WORKDIR = ", workdir)
    fix = "Name a folder that you may write to: --output=FOLDER."
    if output is None:
        require_not_shipped(workdir)
        require_writable_file("WORKDIR", workdir / name, fix=fix)
        return workdir / name
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output = {output} cannot be made ({error.strerror}: {error.filename}). {fix}"
        ) from None
    require_writable_file("--output", output / name, fix=fix)
    return output / name


def describe_run(config: RunConfig, *, tokenizer: bytes = b"") -> dict[str, Any]:
    """Returns config, tokenizer digest and package versions, as each checkpoint stores them."""
    versions = {"m3ae-tpu": m3ae_tpu.__version__} | {
        name: importlib.metadata.version(name) for name in _PACKAGES
    }
    return {
        "config": dataclasses.asdict(config),
        "tokenizer_sha256": _sha256(tokenizer),
        "versions": versions,
    }


def require_tokenizer_fits(run: dict[str, Any], path: str, tokenizer: bytes) -> None:
    """Checks a tokenizer against the one that a checkpoint was made with.

    Args:
        run: As restored with the checkpoint, see `describe_run`.
        path: The tokenizer's, for the message.
        tokenizer: Its content.

    Raises:
        UserError: they differ.
    """
    fix = "the one that the run began with"
    _require_same_tokenizer(run["tokenizer_sha256"], path, tokenizer, fix)


def load_run_config[Config: RunConfig](workdir: pathlib.Path, config_type: type[Config]) -> Config:
    """Returns the config of the run in a workdir.

    Args:
        workdir: Directory of the run.
        config_type: Type of the config that was recorded there.

    Raises:
        UserError: there is no `config.json`, or it does not hold such a config.
    """
    path = workdir / CONFIG
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). Name the workdir of a run."
        ) from None
    except ValueError:
        raise UserError(
            f"{path} is not JSON. Put back what the run wrote, or use another workdir."
        ) from None
    try:
        return from_json(config_type, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _holds_run(path: pathlib.Path, config_type: type[RunConfig]) -> bool:
    """Returns whether a run left results here.

    Without results, a failed start may be repeated with other values. A `config.json` that is not
    ours counts as a result: it must not be overwritten.
    """
    metrics = path / "metrics.jsonl"
    has_steps = bool(saved_steps(path))
    has_metrics = metrics.exists() and metrics.stat().st_size > 0
    is_foreign = (path / CONFIG).exists() and not _is_config(path, config_type)
    return has_steps or has_metrics or is_foreign


def _is_config(path: pathlib.Path, config_type: type[RunConfig]) -> bool:
    try:
        load_run_config(path, config_type)
    except UserError:
        return False
    return True


def _compare(
    path: pathlib.Path, config: RunConfig, tokenizer: bytes, allow_changed_data: bool
) -> list[str]:
    """Returns the fields that change in the run at `path`, each as a phrase.

    Raises:
        UserError: the changes make it another run.
    """
    changes = differences(now=leaves(config), was=leaves(load_run_config(path, type(config))))
    changeable = (*_CHANGEABLE, "data.sources.") if allow_changed_data else _CHANGEABLE
    refused = [
        phrase
        for name, phrase in changes.items()
        if not name.startswith(changeable) and not _MOVABLE.fullmatch(name)
    ]
    more = f" (and {len(refused) - 3} more)" if len(refused) > 3 else ""
    require(
        not refused,
        f"--workdir = {address_of(path)} holds another run: {'; '.join(refused[:3])}{more}. "
        f"Give another --workdir, or the old {'value' if len(refused) == 1 else 'values'}.",
    )
    last_step = max(saved_steps(path), default=0)
    require(
        config.num_steps >= last_step,
        f"num_steps = {config.num_steps} is less than the {last_step} steps that "
        f"--workdir = {address_of(path)} has finished. Set more, or give another --workdir.",
    )
    copy = path / TOKENIZER
    if copy.exists():
        sha256, fix = _sha256(copy.read_bytes()), f"--data.tokenizer={address_of(path)}/{TOKENIZER}"
        _require_same_tokenizer(sha256, config.data.tokenizer, tokenizer, fix)
    return list(changes.values())


def _require_same_tokenizer(sha256: str, path: str, tokenizer: bytes, fix: str) -> None:
    require(
        sha256 == _sha256(tokenizer),
        f"data.tokenizer = {path} (SHA-256 {_sha256(tokenizer)[:12] or 'none'}) does not fit the "
        f"checkpoint, which was trained with another tokenizer (SHA-256 {sha256[:12] or 'none'}). "
        f"Use {fix}, or another workdir.",
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if content else ""
