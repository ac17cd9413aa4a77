"""What a set of shards is and how a config will feed it: manifest, checksums, lengths of texts,
mixture.
"""

import dataclasses
import glob
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from m3ae_tpu.config import Kind, PretrainConfig, SourceConfig
from m3ae_tpu.data.manifest import MANIFEST, resolve
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.data.sources import OpenData
from m3ae_tpu.files import file_sha256

_LONGEST = 4_096
"""Tokens up to which lengths are told apart."""


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
    """Records of the source's split."""
    epochs_per_thousand_steps: float
    texts: int
    """Texts measured, all wordings; 0 for images alone."""
    token_lengths: dict[str, float]
    """Mean, median, 95 % quantile and maximum; empty without texts."""
    cut: float
    """Share of the texts that are longer than `text_length`."""


def summarise(data: OpenData, *, max_records: int = 2_000) -> list[SourceSummary]:
    """Returns how each source of a run will be fed.

    Lengths of texts come from records spread over the source.
    """
    summaries = []
    for source, shards, split in zip(data.sources, data.shards, data.splits, strict=True):
        lengths = np.zeros(0, np.int64)
        if source.kind != "image" and data.tokenizer is not None:
            places = np.unique(
                np.linspace(split[0], split[-1], min(max_records, len(split))).astype(np.int64)
            )
            texts = [
                caption
                for record in shards.undamaged(places.tolist())
                for caption in record.captions
            ]
            if texts:
                _, is_token, _ = data.tokenizer.encode(texts, _LONGEST)
                lengths = is_token.sum(axis=1)
        measures = {"mean": np.mean, "median": np.median, "max": np.max}
        figures = {
            name: float(measure(lengths)) for name, measure in measures.items() if lengths.size
        }
        if lengths.size:
            figures["95 %"] = float(np.quantile(lengths, 0.95))
        summaries.append(
            SourceSummary(
                source=source.config,
                rows=source.rows,
                records=len(split),
                epochs_per_thousand_steps=1_000 * source.rows / len(split),
                texts=lengths.size,
                token_lengths=figures,
                cut=float(np.mean(lengths > source.text_length)) if lengths.size else 0.0,
            )
        )
    return summaries
