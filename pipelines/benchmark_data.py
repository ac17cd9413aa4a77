"""Measures how fast a config's data can be made, by stage, and how many cores feed a chip.

    python -m pipelines.benchmark_data --config=m3ae_base --data.sources.0.shards='cc12m/train-*'
    python -m pipelines.benchmark_data --config=quickstart --examples_per_second=3000

Every field of the config can be set by its dotted name. Times are CPU time of one process, all its
threads together: a busy machine changes them less than wall time. Compare ratios, which come from
one interleaved run. Files are read from the page cache.
"""

import pathlib

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.errors import require
from m3ae_tpu.overrides import load_named_config, override

_CONFIG = flags.DEFINE_string(
    "config", "quickstart", "Named config to start from, or path of a file like it."
)
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Batches per stage.", lower_bound=1)
_EXAMPLES = flags.DEFINE_float(
    "examples_per_second",
    1_000.0,
    "Examples that a chip trains in a second: `examples_per_second` of a run's metrics.",
    lower_bound=0,
)
_DECODE_SHARDS = flags.DEFINE_string(
    "decode_shards",
    "",
    "Shards for the decode-only limit instead of the config's: the originals of smaller images.",
)
_JSON = flags.DEFINE_string("json", "", "File that gets the figures too; none if empty.")


def main(argv: list[str]) -> None:
    """Measures the config that the command line describes, with a progress bar."""
    config = override(load_named_config(_CONFIG.value, PretrainConfig), argv[1:])
    path = pathlib.Path(_JSON.value)
    require(
        not _JSON.value or path.parent.is_dir(),
        f"--json = {path} lies in no folder. Make {path.parent} first, or name another file.",
    )
    require(
        not _JSON.value or not path.is_dir(), f"--json = {path} is a folder. Name a file in it."
    )
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
        json_file=path if _JSON.value else None,
    )


def run() -> None:
    """Entry point of the installed command `m3ae-benchmark-data`."""
    run_program(main)


if __name__ == "__main__":
    run()
