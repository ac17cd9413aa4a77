"""The folder of a run: whose it is, what it may go on with, and that only one process works in it."""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import typing
from typing import Any

import m3ae_tpu
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_write

CONFIG, TOKENIZER = "config.json", "tokenizer.model"
# What a run may change on its way, by dotted prefix; all else makes it another run. The tokenizer
# is compared by content: its file may move.
_CHANGEABLE = (
    "num_steps",
    "optimizer.",
    "checkpoint.",
    "logging.",
    "probe.",
    "data.num_workers",
    "data.tokenizer",
    "data.max_broken_fraction",
    "data.timeout_seconds",
)
# Shards may move: what is in them is compared with the checkpoint, which knows their names and
# counts.
_MOVABLE = re.compile(r"data\.sources\.\d+\.shards")
_PACKAGES = ("equinox", "grain", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workdir:
    """A run's folder, locked until `unlock` or the end of the process."""

    path: pathlib.Path
    is_new: bool
    """Nothing of a run was there. Else the run goes on, from its newest checkpoint or, without one,
    from step 0.
    """
    changes: list[str]
    """What the config changes in a run that goes on, as sentences to show."""
    lock: int
    """File descriptor that holds the lock. A number, as it must outlive this object."""

    def record(self, config: PretrainConfig, *, tokenizer: bytes = b"") -> None:
        """Writes `config.json` and `tokenizer.model`: for a run that nothing refuses any more."""
        with _named_if_unwritable(self.path):
            atomic_write(
                self.path / CONFIG, json.dumps(dataclasses.asdict(config), indent=2) + "\n"
            )
            if tokenizer:
                atomic_write(self.path / TOKENIZER, tokenizer)
            else:  # A start that failed may have left one.
                (self.path / TOKENIZER).unlink(missing_ok=True)

    def unlock(self) -> None:
        """Lets other processes work in the folder."""
        os.close(self.lock)


def prepare_workdir(
    path: pathlib.Path,
    config: PretrainConfig,
    *,
    tokenizer: bytes = b"",
    allow_changed_data: bool = False,
) -> Workdir:
    """Makes or checks the folder of a run, and locks it.

    Args:
        path: The folder; made if missing.
        config: Of the run, all overrides applied.
        tokenizer: The content of `config.data.tokenizer`; empty for a run without text.
        allow_changed_data: Lets all of `data.sources` change.

    Raises:
        UserError: the folder cannot be written, holds another run, has a `config.json` that cannot
            be
            read, a run with another tokenizer, or another process works in it.
    """
    with _named_if_unwritable(path), contextlib.ExitStack() as stack:
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        stack.callback(os.close, lock)
        is_new = not _holds_run(path)
        changes = [] if is_new else _compare(path, config, tokenizer, allow_changed_data)
        stack.pop_all()  # All went well: the lock stays.
    return Workdir(path=path, is_new=is_new, changes=changes, lock=lock)


@contextlib.contextmanager
def _named_if_unwritable(path: pathlib.Path):
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--workdir = {path} cannot be written ({error.strerror}: {error.filename}). "
            "Name a folder that you may write to."
        ) from None


def describe_run(config: PretrainConfig, *, tokenizer: bytes = b"") -> dict[str, Any]:
    """Returns what a checkpoint says of the run that made it, ready for JSON."""
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
    _require_same_tokenizer(
        run["tokenizer_sha256"], path, tokenizer, "the one that the run began with"
    )


def load_config(workdir: pathlib.Path) -> PretrainConfig:
    """Returns the config of the run in a workdir.

    Raises:
        UserError: there is no `config.json`, or it is no config.
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
            f"{path} is no JSON. Put back what the run wrote, or use another workdir."
        ) from None
    try:
        return load_config_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_config_dict(values: Any) -> PretrainConfig:
    """Returns the config that `dataclasses.asdict` made into `values`. Fields that are left out
    have their defaults.

    Raises:
        UserError: a field is unknown, has a value of another type, or one that the config refuses.
    """
    return _build(PretrainConfig, values, "")


def _build(hint: Any, value: Any, name: str) -> Any:
    """Turns a JSON value into one of type `hint`: dataclasses, tuples, choices and plain types."""
    if isinstance(hint, typing.TypeAliasType):
        hint = hint.__value__
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    wrong = f"{name or 'the config'} = {value!r} is no {getattr(hint, '__name__', hint)}. Put back what the run wrote."
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        require(isinstance(value, dict), wrong)
        hints = typing.get_type_hints(hint)
        dotted = {
            field.name: f"{name}.{field.name}".lstrip(".") for field in dataclasses.fields(hint)
        }
        unknown = [key for key in value if key not in dotted]
        require(
            not unknown,
            f"{name or 'the config'} has no field {', '.join(unknown[:3])}. "
            "Remove it, or use the version of m3ae-tpu that wrote it.",
        )
        return hint(**{key: _build(hints[key], child, dotted[key]) for key, child in value.items()})
    if origin is tuple:
        require(isinstance(value, list | tuple), wrong)
        element_hints = [args[0]] * len(value) if args[-1] is ... else list(args)
        require(len(element_hints) == len(value), wrong)
        pairs = zip(element_hints, value, strict=True)
        return tuple(
            _build(element, child, f"{name}.{number}")
            for number, (element, child) in enumerate(pairs)
        )
    if origin is typing.Literal:
        require(value in args, wrong)
        return value
    if hint is float and type(value) is int:
        return float(value)
    require(type(value) is hint, wrong)
    return value


def _lock(path: pathlib.Path) -> int:
    """Takes the folder's lock, which the system frees when the process ends, however it ends."""
    lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        # lockf, not flock: child processes that outlive a killed run do not hold it.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(
            f"--workdir = {path} is in use by another process. Wait for it, stop it, or give another --workdir."
        ) from None
    return lock


def _holds_run(path: pathlib.Path) -> bool:
    """Returns whether a run left results here: until then a failed start may be repeated with other
    values.
    """
    metrics = path / "metrics.jsonl"
    has_steps = any(child.name.isdigit() for child in path.glob("checkpoints/*"))
    is_foreign = (path / CONFIG).exists() and not _is_config(path)
    return has_steps or (metrics.exists() and metrics.stat().st_size > 0) or is_foreign


def _is_config(path: pathlib.Path) -> bool:
    try:
        load_config(path)
    except UserError:
        return False
    return True


def _compare(
    path: pathlib.Path, config: PretrainConfig, tokenizer: bytes, allow_changed_data: bool
) -> list[str]:
    """Returns what changes in the run at `path`. Raises `UserError` if that makes it another run."""
    old, new = _leaves(dataclasses.asdict(load_config(path))), _leaves(dataclasses.asdict(config))
    names = [name for name in (old | new) if old.get(name) != new.get(name)]
    changeable = (*_CHANGEABLE, "data.sources.") if allow_changed_data else _CHANGEABLE
    others = [
        name for name in names if not name.startswith(changeable) and not _MOVABLE.fullmatch(name)
    ]
    said = {name: f"{name} = {new.get(name)} now, was {old.get(name)}" for name in names}
    more = f" (and {len(others) - 3} more)" if len(others) > 3 else ""
    require(
        not others,
        f"--workdir = {path} holds another run: {'; '.join(said[name] for name in others[:3])}{more}. "
        f"Give another --workdir, or the old {'value' if len(others) == 1 else 'values'}.",
    )
    done = max(
        (int(step.name) for step in path.glob("checkpoints/*") if step.name.isdigit()), default=0
    )
    require(
        config.num_steps >= done,
        f"num_steps = {config.num_steps} is less than the {done} steps that --workdir = {path} has done. "
        "Set more, or give another --workdir.",
    )
    copy = path / TOKENIZER
    if copy.exists():
        old_sha256 = _sha256(copy.read_bytes())
        _require_same_tokenizer(
            old_sha256, config.data.tokenizer, tokenizer, f"--data.tokenizer={copy}"
        )
    return list(said.values())


def _require_same_tokenizer(sha256: str, path: str, tokenizer: bytes, fix: str) -> None:
    require(
        sha256 == _sha256(tokenizer),
        f"data.tokenizer = {path} (SHA-256 {_sha256(tokenizer)[:12] or 'none'}) does not fit the checkpoint, which was "
        f"trained with another tokenizer (SHA-256 {sha256[:12] or 'none'}). Use {fix}, or another workdir.",
    )


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Returns the plain values of nested dictionaries and lists by dotted name."""
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        children = enumerate(value)
    else:
        return {name: tuple(value) if isinstance(value, list) else value}
    return {
        leaf: plain
        for key, child in children
        for leaf, plain in _leaves(child, f"{name}.{key}".lstrip(".")).items()
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if content else ""
