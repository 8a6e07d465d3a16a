"""Look-up tables and windows: from stored values to modality values, and from these to brightness.

Rules: values below the first one of a table map to its first entry, values above the last one to its last
(PS3.3 C.11.1.1, C.11.2.1.1). Window functions are those of C.11.2.1.2 and C.11.2.1.3, in double precision.
Segmented palettes expand as in C.7.9.2. All values are hashable, so that finished tables can be cached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framecodecs.errors import RenderingError

Values = NDArray[Any]
MAX_ENTRIES = 65_536  # 0 in the 16 bits of a descriptor
MAX_SEGMENT_DEPTH = 2  # an indirect segment refers to plain ones (C.7.9.2.3)


@dataclass(frozen=True)
class Lut:
    """`first` is the stored value of the first entry. Entries are little-endian words of `bits` bits."""

    first: int
    entries: bytes
    bits: int

    def __post_init__(self) -> None:
        if not 2 <= len(self.entries) <= 2 * MAX_ENTRIES or len(self.entries) % 2 or not 1 <= self.bits <= 16:
            raise RenderingError(f"a table of {len(self.entries)} bytes with {self.bits} bits an entry")

    @classmethod
    def of(cls, first: int, entries: Iterable[int] | Values, bits: int) -> Lut:
        words = np.asarray(entries if isinstance(entries, np.ndarray) else list(entries))
        return cls(int(first), words.astype("<u2").tobytes(), bits)

    @property
    def words(self) -> Values:
        return np.frombuffer(self.entries, "<u2")

    def applied(self, values: Values) -> Values:
        """Returns the entry of each value, as 16-bit words."""
        words = self.words
        index = np.clip(values - np.float64(self.first), 0, len(words) - 1).astype(np.intp)
        return words[index]


@dataclass(frozen=True)
class Window:
    """A VOI LUT Function with its centre and width, in units of modality values."""

    center: float
    width: float
    function: str = "LINEAR"

    def __post_init__(self) -> None:
        if self.function not in WINDOW_FUNCTIONS:
            raise RenderingError(f"no window function {self.function!r}")
        if not (math.isfinite(self.center) and math.isfinite(self.width) and self.width > 0):
            raise RenderingError("a window needs a finite centre and a width above 0")

    def applied(self, values: Values, low: float, high: float) -> Values:
        """Maps each value to the range from `low` to `high`."""
        return WINDOW_FUNCTIONS[self.function](
            values.astype(np.float64), self.center, self.width, low, high - low
        )


def _linear(values: Values, center: float, width: float, low: float, span: float) -> Values:
    """C.11.2.1.2.1. A width under 1, which is invalid, is a threshold."""
    return _linear_exact(values, center - 0.5, max(width - 1, 0), low, span)


def _linear_exact(values: Values, center: float, width: float, low: float, span: float) -> Values:
    below, above = values <= center - width / 2, values > center + width / 2
    if width:
        values = ((values - center) / width + 0.5) * span + low
    values[below], values[above] = low, low + span
    return values


def _sigmoid(values: Values, center: float, width: float, low: float, span: float) -> Values:
    with np.errstate(over="ignore"):
        scaled: Values = span / (1 + np.exp(-4 * (values - center) / width)) + low
    return scaled


WINDOW_FUNCTIONS: dict[str, Callable[[Values, float, float, float, float], Values]] = {
    "LINEAR": _linear,
    "LINEAR_EXACT": _linear_exact,
    "SIGMOID": _sigmoid,
}


@dataclass(frozen=True)
class Palette:
    """Three tables of equal length (C.7.6.3.1.5)."""

    red: Lut
    green: Lut
    blue: Lut

    def applied(self, values: Values) -> Values:
        """Returns 8-bit RGB: the upper byte of deeper entries."""
        planes = [lut.applied(values) >> max(lut.bits - 8, 0) for lut in (self.red, self.green, self.blue)]
        return np.stack(planes, axis=-1).astype(np.uint8)


def palette_of(descriptor: Sequence[int], tables: Sequence[bytes], *, segmented: bool = False) -> Palette:
    """`descriptor` has three numbers; `tables` are little-endian data of red, green and blue."""
    if len(descriptor) != 3 or len(tables) != 3:
        raise RenderingError("a palette has a descriptor of three numbers and three tables")
    count, first, bits = descriptor[0] or MAX_ENTRIES, descriptor[1], descriptor[2]
    words = [_palette_words(table, count, bits, segmented) for table in tables]
    deep = 8 if max(int(plane.max()) for plane in words) < 256 else 16
    red, green, blue = (Lut.of(first, plane, deep) for plane in words)
    return Palette(red, green, blue)


def _palette_words(table: bytes, count: int, bits: int, segmented: bool) -> Values:
    """The length says whether entries are bytes or words, because many descriptors are wrong."""
    if segmented:
        width = 1 if bits == 8 else 2
        data = np.frombuffer(table[: len(table) - len(table) % width], f"<u{width}")
        words = np.asarray(_expanded(data.tolist(), width, [], None, 0), np.uint16)
    else:
        words = (
            np.frombuffer(table[: 2 * count], "<u2") if len(table) >= 2 * count else _bytes_of(table, count)
        )
    if not len(words):
        raise RenderingError("a palette table is empty")
    return words[:count]


def _bytes_of(table: bytes, count: int) -> Values:
    return np.frombuffer(table[:count], np.uint8)


def _expanded(data: list[int], width: int, out: list[int], segments: int | None, depth: int) -> list[int]:
    """Appends the entries of the next `segments` segments (None: of all) to `out`."""
    position = 0
    while position + 2 < len(data) and segments != 0 and len(out) < MAX_ENTRIES:
        kind, length, body = data[position], data[position + 1], data[position + 2 :]
        if kind == 0:
            out += body[:length]
            position += 2 + length
        elif kind == 1 and out:
            steps = np.linspace(out[-1], body[0], length + 1)[1:]
            out += np.around(steps).astype(int).tolist()
            position += 3
        elif kind == 2 and out and depth < MAX_SEGMENT_DEPTH:
            words = 4 // width
            offset = sum(part << (8 * width * place) for place, part in enumerate(body[:words]))
            _expanded(data[offset:], width, out, length, depth + 1)
            position += 2 + words
        else:
            raise RenderingError(f"segment of type {kind} at {position} of a segmented palette")
        segments = None if segments is None else segments - 1
    return out
