"""Rates at which batches of a config's data are made, by stage, against decoding alone.

Times are CPU time of one process, all its threads together: a busy machine changes them less than
wall time. Compare ratios, which come from one interleaved run.
"""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
import rich
import rich.progress
import rich.table

from m3ae_tpu.data.crops import CROP_DRAWS, random_resized_crop
from m3ae_tpu.data.images import decode_image
from m3ae_tpu.data.pixel_memory import PixelMemory
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import Shards, open_shards
from m3ae_tpu.data.sources import OpenData
from m3ae_tpu.errors import UserError
from m3ae_tpu.files import atomic_write

LOADER, LOADER_CACHED, DECODE_ONLY = "whole loader", "whole loader, again", "decode only"
STAGES = ("read", "decode", "crop, resize, batch", "tokenise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Costs of one row of a config's batches, mean over its mixture; medians over rounds."""

    cpu_seconds: dict[str, float]
    """CPU time of one row by stage, all threads of the process together."""
    copy_seconds: float
    """Wall time of one row's copy to the device; it overlaps with the step before."""
    device: str
    batch_size: int
    images_per_row: float
    """Fraction of the rows that have an image."""
    rounds: int
    fraction_of_decode_only: float | None
    """The loader's rate relative to decoding alone, median of the rounds: a slowdown of the machine
    slows both. None for texts alone.
    """

    def per_core(self, stage: str) -> float:
        """Returns how many rows a second one core makes if it does nothing else."""
        return 1 / self.cpu_seconds[stage]

    def cores_for(self, examples_per_second: float) -> float:
        """Returns how many such cores feed a chip that trains so many examples a second."""
        return examples_per_second * self.cpu_seconds[LOADER_CACHED]

    def as_json(self, examples_per_second: float) -> str:
        """Returns all figures, and the rates and cores that follow from them."""
        figures = dataclasses.asdict(self) | {
            "rows_per_second_per_core": {stage: self.per_core(stage) for stage in self.cpu_seconds},
            "examples_per_second": examples_per_second,
            "cores_needed": self.cores_for(examples_per_second),
        }
        return json.dumps(figures, indent=2) + "\n"


def benchmark(
    data: OpenData,
    *,
    rounds: int,
    decode_shards: str,
    examples_per_second: float,
    json_file: pathlib.Path | None,
) -> None:
    """Measures with a progress bar, prints a table, and writes the figures to `json_file`."""
    columns = rich.progress.Progress.get_default_columns()
    with rich.progress.Progress(*columns, transient=True) as bars:
        task = bars.add_task("measuring", total=rounds)
        rates = measure(
            data,
            rounds=rounds,
            decode_shards=decode_shards,
            report=lambda done: bars.update(task, completed=done),
        )
    print_rates(rates, examples_per_second)
    if json_file is not None:
        atomic_write(json_file, rates.as_json(examples_per_second))


def measure(
    data: OpenData,
    *,
    rounds: int,
    decode_shards: str = "",
    report: Callable[[int], None] = lambda done: None,
) -> Rates:
    """Measures every stage once a round, in random order, on batches that the run would see.

    The whole loader makes a new batch, as a run does, and then the same batch again: faster if the
    set is small enough for its decoded images to be cached. Files come from the page cache, so a
    slow disk or network does not show.

    Args:
        data: The run's; `data.num_workers` does not matter.
        rounds: Batches per stage.
        decode_shards: Glob of shards whose images are decoded alone instead of the run's own, for
            example the originals of smaller images. As many images as a batch has.
        report: Takes the number of finished rounds.

    Raises:
        UserError: an image cannot be decoded.
    """
    loader = data.loader()
    stages = _Stages(data, open_shards(decode_shards) if decode_shards else None)
    seconds: dict[str, list[float]] = {}
    copies: list[float] = []
    batch = loader.batch_at(0)[0]  # Warms up caches and allocator.
    order = np.random.default_rng(data.seed)
    for step in range(1, rounds + 1):
        whole = _timed(lambda step=step: loader.batch_at(step))
        timed = stages.timed(step) | {LOADER: whole}
        for name in order.permutation(list(timed)):
            seconds.setdefault(name, []).append(timed[name]())
        seconds.setdefault(LOADER_CACHED, []).append(whole())
        begin = time.perf_counter()
        jax.block_until_ready(jax.device_put(batch))
        copies.append(time.perf_counter() - begin)
        report(step)
    rows = sum(source.rows for source in data.sources)
    ratios = [
        decode / whole
        for decode, whole in zip(seconds.get(DECODE_ONLY, []), seconds[LOADER], strict=False)
    ]
    names = (DECODE_ONLY, *STAGES, LOADER, LOADER_CACHED)
    return Rates(
        cpu_seconds={
            name: float(np.median(seconds[name])) / rows for name in names if name in seconds
        },
        copy_seconds=float(np.median(copies)) / rows,
        device=jax.devices()[0].device_kind,
        batch_size=rows,
        images_per_row=sum(source.rows for source in data.sources if source.kind != "text") / rows,
        rounds=rounds,
        fraction_of_decode_only=float(np.median(ratios)) if ratios else None,
    )


class _Stages:
    """The stages of the loader's work one by one, on consecutive records of the shards."""

    def __init__(self, data: OpenData, originals: Shards | None):
        self._data, self._originals, self._memory = data, originals, PixelMemory()

    def _read(self, step: int) -> list[list[Record]]:
        """Reads one batch's records of every source."""
        data = self._data
        return [
            _records(shards, split, step, source.rows)
            for source, shards, split in zip(data.sources, data.shards, data.splits, strict=True)
        ]

    def timed(self, step: int) -> dict[str, Callable[[], float]]:
        """Returns a function for each stage that does its work on one batch's records and returns
        the CPU seconds it took.
        """
        data, read = self._data, self._read(step)
        with_source = list(zip(data.sources, read, strict=True))
        encoded = [
            record.image
            for source, records in with_source
            if source.kind != "text"
            for record in records
        ]
        timed = {"read": _timed(lambda: self._read(step))}
        if encoded:
            decoded_alone = encoded
            if self._originals is not None:
                everything = range(len(self._originals))
                records = _records(self._originals, everything, step, len(encoded))
                decoded_alone = [record.image for record in records]
            timed |= {
                DECODE_ONLY: _timed(lambda: _decode_each(decoded_alone)),
                "decode": _timed(lambda: _decode_each(encoded, "RGBX", self._memory)),
                "crop, resize, batch": lambda: self._crop_seconds(encoded, step),
            }
        texts = [
            (source.text_length, [record.captions[0] if record.captions else "" for record in each])
            for source, each in with_source
            if source.kind != "image"
        ]
        tokenizer = data.tokenizer
        if tokenizer is not None:
            timed["tokenise"] = _timed(
                lambda: [tokenizer.encode(captions, length) for length, captions in texts]
            )
        return timed

    def _crop_seconds(self, encoded: Sequence[bytes], step: int) -> float:
        config, rng = self._data.config, np.random.default_rng(step)
        rows = np.empty((len(encoded), config.image_size, config.image_size, 3), np.uint8)
        seconds = 0.0
        for image, row in zip(encoded, rows, strict=True):
            # Decoded just before, as in the loader, so that it is in the CPU cache.
            decoded = decode_image(image, "RGBX", self._memory)
            draws = rng.random(CROP_DRAWS)
            start = time.process_time()
            random_resized_crop(decoded, row, area=config.crop_area, draws=draws)
            seconds += time.process_time() - start
        return seconds


def _records(shards: Shards, split: range, step: int, rows: int) -> list[Record]:
    """Returns the records of a step in stored order, over and over; damaged ones are skipped."""

    def read(index: int) -> Record:
        wrapped = (split[place % len(split)] for place in range(index, index + len(split)))
        return next(shards.undamaged(wrapped))

    return [read(index) for index in range(step * rows, (step + 1) * rows)]


def _timed(work: Callable[[], Any]) -> Callable[[], float]:
    """Returns a function that does the work and returns the CPU seconds it took."""

    def seconds() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return seconds


def _decode_each(
    images: Sequence[bytes],
    channels: Literal["RGB", "RGBX"] = "RGB",
    memory: PixelMemory | None = None,
) -> None:
    for image in images:
        try:
            decode_image(image, channels, memory)
        except ValueError as error:
            raise UserError(
                f"an image of the shards cannot be decoded ({error}). "
                "Measure a set that prepare_data made."
            ) from None


def print_rates(rates: Rates, examples_per_second: float) -> None:
    """Prints the figures as a table, and the cores that a chip needs."""
    table = rich.table.Table(
        title=f"one core, one row of a batch of {rates.batch_size}; "
        f"{rates.images_per_row:.0%} of the rows have an image",
        title_justify="left",
    )
    for heading in ("stage", "CPU time", "records/s", "images/s", "share"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    whole = rates.cpu_seconds[LOADER]

    def add(name: str, seconds: float, *, style: str = "") -> None:
        rate = 1 / seconds if seconds > 0 else 0.0
        images = rate * rates.images_per_row
        cells = [f"{value:,.0f}" if value else "-" for value in (rate, images)]
        table.add_row(
            name, f"{seconds * 1e6:,.0f} us", *cells, f"{seconds / whole:.0%}", style=style
        )

    stages = {name: rates.cpu_seconds[name] for name in STAGES if name in rates.cpu_seconds}
    for name, seconds in stages.items():
        add(name, seconds)
    add("the rest", whole - sum(stages.values()))
    table.add_section()
    add(LOADER, whole, style="bold")
    add(LOADER_CACHED, rates.cpu_seconds[LOADER_CACHED])
    if DECODE_ONLY in rates.cpu_seconds:
        add(DECODE_ONLY, rates.cpu_seconds[DECODE_ONLY])
    rich.print(table)
    if rates.fraction_of_decode_only is not None:
        rich.print(
            f"The loader reaches [bold]{rates.fraction_of_decode_only:.0%}[/] of the rate of "
            "decoding alone."
        )
    rich.print(
        f"Copy to {rates.device}: {rates.copy_seconds * 1e6:,.1f} us a row, in parallel with the "
        "step before."
    )
    rich.print(
        f"A chip that trains {examples_per_second:,.0f} examples/s needs "
        f"[bold]{rates.cores_for(examples_per_second):.1f} cores[/] like this one "
        f"(--examples_per_second); this machine has {os.cpu_count()}."
    )
