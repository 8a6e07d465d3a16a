"""Finds JPEG codestreams that can be served as pictures unchanged: a browser draws them as `rendering` would.

Strategy: the head of a frame, up to its first scan, decides. The frames of a slide have equal heads, so a
head is judged once. Behind it only EOI at the end is checked. The rules are strict: a refusal costs a
decoding, and a mistake would show a wrong picture.

Rules
- The frame is baseline, 8 bits, one scan with all components, with every table, and with the size and
  components of the dataset.
- Other segments are JFIF, Adobe's marker, comments, and at most one colour profile. Exif is refused: it may
  turn a picture.
- Three components are YCbCr by every sign: Adobe's marker agrees, and the components have numbers, not the
  names R, G and B. Browsers read three components as YCbCr, so RGB in the dataset is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from framecodecs.errors import FrameCodecError
from framecodecs.frameinfo import FrameInfo
from framecodecs.headers.jpeg_header import APP0, APP14, BASELINE, SOS
from framecodecs.rendering.rendering import Rendering, displayable

# Bytes of a frame that are read. Most heads have 600; a head with a profile is longer.
LONGEST_HEAD = 4_096
END = b"\xff\xd9"
APP2, COMMENT, DQT, DHT, DRI = 0xE2, 0xFE, 0xDB, 0xC4, 0xDD
COLOURS = ("YBR_FULL", "YBR_FULL_422")
NUMBERED = (b"\1\2\3", b"\0\1\2")
LUMINANCE, CHROMINANCE = (0x11, 0x12, 0x21, 0x22), b"\x11\x11"
SPECTRUM = b"\0\x3f\0"  # a whole sequential scan
PROFILE, PROFILE_PART = b"ICC_PROFILE\0", 65_519
PROFILE_PARTS = 255
RAMP = bytes(range(256))


class PictureHead(NamedTuple):
    """`length` is the offset of the entropy-coded data, `profile_at` that of a colour profile, behind JFIF.
    `has_profile`: there is one already."""

    length: int
    profile_at: int
    has_profile: bool


def is_unchanged(info: FrameInfo, rendering: Rendering) -> bool:
    """Returns whether rendering keeps every sample of such a frame, apart from its colour model."""
    if (info.bits_allocated, info.bits_stored, info.high_bit, info.pixel_representation) != (8, 8, 7, 0):
        return False
    if info.samples_per_pixel == 3:
        return info.photometric_interpretation in COLOURS
    return info.photometric_interpretation == "MONOCHROME2" and _keeps_grey(rendering)


@lru_cache(maxsize=64)
def _keeps_grey(rendering: Rendering) -> bool:
    try:
        return displayable(RAMP, FrameInfo(16, 16), rendering).tobytes() == RAMP
    except FrameCodecError:
        return False


def picture_head(start: bytes, end: bytes, info: FrameInfo) -> PictureHead | None:
    """Returns the head of a frame that begins with `start` (LONGEST_HEAD bytes, or all) and ends with `end`.
    Returns None if it cannot be served unchanged."""
    if not end.rstrip(b"\0").endswith(END):
        return None
    length = _head_length(start)
    return _judged(start[:length], info) if length else None


def _head_length(start: bytes) -> int:
    """Returns the offset of the entropy-coded data; 0 if markers do not follow one another."""
    at = 2
    while start[at : at + 1] == b"\xff":
        length = int.from_bytes(start[at + 2 : at + 4], "big")
        end = at + 2 + length
        if length < 2 or end > len(start):
            return 0
        if start[at + 1] == SOS:
            return end
        at = end
    return 0


@lru_cache(maxsize=256)
def _judged(head: bytes, info: FrameInfo) -> PictureHead | None:
    found = _HeadSegments()
    if head[:2] != b"\xff\xd8":
        return None
    at = 2
    while at < len(head):
        end = at + 2 + int.from_bytes(head[at + 2 : at + 4], "big")
        if not found.segment(head[at + 1], head[at + 4 : end]):
            return None
        if head[at + 1] == APP0 and at == found.profile_at:
            found.profile_at = end
        at = end
    return PictureHead(len(head), found.profile_at, found.has_profile) if found.fits(info) else None


@dataclass
class _HeadSegments:
    """The segments of a head."""

    profile_at: int = 2
    has_profile: bool = False
    adobe: int | None = None
    frame: bytes = b""
    scan: bytes = b""
    tables: set[tuple[int, int]] = field(default_factory=set)  # marker, and number with its class

    def segment(self, marker: int, body: bytes) -> bool:
        """Returns whether such a head may have this segment."""
        if marker == APP14:
            if body[:5] != b"Adobe" or len(body) < 12 or self.adobe is not None:
                return False
            self.adobe = body[11]
        elif marker == APP2:
            is_second, self.has_profile = self.has_profile, True
            return not is_second and body.startswith(PROFILE + b"\1\1")
        elif marker == BASELINE:
            is_first, self.frame = not self.frame, body
            return is_first
        elif marker == SOS:
            self.scan = body
        elif marker in (DQT, DHT):
            return self._tables(marker, body)
        elif marker == APP0:
            return body[:5] in (b"JFIF\0", b"JFXX\0")
        else:
            return marker in (COMMENT, DRI)
        return True

    def _tables(self, marker: int, body: bytes) -> bool:
        """Reads quantization tables of 8 bits (64 numbers), or Huffman tables (16 counts, and symbols)."""
        at = 0
        while at < len(body):
            self.tables.add((marker, body[at]))
            if marker == DQT:
                size = 64 if body[at] < 4 else len(body)
            else:
                size = 16 + sum(body[at + 1 : at + 17]) if body[at] & 0xEF < 2 else len(body)
            at += 1 + size
        return at == len(body)

    def fits(self, info: FrameInfo) -> bool:
        count, frame = info.samples_per_pixel, self.frame
        size = b"\x08" + info.rows.to_bytes(2, "big") + info.columns.to_bytes(2, "big") + bytes((count,))
        if frame[:6] != size or len(frame) != 6 + 3 * count:
            return False
        ids, sampling = frame[6::3], frame[7::3]
        if count == 3:
            is_colour = ids in NUMBERED and sampling[0] in LUMINANCE and sampling[1:] == CHROMINANCE
            if not is_colour or self.adobe not in (None, 1):
                return False
        elif count != 1:
            return False
        return self._is_whole_scan(ids) and self._has_tables()

    def _is_whole_scan(self, ids: bytes) -> bool:
        count = len(ids)
        ends = self.scan[:1] == bytes((count,)) and self.scan[1 + 2 * count :] == SPECTRUM
        return ends and self.scan[1 : 1 + 2 * count : 2] == ids

    def _has_tables(self) -> bool:
        wanted = {(DQT, number) for number in self.frame[8::3]}
        for numbers in self.scan[2:-3:2]:
            wanted |= {(DHT, numbers >> 4), (DHT, 0x10 | numbers & 0x0F)}
        return wanted <= self.tables


def profile_parts(length: int) -> list[tuple[bytes, int, int]]:
    """Returns, for each part of a colour profile of `length` bytes, its header in a picture, its offset and
    its length (ISO 15076-1 annex B). Returns nothing for a profile that is too long."""
    count = -(-length // PROFILE_PART)
    if not 0 < count <= PROFILE_PARTS:
        return []
    parts = []
    for number in range(count):
        at = number * PROFILE_PART
        size = min(PROFILE_PART, length - at)
        marker = bytes((0xFF, APP2)) + (size + 16).to_bytes(2, "big")
        parts.append((marker + PROFILE + bytes((number + 1, count)), at, size))
    return parts
