"""Weights of other libraries made into a model folder, and the list of what became of them."""

import contextlib
import pathlib
from collections.abc import Iterator

import rich
from rich.markup import escape

from m3ae_tpu.config.checks import FieldError
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.data.wordpiece import is_wordpiece
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import file_sha256, printable
from m3ae_tpu.pretrained.loading import load_pretrained
from m3ae_tpu.pretrained.model_folder import new_folder, write_model_folder
from m3ae_tpu.weights.imported import Choices, Imported
from m3ae_tpu.weights.m3ae_pickle import read_paper_pickle
from m3ae_tpu.weights.matching import Line
from m3ae_tpu.weights.model_card import write_card
from m3ae_tpu.weights.read_hf import read_hf
from m3ae_tpu.weights.read_m3ae import read_m3ae
from m3ae_tpu.weights.read_vit import read_mae, read_timm
from m3ae_tpu.weights.sources import (
    Source,
    SourceFormat,
    is_pickle,
    likely_format,
    open_source,
    require_whole,
    weights_file,
)
from m3ae_tpu.weights.usage import usage_of

_READERS = {"mae": read_mae, "hf": read_hf, "timm": read_timm}
_MEANING = {
    "m3ae": "the paper's code",
    "mae": "the MAE authors' code",
    "hf": "Hugging Face's transformers",
    "timm": "timm",
}


def import_weights(
    source: pathlib.Path,
    output: pathlib.Path,
    format: SourceFormat,
    *,
    choices: Choices | None = None,
    vocab: pathlib.Path | None = None,
) -> Imported:
    """Reads weights of another library and writes a model folder.

    Args:
        source: A file, or a folder that holds one.
        output: The new folder, missing or empty.
        format: The library that wrote the file.
        choices: What the source does not say.
        vocab: WordPiece vocabulary of a model with text.

    Raises:
        UserError: the source is damaged, of another format, or no model of ours can be made of it;
            or the folder is not empty.
    """
    path = weights_file(source)
    tokenizer = _vocabulary(vocab, format)
    status = rich.get_console().status(f"reading {escape(printable(path.name))}")
    with new_folder("--output", output) as folder, status:
        origin = f"{_MEANING[format]}, {path.name} (SHA-256 {file_sha256(path)})"
        imported = read_weights(path, format, choices or Choices(), tokenizer)
        write_model_folder(
            folder,
            imported.config,
            imported.arrays,
            step=imported.step,
            tokenizer=tokenizer.model if tokenizer else b"",
            source=origin,
        )
        pretrained = load_pretrained(folder)
        usage = usage_of("safetensors", pretrained, output.name)
        write_card(folder, pretrained, usage=usage, source=origin, checks=_fates(imported))
    return imported


def read_weights(
    path: pathlib.Path, format: SourceFormat, choices: Choices, tokenizer: Tokenizer | None = None
) -> Imported:
    """Reads weights of another library as a model of ours; see `import_weights`."""
    require_whole(path)
    if format == "m3ae":
        if not is_pickle(path):
            _refuse_format(path, format, open_source(path))
        vocab_size = tokenizer.vocab_size if tokenizer else None
        with _named(path):
            return read_m3ae(read_paper_pickle(path), choices, vocab_size)
    require(
        not is_pickle(path),
        f"{path} is a pickle, and --format={format} is not. "
        "Is it a checkpoint of the paper's code? Then give --format=m3ae.",
    )
    opened = open_source(path)
    likely = likely_format(set(opened.tensors))
    # An encoder alone has the same names in timm and in the MAE code, which has no classes.
    is_encoder = likely == "timm" and "head.weight" not in opened.tensors and not opened.config
    if likely != format and not (format == "mae" and is_encoder):
        _refuse_format(path, format, opened)
    with _named(path):
        return _READERS[format](opened, choices)


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """Names the file in errors of fields, whose advice is for those who write a config."""
    try:
        yield
    except FieldError as error:
        problem, _, _ = str(error).partition(". ")
        raise UserError(f"{path} cannot be imported: {problem}.") from None


def print_imported(imported: Imported) -> None:
    """Prints what became of every tensor, and what was assumed."""
    console = rich.get_console()
    for line in _sorted(imported.lines):
        fate = f"[{_COLOURS[line.fate]}]{line.fate:<9}[/]"
        console.print(f"{fate}  {escape(_phrase(line))}", highlight=False, soft_wrap=True)
    counts = (f"{sum(each.fate == fate for each in imported.lines)} {fate}" for fate in _COLOURS)
    console.print(", ".join(counts), highlight=False, soft_wrap=True)
    for remark in imported.remarks:
        console.print(f"[yellow]note[/]  {escape(remark)}", highlight=False, soft_wrap=True)


_COLOURS = {"matched": "green", "converted": "green", "dropped": "yellow", "missing": "yellow"}


def _sorted(lines: list[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: list(_COLOURS).index(line.fate))


def _phrase(line: Line) -> str:
    names = " -> ".join(printable(name) for name in (line.theirs, line.ours) if name)
    return f"{names} ({line.remark})" if line.remark else names


def _fates(imported: Imported) -> str:
    """Returns what became of every tensor, as Markdown."""
    lines = [f"- {line.fate}: `{_phrase(line)}`" for line in _sorted(imported.lines)]
    return "\n\n".join([*imported.remarks, "\n".join(lines)])


def _vocabulary(path: pathlib.Path | None, format: SourceFormat) -> Tokenizer | None:
    if path is None:
        return None
    require(format == "m3ae", f"--vocab = {path} is for --format=m3ae: other models have no text.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"--vocab = {path} cannot be read ({error.strerror}). "
            "Name vocab.txt of bert-base-uncased."
        ) from None
    require(
        is_wordpiece(content),
        f"--vocab = {path} is not a WordPiece vocabulary. Name vocab.txt of bert-base-uncased.",
    )
    return Tokenizer(str(path))


def _refuse_format(path: pathlib.Path, format: SourceFormat, source: Source) -> None:
    names = set(source.tensors)
    likely = likely_format(names)
    if "encoder.blocks.attention_in.kernel" in names:
        raise UserError(f"{path} is a model folder of m3ae-tpu already. Use it as it is.")
    if likely is None:
        first = ", ".join(sorted(names)[:2])
        raise UserError(
            f"{path} holds no model that can be imported (tensors {first} ...). "
            f"Formats: {', '.join(_MEANING)}."
        )
    raise UserError(
        f"{path} looks like weights of {_MEANING[likely]}, not of {_MEANING[format]}. "
        f"Give --format={likely}."
    )
