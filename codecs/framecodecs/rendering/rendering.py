"""From stored pixels to displayed ones: 8-bit grey or RGB (PS3.4 N.2, PS3.18 8.3.5).

Grey passes through modality (rescale or LUT), values of interest (window or LUT) and polarity. A sample of up
to 16 bits has fewer values than a frame has pixels. So a table of every possible value is computed once, in
double precision, and maps the frame; the last tables are cached: all values are hashable. Without a window,
8-bit pixels are shown unchanged, and deeper ones from their smallest to their largest value, without padding.

Rules: values below the first one of a table map to its first entry, values above the last one to its last
(PS3.3 C.11.1.1, C.11.2.1.1). Window functions are those of C.11.2.1.2 and C.11.2.1.3, in double precision.
Segmented palettes expand as in C.7.9.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framecodecs import samples
from framecodecs.errors import RenderingError
from framecodecs.frameinfo import FrameInfo

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


Picture = NDArray[np.uint8]
KEPT_TABLES = 32  # 64 kB each at most
WHITE = 255
CHROMA_ZERO = 128


@dataclass(frozen=True)
class Rendering:
    """The parameters of a dataset and a request for showing a frame. `window` wins over `voi_lut`. `padding`
    is the inclusive range of stored values that are no image. `inverse` is a Presentation LUT Shape of
    INVERSE."""

    slope: float = 1.0
    intercept: float = 0.0
    modality_lut: Lut | None = None
    window: Window | None = None
    voi_lut: Lut | None = None
    palette: Palette | None = None
    padding: tuple[int, int] | None = None
    inverse: bool = False


AS_STORED = Rendering()


def modality_values(values: Values, rendering: Rendering) -> Values:
    """Returns modality values of stored ones, for example Hounsfield units (PS3.3 C.11.1)."""
    if rendering.modality_lut is not None:
        return rendering.modality_lut.applied(values)
    if (rendering.slope, rendering.intercept) == (1.0, 0.0):
        return values
    return values.astype(np.float64) * rendering.slope + rendering.intercept


def voi_values(values: Values, rendering: Rendering, low: float, high: float) -> Values:
    """Returns the brightness of modality values, from `low` to `high` (PS3.3 C.11.2)."""
    if rendering.window is not None:
        return rendering.window.applied(values, low, high)
    if rendering.voi_lut is not None:
        top = (1 << rendering.voi_lut.bits) - 1
        return rendering.voi_lut.applied(values) * ((high - low) / top) + low
    raise RenderingError("neither a window nor a VOI LUT")


def to_bytes(values: Values) -> Picture:
    """Rounds to the nearest of 0..255; NaN is black."""
    rounded: Values = np.floor(np.clip(np.nan_to_num(values), 0, WHITE) + 0.5)
    return rounded.astype(np.uint8)


def full_range(info: FrameInfo, rendering: Rendering) -> Window:
    """Returns a window over all values of Bits Stored."""
    least = -(1 << (info.bits_stored - 1)) if info.pixel_representation else 0
    ends = np.array([least, least + (1 << info.bits_stored) - 1])
    return _window_between(modality_values(ends, rendering))


def _window_between(values: Values) -> Window:
    low, high = float(values.min()), float(values.max())
    return Window((low + high) / 2, max(high - low, 1e-9), "LINEAR_EXACT")


def _image_values(values: Values, padding: tuple[int, int] | None) -> Values:
    if padding is not None:
        inside = values[(values < padding[0]) | (values > padding[1])]
        values = inside if inside.size else values
    return values


def chosen_window(values: Values, info: FrameInfo, rendering: Rendering) -> Rendering:
    """Returns the rendering with a window, made from the frame if there is none."""
    if rendering.window is not None or rendering.voi_lut is not None:
        return rendering
    if info.bits_stored <= 8 and not info.floating:
        return replace(rendering, window=full_range(info, rendering))
    image = _image_values(values, rendering.padding)
    ends = np.array([np.nanmin(image), np.nanmax(image)])
    if not np.isfinite(ends).all():
        raise RenderingError("the frame has no finite range")
    return replace(rendering, window=_window_between(modality_values(ends, rendering)))


def _brightness(values: Values, rendering: Rendering, inverse: bool) -> Picture:
    shown = to_bytes(voi_values(modality_values(values, rendering), rendering, 0, WHITE))
    return WHITE - shown if inverse else shown


@lru_cache(maxsize=KEPT_TABLES)
def _table(bits: int, signed: int, rendering: Rendering, inverse: bool) -> Picture:
    """Returns the brightness of every pattern of `bits` bits."""
    patterns = np.arange(1 << bits, dtype=np.int32)
    values = np.where(patterns >> (bits - 1), patterns - (1 << bits), patterns) if signed else patterns
    return _brightness(values, rendering, inverse)


def _grey(values: Values, info: FrameInfo, rendering: Rendering) -> Picture:
    rendering = chosen_window(values, info, rendering)
    inverse = (info.photometric_interpretation == "MONOCHROME1") != rendering.inverse
    if info.floating or info.bits_stored > 16 or values.size < 1 << info.bits_stored:
        return _brightness(values, rendering, inverse)
    patterns = samples.unsigned(values, info.bits_stored)
    return np.take(_table(info.bits_stored, info.pixel_representation, rendering, inverse), patterns)


def ybr_to_rgb(picture: Picture) -> Picture:
    """Converts YBR_FULL to RGB (PS3.3 C.7.6.3.1.2), rounded."""
    luma, blue, red = (picture[..., plane].astype(np.float32) for plane in range(3))
    blue -= CHROMA_ZERO
    red -= CHROMA_ZERO
    planes = (
        luma + np.float32(1.402) * red,
        luma - np.float32(0.114 * 1.772 / 0.587) * blue - np.float32(0.299 * 1.402 / 0.587) * red,
        luma + np.float32(1.772) * blue,
    )
    return np.stack([to_bytes(plane) for plane in planes], axis=-1)


def _colour(values: Values, info: FrameInfo) -> Picture:
    if info.bits_stored != 8 or values.dtype != np.uint8:
        values = samples.unsigned(values, info.bits_stored)
        values = to_bytes(values * (WHITE / ((1 << info.bits_stored) - 1)))
    return ybr_to_rgb(values) if info.photometric_interpretation.startswith("YBR_FULL") else values


def displayable(frame: bytes, info: FrameInfo, rendering: Rendering = AS_STORED) -> Picture:
    """Returns a native frame as rows x columns of grey, or rows x columns x 3 of RGB."""
    values: NDArray[Any] = samples.to_array(frame, info)
    if info.photometric_interpretation == "PALETTE COLOR":
        if rendering.palette is None:
            raise RenderingError("a palette colour frame needs its palette")
        return rendering.palette.applied(values)
    return _grey(values, info, rendering) if info.samples_per_pixel == 1 else _colour(values, info)
