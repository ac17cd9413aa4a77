"""Batches of a run as NumPy arrays: read, decoded, augmented and tokenised, here or in workers.

Batch s is a pure function of (config, seed, s): workers, threads, processes and restarts do not
change a bit of it, and a run resumes by requesting the batches from its step on.
"""

import collections
import contextlib
import dataclasses
import functools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import grain
import numpy as np
from jaxtyping import Int32, UInt8

from m3ae_tpu.batch import Batch, Rows, Source
from m3ae_tpu.config import DataConfig, Kind
from m3ae_tpu.data.broken import BrokenRow
from m3ae_tpu.data.crops import random_resized_crop
from m3ae_tpu.data.examples import Example, Examples, Fault
from m3ae_tpu.data.labelling import Labelling
from m3ae_tpu.data.mirroring import may_mirror
from m3ae_tpu.data.rows import DrawRows, Row
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.data.workers import explain_worker_error, set_up_worker
from m3ae_tpu.errors import DataError

type Counts = dict[str, int]

_ENDLESS = 2**40
"""Steps after which the stream ends: at a thousand a second, in 35 years."""
NUM_READERS = 64
"""Records of remote shards that a process reads at once."""
_READ_AHEAD = 64
"""Records read per burst. Alternating reads with decodes evicts the reader from the CPU cache.
Bounds memory for large images."""


@dataclasses.dataclass(frozen=True)
class BatchInfo:
    """The records behind a batch; only this process's rows."""

    counts: Counts
    """Metrics that add up over steps and processes; the same names in every batch."""
    broken: tuple[BrokenRow, ...]
    ids: dict[Kind, list[str]]
    """Ids of the records that the model sees, in row order."""

    def without_rows(self) -> "BatchInfo":
        """Returns the same with no rows in it: another process accounts for them."""
        return BatchInfo(dict.fromkeys(self.counts, 0), (), {kind: [] for kind in self.ids})


class MakeBatch:
    """Makes a step's batch: reads, decodes, picks captions, crops, and tokenises the texts.

    One function, not chained Grain maps: passing images between stages evicts the interpreter from
    the CPU cache, which costs more than half of a decode.
    """

    def __init__(
        self,
        data: DataConfig,
        sources: Sequence[Source],
        examples: Sequence[Examples],
        rows: DrawRows,
        tokenizer: Tokenizer | None,
        labelling: Labelling | None = None,
    ):
        """Takes the examples of each source, the rows of each step, and the tokenizer of texts.

        With `labelling` the rows have the numbers of their classes.
        """
        self._labelling = labelling
        self._data, self._examples, self._rows, self._tokenizer = data, examples, rows, tokenizer
        self._kinds: list[Kind] = [source.kind for source in sources]
        self._text_lengths = {source.kind: source.text_length for source in sources}

    def __call__(self, step: int) -> tuple[Batch, BatchInfo]:
        """Makes the batch of a step.

        Raises:
            DataError: a shard cannot be read or a record not be used; names it.
        """
        rows = self._rows(step)
        batch: Batch = {}
        counts: Counts = {}
        broken: list[BrokenRow] = []
        ids: dict[Kind, list[str]] = {}
        kinds: dict[Kind, None] = dict.fromkeys(self._kinds[row.source] for row in rows)
        for kind in kinds:
            of_kind = [row for row in rows if self._kinds[row.source] == kind]
            examples, images = self._read(kind, of_kind)
            captions = [
                _pick_caption(row, example) for row, example in zip(of_kind, examples, strict=True)
            ]
            ids[kind] = [example.id for example in examples]
            broken += [
                BrokenRow(row.source, row.record, example.fault)
                for row, example in zip(of_kind, examples, strict=True)
                if example.fault
            ]
            made = Rows()
            if images is not None:
                is_flipped = [
                    row.flip_draw < self._data.flip_probability and may_mirror(caption)
                    for row, caption in zip(of_kind, captions, strict=True)
                ]
                made = made._replace(images=images, is_flipped=np.array(is_flipped))
            if kind != "image" and self._tokenizer is not None:
                text_ids, is_valid, num_truncated = self._tokenizer.encode(
                    captions, self._text_lengths[kind]
                )
                made = made._replace(text_ids=text_ids, is_valid=is_valid)
                counts[f"data/truncated_texts/{kind}"] = num_truncated
            if self._labelling is not None:
                made = made._replace(labels=self._labels(of_kind, examples))
            batch[kind] = made
        return batch, BatchInfo(counts, tuple(broken), ids)

    def _read(
        self, kind: Kind, rows: Sequence[Row]
    ) -> tuple[list[Example], UInt8[np.ndarray, "rows size size 3"] | None]:
        """Returns the examples of rows of one kind, and their crops."""
        size, examples = self._data.image_size, []
        images = np.empty((len(rows), size, size, 3), np.uint8) if kind != "text" else None
        for number, (row, stored) in enumerate(zip(rows, self._stored(rows), strict=True)):
            with self._errors_placed(row):
                example, image = self._examples[row.source].decode(row.record, stored)
                examples.append(example)
                if images is not None and image is not None:
                    random_resized_crop(
                        image, images[number], area=self._data.crop_area, draws=row.crop_draws
                    )
                    if self._labelling is not None and self._labelling.augment is not None:
                        images[number] = self._labelling.augment(images[number], row.key)
                del image  # The next one takes its memory, which is in the CPU cache.
        return examples, images

    def _labels(
        self, rows: Sequence[Row], examples: Sequence[Example]
    ) -> Int32[np.ndarray, " rows"]:
        """Returns the numbers of the examples' classes."""
        assert self._labelling is not None
        labels = []
        for row, example in zip(rows, examples, strict=True):
            with self._errors_placed(row):
                labels.append(self._labelling.number(example.label_name))
        return np.array(labels, np.int32)

    def _stored(self, rows: Sequence[Row]) -> Iterator[Example | Fault]:
        """Yields what is stored for each row, read a little ahead."""
        if not any(examples.shards.is_remote for examples in self._examples):
            for start in range(0, len(rows), _READ_AHEAD):
                burst: list[Example | Fault] = [
                    self._read_record(row) for row in rows[start : start + _READ_AHEAD]
                ]
                yield from burst
            return
        # A read waits for the bucket: many do so together, while the first ones are decoded.
        ahead: collections.deque[Future[Example | Fault]] = collections.deque()
        for row in rows:
            ahead.append(_readers().submit(self._read_record, row))
            if len(ahead) > 2 * NUM_READERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _read_record(self, row: Row) -> Example | Fault:
        with self._errors_placed(row):
            return self._examples[row.source].read(row.record)

    @contextlib.contextmanager
    def _errors_placed(self, row: Row) -> Iterator[None]:
        """Raises `DataError` with the place of the record in place of other errors."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:
            # Errors of other classes may not survive pickling from a worker; the training process
            # would then wait for ever.
            place = self._examples[row.source].shards.place(row.record)
            raise DataError(
                f"{place} cannot be used ({type(error).__name__}: {error}). Start again. If the "
                "same record fails, make its shard again, or take it out of data.sources."
            ) from error


@functools.cache
def _readers() -> ThreadPoolExecutor:
    """Returns the threads in which this process reads remote records."""
    return ThreadPoolExecutor(NUM_READERS, "read-records")


def _pick_caption(row: Row, example: Example) -> str:
    captions = example.captions
    return captions[int(row.caption_draw * len(captions))] if captions else ""


class Loader(Iterator[tuple[Batch, BatchInfo]]):
    """An endless iterator of batches and their `BatchInfo`, from some step on.

    With workers, Grain needs absl's flags to be parsed: outside of `app.run` call
    `absl.flags.FLAGS.mark_as_parsed()` first. Workers are spawned: the main module must be
    importable.
    """

    def __init__(
        self,
        make_batch: Callable[[int], tuple[Batch, BatchInfo]],
        *,
        start_step: int = 0,
        num_workers: int = 0,
        num_threads: int | None = None,
    ):
        """Threads and workers start with the first batch.

        Args:
            make_batch: Makes the batch of a step; pickled to the workers.
            start_step: Finished steps; the first batch is that of step `start_step`, counted from
                0.
            num_workers: Worker processes; 0 makes the batches in threads of this process.
            num_threads: Batches that each process makes at once; None: two, or one in a worker.
        """
        self._make_batch, self._start_step = make_batch, start_step
        self._num_workers = num_workers
        self._num_threads = num_threads or (1 if num_workers else 2)
        self._iterator: grain.DatasetIterator | None = None
        self._is_closed = False

    def __next__(self) -> tuple[Batch, BatchInfo]:
        """Returns the next batch.

        Raises:
            DataError: a shard cannot be read, or a worker died. The loader is closed then.
            RuntimeError: the loader is closed.
        """
        if self._is_closed:
            raise RuntimeError(
                "this loader is closed or has failed; make a new one from the next step"
            )
        try:
            if self._iterator is None:
                self._iterator = self._start()
            batch, info = next(self._iterator)
        except BaseException as error:
            # Otherwise Grain would go on with the batches of the other workers, in another order.
            self.close()
            if isinstance(error, StopIteration | RuntimeError | OSError):
                raise DataError(explain_worker_error(error)) from error
            raise
        if self._num_workers:
            # Copied out of shared memory, which is small and which Grain frees at any time.
            batch = {
                kind: Rows(*(None if array is None else np.array(array) for array in rows))
                for kind, rows in batch.items()
            }
        return batch, info

    def _start(self) -> grain.DatasetIterator:
        dataset = grain.MapDataset.range(_ENDLESS).map(self._make_batch)[self._start_step :]
        stream = dataset.to_iter_dataset(
            grain.ReadOptions(
                num_threads=self._num_threads, prefetch_buffer_size=max(2, self._num_threads)
            )
        )
        if not self._num_workers:
            return iter(stream)
        # Python's resource tracker removes what a killed worker leaves in /dev/shm; its warning is
        # not needed.
        sys.warnoptions.append("ignore:resource_tracker")
        options = grain.multiprocessing.MultiprocessingOptions(
            num_workers=self._num_workers, per_worker_buffer_size=2
        )
        iterator = iter(stream.mp_prefetch(options, worker_init_fn=set_up_worker))
        # Signals to the process group are for the parent, which saves first and then stops its
        # workers. They inherit this mask, so that Ctrl-C does not end one that is just starting.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            iterator.start_prefetch()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return iterator

    def batch_at(self, step: int) -> tuple[Batch, BatchInfo]:
        """Makes the batch of any step in this process: the one that iterating yields there."""
        return self._make_batch(step)

    def close(self) -> None:
        """Stops threads and workers."""
        self._is_closed = True
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
