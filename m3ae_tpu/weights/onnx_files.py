"""ONNX files of the encoder: for images, for texts and for both, run once and compared."""

import importlib.util
import pathlib
from collections.abc import Callable

import numpy as np
import onnx
import onnx.reference

from m3ae_tpu.batch import Rows
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.positions import text_positions
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.weights.comparison import (
    BATCH_SIZES,
    Comparison,
    compare_features,
    features_of,
    random_rows,
)
from m3ae_tpu.weights.onnx_graph import encoder_graph
from m3ae_tpu.weights.parameters import Arrays
from m3ae_tpu.weights.plain_model import float32_arrays, image_arrays, plain_model
from m3ae_tpu.weights.uses import Use, uses_of

LONGEST_TEXT = 512
"""Tokens of a text for which graphs have position codes, or more where training had more."""
_LARGEST_FILE = 1_900_000_000
"""Bytes of parameters in the graph's own file; protobuf reads at most 2 GB."""


def write_onnx(folder: pathlib.Path, pretrained: Pretrained) -> list[Comparison]:
    """Writes a graph for each use of the model, and compares its outputs.

    `onnxruntime` runs it where it is installed, else ONNX's own interpreter does.
    """
    arrays, model, comparisons = _arrays(pretrained), plain_model(pretrained), []
    for use in uses_of(pretrained):
        graph = encoder_graph(
            arrays,
            _text_positions(pretrained, arrays) if use.has_text else None,
            pretrained.config.model,
            pretrained.task.normalizer,
            image_size=pretrained.config.data.image_size if use.has_image else None,
        )
        path = folder / f"{use.name}.onnx"
        num_bytes = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
        is_large = num_bytes > _LARGEST_FILE
        onnx.save_model(
            graph,
            path,
            save_as_external_data=is_large,
            location=f"{path.name}.data" if is_large else None,
        )
        onnx.checker.check_model(path, full_check=True)
        comparisons += _compare(path, model, pretrained, use)
    return comparisons


def _arrays(pretrained: Pretrained) -> Arrays:
    """Returns the encoder's parameters, with the type vector of images folded."""
    arrays = float32_arrays(pretrained)
    texts = {name: array for name, array in arrays.items() if name.startswith("text.")}
    return image_arrays(pretrained) | texts


def _text_positions(pretrained: Pretrained, arrays: Arrays) -> np.ndarray:
    """Returns the stored position codes of texts, or computed ones of the longest text."""
    if "text.positions" in arrays:
        return arrays["text.positions"]
    lengths = [source.text_length for source in pretrained.config.data.sources]
    width = pretrained.config.model.encoder.width
    return text_positions(max(LONGEST_TEXT, *lengths), width).astype(np.float32)


def _compare(path: pathlib.Path, model: M3AE, pretrained: Pretrained, use: Use) -> list[Comparison]:
    run, comparisons = _runner(path), []
    for batch in BATCH_SIZES:
        rows = random_rows(pretrained, batch, has_image=use.has_image, has_text=use.has_text)
        cases = {f"{path.name}, batch of {batch}": rows}
        if use.has_text and batch > 1:
            shorter = {"text_ids": rows.text_ids[:, :3], "is_valid": rows.is_valid[:, :3]}
            cases[f"{path.name}, short texts"] = rows._replace(**shorter)
        for name, case in cases.items():
            wanted = features_of(model, pretrained.task.normalizer, case)
            comparisons.append(compare_features(name, run(case), wanted))
    return comparisons


def _runner(path: pathlib.Path) -> Callable[[Rows], dict[str, np.ndarray]]:
    """Returns a function that runs a graph."""
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime  # pyright: ignore[reportMissingImports]

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names, run = [output.name for output in session.get_outputs()], session.run
    else:
        reference = onnx.reference.ReferenceEvaluator(str(path))
        names, run = [str(name) for name in reference.output_names], reference.run

    def outputs(rows: Rows) -> dict[str, np.ndarray]:
        given = {
            name: np.asarray(array) for name, array in rows._asdict().items() if array is not None
        }
        return dict(zip(names, run(None, given), strict=True))

    return outputs
