"""Guards the benchmark of the data: every stage is timed, and what follows from the times is right."""

import pytest

from m3ae_tpu.config import DataConfig, ModelConfig, PretrainConfig, SourceConfig
from m3ae_tpu.measure.data_rates import DECODE_ONLY, WHOLE, WHOLE_AGAIN, Rates, measure

PAIRS = SourceConfig(weight=3.0)
TEXTS = SourceConfig(kind="text", shards="starter/texts-*")


@pytest.mark.parametrize(
    ("sources", "parts", "images_per_row"),
    [
        ((PAIRS, TEXTS), {"read", "decode", "crop, resize, batch", "tokenise", DECODE_ONLY}, 0.75),
        ((TEXTS,), {"read", "tokenise"}, 0.0),
        (
            (SourceConfig(kind="image", shards="starter/images-*"),),
            {"read", "decode", "crop, resize, batch", DECODE_ONLY},
            1.0,
        ),
    ],
)
def test_every_stage_of_a_config_is_timed(sources, parts, images_per_row):
    config = PretrainConfig(
        batch_size=16,
        model=ModelConfig(vocab_size=4000, patch_size=8),
        data=DataConfig(sources=sources, image_size=32),
    )
    done = []
    rates = measure(config, rounds=2, report=done.append)
    assert set(rates.cpu_seconds) == parts | {WHOLE, WHOLE_AGAIN}
    assert all(seconds > 0 for seconds in rates.cpu_seconds.values())
    assert rates.images_per_row == images_per_row
    assert (rates.fraction_of_decode_only is None) == (images_per_row == 0)
    assert 0 < (rates.fraction_of_decode_only or 0.5) < 1.5
    assert done == [1, 2]


def test_cores_and_shares_follow_from_the_times():
    rates = Rates(
        cpu_seconds={DECODE_ONLY: 0.001, WHOLE: 0.002, WHOLE_AGAIN: 0.0005},
        copy_seconds=1e-5,
        device="cpu",
        batch_size=8,
        images_per_row=1.0,
        rounds=1,
        fraction_of_decode_only=0.5,
    )
    assert rates.per_core(WHOLE) == 500
    assert rates.cores_for(4_000.0) == 2.0
