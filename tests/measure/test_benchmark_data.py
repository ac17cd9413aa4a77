"""Guards the benchmark of the data: every stage is timed, and the derived figures are right."""

import json

import pytest

from m3ae_tpu.config import DataConfig, SourceConfig
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.measure.data_rates import (
    DECODE_ONLY,
    LOADER,
    LOADER_CACHED,
    Rates,
    benchmark,
    measure,
)

PAIRS = SourceConfig(weight=3.0)
TEXTS = SourceConfig(kind="text", shards="starter/texts-*")


@pytest.mark.parametrize(
    ("sources", "stages", "images_per_row"),
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
def test_every_stage_of_a_config_is_timed(sources, stages, images_per_row):
    config = DataConfig(sources=sources, image_size=32)
    data = open_data(config, batch_size=16, seed=0, vocab_size=4_000)
    done = []
    rates = measure(data, rounds=2, report=done.append)
    assert set(rates.cpu_seconds) == stages | {LOADER, LOADER_CACHED}
    assert all(seconds > 0 for seconds in rates.cpu_seconds.values())
    assert rates.images_per_row == images_per_row
    assert (rates.fraction_of_decode_only is None) == (images_per_row == 0)
    assert rates.fraction_of_decode_only is None or rates.fraction_of_decode_only > 0
    assert done == [1, 2]


def test_cores_and_shares_follow_from_the_times():
    rates = Rates(
        cpu_seconds={DECODE_ONLY: 0.001, LOADER: 0.002, LOADER_CACHED: 0.0005},
        copy_seconds=1e-5,
        device="cpu",
        batch_size=8,
        images_per_row=1.0,
        rounds=1,
        fraction_of_decode_only=0.5,
    )
    assert rates.per_core(LOADER) == 500
    assert rates.cores_for(4_000.0) == 2.0


def test_the_figures_are_shown_and_written(tmp_path, capsys):
    data = open_data(
        DataConfig(sources=(PAIRS, TEXTS), image_size=32), batch_size=16, seed=0, vocab_size=4_000
    )
    benchmark(
        data,
        rounds=1,
        decode_shards="starter/heldout-*",
        examples_per_second=500.0,
        json_file=tmp_path / "rates.json",
    )
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("tokenise", LOADER, DECODE_ONLY, "500 examples/s"))
    written = json.loads((tmp_path / "rates.json").read_text())
    assert written["batch_size"] == 16
    assert written["cores_needed"] == 500 * written["cpu_seconds"][LOADER_CACHED]
