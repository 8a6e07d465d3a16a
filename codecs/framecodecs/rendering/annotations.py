"""Lines of text burnt into a picture (PS3.18 8.3.5.1.1), in the font of Pillow.

White letters with a black edge are legible on any background. Small letters, which an edge would fill, stand
on a dark ground instead. The font grows with the picture, and shrinks until the longest line fits. A line
that is too long for the smallest letters is cut. The font has the letters of ASCII: accents are dropped, some
letters are spelled out, and any other character becomes a question mark.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from framecodecs.errors import EncodeError
from framecodecs.libraries import guarded, load
from framecodecs.rendering.rendering import Picture

LINES_A_PICTURE = 28  # of the height of a picture; six lines take a fifth of it
SMALLEST, LARGEST = 8, 64  # pixels of a letter's height
LEADING = 1.25
EDGE = 12  # a letter's height over the width of its edge
EDGED = 14  # the smallest letters with an edge
LONGEST = 200  # letters of a line
SPELLED = str.maketrans(
    {"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "þ": "th", "Þ": "Th"}
    | dict(zip("øØłŁđĐðÐıħĦŧŦ", "oOlLdDdDihHtT", strict=True))
)


@dataclass(frozen=True)
class Notes:
    """Lines in the upper and in the lower left corner."""

    upper: tuple[str, ...] = ()
    lower: tuple[str, ...] = ()


def drawable(text: str) -> str:
    """Returns the text in letters of the font."""
    plain = unicodedata.normalize("NFKD", text[:LONGEST].translate(SPELLED))
    letters = (letter for letter in plain if not unicodedata.combining(letter))
    return "".join(letter if " " <= letter <= "~" else "?" for letter in letters)


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    return load("pillow", "PIL.ImageFont").load_default(size)


def _fitting(lines: Sequence[str], rows: int, columns: int) -> tuple[Any, int]:
    """Returns the largest font in which all lines fit, and its size."""
    size = max(SMALLEST, min(LARGEST, rows // LINES_A_PICTURE))
    widest = max(_font(size).getlength(line) for line in lines)
    room = columns - 2 * _margin(size)
    size = min(size, int(size * room / max(widest, 1)), int(rows / LEADING / (len(lines) + 1)))
    size = max(SMALLEST, size)
    return _font(size), size


def _margin(size: int) -> int:
    return max(1, size // 2)


def _cut(line: str, font: Any, room: float) -> str:
    while line and font.getlength(line) > room:
        line = line[:-1]
    return line


def _darker(value: Any) -> Any:
    return value * 0.3


def annotated(picture: Picture, notes: Notes) -> Picture:
    """Returns the picture with its notes; without any, the same object."""
    upper, lower = ([drawable(line) for line in lines if line] for lines in (notes.upper, notes.lower))
    if not upper and not lower:
        return picture
    rows, columns = picture.shape[:2]
    with guarded(EncodeError, "annotation"):
        image = load("pillow").fromarray(np.ascontiguousarray(picture))
        draw = load("pillow", "PIL.ImageDraw").Draw(image)
        font, size = _fitting([*upper, *lower], rows, columns)
        margin, step = _margin(size), round(size * LEADING)
        room = max(1, (rows - 2 * margin) // step)  # of lines in a small picture
        upper, lower = upper[:room], lower[: max(0, room - len(upper))]
        white, black = (255, 0) if picture.ndim == 2 else ((255, 255, 255), (0, 0, 0))
        edge = round(size / EDGE) if size >= EDGED else 0
        for lines, top in ((upper, margin), (lower, rows - margin - step * len(lower))):
            for number, line in enumerate(lines):
                text, at = _cut(line, font, columns - 2 * margin), (margin, top + number * step)
                if not edge:
                    box = (0, at[1], margin + round(font.getlength(text)) + margin, at[1] + step)
                    image.paste(image.crop(box).point(_darker), box[:2])
                draw.text(at, text, fill=white, font=font, stroke_width=edge, stroke_fill=black)
        return np.asarray(image, np.uint8)
