"""Reads multipart bodies (RFC 2046 5.1, RFC 2387) without I/O, bytes in, events out; and writes the
delimiters and heads of parts.

Strategy: `bytes.rfind` and `find` look for delimiters at up to 30 GB/s. Payloads are views of the chunk
that the caller fed. The parser keeps bytes that are undecided: the tail of a chunk that may begin a
delimiter, or an incomplete header block. It reads the begin of the next chunk behind these bytes (the
*seam*), and then the rest of the chunk in place.

Rules
- delimiter := CRLF "--" boundary, then either "--" (the end of the body) or transport padding (blanks)
  and CRLF. Anything else is payload, however similar, because pixel data may have any bytes.
- The parser puts a CRLF before the body, so that a delimiter may be its first bytes. The CRLF at the end
  of a header block may begin a delimiter too; the part is then empty.
- The preamble before the first delimiter and the epilogue behind the last are skipped.
- Payload views are valid until the next `feed`. Do not use the parser after an error.

    PREAMBLE --delimiter--> HEADERS --blank line--> PAYLOAD --delimiter--> HEADERS ... --close--> EPILOGUE
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from streamsrv.errors import ContentTooLarge, MultipartError, UnsupportedMediaType
from streamsrv.wire.answers import field_lines
from streamsrv.wire.mediatypes import (
    DICOM,
    DICOM_JSON,
    DICOM_XML,
    MULTIPART,
    MediaType,
    media_type_text,
    parse_media_type,
)

Buffer: TypeAlias = bytes | bytearray

# RFC 2046 allows 70, and some clients exceed it. The undecided tail has this length.
MAX_BOUNDARY = 256
NO_LIMIT = 1 << 62
# Bytes of a window of the search, and how many of them decide about its direction.
WINDOW = 128 * 1024
SAMPLE = 64
# Blanks behind a boundary (RFC 2046 5.1.1). A line with more of them is no delimiter.
MAX_PADDING = 64

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*\Z")
_FOLD = re.compile(rb"\r\n[ \t]+")  # obs-fold, RFC 5322 2.2.3
_FORBIDDEN = re.compile(rb"[\0\r\n]")
_BOUNDARY = re.compile(r"[\x20-\x7e\x80-\xff]+")

STORABLE = (*(f'{MULTIPART}; type="{each}"' for each in (DICOM, DICOM_JSON, DICOM_XML)), DICOM)


@dataclass(frozen=True, slots=True)
class MultipartLimits:
    """Each limit bounds memory or time; none can be switched off."""

    header_bytes: int = 16 * 1024  # of the header block of a part, which is in memory; usual ones have 1 kB
    headers: int = 64  # in one part; usual ones have at most 5
    parts: int = 100_000  # in one body: an empty part is cheap to send, but not to answer
    preamble: int = 64 * 1024  # bytes; a body with another boundary would be one endless preamble


@dataclass(frozen=True, slots=True)
class PartBegin:
    """`headers` by lower-case name. Several with one name are joined by ", "."""

    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Payload:
    """The next bytes of the part."""

    view: bytes | memoryview


@dataclass(frozen=True, slots=True)
class PartEnd:
    pass


@dataclass(frozen=True, slots=True)
class BodyEnd:
    """The close delimiter. Bytes behind it have no meaning."""


Event: TypeAlias = PartBegin | Payload | PartEnd | BodyEnd

_PART_END, _BODY_END = PartEnd(), BodyEnd()


class _ParserState(enum.Enum):
    PREAMBLE = "before the first boundary"
    HEADERS = "in the headers of a part"
    PAYLOAD = "in a part"
    EPILOGUE = "after the last boundary"


class MultipartParser:
    """Raises MultipartError for a malformed body and ContentTooLarge above a limit."""

    def __init__(self, boundary: bytes, limits: MultipartLimits | None = None) -> None:
        self._limits = limits or MultipartLimits()
        self._delimiter = b"\r\n--" + boundary
        # CPython's `rfind` first compares the lower six bits of a byte.
        near = {byte % 64 for byte in self._delimiter}
        self._foreign = bytes(byte for byte in range(256) if byte % 64 not in near)
        self._line = re.compile(re.escape(self._delimiter) + rb"(?:--|[ \t]{0,%d}\r\n)" % MAX_PADDING)
        self._unfinished = re.compile(rb"-|[ \t]{0,%d}\r?" % MAX_PADDING)
        # The longest delimiter line, and so the longest undecided tail of a payload.
        self._longest = len(self._delimiter) + MAX_PADDING + 2
        # The longest undecided header block.
        self._reach = 2 + self._limits.header_bytes + self._longest
        self._state = _ParserState.PREAMBLE
        self._held: bytes = b"\r\n"
        self._fed = 0  # bytes of the body before this chunk
        self._base = 0  # body offset of index 0 of the buffer
        self._lead = 0  # bytes before the payload: the CRLF of a blank line
        self._parts = 0
        self._block, self._block_headers = b"", dict[str, str]()  # of the last part
        self.more = False  # the last `feed` stopped at `most`: feed b"" for the rest
        self._steps = {
            _ParserState.PREAMBLE: self._preamble,
            _ParserState.HEADERS: self._headers,
            _ParserState.PAYLOAD: self._payload,
            _ParserState.EPILOGUE: self._epilogue,
        }

    def feed(
        self, chunk: Buffer | memoryview, size: int | None = None, *, start: int = 0, most: int = NO_LIMIT
    ) -> list[Event]:
        """Takes the next bytes of the body: `chunk`, or `size` bytes of it from `start` on.

        A memoryview is copied, because it has no search; pass a reused bytearray instead. The parser
        stops at about `most` events, because a megabyte may have 100,000 parts. It then sets `more`, and
        the caller feeds b"" until `more` is false, before the next chunk.
        """
        buffer = bytes(chunk) if isinstance(chunk, memoryview) else chunk
        end = len(buffer) if size is None else start + size
        events: list[Event] = []
        kept, at = len(self._held), 0
        if kept:
            seam = self._held + buffer[start : min(end, start + self._reach)]
            self._base = self._fed - kept
            at = self._run(seam, len(seam), 0, kept, events, most) - kept
        if at < 0:  # The seam has the whole chunk and is undecided, or `most` stopped inside it.
            self._held = seam[kept + at :] + bytes(buffer[start + len(seam) - kept : end])
        else:
            self._base = self._fed - start
            at = self._run(buffer, end, start + at, end, events, most)
            self._held = bytes(buffer[at:end])
        self._fed += end - start
        self.more = len(events) >= most
        return events

    def close(self) -> None:
        """Ends the body. Raises MultipartError if it had no close delimiter."""
        if self._state is not _ParserState.EPILOGUE:
            raise MultipartError(f"the multipart body ends {self._state.value}", self._fed)

    def _run(self, buffer: Buffer, end: int, at: int, stop: int, events: list[Event], most: int) -> int:
        """Reads from `at` until the rest before `end` is undecided, the position has passed `stop`, or
        there are `most` events. Returns the position."""
        while at < stop and len(events) < most:
            before, at = at, self._steps[self._state](buffer, at, end, events)
            if at == before:
                break
        return at

    # Each step reads from `at` on. It returns the new position, or `at` if it needs more bytes.

    def _preamble(self, buffer: Buffer, at: int, end: int, events: list[Event]) -> int:
        start, after = self._find(buffer, at, end)
        if self._base + start > self._limits.preamble:
            raise ContentTooLarge(
                f"the first {self._limits.preamble} bytes of the body do not hold its Content-Type's boundary"
            )
        return self._delimited(buffer, after, events) if after else start

    def _headers(self, buffer: Buffer, at: int, end: int, events: list[Event]) -> int:
        first, cap = at + 2, min(end, at + self._reach)
        stop = buffer.find(b"\r\n\r\n", at, cap)
        start, after = self._find(buffer, at, cap if stop < 0 else stop + 2)
        if after:
            stop = start  # no blank line: the part ends within its headers
        if stop - first > self._limits.header_bytes or (stop < 0 and cap < end):
            limit, offset = self._limits.header_bytes, self._base + first
            raise ContentTooLarge(
                f"the headers of the part at byte {offset} of the body exceed {limit} bytes"
            )
        if stop < 0:
            return at
        block = bytes(buffer[first:stop])
        if block != self._block:  # mostly all parts have the same
            self._block, self._block_headers = block, self._parse_headers(block, self._base + first)
        events.append(PartBegin(self._block_headers))
        if after:
            events.append(_PART_END)
            return self._delimited(buffer, after, events)
        self._state, self._lead = _ParserState.PAYLOAD, 2
        return stop + 2

    def _payload(self, buffer: Buffer, at: int, end: int, events: list[Event]) -> int:
        start, after = self._find(buffer, at, end)
        first = at + self._lead
        if start > first:
            events.append(Payload(memoryview(buffer)[first:start]))
        if after:
            events.append(_PART_END)
            return self._delimited(buffer, after, events)
        if start > at:
            self._lead = 0
        return start

    def _epilogue(self, buffer: Buffer, at: int, end: int, events: list[Event]) -> int:
        return end

    def _delimited(self, buffer: Buffer, after: int, events: list[Event]) -> int:
        """Handles a delimiter line that ends at `after`. Its CRLF is read again, before the headers."""
        if buffer[after - 1 : after] == b"-":
            self._state = _ParserState.EPILOGUE
            events.append(_BODY_END)
            return after
        self._parts += 1
        if self._parts > self._limits.parts:
            raise ContentTooLarge(f"the body has more than {self._limits.parts} parts")
        self._state = _ParserState.HEADERS
        return after - 2

    def _find(self, buffer: Buffer, at: int, end: int) -> tuple[int, int]:
        """(start, after) of the first delimiter line. Without one `after` is 0, and `start` is the first
        byte that may begin one: the last whole delimiter or the last CR, because a boundary has no CR."""
        delimiter = self._delimiter
        start = self._first(buffer, at, end)
        if start >= 0:
            if line := self._line.search(buffer, start, end):
                return line.span()
            start = buffer.rfind(delimiter, start, end)
            if self._unfinished.fullmatch(buffer, start + len(delimiter), end):
                return start, 0
        start = buffer.rfind(b"\r", max(at, end - len(delimiter) + 1), end)
        if start >= 0 and delimiter.startswith(bytes(buffer[start:end])):
            return start, 0
        return end, 0

    def _first(self, buffer: Buffer, at: int, end: int) -> int:
        """`buffer.find(delimiter, at, end)`, mostly at 30 GB/s instead of 12. If many bytes of a window
        cannot be in a delimiter, `rfind` is faster, and shows whether the window has one."""
        delimiter = self._delimiter
        while end - at > WINDOW:
            alike = buffer[at : at + WINDOW : WINDOW // SAMPLE].translate(None, self._foreign)
            search = buffer.find if len(alike) > SAMPLE // 2 else buffer.rfind
            if search(delimiter, at, at + WINDOW + len(delimiter) - 1) >= 0:
                break
            at += WINDOW
        return buffer.find(delimiter, at, end)

    def _parse_headers(self, block: bytes, offset: int) -> dict[str, str]:
        headers: dict[str, str] = {}
        lines = _FOLD.sub(b" ", block).split(b"\r\n") if block else []
        if len(lines) > self._limits.headers:
            raise ContentTooLarge(
                f"the part at byte {offset} of the body has more than {self._limits.headers} headers"
            )
        for line in lines:
            raw_name, colon, raw_value = line.partition(b":")
            if not colon or not _NAME.match(raw_name) or _FORBIDDEN.search(raw_value):
                raise MultipartError("a part has a malformed header", offset)
            name = raw_name.rstrip().decode("ascii").lower()
            value = raw_value.strip().decode("utf-8", "replace")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return headers


# Content-Type of a body


def content_type_of(value: str | None) -> MediaType:
    """The media type of a Content-Type header. Raises UnsupportedMediaType if it is missing or
    malformed."""
    if not value:
        raise UnsupportedMediaType("the request has a body without a Content-Type", STORABLE)
    media_type = parse_media_type(value)
    if media_type is None:
        raise UnsupportedMediaType("the Content-Type is malformed", STORABLE)
    return media_type


def boundary_of(content_type: MediaType) -> bytes:
    """The boundary of a multipart/related body. Raises UnsupportedMediaType for another type, and for a
    missing or invalid boundary."""
    if content_type.type != MULTIPART:
        raise UnsupportedMediaType(f"{content_type.type} is not {MULTIPART}", STORABLE)
    boundary = content_type.parameters.get("boundary", "").rstrip(" ")
    if not boundary:
        raise UnsupportedMediaType("the Content-Type names no boundary", STORABLE)
    # Header values are decoded as ISO 8859-1, so encoding restores the bytes of the client.
    if len(boundary) > MAX_BOUNDARY or not _BOUNDARY.fullmatch(boundary):
        raise UnsupportedMediaType(
            "the boundary is too long, or has a character that a boundary cannot have", STORABLE
        )
    return boundary.encode("latin-1")


# Writing: part_head, payload and PAYLOAD_END for each part, then closing.

# The CRLF before the next delimiter. None stands before the first one: RFC 2046 5.1.1 allows it there, but
# some clients cannot read such a body.
PAYLOAD_END = b"\r\n"


def boundary_from(secret: bytes, *identity: str) -> bytes:
    """A boundary that is the same for the same representation. Without the secret it cannot be put into a
    file."""
    key = "\0".join(identity).encode()
    return hashlib.blake2b(key, key=secret, digest_size=20).hexdigest().encode("ascii")


def multipart_type(boundary: bytes, part_type: str) -> str:
    """The outer Content-Type, with `type` before `boundary`."""
    if boundary.isalnum():  # from `boundary_from`: needs no quotes
        return _typed(part_type) + boundary.decode("ascii")
    return media_type_text(MULTIPART, {"type": part_type, "boundary": boundary.decode("latin-1")})


@lru_cache(maxsize=64)
def _typed(part_type: str) -> str:
    return media_type_text(MULTIPART, {"type": part_type}) + "; boundary="


def part_head(boundary: bytes, headers: Mapping[str, str]) -> bytes:
    """The delimiter line and the headers of a part. Viewers need `Content-Type:` in exactly this case."""
    return b"--%b\r\n%b\r\n" % (boundary, field_lines(list(headers.items())))


def closing(boundary: bytes) -> bytes:
    """The close delimiter line."""
    return b"--%b--\r\n" % boundary
