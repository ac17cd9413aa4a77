"""Tables and charts of kernel benchmarks."""

from collections.abc import Sequence
from typing import Any

import rich
from rich.table import Table

from m3ae_tpu.charts import Bar, BarGroup, bar_chart, svg_file

type Line = dict[str, Any]
"""Figures of one implementation: `device`, `shape`, `backward`, `implementation` and `us`.

Scheduled ones have `bound`, `cycles` and `hbm_bytes`, and `at_least` if `us` is a lower bound.
Timed ones have `spread`, `flops` and `bytes`, and for known chips `of_peak_flops` and
`of_peak_bytes`. A line without a figure, or with a lower bound only, has a `reason`.
"""

DIRECTION = {False: "forward", True: "both"}

_MIN_WIDTH = 100
"""Columns of a terminal from which on the tables have bars."""
_BAR = 20


def print_tables(operation: str, lines: Sequence[Line], method: str) -> None:
    """Prints a table for every device, then the reasons for missing figures and mere bounds.

    Args:
        operation: "attention" or "cross_entropy".
        lines: Those of a device next to each other.
        method: Words on how the figures came about, such as "scheduled".
    """
    has_bars = rich.get_console().width >= _MIN_WIDTH
    for device, group in grouped(lines, "device"):
        title = f"{operation}, bfloat16, {device}, {method}: a row"
        rich.print(_table(title, group, has_bars))
    rich.print("both: forward and backward, in one program.")
    for reason, group in grouped([line for line in lines if "reason" in line], "reason"):
        names = [f"{line['implementation']} ({line['device']})" for line in group]
        rich.print(f"{', '.join(dict.fromkeys(names))}: {reason}")


def _table(title: str, lines: Sequence[Line], has_bars: bool) -> Table:
    table = Table(title=title, title_justify="left")
    is_scheduled = any("hbm_bytes" in line for line in lines)
    figures = ("cycles", "HBM kB") if is_scheduled else ("TFLOP/s", "GB/s", "±")
    for name in ("shape", "direction", "implementation"):
        table.add_column(name, no_wrap=True)
    for name in ("us", *figures):
        table.add_column(name, justify="right", no_wrap=True)
    if has_bars:
        table.add_column("", width=_BAR)
    for (shape, backward), group in grouped(lines, "shape", "backward"):
        longest = max((line["us"] for line in group if "us" in line), default=1.0)
        for number, line in enumerate(group):
            head = (shape, DIRECTION[backward]) if number == 0 else ("", "")
            bar = "█" * max(1, round(_BAR * line["us"] / longest)) if "us" in line else ""
            cells = (*head, line["implementation"], _time(line), *_figures(line, is_scheduled))
            style = "bold" if line["implementation"] == "ours" else ""
            table.add_row(*cells, *([bar] if has_bars else []), style=style)
        table.add_section()
    return table


def _time(line: Line) -> str:
    if "us" not in line:
        return "?"
    return f"{'≥ ' if line.get('at_least') else ''}{line['us']:.2f}"


def _figures(line: Line, is_scheduled: bool) -> list[str]:
    if is_scheduled:
        cycles = f"{line['cycles']:,.0f}" if "cycles" in line else ""
        return [cycles, f"{line['hbm_bytes'] / 1e3:,.0f}" if "hbm_bytes" in line else ""]
    if "us" not in line:
        return ["", "", ""]
    cells = [f"{line['flops'] / 1e12:.1f}", f"{line['bytes'] / 1e9:,.0f}"]
    if "of_peak_flops" in line:
        shares = (line["of_peak_flops"], line["of_peak_bytes"])
        cells = [f"{cell} ({share:.0%})" for cell, share in zip(cells, shares, strict=True)]
    return [*cells, f"{line['spread']:.0%}"]


def chart(operation: str, lines: Sequence[Line], method: str) -> str:
    """Returns an SVG file of the figures as bars, with arguments as for `print_tables`."""
    groups = []
    for (device, shape, backward), group in grouped(lines, "device", "shape", "backward"):
        direction = "forward and backward" if backward else "forward"
        bars = [
            Bar(
                name=line["implementation"],
                value=line.get("us"),
                label=f"{_time(line)} us" if "us" in line else "no figure",
                is_accented=line["implementation"] == "ours",
            )
            for line in group
        ]
        groups.append(BarGroup(title=f"{shape}, {direction}, {device}", bars=bars))
    title = f"{operation}, bfloat16, microseconds of a row, {method}"
    return svg_file(bar_chart(title, groups))


def grouped(lines: Sequence[Line], *keys: str) -> list[tuple[Any, list[Line]]]:
    """Groups lines by the values of keys, in the order of their first occurrence.

    Returns:
        Pairs of a value, or of a tuple of several keys' values, and the lines that have it.
    """
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        value = tuple(line[key] for key in keys)
        groups.setdefault(value[0] if len(keys) == 1 else value, []).append(line)
    return list(groups.items())
