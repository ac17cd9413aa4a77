"""A plot of variants: a dot for each seed, a mark at their mean, coloured by `charts.css`."""

import dataclasses
import html
from collections.abc import Callable, Sequence

from m3ae_tpu.charts import WIDTH, Level, nice_ticks

_RIGHT, _ROW, _TOP = 64, 30, 34
_LETTER = 6.8  # Width of a letter, about.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dots:
    """A row of the plot."""

    name: str
    values: Sequence[float]
    """One for each seed."""
    line: int = 0
    """Number of its colour, from 0 to 2."""


def dot_plot(
    rows: Sequence[Dots], *, show: Callable[[float], str], level: Level | None = None
) -> str:
    """Returns an SVG element of rows of dots on one scale.

    Args:
        rows: One below the other.
        show: Formats a value.
        level: A dashed vertical line to compare with.
    """
    left = round(22 + _LETTER * max(len(row.name) for row in rows))
    values = [value for row in rows for value in row.values]
    values += [level.value] if level else []
    room = 0.08 * ((max(values) - min(values)) or abs(max(values)) or 1.0)
    low, high = min(values) - room, max(values) + room
    height = _TOP + _ROW * len(rows) + 26

    def at(value: float) -> float:
        return round(left + (WIDTH - left - _RIGHT) * (value - low) / (high - low), 1)

    bottom = height - 22
    elements = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img">']
    for tick in nice_ticks(low, high):
        if low <= tick <= high:
            elements += [
                f'<line class="rule" x1="{at(tick)}" x2="{at(tick)}" y1="{_TOP - 8}" '
                f'y2="{bottom}"/>',
                f'<text class="tick" x="{at(tick)}" y="{height - 6}" text-anchor="middle">'
                f"{show(tick)}</text>",
            ]
    if level:
        elements += [
            f'<line class="level" x1="{at(level.value)}" x2="{at(level.value)}" y1="{_TOP - 8}" '
            f'y2="{bottom}"/>',
            f'<text class="level-name" x="{at(level.value)}" y="{_TOP - 14}" text-anchor="middle">'
            f"{html.escape(level.name)} {show(level.value)}</text>",
        ]
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number + 12
        mean = sum(row.values) / len(row.values)
        shown = "  ".join(map(show, row.values))
        elements += [
            f"<g><title>{html.escape(row.name)}: {shown}</title>",
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{html.escape(row.name)}</text>',
            f'<line class="rule" x1="{left}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>',
            *(
                f'<circle class="line-{row.line}" cx="{at(value)}" cy="{y}" r="4" '
                'fill-opacity="0.55"/>'
                for value in row.values
            ),
            f'<path class="error" d="M{at(mean)} {y - 9}v18"/>',
            f'<text class="title" x="{WIDTH - _RIGHT + 10}" y="{y + 4}">{show(mean)}</text></g>',
        ]
    return "".join([*elements, "</svg>"])
