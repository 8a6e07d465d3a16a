"""Notes that are written into a picture (PS3.18 8.3.5.1.1), in the letters of every script that a font has.

Notes are white letters with a black edge, legible on any background. Small letters, which an edge would fill,
stand on a dark ground instead. The letters grow with the picture, and shrink until the longest line fits. A
line that is too long for the smallest letters is cut.

Fonts: the first one is that of Pillow, with the letters of ASCII. Those of the notes follow. A line is
written in the first font that has all its letters, else in pieces. A letter that no font has loses its accent
or is spelled out; if that does not help it becomes a question mark. Arabic, Hebrew and Indic scripts
must be joined or ordered by HarfBuzz and FriBiDi. Without these they become question marks, too: a wrong
order would show another name.

A confined process opens no file. So `load_faces` loads each font in each of SIZES before; FreeType maps the
files, and all processes share this memory.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

from framecodecs.errors import EncodeError
from framecodecs.libraries import guarded, load
from framecodecs.rendering.fonts import path_of
from framecodecs.rendering.rendering import Picture

LINES_A_PICTURE = 28  # of the height of a picture; six lines take a fifth of it
# Pixels of a letter's height. Each takes up to a megabyte of a font with 65,000 letters.
SIZES = (8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 64)
LEADING = 1.25
EDGE = 12  # a letter's height over the width of its edge
EDGED = 14  # the smallest letters with an edge
LONGEST = 200  # letters of a line
SPELLED = str.maketrans(
    {"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "þ": "th", "Þ": "Th"}
    | dict(zip("øØłŁđĐðÐıħĦŧŦ", "oOlLdDdDihHtT", strict=True))
)
OWN = ""  # the font of Pillow
PART = "\t"
# A character that no font has. So its glyph is that of a missing one.
NOTHING = "\U0010ffff"
# The end of the family name of the face for simplified Chinese.
SIMPLIFIED = " SC"
MOST_FACES = 12  # of a collection
# The size at which glyphs are compared.
TESTED = 20
# Scripts whose letters move or join: Devanagari to Sinhala, Myanmar, Khmer.
JOINED = ((0x0900, 0x0DFF), (0x1000, 0x109F), (0x1780, 0x17FF))
RIGHT_TO_LEFT = frozenset(("R", "AL"))


@dataclass(frozen=True)
class Notes:
    """Lines in the upper and in the lower left corner. A part of a line behind PART is left out unless a font
    has all its letters. `fonts` are as in fonts.py."""

    upper: tuple[str, ...] = ()
    lower: tuple[str, ...] = ()
    fonts: tuple[str, ...] = ()


NO_NOTES = Notes()


class LetterRun(NamedTuple):
    """Letters of a line in one font."""

    font: str
    text: str

    def length(self, size: int) -> float:
        return float(_face(self.font, size).getlength(self.text))


LetterRuns = list[LetterRun]


def load_faces(fonts: Sequence[str]) -> None:
    """Loads each size of each font."""
    for font in (OWN, *fonts):
        _face(font, TESTED, plain=True)
        for size in SIZES:
            _face(font, size)


@lru_cache(maxsize=512)
def _face(font: str, size: int, plain: bool = False) -> Any:
    """Returns None for a font that cannot be loaded. A `plain` face has a glyph for each letter alone."""
    module = load("pillow", "PIL.ImageFont")
    if font == OWN:
        return module.load_default(size)
    path, number = path_of(font)
    try:
        number = _number(path) if number is None else number
        engine = module.Layout.BASIC if plain else None
        face = module.truetype(path, size, index=number, layout_engine=engine)
        with suppress(OSError):  # a font that has one weight
            face.set_variation_by_name("Regular")
    except (OSError, ValueError):
        return None
    return face


@cache
def _number(path: str) -> int:
    """The number of the face in a collection."""
    module = load("pillow", "PIL.ImageFont")
    for number in range(MOST_FACES):
        try:
            if str(module.truetype(path, TESTED, index=number).getname()[0]).endswith(SIMPLIFIED):
                return number
        except OSError:
            break
    return 0


@cache
def _is_shaped() -> bool:
    features = load("pillow", "PIL.features")
    return bool(features.check("raqm") and features.check("fribidi"))


def _must_be_shaped(letter: str) -> bool:
    code = ord(letter)
    joined = any(first <= code <= last for first, last in JOINED)
    return joined or unicodedata.bidirectional(letter) in RIGHT_TO_LEFT


@lru_cache(maxsize=16_384)
def _has(font: str, letter: str) -> bool:
    if font == OWN:
        return " " <= letter <= "~"
    if unicodedata.category(letter)[0] == "C" or (_must_be_shaped(letter) and not _is_shaped()):
        return False
    face = _face(font, TESTED, plain=True)
    return face is not None and (letter == " " or _glyph(face, letter) != _glyph(face, NOTHING))


def _glyph(face: Any, letter: str) -> tuple[Any, bytes]:
    mask = face.getmask(letter)
    return mask.size, bytes(mask)


def _is_plain(text: str) -> bool:
    """Whether the font of Pillow has all letters."""
    return text.isascii() and text.isprintable()


def _all(fonts: Sequence[str], text: str) -> bool:
    return all(any(_has(font, letter) for font in fonts) for letter in text)


def drawable(line: str, fonts: Sequence[str] = ()) -> str:
    """Returns the line in letters that a font has."""
    if _is_plain(line):
        return line[:LONGEST]
    first, *others = unicodedata.normalize("NFC", line[:LONGEST]).split(PART)
    known = (OWN, *fonts)
    parts = [_plain(first, known), *(part for part in others if _all(known, part))]
    return "  ".join(filter(None, parts))


def _plain(text: str, fonts: Sequence[str]) -> str:
    return "".join(letter if _all(fonts, letter) else _spelled(letter) for letter in text)


def _spelled(letter: str) -> str:
    plain = unicodedata.normalize("NFKD", letter.translate(SPELLED))
    letters = (one for one in plain if not unicodedata.combining(one))
    return "".join(one if " " <= one <= "~" else "?" for one in letters)


def runs_of(text: str, fonts: Sequence[str]) -> LetterRuns:
    """Returns the pieces of a drawable text: one, if a font has all its letters."""
    if _is_plain(text):
        return [LetterRun(OWN, text)]
    known = (OWN, *fonts)
    whole = next((font for font in known if _all((font,), text)), None)
    if whole is not None:
        return [LetterRun(whole, text)]
    found = groupby(text, lambda letter: next(font for font in known if _has(font, letter)))
    return [LetterRun(font, "".join(letters)) for font, letters in found]


# Layout


def _length(runs: LetterRuns, size: int) -> float:
    return sum(run.length(size) for run in runs)


def _fitting(lines: Sequence[LetterRuns], rows: int, columns: int) -> int:
    """Returns the largest size in which all lines fit."""
    size = _rounded(rows // LINES_A_PICTURE)
    widest = max(_length(line, size) for line in lines)
    room = columns - 2 * _margin(size)
    return _rounded(min(size, int(size * room / max(widest, 1)), int(rows / LEADING / (len(lines) + 1))))


def _rounded(size: int) -> int:
    return max((one for one in SIZES if one <= size), default=SIZES[0])


def _margin(size: int) -> int:
    return max(1, size // 2)


def _cut(text: str, fonts: Sequence[str], size: int, room: float) -> LetterRuns:
    runs = runs_of(text, fonts)
    while text and _length(runs, size) > room:
        text = text[:-1]
        runs = runs_of(text, fonts)
    return runs


def _darker(value: Any) -> Any:
    return value * 0.3


def annotated(picture: Picture, notes: Notes) -> Picture:
    """Returns the picture with its notes; without any, the same object."""
    fonts = tuple(font for font in notes.fonts if _face(font, TESTED) is not None)
    upper, lower = ([drawable(line, fonts) for line in lines if line] for lines in (notes.upper, notes.lower))
    if not upper and not lower:
        return picture
    rows, columns = picture.shape[:2]
    with guarded(EncodeError, "annotation"):
        image = load("pillow").fromarray(np.ascontiguousarray(picture))
        draw = load("pillow", "PIL.ImageDraw").Draw(image)
        size = _fitting([runs_of(line, fonts) for line in (*upper, *lower)], rows, columns)
        margin, step = _margin(size), round(size * LEADING)
        room = max(1, (rows - 2 * margin) // step)  # of lines in a small picture
        upper, lower = upper[:room], lower[: max(0, room - len(upper))]
        for lines, top in ((upper, margin), (lower, rows - margin - step * len(lower))):
            for number, line in enumerate(lines):
                runs = _cut(line, fonts, size, columns - 2 * margin)
                _write(image, draw, runs, (margin, top + number * step), size)
        return np.asarray(image, np.uint8)


def _write(image: Any, draw: Any, runs: LetterRuns, at: tuple[int, int], size: int) -> None:
    """Writes a line whose upper left corner is `at`."""
    left, top = at
    white, black = (255, 0) if image.mode == "L" else ((255, 255, 255), (0, 0, 0))
    edge = round(size / EDGE) if size >= EDGED else 0
    if not edge:
        box = (0, top, left + round(_length(runs, size)) + left, top + round(size * LEADING))
        image.paste(image.crop(box).point(_darker), box[:2])
    base = top + _face(OWN, size).getmetrics()[0]
    for place, run in _placed(runs, left, size):
        font = _face(run.font, size)
        draw.text((place, base), run.text, white, font, "ls", stroke_width=edge, stroke_fill=black)


def _placed(runs: LetterRuns, left: float, size: int) -> Iterator[tuple[float, LetterRun]]:
    yield left, runs[0]
    for before, run in pairwise(runs):
        left += before.length(size)
        yield left, run
