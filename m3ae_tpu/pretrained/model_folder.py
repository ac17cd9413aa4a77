"""The model folder: a model without the run that made it, in files that every library reads.

It holds `config.json` and the tokenizer as a workdir does, and `model.safetensors` with the
parameters under dotted names (`encoder.blocks.mlp_in.kernel`) in place of checkpoints.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.wordpiece import is_wordpiece
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.run.checkpoint_reader import named_arrays
from m3ae_tpu.run.workdir import CONFIG, TOKENIZER, describe_run

PARAMETERS, VOCABULARY = "model.safetensors", "vocab.txt"
FORMAT_VERSION = "1"


def is_model_folder(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds a model without a run."""
    return (folder / PARAMETERS).exists()


def write_model_folder(
    folder: pathlib.Path,
    config: PretrainConfig,
    parameters: Mapping[str, np.ndarray],
    *,
    step: int = 0,
    tokenizer: bytes = b"",
    run: Mapping[str, Any] | None = None,
    source: str = "",
) -> None:
    """Writes config, parameters and tokenizer into a folder that is there.

    Args:
        folder: The new folder; see `new_folder`.
        config: The model's settings, of which sizes and preprocessing count.
        parameters: By dotted name.
        step: Steps that the model was trained for; 0 if unknown.
        tokenizer: Content of the tokenizer's file; empty for a model without text.
        run: Versions and digests of the run, see `describe_run`; None: those of this process.
        source: The origin of the weights, a line for people.
    """
    described = dict(run or describe_run(config, tokenizer=tokenizer))
    metadata = {
        "format": "m3ae-tpu",
        "format_version": FORMAT_VERSION,
        "step": str(step),
        "source": source,
        "tokenizer_sha256": described["tokenizer_sha256"],
        "versions": json.dumps(described["versions"]),
    }
    # safetensors writes the bytes of an array that is not contiguous in the wrong order.
    arrays = {name: np.ascontiguousarray(array) for name, array in parameters.items()}
    safetensors.numpy.save_file(arrays, folder / PARAMETERS, metadata)
    _sort_metadata(folder / PARAMETERS)
    if tokenizer:
        name = VOCABULARY if is_wordpiece(tokenizer) else TOKENIZER
        (folder / name).write_bytes(tokenizer)
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    (folder / CONFIG).write_text(text)
    # The library's files are for their owner's eyes alone.
    (folder / PARAMETERS).chmod((folder / CONFIG).stat().st_mode)


def _sort_metadata(path: pathlib.Path) -> None:
    """Sorts a file's metadata in place: the library writes it in another order each time."""
    with path.open("r+b") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(num_bytes))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= num_bytes
        file.seek(8)
        file.write(text.ljust(num_bytes))


def read_parameters(folder: pathlib.Path, abstract: PyTree) -> tuple[int, PyTree, dict[str, Any]]:
    """Reads the parameters of a model folder into a model's tree.

    Args:
        folder: The model folder.
        abstract: `jax.ShapeDtypeStruct` leaves, with the shardings to give the arrays.

    Returns:
        The steps of the training, the model, and versions and digests as `describe_run` has them.

    Raises:
        UserError: the file is damaged, of another format or version, or does not fit the model.
    """
    path, wanted = folder / PARAMETERS, named_arrays(abstract)
    with _readable(path), safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata() or {}
        require(
            metadata.get("format") == "m3ae-tpu",
            f"{path} was not written by m3ae-tpu. "
            "Import it first: python -m pipelines.import_weights --help.",
        )
        version = metadata.get("format_version", "")
        require(
            version == FORMAT_VERSION,
            f"{path} has format_version = {version!r}, and this version of m3ae-tpu reads "
            f"{FORMAT_VERSION!r}. Update m3ae-tpu, or export the model again.",
        )
        stored, faults = set(file.keys()), []
        for name in sorted(stored | wanted.keys()):
            there = file.get_slice(name).get_shape() if name in stored else "missing"
            here = list(wanted[name].shape) if name in wanted else "missing"
            if there != here:
                faults.append(f"{name} is {there} there and {here} in config.json")
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        require(
            not faults,
            f"{path} does not fit: {'; '.join(faults[:2])}{more}. Copy the whole folder again.",
        )
        leaves = [
            jax.device_put(file.get_tensor(name).astype(leaf.dtype), leaf.sharding)
            for name, leaf in wanted.items()
        ]
    try:
        step = int(metadata["step"])
        run = {
            "tokenizer_sha256": metadata["tokenizer_sha256"],
            "versions": json.loads(metadata["versions"]),
        }
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} is damaged: its metadata says no step, tokenizer or versions ({error}). "
            "Copy it again."
        ) from None
    return step, jax.tree.unflatten(jax.tree.structure(abstract), leaves), run


def read_source(folder: pathlib.Path) -> str:
    """Returns the origin of a model folder's weights, a line for people; empty for a run.

    Raises:
        UserError: the file of weights is damaged.
    """
    if not is_model_folder(folder):
        return ""
    path = folder / PARAMETERS
    with _readable(path), safetensors.safe_open(path, "numpy") as file:
        return (file.metadata() or {}).get("source", "")


@contextlib.contextmanager
def new_folder(
    name: str, output: pathlib.Path, *, replaces_model: bool = False
) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that becomes `output` at the end; an error leaves nothing behind.

    Args:
        name: The flag, for messages.
        output: The folder to write, missing or empty.
        replaces_model: Replaces a model folder that is there.

    Raises:
        UserError: it is not empty, or cannot be written.
    """
    is_replaced = replaces_model and is_model_folder(output)
    require(
        is_replaced or not output.exists() or (output.is_dir() and not any(output.iterdir())),
        f"{name} = {output} is there already and not empty. Name a new folder.",
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise UserError(
            f"{name} = {output} cannot be written ({error.strerror}: {error.filename}). "
            "Name a folder that you may write to."
        ) from None
    try:
        unfinished.chmod(0o755)
        yield unfinished
        if is_replaced:
            old = output.rename(unfinished.with_name(f"{unfinished.name}.old"))
            unfinished.rename(output)
            shutil.rmtree(old)
        else:
            unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is damaged or was not copied to its end ({error}). Copy it again."
        ) from None
