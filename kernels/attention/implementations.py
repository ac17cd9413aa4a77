"""Which implementation of an operation is the fastest where there is a choice, looked up in
`implementations.json`.
"""

import functools
import importlib.resources
import json


@functools.cache
def table() -> list[dict]:
    """Returns the rows of `implementations.json`; the first that fits counts, `null` fits all."""
    return json.loads(
        importlib.resources.files(__package__).joinpath("implementations.json").read_text()
    )


def fastest_on_gpu(device_kind: str, tokens: int, *, masked: bool) -> str:
    """Returns the name of the fastest implementation of attention in bfloat16, "gpu" or "xla"."""
    for row in table():
        if (
            row["device_kind"] in (None, device_kind)
            and row["masked"] in (None, masked)
            and tokens <= row["max_tokens"]
        ):
            return row["implementation"]
    return "xla"
