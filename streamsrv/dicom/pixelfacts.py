"""Packs the format of the samples of an image into one number. Rows, columns, samples a pixel and bits
allocated are stored beside it (PS3.3 C.7.6.3):

    bits 0 to 6  Bits Stored            bit 8         Planar Configuration
    bit 7        Pixel Representation   bits 9 to 15  number of the Photometric Interpretation

Rule: the number is 0 unless each attribute has one value of its VR and High Bit is Bits Stored - 1. Index
rows contain the number, so its meaning does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from streamsrv.dicom import tags
from streamsrv.dicom.instance import JsonElement

UNKNOWN = 0
# PS3.3 C.7.6.3.1.2. New terms go to the end.
PHOTOMETRIC_INTERPRETATIONS = (
    "",
    "MONOCHROME1",
    "MONOCHROME2",
    "PALETTE COLOR",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_PARTIAL_422",
    "YBR_PARTIAL_420",
    "YBR_ICT",
    "YBR_RCT",
    "XYB",
)
_COLOURS: dict[Any, int] = {term: number for number, term in enumerate(PHOTOMETRIC_INTERPRETATIONS) if term}
_MOST_BITS = 0x7F
_SIGN, _PLANES, _COLOUR = 7, 8, 9
_NUMBERS = (
    tags.ROWS,
    tags.COLUMNS,
    tags.BITS_ALLOCATED,
    tags.SAMPLES_PER_PIXEL,
    tags.BITS_STORED,
    tags.HIGH_BIT,
    tags.PIXEL_REPRESENTATION,
)

Element = Callable[[str], JsonElement | None]


class PixelFacts(NamedTuple):
    """Planar Configuration is 0 where a pixel has one sample."""

    bits_stored: int
    pixel_representation: int
    planar_configuration: int
    photometric_interpretation: str


def facts_in(element: Element) -> int:
    """The number of a dataset whose top-level elements `element` finds by tag; UNKNOWN if an attribute is
    missing or invalid, and for floating-point pixels (PS3.3 C.7.6.24, C.7.6.25)."""
    values = []
    for tag in _NUMBERS:
        value = _only(element(tag), "US")
        if value is None:
            return UNKNOWN
        values.append(value)
    rows, columns, allocated, samples, stored, high, sign = values
    planes = _only(element(tags.PLANAR_CONFIGURATION), "US") if samples > 1 else 0
    colour = _COLOURS.get(_only(element(tags.PHOTOMETRIC_INTERPRETATION), "CS"), 0)
    plain = (
        colour
        and planes in (0, 1)
        and sign in (0, 1)
        and 0 < stored <= _MOST_BITS
        and high == stored - 1
        and rows
        and columns
        and allocated
        and samples
        and not element(tags.FLOAT_PIXEL_DATA)
        and not element(tags.DOUBLE_FLOAT_PIXEL_DATA)
    )
    return stored | sign << _SIGN | planes << _PLANES | colour << _COLOUR if plain else UNKNOWN


def unpacked(facts: int) -> PixelFacts | None:
    """Returns None for UNKNOWN."""
    stored, colour = facts & _MOST_BITS, facts >> _COLOUR
    if not stored or not 0 < colour < len(PHOTOMETRIC_INTERPRETATIONS):
        return None
    term = PHOTOMETRIC_INTERPRETATIONS[colour]
    return PixelFacts(stored, facts >> _SIGN & 1, facts >> _PLANES & 1, term)


def _only(element: JsonElement | None, vr: str) -> Any:
    """The only value of an element of this VR; else None."""
    values = element.get("Value") if element and element["vr"] == vr else None
    return values[0] if values and len(values) == 1 else None
