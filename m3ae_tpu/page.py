"""The pages that programs write: one frame, style and parts; a page needs no other file."""

import html
import importlib.resources
import string
from collections.abc import Sequence

from m3ae_tpu import charts


def page(
    *, title: str, topic: str, lead: str, main: Sequence[str], command: str, beside: str = ""
) -> str:
    """Returns the HTML of a page, light or dark as the reader's system is.

    Args:
        title: Heading; plain text, as `topic`, `lead` and `command` are.
        topic: What kind of page it is, above the heading.
        lead: Sentence below the heading.
        main: Sections, as HTML.
        command: Command that made the page.
        beside: What stands beside the heading, as HTML.
    """
    folder = importlib.resources.files(__package__)
    return string.Template((folder / "page.html").read_text()).substitute(
        title=html.escape(title),
        topic=html.escape(topic),
        lead=html.escape(lead),
        style=f"{charts.STYLE}\n{(folder / 'page.css').read_text().strip()}",
        main="\n".join(main),
        command=html.escape(command),
        beside=beside,
    )


def section(id: str, title: str, body: str) -> str:
    """Returns a section; `id` is its anchor, and `body` HTML."""
    return f'<section id="{id}">\n<h2>{html.escape(title)}</h2>\n{body}\n</section>'


def tiles(made: Sequence[str]) -> str:
    """Returns the section of a page's main figures, each a `tile`."""
    return f'<section class="tiles" aria-label="Main results">\n{"\n".join(made)}\n</section>'


def tile(name: str, value: str, note: str) -> str:
    """Returns one figure, its name above and a note below; `value` is HTML."""
    return (
        f'<div class="card tile"><p class="name">{html.escape(name)}</p>'
        f'<p class="value">{value}</p><p class="baselines">{html.escape(note)}</p></div>'
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, num_numbers: int = 0) -> str:
    """Returns a table, which scrolls by itself where it is wider than the page.

    Args:
        heads: Names of the columns; empty: none are shown.
        rows: Cells, plain text.
        num_numbers: Columns at the end that hold numbers.
    """

    def row(cells: Sequence[str], element: str) -> str:
        first = len(cells) - num_numbers
        made = [
            f"<{element}{' class="number"' * (place >= first)}>{html.escape(cell)}</{element}>"
            for place, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(made)}</tr>"

    lines = [*([row(heads, "th")] if heads else []), *(row(cells, "td") for cells in rows)]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def missing(reason: str) -> str:
    """Returns a box that says why something is not shown; `reason` is HTML."""
    return f'<p class="missing">{reason}</p>'
