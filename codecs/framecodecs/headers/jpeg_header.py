"""Headers of JPEG (ISO/IEC 10918-1 annex B) and JPEG-LS (ISO/IEC 14495-1 annex C), which share their marker
syntax.

Strategy: read marker segments by their lengths. Inside entropy-coded data a regular expression of the family
finds the next marker: JPEG stuffs a zero byte after FF, JPEG-LS a zero bit. A codestream without EOI is cut.

Rules: there is one frame header (no hierarchical coding) with the height (no DNL). Scans and segments are
bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from framecodecs.errors import CodestreamError
from framecodecs.headers.codestream import CodestreamHeader, big_endian

SOI, EOI, SOS, DNL, DHP, APP0, APP14, LSE = 0xD8, 0xD9, 0xDA, 0xDC, 0xDE, 0xE0, 0xEE, 0xF8
BASELINE, EXTENDED, PROGRESSIVE, LOSSLESS, JPEG_LS = 0xC0, 0xC1, 0xC2, 0xC3, 0xF7
FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), JPEG_LS}) - {0xC4, 0xC8, 0xCC}
MAX_SEGMENTS = 2_000  # real files have under 30; each costs a microsecond
MAX_SCANS = 64  # a progressive file has about 10; a decoder goes through the whole picture for each
NEXT_MARKER = {False: re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]"), True: re.compile(rb"\xff+[\x80-\xfe]")}


@dataclass(frozen=True)
class JpegHeader(CodestreamHeader):
    """`process` is the SOF marker. `adobe` is the colour transform of APP14, None without one."""

    process: int
    component_ids: bytes
    jfif: bool
    adobe: int | None
    near: int
    predictor: int


@dataclass
class _JpegReader:
    frame: bytes
    position: int = 2
    segments: int = 0
    scans: int = 0
    process: int = 0
    body: bytes = b""
    jfif: bool = False
    adobe: int | None = None
    near: int = 0
    predictors: set[int] = field(default_factory=set)

    def run(self) -> JpegHeader:
        if self.frame[:2] != b"\xff\xd8":
            raise CodestreamError("no SOI marker where the codestream begins")
        while (marker := self.marker()) != EOI:
            self.segment(marker)
        if not self.scans:
            raise CodestreamError("the codestream has no scan")
        return self.header()

    def marker(self) -> int:
        """Returns the code of the next marker, and moves the position behind it."""
        found = NEXT_MARKER[True].match(self.frame, self.position)
        if found is None:
            cut = self.position >= len(self.frame)
            error = "the codestream ends without EOI" if cut else "no marker"
            raise CodestreamError(f"{error} at byte {self.position}")
        self.position = found.end()
        return self.frame[found.end() - 1]

    def segment(self, marker: int) -> None:
        length = big_endian(self.frame, self.position, 2)
        body = self.frame[self.position + 2 : self.position + length]
        self.segments += 1
        if length < 2 or len(body) != length - 2 or self.segments > MAX_SEGMENTS:
            raise CodestreamError(f"segment FF{marker:02X} at byte {self.position} has length {length}")
        self.position += length
        if marker in FRAME_HEADERS:
            self.frame_header(marker, body)
        elif marker == SOS:
            self.scan(body)
        elif marker in (DNL, DHP, SOI):
            raise CodestreamError(
                f"marker FF{marker:02X} at byte {self.position} has no place in a single frame"
            )
        elif marker == APP0:
            self.jfif = self.jfif or body[:5] == b"JFIF\0"
        elif marker == APP14 and body[:5] == b"Adobe" and len(body) >= 12:
            self.adobe = body[11]

    def frame_header(self, marker: int, body: bytes) -> None:
        if self.process or len(body) < 9 or len(body) != 6 + 3 * body[5]:
            raise CodestreamError(f"frame header FF{marker:02X} is malformed or the second one")
        self.process, self.body = marker, body

    def scan(self, body: bytes) -> None:
        if not self.process or len(body) < 6 or len(body) != 4 + 2 * body[0] or self.scans >= MAX_SCANS:
            raise CodestreamError("a scan header is malformed, too early or one too many")
        self.scans += 1
        self.near = max(self.near, body[-3])
        self.predictors.add(body[-3])
        found = NEXT_MARKER[self.process == JPEG_LS].search(self.frame, self.position)
        if found is None:
            raise CodestreamError("the codestream ends inside its picture, without EOI")
        self.position = found.start()

    def header(self) -> JpegHeader:
        body = self.body
        return JpegHeader(
            rows=big_endian(body, 1, 2),
            columns=big_endian(body, 3, 2),
            components=body[5],
            precision=body[0],
            start=0,
            end=self.position,
            process=self.process,
            component_ids=body[6::3],
            jfif=self.jfif,
            adobe=self.adobe,
            near=self.near,
            predictor=max(self.predictors),
        )


def read_jpeg_header(frame: bytes) -> JpegHeader:
    """Reads a whole JPEG or JPEG-LS codestream. Raises CodestreamError if it is malformed or cut."""
    return _JpegReader(frame).run()
