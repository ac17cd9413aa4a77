"""Facts of a set of shards, checked against its manifest, and of the data that a run reads."""

import dataclasses
import glob
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from m3ae_tpu.batch import Source
from m3ae_tpu.config import DataConfig, Kind, SourceConfig
from m3ae_tpu.data.manifest import MANIFEST, resolve
from m3ae_tpu.data.shards import Shards, open_shards
from m3ae_tpu.data.sources import OpenData
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.files import file_sha256

_LONGEST = 4_096
"""Tokens at which the length of a text is truncated for measuring."""


def find_faults(
    folder: pathlib.Path,
    manifest: dict[str, Any],
    report: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Reads every shard of a manifest and returns a line for each that differs from it.

    Args:
        folder: Folder of the set.
        manifest: Its manifest.
        report: Called with the number of shards read so far.
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


def manifest_folders(config: DataConfig) -> list[pathlib.Path]:
    """Returns the folders of a config's shards that have a manifest, each once."""
    folders = {
        pathlib.Path(path).parent for source in config.sources for path in resolve(source.shards)
    }
    return sorted(folder for folder in folders if (folder / MANIFEST).is_file())


def sources_of(folder: pathlib.Path, manifest: dict[str, Any]) -> tuple[SourceConfig, ...]:
    """Returns a source for each name of shards in a manifest, of the kind of its first record."""
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
    """Use of a source by a run, and the lengths of its texts."""

    source: Source
    records: int
    """Records of the source's split."""
    epochs_per_thousand_steps: float
    texts: int
    """Texts measured, all captions of an image; 0 for images alone."""
    token_lengths: dict[str, float]
    """Mean, median, 95 % quantile and maximum of the texts' tokens; empty without texts."""
    truncated: float
    """Fraction of the texts that are longer than `text_length`."""


def summarise(data: OpenData, *, max_records: int = 2_000) -> list[SourceSummary]:
    """Summarises each source of a run.

    Texts are measured in at most `max_records` records, spread evenly over the source.
    """
    summaries = []
    for source, shards, split in zip(data.sources, data.shards, data.splits, strict=True):
        lengths = np.zeros(0, np.int64)
        if source.kind != "image" and data.tokenizer is not None:
            lengths = _token_lengths(shards, split, data.tokenizer, max_records)
        measures = {
            "mean": np.mean,
            "median": np.median,
            "95 %": lambda lengths: np.quantile(lengths, 0.95),
            "max": np.max,
        }
        summaries.append(
            SourceSummary(
                source=source,
                records=len(split),
                epochs_per_thousand_steps=1_000 * source.rows / len(split),
                texts=lengths.size,
                token_lengths={
                    name: float(measure(lengths))
                    for name, measure in measures.items()
                    if lengths.size
                },
                truncated=float(np.mean(lengths > source.text_length)) if lengths.size else 0.0,
            )
        )
    return summaries


def _token_lengths(
    shards: Shards, split: range, tokenizer: Tokenizer, max_records: int
) -> np.ndarray:
    """Returns the number of tokens of each caption of some records of a source."""
    numbers = np.linspace(split[0], split[-1], min(max_records, len(split))).astype(np.int64)
    records = shards.undamaged(np.unique(numbers).tolist())
    texts = [caption for record in records for caption in record.captions]
    if not texts:
        return np.zeros(0, np.int64)
    _, is_token, _ = tokenizer.encode(texts, _LONGEST)
    return is_token.sum(axis=1)
