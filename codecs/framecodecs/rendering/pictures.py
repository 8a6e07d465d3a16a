"""Picture files of displayable pixels: crop, flip and scale, then JPEG, PNG, GIF, WebP or JP2.

A viewport (PS3.18 8.3.5.1.3) is a region of the image, scaled to fit into a size with its proportions.
Negative sizes of a region flip it.

An animated GIF (GIF89a) is composed of pictures that are encoded one by one. Each frame is a block: a graphic
control extension, and an image with its own colour table. The blocks stand between an opening and a closing,
so no process holds more than one frame. A frame replaces the whole picture before it.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from framecodecs import registry
from framecodecs.errors import EncodeError, RenderingError, Unsupported
from framecodecs.frameinfo import FrameInfo
from framecodecs.libraries import available, guarded, load
from framecodecs.rendering.lettering import NO_NOTES, Notes, annotated
from framecodecs.rendering.rendering import AS_STORED, Picture, Rendering, displayable

MAX_SIDE = 16_384  # pixels; a screen has under 8,000
# Noise repeats only runs. To search for these alone makes pictures a sixth smaller in half the time.
PNG_LEVEL, ONLY_RUNS = 1, 3  # zlib's Z_RLE
# One filter for all rows, instead of the best of five for each: half the time, a twentieth more bytes.
PNG_UP, PNG_AVERAGE = 0x20, 0x40
# The palette of a GIF is chosen by a sample of its pixels: by all 16 million it takes most of a minute.
PALETTE_SIDE = 128
DEFAULT_QUALITY = 90
# The creation date in the head of an ICC profile (ICC.1 7.2.8), and that of the profile of sRGB.
PROFILE_DATE = slice(24, 36)
PROFILE_MADE = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
FASTEST, SLOWEST = 2, 65_535  # hundredths of a second; browsers slow down faster loops
NO_TABLE = 0x70  # a logical screen without a global colour table, 8 bits a primary colour
TABLE = 0x80  # a colour table follows; its three low bits are its size
REPEAT_FOREVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
GIF_CLOSING = b"\x3b"
_SCREEN = struct.Struct("<6sHHBBB")
_CONTROL = struct.Struct("<2sBBHBB")
_IMAGE = struct.Struct("<BHHHHB")
EXTENSION, IMAGE = 0x21, 0x2C

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
# At first Pillow loads five formats. For another one it would load all 45: 30 ms, and parsers without a use.
PLUGINS = {"WEBP": "PIL.WebPImagePlugin", "JPEG2000": "PIL.Jpeg2KImagePlugin"}
ICC_FORMATS = frozenset({"image/jpeg", "image/png", "image/webp"})


@dataclass(frozen=True)
class Viewport:
    """The size to fit into, and the region to show; None is the whole image."""

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
    """`region` is left, top, width, height; a negative width or height flips it."""
    left, top, width, height = region
    part = picture[top : top + abs(height), left : left + abs(width)]
    if 0 in part.shape:
        raise RenderingError(f"a viewport's region is {region}, outside the image")
    return part[:: 1 if height > 0 else -1, :: 1 if width > 0 else -1]


def fitted_size(viewport: Viewport, rows: int, columns: int) -> tuple[int, int]:
    """Returns columns and rows of such a picture at the viewport's size."""
    scale = min(viewport.width / columns, viewport.height / rows)
    if scale > 1 and not viewport.enlarge:
        scale = 1
    return max(round(columns * scale), 1), max(round(rows * scale), 1)


def picture_size(viewport: Viewport | None, rows: int, columns: int) -> tuple[int, int]:
    """Returns columns and rows of the result of `fitted`. A region outside the frame counts as one pixel."""
    if viewport is None:
        return columns, rows
    if viewport.region is not None:
        left, top, width, height = viewport.region
        columns = max(min(abs(width), columns - left), 1)
        rows = max(min(abs(height), rows - top), 1)
    return fitted_size(viewport, rows, columns)


def fitted(picture: Picture, viewport: Viewport) -> Picture:
    """Returns the viewport's region at the viewport's size."""
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
    """Returns the picture in one of FORMATS, with the profile if the format can hold it."""
    if media_type not in FORMATS:
        raise Unsupported(f"pictures are not made as {media_type}")
    if media_type == "image/png" and icc_profile is None and available("imagecodecs"):
        return _png(picture)
    name, options = FORMATS[media_type]
    if name in PLUGINS:
        load("pillow", PLUGINS[name])
    keywords = options(quality)
    if icc_profile is not None and media_type in ICC_FORMATS:
        keywords["icc_profile"] = icc_profile
    out = io.BytesIO()
    with guarded(EncodeError, name):
        image = _gif_image(picture) if name == "GIF" else _image(picture)
        image.save(out, name, **keywords)
    return out.getvalue()


def _png(picture: Picture) -> bytes:
    """Uses libpng, because Pillow cannot choose filters. imagecodecs cannot add a profile."""
    with guarded(EncodeError, "PNG"):
        encoded = load("imagecodecs").png_encode(
            np.ascontiguousarray(picture),
            level=PNG_LEVEL,
            strategy=ONLY_RUNS,
            filter=PNG_UP if picture.ndim == 2 else PNG_AVERAGE,
        )
    return bytes(encoded)


def _gif_image(picture: Picture) -> Any:
    """Keeps grey; reduces colours to 256."""
    image = _image(picture)
    if picture.ndim == 2:
        return image
    pillow = load("pillow")
    size = tuple(min(side, PALETTE_SIDE) for side in image.size)
    sample = image.resize(size, pillow.Resampling.NEAREST)
    palette = sample.quantize(256, method=pillow.Quantize.MEDIANCUT)
    return image.quantize(palette=palette, dither=pillow.Dither.NONE)


def to_srgb(picture: Picture, icc_profile: bytes) -> Picture:
    """Converts colours of an embedded profile to sRGB."""
    cms = load("pillow", "PIL.ImageCms")
    with guarded(EncodeError, "ICC"):
        given = cms.ImageCmsProfile(io.BytesIO(icc_profile))
        return np.asarray(cms.profileToProfile(_image(picture), given, cms.createProfile("sRGB")), np.uint8)


def srgb_profile() -> bytes:
    """Returns an ICC profile of sRGB, always with the same bytes: the library writes the current time."""
    cms = load("pillow", "PIL.ImageCms")
    with guarded(EncodeError, "ICC"):
        made = bytes(cms.ImageCmsProfile(cms.createProfile("sRGB")).tobytes())
        return made[: PROFILE_DATE.start] + PROFILE_MADE + made[PROFILE_DATE.stop :]


def gif_opening(columns: int, rows: int) -> bytes:
    """Returns the head of an animation that repeats without end. `columns` and `rows` are pixels."""
    return _SCREEN.pack(b"GIF89a", columns, rows, NO_TABLE, 0, 0) + REPEAT_FOREVER


def gif_block(picture: bytes, milliseconds: float) -> bytes:
    """Returns a frame that is shown for that time. `picture` is a GIF of one image. Raises EncodeError."""
    try:
        return _block(picture, milliseconds)
    except (IndexError, ValueError, struct.error) as error:
        raise EncodeError("the encoder made no GIF of one image") from error


def _block(picture: bytes, milliseconds: float) -> bytes:
    signature, _, _, flags, _, _ = _SCREEN.unpack(picture[: _SCREEN.size])
    at = _SCREEN.size
    table = b""
    if flags & TABLE:
        table = picture[at : at + 3 * (2 << (flags & 7))]
        at += len(table)
    while picture[at] == EXTENSION:
        at = _after_blocks(picture, at + 2)
    kind, left, top, columns, rows, local = _IMAGE.unpack(picture[at : at + _IMAGE.size])
    if not signature.startswith(b"GIF8") or kind != IMAGE or not picture.endswith(GIF_CLOSING):
        raise ValueError(picture[:16])
    if not local & TABLE:
        local |= flags & (TABLE | 7)
    else:
        table = b""  # the image has its own
    hundredths = min(max(round(milliseconds / 10), FASTEST), SLOWEST)
    return b"".join(
        (
            _CONTROL.pack(b"\x21\xf9", 4, 0, hundredths, 0, 0),
            _IMAGE.pack(IMAGE, left, top, columns, rows, local),
            table,
            picture[at + _IMAGE.size : -len(GIF_CLOSING)],
        )
    )


def _after_blocks(picture: bytes, at: int) -> int:
    """Returns the offset behind a sequence of data sub-blocks."""
    while size := picture[at]:
        at += 1 + size
    return at + 1


@dataclass(frozen=True)
class PictureRequest:
    """The parameters of a picture."""

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
    """Returns the block of one frame of an animated GIF."""
    picture = shown(frame, uid, info, request, words, cores)
    return gif_block(picture_file(picture, "image/gif"), request.milliseconds)
