"""What a set of shards is and how a config will feed it: manifest, checksums, lengths of texts,
mixture.
"""

import dataclasses
import glob
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from m3ae_tpu.config import Kind, PretrainConfig, SourceConfig
from m3ae_tpu.data.mixture import records_in_part, rows_per_source
from m3ae_tpu.data.records import open_shards, resolve
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import file_sha256
from m3ae_tpu.prepare.local import MANIFEST

_LONGEST = 4_096
"""Tokens up to which lengths are told apart."""


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Returns a set's `manifest.json`.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). Name a folder made by pipelines.prepare_data."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Copy the set again.") from None
    shards = manifest.get("shards") if isinstance(manifest, dict) else None
    require(
        isinstance(shards, dict), f"{path} lists no shards. Copy the set again, or make it anew."
    )
    return manifest


def find_faults(
    folder: pathlib.Path,
    manifest: dict[str, Any],
    report: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Reads every shard of a manifest and returns what does not agree with it, a line for each
    shard.
    """
    faults = []
    for done, (name, line) in enumerate(manifest["shards"].items(), 1):
        path = folder / name
        if not path.is_file():
            faults.append(f"{path} is missing")
        elif "bytes" in line and path.stat().st_size != line["bytes"]:
            faults.append(
                f"{path} has {path.stat().st_size:,} bytes, the manifest says {line['bytes']:,}"
            )
        elif file_sha256(path) != line["sha256"]:
            faults.append(f"{path} has another SHA-256 than the manifest says: its content changed")
        report(done)
    return faults


def manifest_folders(config: PretrainConfig) -> list[pathlib.Path]:
    """Returns the folders of a config's shards that have a manifest, each once."""
    folders = {
        pathlib.Path(path).parent
        for source in config.data.sources
        for path in resolve(source.shards)
    }
    return sorted(folder for folder in folders if (folder / MANIFEST).is_file())


def sources_of(folder: pathlib.Path, manifest: dict[str, Any]) -> tuple[SourceConfig, ...]:
    """Returns a source for each shard set of a manifest; kinds as the first record shows."""
    names = dict.fromkeys(re.sub(r"-\d{5}-of-\d{5}.*", "-*", name) for name in manifest["shards"])
    sources = []
    for name in names:
        pattern = f"{glob.escape(str(folder))}/{name}"
        shards = open_shards(pattern)
        first = next(shards.undamaged(range(len(shards))))
        kind: Kind = "text" if not first.image else "paired" if first.captions else "image"
        sources.append(SourceConfig(kind=kind, shards=pattern, weight=float(len(shards))))
    return tuple(sources)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """How a source will be fed."""

    source: SourceConfig
    rows: int
    """Of each batch."""
    records: int
    """Of the source's part of its shards."""
    epochs_per_thousand_steps: float
    texts: int
    """Texts measured, all wordings; 0 for images alone."""
    token_lengths: dict[str, float]
    """Mean, median, 95 % quantile and maximum; empty without texts."""
    cut: float
    """Share of the texts that are longer than `text_length`."""


def summarise(config: PretrainConfig, *, max_records: int = 2_000) -> list[SourceSummary]:
    """Returns how each source of a config will be fed; lengths of texts from records spread over
    the source.

    Raises:
        UserError: shards or tokenizer cannot be used.
    """
    summaries = []
    for source, rows in zip(config.data.sources, rows_per_source(config), strict=True):
        shards = open_shards(source.shards)
        part = records_in_part(source, len(shards))
        lengths = np.zeros(0, np.int64)
        if source.kind != "image":
            places = np.unique(
                np.linspace(part[0], part[-1], min(max_records, len(part))).astype(np.int64)
            )
            texts = [
                caption
                for record in shards.undamaged(places.tolist())
                for caption in record.captions
            ]
            if texts:
                _, is_token, _ = Tokenizer(config.data.tokenizer).encode(texts, _LONGEST)
                lengths = is_token.sum(axis=1)
        measures = {"mean": np.mean, "median": np.median, "max": np.max}
        figures = {
            name: float(measure(lengths)) for name, measure in measures.items() if lengths.size
        }
        if lengths.size:
            figures["95 %"] = float(np.quantile(lengths, 0.95))
        summaries.append(
            SourceSummary(
                source=source,
                rows=rows,
                records=len(part),
                epochs_per_thousand_steps=1_000 * rows / len(part),
                texts=lengths.size,
                token_lengths=figures,
                cut=float(np.mean(lengths > source.text_length)) if lengths.size else 0.0,
            )
        )
    return summaries
