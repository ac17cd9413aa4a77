"""How fast a config's data can be made, stage by stage, against decoding alone measured in the same
run.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.images import CROP_DRAWS, decode_image, random_resized_crop
from m3ae_tpu.data.mixture import rows_per_source
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import Shards, open_shards
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import UserError

WHOLE, WHOLE_AGAIN, DECODE_ONLY = "whole loader", "whole loader, again", "decode only"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Costs of one row of a config's batches, mean over its mixture; medians over rounds."""

    cpu_seconds: dict[str, float]
    """CPU time of one row by stage, all threads of the process together."""
    copy_seconds: float
    """Wall time of one row's copy to the device, in batches; it overlaps with the step before."""
    device: str
    batch_size: int
    images_per_row: float
    """Share of the rows that have an image."""
    rounds: int
    fraction_of_decode_only: float | None
    """The loader's rate relative to decoding alone, round by round: what slows the machine down for
    a while slows both. None for texts alone."""

    def per_core(self, stage: str) -> float:
        """Returns how many rows a second one core makes, if it does nothing else."""
        return 1 / self.cpu_seconds[stage]

    def cores_for(self, examples_per_second: float) -> float:
        """Returns how many such cores feed a chip that takes so many examples a second."""
        return examples_per_second * self.cpu_seconds[WHOLE_AGAIN]


def measure(
    config: PretrainConfig,
    *,
    rounds: int,
    decode_shards: str = "",
    report: Callable[[int], None] = lambda done: None,
) -> Rates:
    """Measures every stage once a round, in an order drawn anew, on batches that the run would see.

    The whole loader makes batch after batch, as a run does, and then the same ones again: quicker
    where the set is small enough to be kept decoded. Files come from the page cache, so a slow disk
    or network does not show.

    Args:
        config: Its sources, sizes and batch size; `data.num_workers` does not matter.
        rounds: Batches per stage; the more, the steadier.
        decode_shards: Shards whose images are decoded alone, instead of the config's own: the
            originals of shards with smaller images. The cost is that of as many images as a batch
            has.
        report: Is told how many rounds are done.

    Raises:
        UserError: shards or tokenizer cannot be used; see `make_loader`.
    """
    loader = open_data(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        vocab_size=config.model.vocab_size,
    ).loader()
    stages = _Stages(config, decode_shards)
    seconds: dict[str, list[float]] = {}
    copies: list[float] = []
    batch = loader.batch_at(0)[0]  # Warms caches and allocator up.
    order = np.random.default_rng(config.seed)
    for done in range(1, rounds + 1):
        record_sets = stages.read(done)
        whole = _timed(lambda step=done: loader.batch_at(step))
        timed = stages.of(done, record_sets) | {WHOLE: whole}
        for name in order.permutation(list(timed)):
            seconds.setdefault(name, []).append(timed[name]())
        seconds.setdefault(WHOLE_AGAIN, []).append(whole())
        begin = time.perf_counter()
        jax.block_until_ready(jax.device_put(batch))
        copies.append(time.perf_counter() - begin)
        report(done)
    loader.close()
    rows = config.batch_size
    names = [name for name in (*stages.names, WHOLE, WHOLE_AGAIN) if name in seconds]
    ratios = [
        alone / whole
        for alone, whole in zip(seconds.get(DECODE_ONLY, []), seconds[WHOLE], strict=False)
    ]
    return Rates(
        cpu_seconds={name: float(np.median(seconds[name])) / rows for name in names},
        copy_seconds=float(np.median(copies)) / rows,
        device=jax.devices()[0].device_kind,
        batch_size=rows,
        images_per_row=stages.num_images / rows,
        rounds=rounds,
        fraction_of_decode_only=float(np.median(ratios)) if ratios else None,
    )


class _Stages:
    """The parts of the loader's work, one after the other, on records that follow each other in the
    shards.
    """

    names = (DECODE_ONLY, "read", "decode", "crop, resize, batch", "tokenise")

    def __init__(self, config: PretrainConfig, decode_shards: str):
        self._config = config
        self._shards = [open_shards(source.shards) for source in config.data.sources]
        self._rows = rows_per_source(config)
        has_text = any(source.kind != "image" for source in config.data.sources)
        self._tokenizer = Tokenizer(config.data.tokenizer) if has_text else None
        self._originals = open_shards(decode_shards) if decode_shards else None
        self.num_images = sum(
            rows
            for rows, source in zip(self._rows, config.data.sources, strict=True)
            if source.kind != "text"
        )

    def read(self, step: int) -> list[list[Record]]:
        """Reads one batch's records of every source."""
        return [
            [_record(shards, index) for index in range(step * rows, (step + 1) * rows)]
            for shards, rows in zip(self._shards, self._rows, strict=True)
        ]

    def of(self, step: int, record_sets: list[list[Record]]) -> dict[str, Callable[[], float]]:
        """Returns, for each stage, what does its work on one batch's records and returns the CPU
        seconds it took.
        """
        data = self._config.data
        with_source = list(zip(data.sources, record_sets, strict=True))
        encoded = [
            record.image for source, set_ in with_source if source.kind != "text" for record in set_
        ]
        rng = np.random.default_rng(step)
        work = {"read": _timed(lambda: self.read(step))}
        if encoded:
            alone = encoded
            if self._originals is not None:
                first = step * len(encoded)
                places = range(first, first + len(encoded))
                alone = [_record(self._originals, place).image for place in places]

            def crop() -> float:
                rows = np.empty((len(encoded), data.image_size, data.image_size, 3), np.uint8)
                seconds = 0.0
                for image, row in zip(encoded, rows, strict=True):
                    decoded = decode_image(
                        image, "RGBX"
                    )  # Just now, as in the loader: in the processor's cache.
                    start = time.process_time()
                    random_resized_crop(
                        decoded, row, area=data.crop_area, draws=rng.random(CROP_DRAWS)
                    )
                    seconds += time.process_time() - start
                return seconds

            work |= {
                DECODE_ONLY: _timed(lambda: _decode_each(alone)),
                "decode": _timed(lambda: _decode_each(encoded, "RGBX")),
                "crop, resize, batch": crop,
            }
        texts = [
            (source.text_length, [record.captions[0] if record.captions else "" for record in set_])
            for source, set_ in with_source
            if source.kind != "image"
        ]
        tokenizer = self._tokenizer
        if texts and tokenizer is not None:
            work["tokenise"] = _timed(
                lambda: [tokenizer.encode(captions, length) for length, captions in texts]
            )
        return work


def _record(shards: Shards, index: int) -> Record:
    """Returns a record of an endless walk through the shards; behind a damaged one the next."""
    places = (place % len(shards) for place in range(index, index + len(shards)))
    return next(shards.undamaged(places))


def _timed(work: Callable[[], Any]) -> Callable[[], float]:
    """Returns what does the work and returns the CPU seconds of it."""

    def seconds() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return seconds


def _decode_each(images: list[bytes], channels: Literal["RGB", "RGBX"] = "RGB") -> None:
    for image in images:
        try:
            decode_image(image, channels)
        except ValueError as error:
            raise UserError(
                f"an image of the shards cannot be decoded ({error}). Time a set that prepare_data made."
            ) from None
