"""The card of a report that says where the wall time of a run went, as HTML."""

import html
from collections.abc import Mapping

from m3ae_tpu.charts import Bar, BarGroup, bar_chart
from m3ae_tpu.run.goodput import PARTS, duration

_SHORT = {"steps": "kept steps", "startup": "start-up", "lost": "lost steps"}
_NAMES = PARTS | _SHORT
"""Names that fit beside the bars."""


def wall_time(parts: Mapping[str, float]) -> str:
    """Returns a bar for each part of a run's wall time; nothing for a run that measured none.

    Args:
        parts: Seconds of each part, see `run/goodput.py`; may be empty.
    """
    wall = sum(parts.values())
    if not wall:
        return ""
    bars = [
        Bar(
            name=name,
            value=parts[part],
            label=f"{100 * parts[part] / wall:.1f}\u202f%, {duration(parts[part])}",
            is_accented=part == "steps",
        )
        for part, name in _NAMES.items()
    ]
    title = html.escape(f"Wall time since the first start: {duration(wall)}")
    note = (
        "Start-up includes compiling. Lost are steps that no later start resumed from. Not running "
        "is the time between a kill and the next start."
    )
    chart = bar_chart("", [BarGroup(title="", bars=bars)])
    return f'<figure class="card"><h3>{title}</h3>{chart}<p class="note">{note}</p></figure>'
