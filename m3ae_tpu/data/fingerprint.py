"""What decides which example stands where in a run, to be kept with its checkpoints and compared at
a restart.
"""

from typing import Any

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.mixture import records_in_part, rows_per_source
from m3ae_tpu.data.records import open_shards
from m3ae_tpu.data.rows import DRAWS_VERSION
from m3ae_tpu.data.text import Tokenizer


def fingerprint(config: PretrainConfig) -> dict[str, Any]:
    """Returns what decides which example stands where, ready for JSON: a resumed run must find the
    same.

    Shards count by file name and number of records: they may move to another folder.
    """
    sources = config.data.sources
    opened = [open_shards(source.shards) for source in sources]
    has_text = any(source.kind != "image" for source in sources)
    return {
        "draws_version": DRAWS_VERSION,
        "seed": config.seed,
        "sources": [
            {
                "kind": source.kind,
                "rows": rows,
                "text_length": source.text_length,
                "part": list(source.part),
                "records": len(records_in_part(source, len(shards))),
                "shards": shards.name_counts(),
            }
            for source, rows, shards in zip(sources, rows_per_source(config), opened, strict=True)
        ],
        "tokenizer_sha256": Tokenizer(config.data.tokenizer).sha256 if has_text else "",
    }


def record_counts(fingerprint: dict[str, Any]) -> list[int]:
    """Returns the number of records that each source uses."""
    return [source["records"] for source in fingerprint["sources"]]


def differences(now: dict[str, Any], was: dict[str, Any]) -> list[str]:
    """Returns how two fingerprints differ, one short sentence for each value; empty if they are
    equal.
    """
    here, there = _leaves(now), _leaves(was)
    return [
        f"{name} = {here.get(name, 'nothing')} now, was {there.get(name, 'nothing')}"
        for name in dict.fromkeys([*here, *there])
        if here.get(name) != there.get(name)
    ]


def _leaves(fingerprint: dict[str, Any]) -> dict[str, Any]:
    leaves = {name: value for name, value in fingerprint.items() if name != "sources"}
    for number, source in enumerate(fingerprint["sources"]):
        # The number of records follows from the shards and the part.
        values = {
            name: value for name, value in source.items() if name not in ("shards", "records")
        }
        leaves |= {f"sources.{number}.{name}": value for name, value in values.items()}
        leaves |= {
            f"records of sources.{number}'s {shard}": count for shard, count in source["shards"]
        }
    return leaves
