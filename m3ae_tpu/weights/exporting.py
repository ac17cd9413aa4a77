"""Exports of a model: written, run, compared with the model, and only then put in their place."""

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Literal

import numpy as np
import rich
from rich.table import Table

from m3ae_tpu.errors import require
from m3ae_tpu.evaluation.results import read_evaluation
from m3ae_tpu.files import Place
from m3ae_tpu.pretrained.loading import load, load_pretrained
from m3ae_tpu.pretrained.model_folder import new_folder, read_source, write_model_folder
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.run.checkpoint import named_arrays
from m3ae_tpu.run.claim import files_of
from m3ae_tpu.run.stages import report_stages
from m3ae_tpu.run.workdir import describe_run
from m3ae_tpu.weights.comparison import Comparison, compare
from m3ae_tpu.weights.model_card import write_card
from m3ae_tpu.weights.plain_model import float32_arrays
from m3ae_tpu.weights.usage import HEADERS, tokenizer_file, usage_of

type ExportFormat = Literal["safetensors", "hf", "hf_mae", "timm", "onnx", "stablehlo"]


def export_model(
    model: Place, format_name: ExportFormat, output: pathlib.Path, *, image_size: int | None = None
) -> None:
    """Exports a model into a new folder, and prints how close the export is to it.

    Args:
        model: Workdir of a run, or a model folder.
        format_name: What to write.
        output: The folder, missing or empty.
        image_size: Side of the images that the export takes, pixels; None: as in training.

    Raises:
        UserError: the model cannot be read, has not what the format needs, the folder cannot be
            written, or the export differs from the model.
    """
    require(
        format_name != "onnx" or importlib.util.find_spec("onnx") is not None,
        "--format=onnx needs the package onnx. Install it: pip install 'm3ae-tpu[onnx]'.",
    )
    with (
        new_folder("--output", output) as folder,
        files_of(model) as source,
        report_stages() as report,
    ):
        report("loading the model")
        pretrained = load(source, image_size=image_size)
        report(f"writing {format_name}, and comparing it with the model")
        origin = read_source(source)
        comparisons = _writer(format_name)(folder, pretrained, origin)
        write_card(
            folder,
            pretrained,
            usage=usage_of(format_name, pretrained, output.name),
            header=HEADERS.get(format_name, ""),
            source=origin,
            figures=read_evaluation(source),
            checks=_checks(comparisons),
        )
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    _print(comparisons, files, output)


def _writer(
    format_name: ExportFormat,
) -> Callable[[pathlib.Path, Pretrained, str], list[Comparison]]:
    """Returns the function that writes a format into a folder and compares it."""
    # What a format needs is imported only for it.
    if format_name == "safetensors":
        return _write_own
    if format_name == "stablehlo":
        return _write_stablehlo
    if format_name == "onnx":
        return _write_onnx
    from m3ae_tpu.weights import torch_folders

    write = {
        "hf": torch_folders.write_hf,
        "hf_mae": torch_folders.write_hf_mae,
        "timm": torch_folders.write_timm,
    }[format_name]
    return lambda folder, pretrained, origin: write(folder, pretrained)


def _write_own(folder: pathlib.Path, pretrained: Pretrained, origin: str) -> list[Comparison]:
    """Writes a model folder, reads it back and compares all parameters."""
    tokenizer = pretrained.tokenizer
    model = tokenizer.model if tokenizer is not None else b""
    write_model_folder(
        folder,
        pretrained.config,
        float32_arrays(pretrained),
        step=pretrained.step,
        tokenizer=model,
        run=describe_run(pretrained.config, tokenizer=model) | {"versions": pretrained.versions},
        source=origin,
    )
    again = float32_arrays(load_pretrained(folder))
    largest = [
        compare(name, again[name], array.astype(np.float64))
        for name, array in named_arrays(float32_arrays(pretrained)).items()
    ]
    return [max(largest, key=lambda each: each.largest)._replace(name="parameters, read again")]


def _write_stablehlo(folder: pathlib.Path, pretrained: Pretrained, origin: str) -> list[Comparison]:
    from m3ae_tpu.weights.stablehlo_files import write_stablehlo

    return [*_write_own(folder, pretrained, origin), *write_stablehlo(folder, pretrained)]


def _write_onnx(folder: pathlib.Path, pretrained: Pretrained, origin: str) -> list[Comparison]:
    from m3ae_tpu.weights.onnx_files import write_onnx

    if pretrained.tokenizer is not None:
        (folder / tokenizer_file(pretrained)).write_bytes(pretrained.tokenizer.model)
    return write_onnx(folder, pretrained)


def _checks(comparisons: list[Comparison]) -> str:
    lines = [f"| {each.name} | {each.largest:.1e} | {each.scale:.3g} |" for each in comparisons]
    return "\n".join(
        [
            "Random examples went through these files and through the model.",
            "",
            "| compared | largest difference | largest value |",
            "| --- | --- | --- |",
            *lines,
        ]
    )


def _print(comparisons: list[Comparison], files: dict[str, int], output: pathlib.Path) -> None:
    table = Table("compared with the model", "largest difference", "largest value")
    for each in comparisons:
        table.add_row(each.name, f"{each.largest:.1e}", f"{each.scale:.3g}")
    rich.print(table)
    for name, num_bytes in files.items():
        print(f"{output / name}: {num_bytes:,} bytes")
    largest = max(each.largest for each in comparisons)
    print(f"exported: {output}; the largest difference is {largest:.1e}")
