"""Displayable pixels as files for browsers: crop, flip and scale, then JPEG, PNG, GIF, WebP or JP2 by
Pillow.

A viewport is PS3.18 8.3.5.1.3: a region of the image (negative sizes turn it over), scaled to fit into a
size without changing its proportions.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from framecodecs import registry
from framecodecs.errors import EncodeError, RenderingError, Unsupported
from framecodecs.frameinfo import FrameInfo
from framecodecs.libraries import available, guarded, load
from framecodecs.rendering import animations
from framecodecs.rendering.annotations import Notes, annotated
from framecodecs.rendering.rendering import AS_STORED, Picture, Rendering, displayable

MAX_SIDE = 16_384  # pixels of a scaled picture; a screen has under 8,000
# Noise repeats nothing but runs: looking for these alone makes the picture a sixth smaller in half the time.
PNG_LEVEL, ONLY_RUNS = 1, 3  # zlib's Z_RLE
# One filter for all rows instead of trying five on each: half the time again, a twentieth more bytes.
PNG_UP, PNG_AVERAGE = 0x20, 0x40
# The palette of a GIF is chosen by a sample of its pixels: a choice by all 16 million takes most of a minute.
PALETTE_SIDE = 128
DEFAULT_QUALITY = 90
NO_NOTES = Notes()

SaveOptions = Callable[[int], dict[str, Any]]
FORMATS: dict[str, tuple[str, SaveOptions]] = {
    "image/jpeg": (
        "JPEG",
        lambda quality: {"quality": quality, "subsampling": "4:4:4" if quality > 90 else -1},
    ),
    "image/png": ("PNG", lambda quality: {"compress_level": PNG_LEVEL, "compress_type": ONLY_RUNS}),
    "image/gif": ("GIF", lambda quality: {"optimize": False}),
    "image/webp": ("WEBP", lambda quality: {"quality": quality, "method": 2}),
    "image/jp2": ("JPEG2000", lambda quality: {"quality_mode": "dB", "quality_layers": [27.5 + quality / 4]}),
}
ICC_FORMATS = frozenset({"image/jpeg", "image/png", "image/webp"})


@dataclass(frozen=True)
class Viewport:
    """The size to fit into; the region that is shown, all of the image if None."""

    width: int
    height: int
    region: tuple[int, int, int, int] | None = None
    enlarge: bool = True

    def __post_init__(self) -> None:
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise RenderingError(f"a viewport of {self.width} x {self.height}")
        if self.region is not None and (0 in self.region[2:] or min(self.region[:2]) < 0):
            raise RenderingError(f"a viewport's region is {self.region}")


def cropped(picture: Picture, region: tuple[int, int, int, int]) -> Picture:
    """Left, top, width, height; a negative width or height turns the region over."""
    left, top, width, height = region
    part = picture[top : top + abs(height), left : left + abs(width)]
    if 0 in part.shape:
        raise RenderingError(f"region {region} lies outside the image")
    return part[:: 1 if height > 0 else -1, :: 1 if width > 0 else -1]


def fitted_size(viewport: Viewport, rows: int, columns: int) -> tuple[int, int]:
    """Columns and rows of such a picture at the viewport's size, proportions kept."""
    scale = min(viewport.width / columns, viewport.height / rows)
    if scale > 1 and not viewport.enlarge:
        scale = 1
    return max(round(columns * scale), 1), max(round(rows * scale), 1)


def picture_size(viewport: Viewport | None, rows: int, columns: int) -> tuple[int, int]:
    """Columns and rows of the picture of a frame, as `fitted` makes it. A region outside the frame counts as
    one pixel."""
    if viewport is None:
        return columns, rows
    if viewport.region is not None:
        left, top, width, height = viewport.region
        columns = max(min(abs(width), columns - left), 1)
        rows = max(min(abs(height), rows - top), 1)
    return fitted_size(viewport, rows, columns)


def fitted(picture: Picture, viewport: Viewport) -> Picture:
    """The viewport's region at the viewport's size, proportions kept."""
    if viewport.region is not None:
        picture = cropped(picture, viewport.region)
    rows, columns = picture.shape[:2]
    size = fitted_size(viewport, rows, columns)
    if size == (columns, rows):
        return picture
    with guarded(EncodeError, "scaling"):
        image = _image(picture)
        filtering = load("pillow").Resampling.BICUBIC
        return np.asarray(image.resize(size, filtering, reducing_gap=3.0), np.uint8)


def _image(picture: Picture) -> Any:
    return load("pillow").fromarray(np.ascontiguousarray(picture))


def picture_file(
    picture: Picture, media_type: str, *, quality: int = DEFAULT_QUALITY, icc_profile: bytes | None = None
) -> bytes:
    """The picture in one of FORMATS; the profile goes in where the format has a place for it."""
    if media_type not in FORMATS:
        raise Unsupported(f"pictures are not made as {media_type}")
    if media_type == "image/png" and icc_profile is None and available("imagecodecs"):
        return _png(picture)
    name, options = FORMATS[media_type]
    keywords = options(quality)
    if icc_profile is not None and media_type in ICC_FORMATS:
        keywords["icc_profile"] = icc_profile
    out = io.BytesIO()
    with guarded(EncodeError, name):
        image = _gif_image(picture) if name == "GIF" else _image(picture)
        image.save(out, name, **keywords)
    return out.getvalue()


def _png(picture: Picture) -> bytes:
    """By libpng itself; Pillow has no word for filters, imagecodecs none for profiles."""
    with guarded(EncodeError, "PNG"):
        encoded = load("imagecodecs").png_encode(
            np.ascontiguousarray(picture),
            level=PNG_LEVEL,
            strategy=ONLY_RUNS,
            filter=PNG_UP if picture.ndim == 2 else PNG_AVERAGE,
        )
    return bytes(encoded)


def _gif_image(picture: Picture) -> Any:
    """Grey as it is; of colours the 256 that fit best."""
    image = _image(picture)
    if picture.ndim == 2:
        return image
    pillow = load("pillow")
    size = tuple(min(side, PALETTE_SIDE) for side in image.size)
    sample = image.resize(size, pillow.Resampling.NEAREST)
    palette = sample.quantize(256, method=pillow.Quantize.MEDIANCUT)
    return image.quantize(palette=palette, dither=pillow.Dither.NONE)


def to_srgb(picture: Picture, icc_profile: bytes) -> Picture:
    """Colours of an embedded profile as sRGB."""
    cms = load("pillow", "PIL.ImageCms")
    with guarded(EncodeError, "ICC"):
        given = cms.ImageCmsProfile(io.BytesIO(icc_profile))
        return np.asarray(cms.profileToProfile(_image(picture), given, cms.createProfile("sRGB")), np.uint8)


def srgb_profile() -> bytes:
    """An ICC profile that says sRGB."""
    cms = load("pillow", "PIL.ImageCms")
    with guarded(EncodeError, "ICC"):
        return bytes(cms.ImageCmsProfile(cms.createProfile("sRGB")).tobytes())


@dataclass(frozen=True)
class PictureRequest:
    """Everything about a picture but its pixels; pickled once for a batch of frames."""

    rendering: Rendering = AS_STORED
    viewport: Viewport | None = None
    media_type: str = "image/jpeg"
    quality: int = DEFAULT_QUALITY
    icc_profile: bytes | None = None
    convert_to_srgb: bool = False
    milliseconds: float = 40.0
    notes: Notes = NO_NOTES


def shown(
    frame: bytes,
    uid: str,
    info: FrameInfo,
    request: PictureRequest,
    words: bool = False,
    cores: int = 1,
) -> Picture:
    """Returns one frame decoded, made displayable, fitted and annotated."""
    native, now = registry.decode(frame, uid, info, words=words, cores=cores)
    picture = displayable(native, now, request.rendering)
    if request.viewport is not None:
        picture = fitted(picture, request.viewport)
    if request.convert_to_srgb and request.icc_profile is not None and picture.ndim == 3:
        picture = to_srgb(picture, request.icc_profile)
    return annotated(picture, request.notes)


def rendered(
    frame: bytes,
    uid: str,
    info: FrameInfo,
    request: PictureRequest,
    words: bool = False,
    cores: int = 1,
) -> bytes:
    """Returns one frame as a picture file."""
    picture = shown(frame, uid, info, request, words, cores)
    profile = srgb_profile() if request.convert_to_srgb else request.icc_profile
    keep = profile if picture.ndim == 3 else None
    return picture_file(picture, request.media_type, quality=request.quality, icc_profile=keep)


def animated(
    frame: bytes,
    uid: str,
    info: FrameInfo,
    request: PictureRequest,
    words: bool = False,
    cores: int = 1,
) -> bytes:
    """Returns one frame of an animated GIF (animations.py)."""
    picture = shown(frame, uid, info, request, words, cores)
    return animations.frame_block(picture_file(picture, "image/gif"), request.milliseconds)
