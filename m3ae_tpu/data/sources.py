"""The data of a run, opened: shards, tokenizer, and what identifies them at a restart.

A run opens every set of shards and its tokenizer once, here, before its first step.
"""

import concurrent.futures
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from m3ae_tpu.batch import Source, mixture
from m3ae_tpu.config import DataConfig, SourceConfig, tree
from m3ae_tpu.data import identity
from m3ae_tpu.data.examples import Examples
from m3ae_tpu.data.identity import ShardIdentity
from m3ae_tpu.data.labelling import Labelling
from m3ae_tpu.data.loader import NUM_READERS, Loader, MakeBatch
from m3ae_tpu.data.plan import Plan
from m3ae_tpu.data.rows import DRAWS_VERSION, DrawRows
from m3ae_tpu.data.shards import Shards, open_shards
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import require


@dataclasses.dataclass(frozen=True)
class OpenData:
    """The sources of a run with their open shards, and its tokenizer."""

    config: DataConfig
    seed: int
    """Decides the order of the records and all augmentation."""
    sources: tuple[Source, ...]
    shards: tuple[Shards, ...]
    """Shards of each source; sources that name the same shards share them."""
    splits: tuple[range, ...]
    """Indices of each source's records in its shards."""
    tokenizer: Tokenizer | None
    """None if no source has text."""
    labelling: Labelling | None = None
    """Classes of a run that learns them."""

    @property
    def num_records(self) -> tuple[int, ...]:
        """Number of records of each source."""
        return tuple(len(split) for split in self.splits)

    @property
    def tokenizer_model(self) -> bytes:
        """Content of the tokenizer's file; empty if no source has text."""
        return b"" if self.tokenizer is None else self.tokenizer.model

    def open(self, pattern: str) -> Shards:
        """Returns the shards that a glob names; a source's own are not opened again."""
        opened = {shards.pattern: shards for shards in self.shards}
        return opened[pattern] if pattern in opened else open_shards(pattern)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the rows of every step, ready for JSON; a resumed run must match it.

        Shards count by file name, number of records and content: they may move to another folder.
        """
        return {
            "draws_version": DRAWS_VERSION,
            "seed": self.seed,
            "sources": [
                {
                    "kind": source.kind,
                    "rows": source.rows,
                    "text_length": source.config.text_length,
                    "split": list(source.config.split),
                    "records": len(split),
                    "shards": shards.identities,
                }
                for source, split, shards in zip(
                    self.sources, self.splits, self.shards, strict=True
                )
            ],
            "tokenizer_sha256": self.tokenizer.sha256 if self.tokenizer is not None else "",
        }

    def loader(
        self, *, start_step: int = 0, parts: Sequence[int] = (0,), num_parts: int = 1
    ) -> Loader:
        """Returns the batches of the run from `start_step` on.

        Args:
            start_step: Finished steps; the first batch is that of step `start_step`, counted from
                0.
            parts: Parts of each batch that this process makes, in order.
            num_parts: Number of parts; each has as many rows of each kind.

        Raises:
            UserError: the rows of a kind do not divide into the parts.
        """
        plan = Plan(self.sources, parts=parts, num_parts=num_parts)
        examples = [
            Examples(shards, source.kind, split)
            for shards, source, split in zip(self.shards, self.sources, self.splits, strict=True)
        ]
        rows = DrawRows(plan, self.splits, self.seed)
        make_batch = MakeBatch(
            self.config, self.sources, examples, rows, self.tokenizer, self.labelling
        )
        return Loader(
            make_batch,
            start_step=start_step,
            num_workers=self.config.num_workers,
            num_threads=self._num_threads(len(parts) / num_parts),
        )

    def _num_threads(self, share: float) -> int | None:
        """Returns how many batches each loader process makes at once, None for its default.

        Reads of remote shards wait: so many small batches are made at once that enough are waited
        for together.

        Args:
            share: The part of each batch that this process makes.
        """
        if not any(shards.is_remote for shards in self.shards):
            return None
        rows = max(1, round(share * sum(source.rows for source in self.sources)))
        return min(8, 1 + -(-NUM_READERS // rows))


def open_data(config: DataConfig, *, batch_size: int, seed: int, vocab_size: int) -> OpenData:
    """Opens the shards of all sources and the tokenizer, and checks that they fit the config.

    Args:
        config: The run's data.
        batch_size: Rows of a global batch.
        seed: The run's.
        vocab_size: Token ids that the model knows.

    Raises:
        UserError: shards or tokenizer cannot be read or do not fit the config, or a source gets no
            row of a batch.
    """
    sources = mixture(config, batch_size)
    tokenizer = None
    if any(source.kind != "image" for source in sources):
        tokenizer = Tokenizer(config.tokenizer)
        require(
            tokenizer.vocab_size <= vocab_size,
            f"model.vocab_size = {vocab_size} is too small for data.tokenizer = "
            f"{config.tokenizer} with {tokenizer.vocab_size} pieces. "
            f"Set --model.vocab_size={tokenizer.vocab_size}, or another tokenizer.",
        )
    patterns = dict.fromkeys(source.config.shards for source in sources)
    opened = {pattern: open_shards(pattern) for pattern in patterns}
    shards = tuple(opened[source.config.shards] for source in sources)
    for source, of_source in zip(sources, shards, strict=True):
        _require_kind(source.config, of_source)
    splits = tuple(
        records_of_split(source.config, len(of_source))
        for source, of_source in zip(sources, shards, strict=True)
    )
    return OpenData(config, seed, sources, shards, splits, tokenizer)


def records_of_split(source: SourceConfig, count: int) -> range:
    """Returns the indices of a source's records among the `count` records of its shards.

    Splits that meet, as (0, 0.25) and (0.25, 1), share no record.

    Raises:
        UserError: the split holds no record.
    """
    first, end = (math.floor(count * fraction) for fraction in source.split)
    require(
        first < end,
        f"split = {source.split} of source {source.shards} holds none of its {count} records. "
        "Set a wider split.",
    )
    return range(first, end)


def _require_kind(source: SourceConfig, shards: Shards) -> None:
    """Raises unless the first record of each shard has the image and captions of the kind."""
    with concurrent.futures.ThreadPoolExecutor(NUM_READERS) as pool:
        firsts = list(
            pool.map(lambda start: next(shards.undamaged([start]), None), shards.starts())
        )
    for index, first in zip(shards.starts(), firsts, strict=True):
        if first is None:
            continue
        lacks = "images" if source.kind != "text" and not first.image else ""
        lacks = lacks or ("captions" if source.kind != "image" and not first.captions else "")
        require(
            not lacks,
            f"kind = {source.kind!r} of source {source.shards} needs {lacks}, but "
            f"{shards.place(index)} has none. "
            "Set the kind that the shards hold ('paired', 'image' or 'text').",
        )


def differences(now: dict[str, Any], was: dict[str, Any]) -> list[str]:
    """Returns one short phrase for each value that differs between two fingerprints."""
    found = list(tree.differences(_values(now), _values(was)).values())
    for number, sources in enumerate(zip(now["sources"], was["sources"], strict=False)):
        new, old = (itertools.starmap(ShardIdentity, source["shards"]) for source in sources)
        found += identity.changes(f"sources.{number}", new, old)
    return found


def _values(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a fingerprint but its shards, by the names that a message gives them.

    The number of records follows from the shards and the split.
    """
    values = {name: value for name, value in fingerprint.items() if name != "sources"}
    return values | {
        f"sources.{number}.{name}": value
        for number, source in enumerate(fingerprint["sources"])
        for name, value in source.items()
        if name not in ("shards", "records")
    }
