"""Compiles a config's train step for TPUs that are not there: does it fit, and what will it need?

    python -m pipelines.rehearse --config=m3ae_large --topology=v5e:16x16
    python -m pipelines.rehearse --config=m3ae_huge --topology=v5e:16x16,v4:4x4x8 --mesh.fsdp=16
    python -m pipelines.rehearse --config=m3ae_large --topology=v5e:16x16 --sweep
    python -m pipelines.rehearse --target=v5e:16x16,days=30

Every field of the config can be set by its dotted name. The step is the one that `pretrain` runs,
in the same shardings. Slices are v4, v5e, v5p or v6e with their shape; `v5e:16x16x2slices` are two,
joined by the data centre's network.

Peak memory, collectives and memory traffic are the compiler's. Times are estimated from its
schedule, and none was measured. A step takes a minute or more to compile.

A step that does not fit ends the program with exit code 1, after changes that make it fit were
tried. It needs libtpu: `make compile-tpu`, or `pip install 'm3ae-tpu[compile-tpu]'`.
"""

import json
import pathlib
import sys
from typing import Any

from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.errors import require
from m3ae_tpu.files import atomic_write, require_writable_file
from m3ae_tpu.option_flags import define_flag
from m3ae_tpu.overrides import load_named_config, override
from m3ae_tpu.rehearsal.compiler import require_compiler

_CONFIG = define_flag(
    "config", str, "m3ae_base", "Named config to start from, or path of a file like it."
)
_TOPOLOGY = define_flag(
    "topology", list, [], "Slices to compile for, as v5e:16x16; several with commas."
)
_SWEEP = define_flag("sweep", bool, False, "Compare mesh shapes and remat in one table.")
_TARGET = define_flag(
    "target", str, "", "Chips and days, as v5e:16x16,days=30: what --sizes can train with them."
)
_SIZES = define_flag(
    "sizes",
    list,
    ["m3ae_small", "m3ae_base", "m3ae_large", "m3ae_huge"],
    "Configs that --target compares, small ones first.",
)
_CHIPS = define_flag(
    "chips",
    list,
    [],
    "Numbers of chips, as 1000,10000: what loaders, bucket and failures mean there.",
)
_JSON = define_flag("json", pathlib.Path, None, "File that gets the figures too; none if empty.")
_HTML = define_flag("html", pathlib.Path, None, "Report to write as well; none if empty.")


def main(argv: list[str]) -> None:
    """Prints the tables, and writes the figures and the report where the flags say."""
    named = [(_CONFIG.value, override(load_named_config(_CONFIG.value, PretrainConfig), argv[1:]))]
    if _TARGET.value:
        named = [
            (name, override(load_named_config(name, PretrainConfig), argv[1:]))
            for name in _SIZES.value
        ]
    for flag, path in (("--json", _JSON.value), ("--html", _HTML.value)):
        if path:
            require_writable_file(flag, path)
    _check_flags()
    chips = [_number_of_chips(text) for text in _CHIPS.value]
    require_compiler()
    import rich

    from m3ae_tpu.rehearsal.rehearse import (
        Rehearser,
        grown,
        parse_grant,
        rehearse,
        sizes_for,
        sweep,
    )
    from m3ae_tpu.rehearsal.topologies import parse_slice

    with rich.get_console().status("starting the TPU compiler") as status:
        grant = parse_grant(_TARGET.value) if _TARGET.value else None
        slices = [parse_slice(name) for name in _TOPOLOGY.value]
        rehearser = Rehearser(status.update)
        try:
            if grant is not None:
                results: Any = sizes_for(grant, named, rehearser)
            elif _SWEEP.value:
                results = [sweep(named[0][1], on, rehearser) for on in slices]
            else:
                results = [rehearse(named[0][1], on, rehearser) for on in slices]
                for result in results:
                    if result["fits"]:
                        result["growth"] = grown(result, chips)
        finally:
            rehearser.close()
    _show(results, named[0][0])
    is_plain = grant is None and not _SWEEP.value
    if is_plain and not all(result["fits"] for result in results):
        sys.exit(1)


def _check_flags() -> None:
    require(
        bool(_TOPOLOGY.value) != bool(_TARGET.value),
        "--topology names the slices to compile for, or --target a grant: give one of the two, "
        "as --topology=v5e:16x16.",
    )
    require(
        not (_TARGET.value and _SWEEP.value),
        "--sweep compares settings on --topology; --target compares sizes. Leave one of them out.",
    )
    require(
        not _CHIPS.value or not (_TARGET.value or _SWEEP.value),
        "--chips goes with --topology alone. Leave out --sweep and --target.",
    )
    require(not _TARGET.value or bool(_SIZES.value), "--sizes names no config. Leave it out.")


def _number_of_chips(text: str) -> int:
    require(
        text.isascii() and text.isdecimal() and int(text) > 0,
        f"--chips = {text} is not a number of chips. Write it as --chips=1000,10000.",
    )
    return int(text)


def _show(results: Any, name: str) -> None:
    """Prints the results, and writes them as the flags say."""
    from m3ae_tpu.rehearsal import printed
    from m3ae_tpu.rehearsal.page import write_page

    if _TARGET.value:
        printed.print_target(results)
    elif _SWEEP.value:
        for rows in results:
            printed.print_sweep(rows, name)
    else:
        for result in results:
            printed.print_rehearsal(result, name)
            if result.get("growth"):
                printed.print_growth(result["growth"], name)
    if _JSON.value:
        # One slice, one object: its keys are at the top.
        whole = results if _TARGET.value or len(results) != 1 else results[0]
        atomic_write(_JSON.value, json.dumps(whole, indent=2) + "\n")
    if _HTML.value:
        flat = results
        if _SWEEP.value:
            flat = [row for rows in results for row in rows]
        write_page(flat, name, _HTML.value)
        print(f"report: {_HTML.value}")


def run() -> None:
    """Entry point of the installed command `m3ae-rehearse`."""
    run_program(main)


if __name__ == "__main__":
    run()
