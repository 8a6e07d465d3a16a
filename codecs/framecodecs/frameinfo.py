"""The Image Pixel attributes that the bytes of a frame are read by (PS3.3 C.7.6.3), and the options of
encoders.

A *native* frame is little-endian. Several samples a pixel are interleaved or by plane, as
planar_configuration says. One-bit pixels are packed: the first pixel is the lowest bit of the first byte, and
a frame begins at a byte (PS3.5 8.1.1). Native YBR_FULL_422 has two luminance samples and one pair of
chrominance samples for every two pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from framecodecs.errors import EncodeError, GeometryError

# The most that one read or write of Linux moves. Libraries count in 32 bits and would wrap around.
MAX_FRAME_BYTES = 0x7FFFF000
ALLOCATIONS = frozenset({1, 8, 16, 32, 64})
PHOTOMETRIC_SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
    "YBR_PARTIAL_420": 3,
    "YBR_PARTIAL_422": 3,
    "XYB": 3,
}


@dataclass(frozen=True)
class FrameInfo:
    """The attributes of the Image Pixel Module that describe one frame. `floating` marks Float or Double
    Float Pixel Data. Raises GeometryError."""

    rows: int
    columns: int
    samples_per_pixel: int = 1
    bits_allocated: int = 8
    bits_stored: int = 8
    high_bit: int = 7
    pixel_representation: int = 0
    planar_configuration: int = 0
    photometric_interpretation: str = "MONOCHROME2"
    floating: bool = False

    def __post_init__(self) -> None:
        for holds, error in self._conditions():
            if not holds:
                raise GeometryError(error)

    def _conditions(self) -> tuple[tuple[bool, str], ...]:
        samples = PHOTOMETRIC_SAMPLES.get(self.photometric_interpretation)
        return (
            (1 <= self.rows <= 65535, f"Rows is {self.rows}"),
            (1 <= self.columns <= 65535, f"Columns is {self.columns}"),
            (
                samples is not None,
                f"Photometric Interpretation is {self.photometric_interpretation!r}",
            ),
            (
                samples == self.samples_per_pixel,
                f"Samples per Pixel is {self.samples_per_pixel} in {self.photometric_interpretation}",
            ),
            (
                self.bits_allocated in ALLOCATIONS and self.bits_allocated * self.samples_per_pixel != 3,
                f"Bits Allocated is {self.bits_allocated} for {self.samples_per_pixel} samples",
            ),
            (1 <= self.bits_stored <= self.bits_allocated, f"Bits Stored is {self.bits_stored}"),
            (
                self.bits_stored - 1 <= self.high_bit < self.bits_allocated,
                f"High Bit is {self.high_bit} with {self.bits_stored} bits stored of {self.bits_allocated}",
            ),
            (self.pixel_representation in (0, 1), f"Pixel Representation is {self.pixel_representation}"),
            (self.planar_configuration in (0, 1), f"Planar Configuration is {self.planar_configuration}"),
            (self.frame_length <= MAX_FRAME_BYTES, f"a frame would take {self.frame_length} bytes"),
        )

    @cached_property
    def subsampled(self) -> bool:
        return self.photometric_interpretation in ("YBR_FULL_422", "YBR_PARTIAL_422")

    @cached_property
    def frame_length(self) -> int:
        """The bytes of one native frame, without a padding byte."""
        samples, columns = self.samples_per_pixel, self.columns
        if self.subsampled:
            samples, columns = 2, columns + columns % 2
        return (self.rows * columns * samples * self.bits_allocated + 7) // 8

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Rows, columns and, for colour, samples of the interleaved array."""
        plane = (self.rows, self.columns)
        return plane if self.samples_per_pixel == 1 else (*plane, self.samples_per_pixel)

    @cached_property
    def container(self) -> np.dtype[np.generic]:
        """The unsigned little-endian type of one allocated sample; a byte for an unpacked bit."""
        return np.dtype(f"<u{max(self.bits_allocated // 8, 1)}")

    @cached_property
    def sample_type(self) -> np.dtype[np.generic]:
        """The type of the value of a native sample."""
        kind = "f" if self.floating else "iu"[self.pixel_representation == 0]
        return np.dtype(f"<{kind}{max(self.bits_allocated // 8, 1)}")

    def with_colour(self, photometric_interpretation: str) -> FrameInfo:
        """Returns the same frame, interleaved, with another name of its colour."""
        if photometric_interpretation == self.photometric_interpretation and self.planar_configuration == 0:
            return self
        return replace(self, photometric_interpretation=photometric_interpretation, planar_configuration=0)


@dataclass(frozen=True)
class EncodeOptions:
    """Each family of codecs uses the options that it knows. `quality` is 1..100, for lossy JPEG, JPEG 2000,
    HTJ2K and JPEG XL. `near` is the largest error of JPEG-LS near-lossless. `chroma` of lossy JPEG is 422
    (YBR_FULL_422 in PS3.3) or 444. `effort` is 1..9, for JPEG XL. `cores` is the number of cores that
    OpenJPEG may use."""

    quality: int = 90
    near: int = 2
    chroma: str = "422"
    effort: int = 1
    cores: int = 1

    def __post_init__(self) -> None:
        for holds, error in (
            (1 <= self.quality <= 100, f"quality is {self.quality}, not 1..100"),
            (1 <= self.near <= 255, f"near is {self.near}, not 1..255"),
            (self.chroma in ("422", "444"), f"chroma is {self.chroma!r}, not '422' or '444'"),
            (1 <= self.effort <= 9, f"effort is {self.effort}, not 1..9"),
        ):
            if not holds:
                raise EncodeError(error)
