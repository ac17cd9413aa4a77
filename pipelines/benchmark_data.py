"""Measures how fast a config's data can be made, by stage, and how many cores feed a chip.

    python -m pipelines.benchmark_data --config=m3ae_base --data.sources.0.shards='cc12m/train-*'
    python -m pipelines.benchmark_data --config=quickstart --examples_per_second=3000

Every field of the config can be set by its dotted name. Times are CPU time of one process, all its
threads together: a busy machine changes them less than wall time. Compare ratios, which come from
one interleaved run. Files are read from the page cache.
"""

import pathlib

from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.files import require_writable_file
from m3ae_tpu.option_flags import define_flag
from m3ae_tpu.overrides import load_named_config, override

_CONFIG = define_flag(
    "config", str, "quickstart", "Named config to start from, or path of a file like it."
)
_ROUNDS = define_flag("rounds", int, 10, "Batches per stage.", at_least=1)
_EXAMPLES = define_flag(
    "examples_per_second",
    float,
    1_000.0,
    "Examples that a chip trains in a second: `examples_per_second` of a run's metrics.",
    at_least=0,
)
_DECODE_SHARDS = define_flag(
    "decode_shards",
    str,
    "",
    "Shards for the decode-only limit instead of the config's: the originals of smaller images.",
)
_JSON = define_flag("json", pathlib.Path, None, "File that gets the figures too; none if empty.")


def main(argv: list[str]) -> None:
    """Measures the config that the command line describes, with a progress bar."""
    config = override(load_named_config(_CONFIG.value, PretrainConfig), argv[1:])
    if _JSON.value:
        require_writable_file("--json", _JSON.value)
    from m3ae_tpu.data.sources import open_data
    from m3ae_tpu.measure.data_rates import benchmark

    benchmark(
        open_data(
            config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            vocab_size=config.model.vocab_size,
        ),
        rounds=_ROUNDS.value,
        decode_shards=_DECODE_SHARDS.value,
        examples_per_second=_EXAMPLES.value,
        json_file=_JSON.value,
    )


def run() -> None:
    """Entry point of the installed command `m3ae-benchmark-data`."""
    run_program(main)


if __name__ == "__main__":
    run()
