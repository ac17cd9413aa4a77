"""A slider over precomputed images as HTML: radio buttons, which need no script."""

import html
from collections.abc import Sequence


def slider(name: str, legend: str, stops: Sequence[str], first: int) -> str:
    """Returns the control: arrow keys move it, and a pointer chooses a stop.

    An element of the same section with the class `stop-N` is shown at stop N alone; the page's
    style knows four stops.

    Args:
        name: Name of the control, unique on the page.
        legend: What it changes.
        stops: Labels, plain text.
        first: Index of the stop that is shown at first.
    """
    labels = []
    for number, stop in enumerate(stops):
        checked = " checked" if number == first else ""
        labels.append(
            f'<label><input type="radio" name="{name}" value="{number}"{checked}>'
            f"<span>{html.escape(stop)}</span></label>"
        )
    return (
        f'<fieldset class="slider"><legend>{html.escape(legend)}</legend>'
        f'<div class="stops">{"".join(labels)}</div></fieldset>'
    )


def at_stops(images: Sequence[str], style: str, alts: Sequence[str]) -> str:
    """Returns the images of a place, one for each stop, as elements on top of each other.

    Args:
        images: Data URIs, in the order of the stops.
        style: Class of the elements.
        alts: Their descriptions.
    """
    return "".join(
        f'<img class="{style} stop-{number}" src="{image}" alt="{html.escape(alt)}">'
        for number, (image, alt) in enumerate(zip(images, alts, strict=True))
    )
