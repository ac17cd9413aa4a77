"""Extraction: examples are read, encoded and written part by part, and an interruption goes on."""

import collections
import contextlib
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich
import rich.progress

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.features.decoding import decoded, make_rows
from m3ae_tpu.features.examples import START, Example, Input, Place, choose_input
from m3ae_tpu.features.options import ExampleKind, FeatureOptions
from m3ae_tpu.features.parts import (
    DROPPED,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    FeatureFolder,
    Part,
    import_pyarrow,
)
from m3ae_tpu.features.pooling import TOKEN_IS_VALID, Encoder, PooledLayers
from m3ae_tpu.files import home_expanded, printable
from m3ae_tpu.parallel.mesh import num_batch_shards
from m3ae_tpu.prepare.convert import passed_over_lines
from m3ae_tpu.pretrained.pretrained import ENCODED_AT_A_TIME, Pretrained

_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


def extract_features(
    model: Pretrained,
    inputs: Sequence[str],
    output: pathlib.Path,
    options: FeatureOptions,
    *,
    batch_size: int = 64,
    model_name: str = "",
) -> dict[str, Any]:
    """Writes the features of an input to a folder, and returns its manifest.

    Repeated after an interruption it continues; the result is the same bytes.

    Args:
        model: Encodes; its config gives the image size.
        inputs: Files and folders.
        output: New folder, or one that holds a part of these features.
        options: Features to compute, and the form of their files.
        batch_size: Examples that are decoded at a time, more where the devices encode more at a
            time; no feature depends on it.
        model_name: Folder of the model, for programs that load it again.

    Raises:
        UserError: model, input, options or folder do not fit together, or nothing can be encoded.
    """
    for given in inputs:
        require(
            not output.resolve().is_relative_to(pathlib.Path(home_expanded(given)).resolve()),
            f"--output = {output} lies in --input = {given} and would become part of it. "
            "Name a folder outside.",
        )
    if options.format == "parquet":
        import_pyarrow()
    kinds = allowed_kinds(model, options)
    if len(kinds) == 1:
        options.poolings(kinds[0])  # Refused before the input is looked at.
    layers = options.layer_numbers(model.config.model.encoder.num_layers)
    batch_size = max(batch_size, ENCODED_AT_A_TIME * num_batch_shards(model.mesh))
    with _Bar() as bar:
        found = choose_input(inputs, kinds)
        pooled = PooledLayers(
            poolings=options.poolings(found.kind),
            layers=layers,
            num_layers=model.config.model.encoder.num_layers,
            width=model.config.model.encoder.width,
            norm=options.norm,
            concatenate=options.concatenate,
        )
        task = _task(model, found, pooled, options)
        folder = FeatureFolder(output, task)
        bar.total(found.count)
        encoder = Encoder(model, pooled)
        parts: list[Part] = []
        for part in _parts(model, found, folder, encoder, options, batch_size):
            parts.append(part)
            bar.advance(part)
    faults = collections.Counter(line["reason"] for part in parts for line in part.dropped)
    num_rows = sum(len(part.rows) for part in parts)
    if num_rows == 0:
        folder.remove()
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in faults.most_common(3))
        raise UserError(
            f"--input = {','.join(inputs)} holds no example of kind {found.kind} that can be "
            f"encoded: {reasons or 'it is empty'}. Name other files, or set another --kind."
        )
    labels = collections.Counter(
        line["label"] for part in parts for line in part.rows if "label" in line
    )
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model_name,
        "model_step": model.step,
        **task,
        "arrays": _described_arrays(pooled),
        "inputs": list(inputs),
        "given": sum(part.inputs for part in parts),
        "rows": num_rows,
        "dropped": dict(sorted(faults.items())),
        "cut_texts": sum(part.cut_texts for part in parts),
        "labels": dict(sorted(labels.items())),
        "config": dataclasses.asdict(model.config),
        "parts": [part.described() for part in parts],
    }
    folder.finish(parts, manifest)
    _print_outcome(manifest, found, output)
    return manifest


def allowed_kinds(model: Pretrained, options: FeatureOptions) -> tuple[ExampleKind, ...]:
    """Returns the kinds of examples to choose from: what was asked for, or the model has learned.

    Raises:
        UserError: it has not learned what was asked for.
    """
    task = model.task
    learned: dict[ExampleKind, bool] = {
        "both": task.has_pairs,
        "image": task.has_images,
        "text": task.has_texts,
    }
    has: tuple[ExampleKind, ...] = tuple(kind for kind, is_learned in learned.items() if is_learned)
    if options.kind == "auto":
        return has
    lacks_vocabulary = model.tokenizer is None and model.config.model.vocab_size > 0
    imported = ", or was imported without its vocabulary" if lacks_vocabulary else ""
    require(
        learned[options.kind],
        f"--kind = {options.kind}, but the model has learned {_phrases(has)} only{imported}. "
        f"Use one of: {', '.join(has)}.",
    )
    return (options.kind,)


def _phrases(kinds: Sequence[ExampleKind]) -> str:
    nouns = {"both": "images with texts", "image": "images", "text": "texts"}
    return " and ".join(nouns[kind] for kind in kinds)


def _task(
    model: Pretrained, found: Input, pooled: PooledLayers, options: FeatureOptions
) -> dict[str, Any]:
    """Returns what decides the bytes of the parts."""
    return {
        "model_digest": model.digest,
        "input_digest": found.digest,
        "kind": found.kind,
        "poolings": list(pooled.poolings),
        "layers": list(pooled.layers),
        "norm": options.norm,
        "concatenate": options.concatenate,
        "image_size": model.config.data.image_size if found.kind != "text" else None,
        "text_length": model.text_length if found.kind != "image" else None,
        "dtype": options.dtype,
        "file_format": options.format,
        "part_size": options.part_size,
    }


def _described_arrays(pooled: PooledLayers) -> dict[str, Any]:
    return {
        name: [column._asdict() for column in columns] for name, columns in pooled.arrays().items()
    }


def _parts(
    model: Pretrained,
    found: Input,
    folder: FeatureFolder,
    encoder: Encoder,
    options: FeatureOptions,
    batch_size: int,
) -> Iterator[Part]:
    """Yields the parts in order: those that are there, and those that it makes."""
    place = START
    examples = None  # Opened at the first part that is not there.
    for number in itertools.count():
        part = folder.finished(number)
        if part is not None and part.start == place:
            place, examples = part.stop, None
            yield part
            if part.inputs < options.part_size:
                return
            continue
        examples = found.read(place) if examples is None else examples
        taken = itertools.islice(examples, options.part_size)
        made = _encode_part(model, taken, encoder, options, batch_size)
        if made is None:
            return
        yield folder.write_part(
            number,
            place,
            made.stop,
            made.arrays,
            made.examples,
            made.dropped,
            cut_texts=made.cut_texts,
            format=options.format,
        )
        place = made.stop
        if len(made.examples) + len(made.dropped) < options.part_size:
            return


class _Encoded(NamedTuple):
    """The content of a part."""

    stop: Place
    arrays: dict[str, np.ndarray]
    examples: list[Example]
    dropped: list[Example]
    cut_texts: int


def _encode_part(
    model: Pretrained,
    taken: Iterable[tuple[Place, Example]],
    encoder: Encoder,
    options: FeatureOptions,
    batch_size: int,
) -> _Encoded | None:
    """Encodes examples; None if there are none."""
    stop, kept, dropped, cut = None, [], [], 0
    batches: list[dict[str, np.ndarray]] = []
    for read in decoded(taken, model.config.data.image_size, batch_size):
        stop = read[-1].stop
        dropped += [each.example for each in read if each.example.fault is not None]
        good = [each for each in read if each.example.fault is None]
        if not good:
            continue
        kept += [each.example for each in good]
        rows, num_cut = make_rows(model, good)
        cut += num_cut
        batches.append(encoder(rows))
    if stop is None:
        return None
    arrays = {
        name: _stored(name, [batch[name] for batch in batches], options.dtype)
        for name in (batches[0] if batches else ())
    }
    return _Encoded(stop, arrays, kept, dropped, cut)


def _stored(name: str, batches: list[np.ndarray], dtype: str) -> np.ndarray:
    array = np.concatenate(batches)
    if name == TOKEN_IS_VALID or dtype == "float32":
        return array
    largest = float(np.abs(array).max(initial=0.0))
    require(
        largest <= _LARGEST_FLOAT16,
        f"--dtype = float16 ends at 65504, and {name} reaches {largest:g}. Set --dtype=float32.",
    )
    return array.astype(np.float16)


class _Bar(contextlib.AbstractContextManager["_Bar"]):
    """The progress bar on a terminal; elsewhere a line for each part."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        columns = rich.progress.Progress.get_default_columns()
        self._progress = rich.progress.Progress(
            *columns,
            rich.progress.MofNCompleteColumn(),
            transient=True,
            disable=not self._is_terminal,
        )
        self._bar = self._progress.add_task("looking at the input", total=None)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def total(self, count: int | None) -> None:
        self._progress.update(self._bar, total=count, description="encoding")

    def advance(self, part: Part) -> None:
        self._progress.advance(self._bar, part.inputs)
        if not self._is_terminal:
            print(f"{part.name}: {len(part.rows):,} of {part.inputs:,}", flush=True)


def _print_outcome(manifest: dict[str, Any], found: Input, output: pathlib.Path) -> None:
    arrays = ", ".join(
        f"{name} [{'tokens, ' * (columns[0]['pooling'] == 'tokens')}{columns[-1]['stop']}]"
        for name, columns in manifest["arrays"].items()
    )
    noun = {"image": "images", "text": "texts", "both": "images with texts"}[manifest["kind"]]
    print(
        f"{manifest['given']:,} given, {manifest['rows']:,} rows of {noun} in "
        f"{len(manifest['parts']):,} part{'s' * (len(manifest['parts']) > 1)}: {arrays}"
    )
    lines = passed_over_lines(found.passed_over)
    for reason, count in sorted(manifest["dropped"].items(), key=lambda entry: -entry[1]):
        lines.append(f"left out {count:,}, see {DROPPED}: {reason}")
    if manifest["cut_texts"]:
        lines.append(
            f"cut {manifest['cut_texts']:,} texts to {manifest['text_length']} tokens, "
            "the length in training"
        )
    for line in lines:
        print(f"  {printable(line)}")
    print(f"{output / MANIFEST}")
