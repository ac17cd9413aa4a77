"""Strips of nearest neighbours as HTML: the query at the left, beside it what is nearest."""

import html

from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.page import missing
from m3ae_tpu.report.neighbours import CAPTION_FEATURES, Neighbours, Strip
from m3ae_tpu.report.uris import thumbnail_uri

_SIDE = 96
_TITLES = {"image": "By image", "caption": "By caption"}
_LACKS = {
    "image": "This run saw no images, so there are no features of images to compare.",
    "caption": "Neighbours of captions need a run that has learned texts, and examples with "
    "captions.",
}


def strips(found: Neighbours | str) -> str:
    """Returns the strips of images and of captions.

    Args:
        found: Result of `find_neighbours`, or a sentence that says why there is none.
    """
    if isinstance(found, str):
        return missing(html.escape(found))
    count, total = len(found.searched), found.num_train
    drawn = f"{count:,} training examples"
    if count < total:
        drawn = f"{count:,} of {total:,} training examples, drawn at random"
    explained = (
        "<p>Held-out examples, drawn at random from each class in turn, and the nearest of "
        f"{drawn}, by the cosine of standardised features. Images are encoded without their "
        f"captions, and captions without their images. Features of images: {found.pooling}; of "
        f"captions: {CAPTION_FEATURES}. A neighbour of the same class has a green "
        "frame and a check mark; classes have no part in the search.</p>"
    )
    return explained + "".join(_part(found, kind) for kind in _TITLES)


def _part(found: Neighbours, kind: str) -> str:
    made = found.strips.get(kind, ())
    if not made:
        return missing(_LACKS[kind])
    right = sum(sum(strip.agrees) for strip in made)
    shown = sum(len(strip.neighbours) for strip in made)
    rows = "".join(_strip(found, strip, kind) for strip in made)
    return (
        f'<h3 class="strips-title">{_TITLES[kind]}<span>{right} of {shown} neighbours are of the '
        f"query&rsquo;s class; {found.chance(kind):.0f} would be by chance</span></h3>"
        f'<div class="strips by-{kind}">{rows}</div>'
    )


def _strip(found: Neighbours, strip: Strip, kind: str) -> str:
    cells = "".join(
        _cell(found.searched, index, kind, "agrees" if agrees else "")
        for index, agrees in zip(strip.neighbours, strip.agrees, strict=True)
    )
    query = _cell(found.queries, strip.query, kind, "query")
    return f'<div class="card strip">{query}<div class="nearest">{cells}</div></div>'


def _cell(examples: LabelledExamples, index: int, kind: str, style: str) -> str:
    label = examples.label_names[examples.labels[index]].replace("_", " ")
    caption = examples.captions[index]
    name = html.escape(caption or examples.titles[index] or label, quote=True)
    mark = '<b aria-label="same class">✓</b>' if style == "agrees" else ""
    text = f"<p>{html.escape(caption)}</p>" if kind == "caption" else ""
    return (
        f'<figure class="neighbour {style}" title="{name}">'
        f'<img class="image" src="{thumbnail_uri(examples.images[index], _SIDE)}" alt="{name}">'
        f"{mark}<figcaption>{html.escape(label)}</figcaption>{text}</figure>"
    )
