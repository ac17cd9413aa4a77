"""Batches of a run, as NumPy arrays: reads, decodes, augments and tokenises, here or in worker
processes.

Batch s is a pure function of (config, seed, s): workers, threads, processes and restarts change no
bit of it, and a run goes on by asking for the batches from its step on. The batch is described in
`data/records.py`.
"""

import dataclasses
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import cast

import grain
import numpy as np
from jaxtyping import UInt8

from m3ae_tpu.config import Kind, PretrainConfig, SourceConfig
from m3ae_tpu.data.broken import BrokenRow
from m3ae_tpu.data.examples import Example, Examples
from m3ae_tpu.data.images import may_mirror, random_resized_crop
from m3ae_tpu.data.mixture import Plan, records_in_part, rows_per_source
from m3ae_tpu.data.records import Batch, DamagedRecordError, Shards, open_shards
from m3ae_tpu.data.rows import DrawRows, Row
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.data.workers import explain_worker_error, set_up_worker
from m3ae_tpu.errors import require

type Counts = dict[str, int]

_ENDLESS = 2**40
"""Steps after which the stream ends: at a thousand a second, in 35 years."""
_READ_AHEAD = 64
"""Records that are read at a time: between two images the reader would find nothing of its own in
the processor's cache any more. Bounds memory where images are large."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the rows of a batch come from, this process's alone."""

    counts: Counts
    """Metrics that add up over steps and processes; the same names in every batch."""
    broken: tuple[BrokenRow, ...]
    ids: dict[Kind, list[str]]
    """Ids of the records that the model sees, in row order."""


class MakeBatch:
    """Makes a step's batch: reads, decodes, picks wordings, crops, and tokenises the texts.

    All of it here: between the steps of a pipeline each image would drive Python's own memory out
    of the processor's cache, which costs more than half of a decode.
    """

    def __init__(
        self,
        rows: DrawRows,
        examples: Sequence[Examples],
        config: PretrainConfig,
        tokenizer: Tokenizer | None,
        text_lengths: dict[Kind, int],
    ):
        self.rows, self.examples, self.data = rows, examples, config.data
        self.tokenizer, self.text_lengths = tokenizer, text_lengths

    def __call__(self, step: int) -> tuple[Batch, Origin]:
        """Makes the batch of a step.

        Raises:
            RuntimeError: a shard cannot be read; names it.
        """
        rows = self.rows(step)
        batch: Batch = {}
        counts: Counts = {}
        broken: list[BrokenRow] = []
        ids: dict[Kind, list[str]] = {}
        kinds: dict[Kind, None] = dict.fromkeys(self.examples[row.source].kind for row in rows)
        for kind in kinds:
            of_kind = [row for row in rows if self.examples[row.source].kind == kind]
            examples, images = self._examples(kind, of_kind)
            captions = [
                example.captions[int(row.wording * len(example.captions))]
                if example.captions
                else ""
                for row, example in zip(of_kind, examples, strict=True)
            ]
            ids[kind] = [example.id for example in examples]
            broken += [
                BrokenRow(row.source, row.record, example.fault)
                for row, example in zip(of_kind, examples, strict=True)
                if example.fault
            ]
            batch[kind] = {}
            if images is not None:
                flips = [
                    row.flip < self.data.flip_probability and may_mirror(caption)
                    for row, caption in zip(of_kind, captions, strict=True)
                ]
                batch[kind] |= {"image": images, "flip": np.array(flips)}
            if kind != "image" and self.tokenizer is not None:
                text, text_valid, num_truncated = self.tokenizer.encode(
                    captions, self.text_lengths[kind]
                )
                batch[kind] |= {"text": text, "text_valid": text_valid}
                counts[f"data/truncated_texts/{kind}"] = num_truncated
        return batch, Origin(counts, tuple(broken), ids)

    def _examples(
        self, kind: Kind, rows: Sequence[Row]
    ) -> tuple[list[Example], UInt8[np.ndarray, "rows size size 3"] | None]:
        """Returns the examples of rows of one kind, and their crops."""
        size, examples = self.data.image_size, []
        images = np.empty((len(rows), size, size, 3), np.uint8) if kind != "text" else None
        row = rows[0]
        try:
            for start in range(0, len(rows), _READ_AHEAD):
                some, found = rows[start : start + _READ_AHEAD], []
                for row in some:
                    found.append(self.examples[row.source].read(row.record))
                for place, row in enumerate(some, start):
                    example, image = self.examples[row.source].decode(
                        row.record, found[place - start]
                    )
                    examples.append(example)
                    if images is not None and image is not None:
                        random_resized_crop(
                            image, images[place], area=self.data.crop_area, draws=row.crop
                        )
                    del image  # The next one takes its memory, which is in the processor's cache.
        except Exception as error:
            if type(error) is RuntimeError:  # Ours, of a shard: says all.
                raise
            place = self.examples[row.source].shards.place(row.record)
            # Built in, with one string: for others the training process may wait for ever.
            raise RuntimeError(
                f"{place} cannot be used ({type(error).__name__}: {error})"
            ) from error
        return examples, images


class Loader(Iterator[tuple[Batch, Origin]]):
    """An endless iterator of (batch, where its rows come from), from some step on."""

    def __init__(
        self,
        dataset: grain.MapDataset,
        shards: Sequence[Shards],
        *,
        start_step: int,
        num_workers: int,
    ):
        """Takes the dataset of all batches, and the shards of each source: use `make_loader`."""
        self._dataset, self._shards = dataset, shards
        threads = grain.ReadOptions(num_threads=1 if num_workers else 2, prefetch_buffer_size=2)
        stream = dataset[start_step:].to_iter_dataset(threads)
        if num_workers:
            # Python's tracker removes what a killed worker leaves in /dev/shm; it need not warn of
            # it too.
            sys.warnoptions.append("ignore:resource_tracker")
            options = grain.multiprocessing.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=2
            )
            stream = stream.mp_prefetch(options, worker_init_fn=set_up_worker)
        self._iterator: grain.DatasetIterator | None = iter(stream)
        self._has_workers, self._is_started = num_workers > 0, False

    def __next__(self) -> tuple[Batch, Origin]:
        """Returns the next batch.

        Raises:
            RuntimeError: a shard cannot be read, or a worker died. The loader is of no use from
                then on.
        """
        if self._iterator is None:
            raise RuntimeError(
                "this loader is closed or has failed; make a new one from the step to go on with"
            )
        try:
            if self._has_workers and not self._is_started:
                self._start_workers(self._iterator)
            batch, origin = next(self._iterator)
        except StopIteration:
            self.close()
            raise RuntimeError(
                "the endless stream of batches ended: a worker process stopped early"
            ) from None
        except (RuntimeError, OSError) as error:
            self.close()
            raise RuntimeError(explain_worker_error(error)) from error
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
        return batch, origin

    def _start_workers(self, iterator: grain.DatasetIterator) -> None:
        # Sent to the whole process group, these signals are for the parent, which saves first, then
        # stops its workers: they inherit the mask, so that not even one that is just starting dies
        # of Ctrl-C.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            iterator.start_prefetch()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._is_started = True

    def place(self, source: int, index: int) -> str:
        """Returns where a record of a source lies, for messages."""
        return self._shards[source].place(index)

    def batch_at(self, step: int) -> tuple[Batch, Origin]:
        """Makes the batch of any step, in this process; what iterating yields at that step."""
        return cast(tuple[Batch, Origin], self._dataset[step])

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
    `absl.flags.FLAGS.mark_as_parsed()` first. Workers are spawned: the main module must be
    importable.

    Args:
        config: Decides every bit of every batch.
        start_step: Steps that are finished; the first batch is that of step `start_step`, counted
            from 0.
        process_index: This process among those that train together.
        process_count: Number of these processes; each gets an equal part of each kind's rows.

    Raises:
        UserError: shards or tokenizer cannot be read or do not fit the config, or rows do not
            divide.
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
    opened = [_open_source(source) for source in sources]
    parts = [
        records_in_part(source, len(shards)) for source, shards in zip(sources, opened, strict=True)
    ]
    examples = [
        Examples(shards, source.kind, part)
        for source, shards, part in zip(sources, opened, parts, strict=True)
    ]
    make_batch = MakeBatch(
        DrawRows(plan, parts, config.seed), examples, config, tokenizer, text_lengths
    )
    dataset = grain.MapDataset.range(_ENDLESS).map(make_batch)
    return Loader(dataset, opened, start_step=start_step, num_workers=config.data.num_workers)


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
        try:
            first = shards[index]
        except DamagedRecordError:
            continue
        lacks = "images" if source.kind != "text" and not first.image else ""
        lacks = lacks or ("captions" if source.kind != "image" and not first.captions else "")
        require(
            not lacks,
            f"kind = {source.kind!r} of source {source.shards} needs {lacks}, but {shards.place(index)} has none. "
            "Set the kind that the shards hold ('paired', 'image' or 'text').",
        )
    return shards
