"""Charts as SVG elements, for a page or for a file of their own, coloured by `charts.css`."""

import dataclasses
import html
import importlib.resources
import itertools
import math
from collections.abc import Callable, Sequence

STYLE = importlib.resources.files(__package__).joinpath("charts.css").read_text().strip()
"""Style sheet of the charts; a page that holds charts includes it once."""

WIDTH, HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 26, 30
_MOST_POINTS = 150


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a line chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y) in the order of x."""
    is_noisy: bool = False
    """Draw the values faint and their running mean on top."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """A dashed horizontal line to compare with."""

    name: str
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a bar chart."""

    name: str
    value: float | None
    """Length; None for a bar without one, whose label says why."""
    label: str
    """Text at the end of the bar."""
    is_accented: bool = False
    error: float = 0.0
    """Standard error of the value, drawn to both sides of the bar's end; 0 draws none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BarGroup:
    """Bars that share a scale."""

    title: str
    """Heading; none if empty."""
    bars: Sequence[Bar]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """One bar of parts, one behind the other."""

    name: str
    parts: Sequence[float]
    label: str
    """Text below the bar."""
    limit: float
    """Place of a dashed line."""


def line_chart(
    series: Sequence[Series],
    *,
    levels: Sequence[Level] = (),
    show: Callable[[float], str] = "{:.3g}".format,
    starts_at_zero: bool = False,
) -> str:
    """Returns an SVG element, which shows the values of the step under the pointer.

    Args:
        series: At least one, each with at least one point.
        levels: Drawn across the chart, with their names at the right.
        show: Formats a value for the axis and the pointer.
        starts_at_zero: Whether the y axis starts at 0.
    """
    shown = [dataclasses.replace(line, points=_thin(line.points)) for line in series]
    xs = [x for line in shown for x, _ in line.points]
    # The y axis ends at the 98th percentile: the high values of the first steps would flatten the
    # rest of the curve.
    ys = sorted(y for line in shown for _, y in line.points)
    ceiling = ys[min(len(ys) - 1, math.ceil(0.98 * len(ys)))]
    lows_and_highs = [
        ys[0],
        ceiling,
        *(level.value for level in levels),
        *([0.0] if starts_at_zero else []),
    ]
    ticks = nice_ticks(min(lows_and_highs), max(lows_and_highs))
    bottom, top = ticks[0], max(ticks[-1], max(lows_and_highs))
    first, last = min(xs), max(xs)

    def at(x: float, y: float) -> tuple[float, float]:
        along = (x - first) / ((last - first) or 1)
        up = (min(y, top) - bottom) / ((top - bottom) or 1)
        return (
            round(_LEFT + along * (WIDTH - _LEFT - _RIGHT), 1),
            round(HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM), 1),
        )

    elements = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for tick in ticks:
        _, y = at(first, tick)
        elements.append(
            f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        )
        elements.append(
            f'<text class="tick" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{show(tick)}</text>'
        )
    for tick in nice_ticks(first, last, count=5):
        x, _ = at(tick, bottom)
        if first <= tick <= last:
            elements.append(
                f'<text class="tick" x="{x}" y="{HEIGHT - 10}" text-anchor="middle">'
                f"{tick:,.0f}</text>"
            )
    for level in levels:
        _, y = at(first, level.value)
        elements.append(
            f'<line class="level" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        )
    for number, line in enumerate(shown):
        places = [at(x, y) for x, y in line.points]
        if line.is_noisy and len(places) > 8:
            elements.append(f'<path class="line faint line-{number}" d="{_path(places)}"/>')
            places = [at(x, y) for x, y in _running_mean(line.points)]
        elements.append(f'<path class="line line-{number}" d="{_path(places)}"/>')
        if len(places) < 13:
            elements += [
                f'<circle class="dot line-{number}" cx="{x}" cy="{y}" r="3"/>' for x, y in places
            ]
    if len(shown) > 1:
        elements.append(_legend(shown))
    # Names come after the lines, with an edge in the card's colour, to stay readable on top.
    for level in levels:
        label = html.escape(f"{level.name} {show(level.value)}")
        y = at(first, level.value)[1] - 5
        elements.append(
            f'<text class="level-name" x="{WIDTH - _RIGHT}" y="{y}" text-anchor="end">'
            f"{label}</text>"
        )
    elements += _readings(shown, at, show)
    return "".join([*elements, "</svg>"])


def _legend(shown: Sequence[Series]) -> str:
    """Returns the names of the lines in their colours, side by side above the chart."""
    names = "".join(
        f'<tspan class="line-{number}" dx="{14 * (number > 0)}">{html.escape(line.name)}</tspan>'
        for number, line in enumerate(shown)
    )
    return f'<text class="legend" x="{_LEFT}" y="14">{names}</text>'


def _readings(
    shown: Sequence[Series], at: Callable[[float, float], tuple[float, float]], show
) -> list[str]:
    """Returns invisible strips, one a step, that show the step's values under the pointer."""
    values: dict[float, list[tuple[int, Series, float]]] = {}
    for number, line in enumerate(shown):
        for x, y in line.points:
            values.setdefault(x, []).append((number, line, y))
    steps = sorted(values)
    elements = []
    for place, step in enumerate(steps):
        x, _ = at(step, 0.0)
        left = (at(steps[place - 1], 0.0)[0] + x) / 2 if place else x - 6
        right = (at(steps[place + 1], 0.0)[0] + x) / 2 if place + 1 < len(steps) else x + 6
        readings = "  ".join(f"{line.name} {show(y)}" for _, line, y in values[step])
        text = html.escape(f"step {step:,.0f}:  {readings}")
        dots = "".join(
            f'<circle class="line-{number}" cx="{x}" cy="{at(step, y)[1]}" r="4"/>'
            for number, _, y in values[step]
        )
        elements.append(
            f'<g class="reading">'
            f'<rect x="{left:.1f}" y="0" width="{right - left:.1f}" height="{HEIGHT}"/>'
            f'<line x1="{x}" x2="{x}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>{dots}'
            f'<text x="{WIDTH - _RIGHT}" y="14" text-anchor="end">{text}</text></g>'
        )
    return elements


def bar_chart(title: str, groups: Sequence[BarGroup]) -> str:
    """Returns an SVG element of horizontal bars; each group has its own scale.

    Args:
        title: Heading; none if empty.
        groups: One below the other.
    """
    left, room = 118, 286
    elements, y = [], 0
    if title:
        elements.append(f'<text class="title" x="0" y="16">{html.escape(title)}</text>')
        y = 40
    for group in groups:
        if group.title:
            elements.append(f'<text class="title" x="0" y="{y}">{html.escape(group.title)}</text>')
            y += 6
        longest = max(((bar.value or 0.0) + bar.error for bar in group.bars), default=0.0) or 1.0
        for bar in group.bars:
            width, error = (room * value / longest for value in (bar.value or 0.0, bar.error))
            style = "length accented" if bar.is_accented else "length"
            name, label = html.escape(bar.name), html.escape(bar.label)
            elements += [
                f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{name}</text>',
                f'<rect class="{style}" x="{left}" y="{y + 3}" width="{width:.1f}" height="14"/>',
                f'<text x="{left + width + error + 6:.1f}" y="{y + 14}">{label}</text>',
            ]
            if error:
                low, high = left + width - error, left + width + error
                whisker = f"M{low:.1f} {y + 10}H{high:.1f}M{low:.1f} {y + 6}v8M{high:.1f} {y + 6}v8"
                elements.append(f'<path class="error" d="{whisker}"/>')
            y += 20
        y += 22
    head = f'<svg class="chart bars" viewBox="0 0 {WIDTH} {y - 16}" role="img">'
    return "".join([head, *elements, "</svg>"])


def stack_chart(part_names: Sequence[str], stacks: Sequence[Stack]) -> str:
    """Returns an SVG element of horizontal bars in parts, on one scale, each with its limit.

    Args:
        part_names: Names of the parts, at most four.
        stacks: One below the other.
    """
    left, room, y = 4, WIDTH - 12, 30
    longest = max(max(sum(stack.parts), stack.limit) for stack in stacks) or 1.0
    names = "".join(
        f'<tspan class="part-{number}" dx="{14 * (number > 0)}">{html.escape(name)}</tspan>'
        for number, name in enumerate(part_names)
    )
    elements = [f'<text class="legend" x="{left}" y="14">{names}</text>']
    for stack in stacks:
        elements.append(
            f'<text class="title" x="{left}" y="{y + 12}">{html.escape(stack.name)}</text>'
        )
        x, top = float(left), y + 20
        for number, (name, part) in enumerate(zip(part_names, stack.parts, strict=True)):
            width = room * part / longest
            elements.append(
                f'<rect class="part-{number}" x="{x:.1f}" y="{top}" width="{width:.1f}" '
                f'height="18"><title>{html.escape(name)}</title></rect>'
            )
            x += width
        limit = left + room * stack.limit / longest
        elements += [
            f'<line class="limit" x1="{limit:.1f}" x2="{limit:.1f}" y1="{top - 5}" '
            f'y2="{top + 23}"/>',
            f'<text x="{left}" y="{top + 34}">{html.escape(stack.label)}</text>',
        ]
        y += 70
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {y}" role="img">'
    return "".join([head, *elements, "</svg>"])


def svg_file(chart: str) -> str:
    """Returns the text of an SVG file, from a chart's element."""
    head, _, rest = chart.partition(">")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif"')
    return f"{head}><style>svg {{ background: #ffffff }}\n{STYLE}</style>{rest}\n"


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Returns about `count` round numbers, evenly spaced, the first at or below `low`.

    The last one is at or below `high`.
    """
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * min((1, 2, 5, 10), key=lambda factor: abs(factor * size - rough))
    start = math.floor(low / step + 1e-9)
    return [round(number * step, 12) for number in range(start, math.floor(high / step + 1e-9) + 1)]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns at most 150 points: means over equal stretches of longer lists."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    edges = [len(points) * number // _MOST_POINTS for number in range(_MOST_POINTS + 1)]
    stretches = [points[start:end] for start, end in itertools.pairwise(edges)]
    return [(stretch[-1][0], sum(y for _, y in stretch) / len(stretch)) for stretch in stretches]


def _running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns each point with the mean of the points around it: a fifteenth of the list.

    Near the ends of the list it is the mean of fewer.
    """
    reach = max(1, len(points) // 30)
    means = []
    for number, (x, _) in enumerate(points):
        near = min(reach, number, len(points) - 1 - number)
        window = points[number - near : number + near + 1]
        means.append((x, sum(y for _, y in window) / len(window)))
    return means


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
