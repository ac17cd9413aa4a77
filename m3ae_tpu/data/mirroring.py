"""Captions whose image may be mirrored, judged by their words."""

import re

# Directions and rotation.
_DIRECTIONS = """
left leftward leftwards right rightward rightwards lefthand righthand sideways clockwise
anticlockwise counterclockwise forward backward backwards reverse next previous east west northeast
northwest southeast southwest
"""
# Writing, numbers, and things that carry them.
_WRITING = """
letter letters lettering word words text writing written handwriting inscription script caption
captions font fonts alphabet alphabetic alphanumeric latin uppercase lowercase spelled reads says
saying number numbers numeral numerals numeric digit digits keycap keycaps equation equations
formula formulas punctuation question percent dollar dollars euro euros sign signs signage signpost
signboard sticker poster posters billboard billboards banner banners label labels logo logos
headline headlines newspaper newspapers magazine magazines button buttons badge badges trademark
copyright registered keyboard keyboards calendar calendars
"""
# Things that mirroring turns into something else.
_HANDED_THINGS = """
map maps globe globes compass clef clefs cursor cursors pointer pointing flag flags ensign ensigns
arrow arrows clock clocks clockface watch wristwatch timer stopwatch
"""
_HANDED_WORDS = frozenset(f"{_DIRECTIONS} {_WRITING} {_HANDED_THINGS}".split())
_WORD = re.compile(r"\w+")
# Capitals ("SOON", "OK") or a quoted word quote what is written in the image.
_QUOTED_WRITING = re.compile(r"\b[A-Z]{2,}\b|\"[^\"]+\"")
_HANDED_PHRASES = re.compile(r"\b(?:license plate|musical notes?|sheet music|\w+-thirty)\b")


def may_mirror(caption: str) -> bool:
    """Returns whether an image with this caption stays true to it when left and right are swapped.

    The paper mirrors half of all images. That is harmless to the image of a cat, but "a left
    arrow", "the flag of France", "a sign that says STOP" or "three o'clock" become false, and a
    model that reads captions would learn them so. Images are therefore kept as they are if their
    caption mentions directions, writing, numbers, flags, arrows or clock faces: about a fifth of
    the starter set. False alarms ("human rights", "a written agreement") cost a flip and nothing
    else. The caption that counts is the one that the model reads with the image; an empty one
    allows mirroring.
    """
    lowered = caption.casefold()
    # One regular expression with all the words takes six times as long as this look-up.
    return (
        _HANDED_WORDS.isdisjoint(_WORD.findall(lowered))
        and _QUOTED_WRITING.search(caption) is None
        and _HANDED_PHRASES.search(lowered) is None
    )
