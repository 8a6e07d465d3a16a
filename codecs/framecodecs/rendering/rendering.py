"""From stored pixels to displayed ones: 8-bit grey or RGB (PS3.4 N.2, PS3.18 8.3.5).

Grey passes through modality (rescale or LUT), values of interest (window or LUT) and polarity. A sample of up
to 16 bits has fewer values than a frame has pixels. So a table of every possible value is computed once, in
double precision, and maps the frame; the last tables are cached. Without a window, 8-bit pixels are shown
unchanged, and deeper ones from their smallest to their largest value, without padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framecodecs import samples
from framecodecs.errors import RenderingError
from framecodecs.frameinfo import FrameInfo
from framecodecs.rendering.luts import Lut, Palette, Values, Window

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
