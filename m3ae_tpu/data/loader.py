"""Batches of a run, as NumPy arrays: reads, decodes, augments and tokenises, here or in worker processes.

Batch s is a pure function of (config, seed, s): workers, threads, processes and restarts change no bit of it,
and a run goes on by asking for the batches from its step on. The batch is described in `data/records.py`.
"""

import ctypes
import dataclasses
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import grain
import numpy as np
from jaxtyping import Float64

from m3ae_tpu.config import Kind, PretrainConfig, SourceConfig, require
from m3ae_tpu.data.images import CROP_DRAWS, decode_image, may_mirror, random_resized_crop
from m3ae_tpu.data.mixture import Plan, draw_seed, rows_per_source
from m3ae_tpu.data.records import Batch, Shards, open_shards
from m3ae_tpu.data.text import Tokenizer

type Counts = dict[str, int]

_KEPT_BYTES = 2**28
"""Decoded images that a process keeps of a source that fits: 256 MB."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What stands in one row of a batch, and all that is random about it; nothing is read yet."""

    source: int
    record: int
    draws: Float64[np.ndarray, " draws"]
    """Uniform in [0, 1): for the wording, the flip and the crop."""


class DecodedExamples:
    """Captions and decoded image of a record, and nothing else of it.

    Keeps them if all of the source fits into 256 MB: a small set is decoded once, not every epoch.
    """

    def __init__(self, shards: Shards, kind: Kind):
        self.shards = shards
        self.kind: Kind = kind
        self._kept: dict[int, tuple[tuple[str, ...], np.ndarray]] = {}
        self._kept_bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return DecodedExamples, (self.shards, self.kind)

    def read(self, index: int) -> tuple[tuple[str, ...], bytes | np.ndarray]:
        """Returns a record's captions and its image: encoded, or decoded where it was kept."""
        if index in self._kept:
            return self._kept[index]
        record = self.shards[index]
        return record.captions, record.image

    def decode(self, index: int, found: tuple[tuple[str, ...], bytes | np.ndarray]) -> np.ndarray:
        """Returns the decoded image of what `read` returned for the record."""
        captions, image = found
        if isinstance(image, bytes):
            image = decode_image(image)
            if max(self._kept_bytes, image.nbytes * len(self.shards)) <= _KEPT_BYTES:
                self._kept[index] = captions, image
                self._kept_bytes += image.nbytes
        return image


class DrawRow(grain.transforms.RandomMap):
    """Turns the index of a record into a row."""

    def __init__(self, source: int):
        self.source = source

    def random_map(self, element: int, rng: np.random.Generator) -> Row:
        """Draws all that is random in the row of record `element`."""
        return Row(self.source, element, rng.random(2 + math.prod(CROP_DRAWS)))


class MakeBatch:
    """Makes a batch of rows, in order: reads, decodes, picks wordings, crops, and tokenises the texts.

    Only here, and one kind of work after the other: between the steps of Grain's pipeline each image would drive
    Python's own memory out of the processor's cache, which costs more than half of a decode.
    """

    def __init__(
        self,
        examples: Sequence[DecodedExamples],
        config: PretrainConfig,
        tokenizer: Tokenizer | None,
        text_lengths: dict[Kind, int],
    ):
        self.examples, self.data = examples, config.data
        self.tokenizer, self.text_lengths = tokenizer, text_lengths

    def __call__(self, rows: Sequence[Row]) -> tuple[Batch, Counts]:
        """Makes a batch.

        Raises:
            RuntimeError: a record is damaged; names file and record.
        """
        batch: Batch = {}
        counts: Counts = {}
        kinds: dict[Kind, None] = dict.fromkeys(self.examples[row.source].kind for row in rows)
        for kind in kinds:
            of_kind = [row for row in rows if self.examples[row.source].kind == kind]
            found = [self._guard(row, self._read, row) for row in of_kind]
            captions = [
                self._caption(row, wordings) for row, (wordings, _) in zip(of_kind, found, strict=True)
            ]
            batch[kind] = {}
            if kind != "text":
                flips = [
                    bool(row.draws[1] < self.data.flip_probability) and may_mirror(caption)
                    for row, caption in zip(of_kind, captions, strict=True)
                ]
                images = [
                    self._guard(row, self._image, row, read) for row, read in zip(of_kind, found, strict=True)
                ]
                batch[kind] |= {"image": np.stack(images), "flip": np.array(flips)}
            if kind != "image" and self.tokenizer is not None:
                text, text_valid, num_truncated = self.tokenizer.encode(captions, self.text_lengths[kind])
                batch[kind] |= {"text": text, "text_valid": text_valid}
                counts[f"data/truncated_texts/{kind}"] = num_truncated
        return batch, counts

    def _read(self, row: Row) -> tuple[tuple[str, ...], bytes | np.ndarray]:
        return self.examples[row.source].read(row.record)

    def _caption(self, row: Row, wordings: Sequence[str]) -> str:
        if self.examples[row.source].kind == "image" or not wordings:
            return ""
        return wordings[int(row.draws[0] * len(wordings))]

    def _image(self, row: Row, found: tuple[tuple[str, ...], bytes | np.ndarray]) -> np.ndarray:
        image = self.examples[row.source].decode(row.record, found)
        draws = row.draws[2:].reshape(CROP_DRAWS)
        return random_resized_crop(image, self.data.image_size, area=self.data.crop_area, draws=draws)

    def _guard[Result](self, row: Row, do: Callable[..., Result], *args: Any) -> Result:
        try:
            return do(*args)
        # Built-in, with one string: other exceptions may not survive the way out of a worker process, and the
        # training process would wait for ever.
        except Exception as error:
            place = self.examples[row.source].shards.place(row.record)
            raise RuntimeError(f"{place} cannot be used ({type(error).__name__}: {error})") from error


class Loader(Iterator[tuple[Batch, Counts]]):
    """An endless iterator of (batch, counts), from some step on; `counts` are of this process's rows."""

    def __init__(self, dataset: grain.MapDataset, *, start_step: int, num_workers: int):
        """Takes the dataset of all batches: use `make_loader`."""
        self._dataset = dataset
        threads = grain.ReadOptions(num_threads=1 if num_workers else 2, prefetch_buffer_size=2)
        stream = dataset[start_step:].to_iter_dataset(threads)
        if num_workers:
            options = grain.multiprocessing.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=2
            )
            stream = stream.mp_prefetch(options, worker_init_fn=_set_up_worker)
        self._iterator: grain.DatasetIterator | None = iter(stream)
        self._has_workers = num_workers > 0

    def __next__(self) -> tuple[Batch, Counts]:
        """Returns the next batch.

        Raises:
            RuntimeError: a record is damaged, or a worker died. The loader is of no use from then on.
        """
        if self._iterator is None:
            raise RuntimeError(
                "this loader is closed or has failed; make a new one from the step to go on with"
            )
        try:
            batch, counts = next(self._iterator)
        except StopIteration:
            self.close()
            raise RuntimeError(
                "the endless stream of batches ended: a worker process stopped early"
            ) from None
        except BaseException:
            # Grain would go on with the batches of the other workers, in another order.
            self.close()
            raise
        if self._has_workers:
            # Out of the shared memory, which is small and freed by Grain at a time of its own.
            batch = {
                kind: {name: np.array(array) for name, array in arrays.items()}
                for kind, arrays in batch.items()
            }
        return batch, counts

    def batch_at(self, step: int) -> tuple[Batch, Counts]:
        """Makes the batch of any step, in this process; what iterating yields at that step."""
        return cast(tuple[Batch, Counts], self._dataset[step])

    def close(self) -> None:
        """Stops threads and workers."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def make_loader(
    config: PretrainConfig, *, start_step: int = 0, process_index: int = 0, process_count: int = 1
) -> Loader:
    """Returns the batches of a run from `start_step` on.

    With `data.num_workers` > 0, Grain needs absl's flags to be parsed: outside of `app.run` call
    `absl.flags.FLAGS.mark_as_parsed()` first. Workers are spawned: the main module must be importable.

    Args:
        config: Decides every bit of every batch.
        start_step: Steps that are finished; the first batch is that of step `start_step`, counted from 0.
        process_index: This process among those that train together.
        process_count: Number of these processes; each gets an equal part of each kind's rows.

    Raises:
        ConfigError: shards or tokenizer cannot be read or do not fit the config, or rows do not divide.
    """
    sources = config.data.sources
    text_lengths: dict[Kind, int] = {}
    for source in sources:
        if source.kind == "image":
            continue
        length = text_lengths.setdefault(source.kind, source.text_length)
        require(
            length == source.text_length,
            f"text_length = {source.text_length} of source {source.shards} differs from another "
            f"{source.kind!r} source's {length}; they share an array. Set the same for both.",
        )
    plan = Plan(
        [source.kind for source in sources],
        rows_per_source(config),
        process_index=process_index,
        process_count=process_count,
    )
    tokenizer = _fitting_tokenizer(config) if text_lengths else None
    examples = [DecodedExamples(_open_source(source), source.kind) for source in sources]
    streams = []
    for index, source in enumerate(examples):
        # Before mixing and slicing: the random numbers of a row hang on its place in this very dataset.
        streams.append(
            grain.MapDataset.range(len(source.shards))
            .shuffle(seed=draw_seed(config.seed, index, "order"))
            .repeat(None)
            .random_map(DrawRow(index), seed=draw_seed(config.seed, index, "augment"))
        )
    dataset = grain.MapDataset.select_from_datasets(streams, plan)
    dataset = dataset.batch(len(plan.local), batch_fn=MakeBatch(examples, config, tokenizer, text_lengths))
    return Loader(dataset, start_step=start_step, num_workers=config.data.num_workers)


def fingerprint(config: PretrainConfig) -> dict[str, Any]:
    """Returns what decides which example stands where, ready for JSON: a resumed run must find the same.

    Shards count by file name and number of records.
    """
    sources = config.data.sources
    opened = [open_shards(source.shards) for source in sources]
    has_text = any(source.kind != "image" for source in sources)
    return {
        "seed": config.seed,
        "sources": [
            {
                "kind": source.kind,
                "rows": rows,
                "text_length": source.text_length,
                "shards": shards.name_counts(),
            }
            for source, rows, shards in zip(sources, rows_per_source(config), opened, strict=True)
        ],
        "tokenizer_sha256": Tokenizer(config.data.tokenizer).sha256 if has_text else "",
    }


def _fitting_tokenizer(config: PretrainConfig) -> Tokenizer:
    tokenizer = Tokenizer(config.data.tokenizer)
    require(
        tokenizer.vocab_size <= config.model.vocab_size,
        f"model.vocab_size = {config.model.vocab_size} is too small for data.tokenizer = "
        f"{config.data.tokenizer} with {tokenizer.vocab_size} pieces. "
        f"Set --model.vocab_size={tokenizer.vocab_size}, or another tokenizer.",
    )
    return tokenizer


def _open_source(source: SourceConfig) -> Shards:
    shards = open_shards(source.shards)
    for index in shards.starts():
        first = shards[index]
        lacks = "images" if source.kind != "text" and not first.image else ""
        lacks = lacks or ("captions" if source.kind != "image" and not first.captions else "")
        require(
            not lacks,
            f"kind = {source.kind!r} of source {source.shards} needs {lacks}, but {shards.place(index)} has none. "
            "Set the kind that the shards hold ('paired', 'image' or 'text').",
        )
    return shards


def _set_up_worker(index: int, count: int) -> None:
    """Ties a worker process to its parent, and lets glibc keep image-sized buffers."""
    del index, count
    # Sent to the whole process group, these are for the parent: it saves first, then stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # They would be mapped and faulted in anew for every row.
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


def _end_with_parent() -> None:
    """Ends this worker when its parent was killed: it would wait for ever for room in its queue."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
