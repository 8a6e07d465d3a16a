"""Writes Explicit VR Little Endian (PS3.5 7.1.2, A.2): elements, the fragments of compressed pixels
(A.4), the head of a Part 10 file (PS3.10 7.1), and a stored file in another encoding. It is the only
native encoding that web services send (PS3.18 8.7.3).

Strategy: elements.py reads the dataset. Headers and small values become literals; large values and Pixel
Data become `Copy` or `Swap` pieces, which name bytes of the source. So the total length is known before
any of these bytes is read. In memory are only a window and one literal.

Rules:
- Sequences and items have undefined length (PS3.5 7.5), because their new lengths are not known in advance.
- An element whose VR has a 16-bit length becomes UN if its value exceeds 65,534 bytes (6.2.2).
- Group lengths (gggg,0000) are left out: they are retired, and would be wrong.
- Words of big endian values are swapped by the width of their VR; UN is always little endian (6.2.2).
  Pixel Data of VR OW and more than 16 bits are swapped by the cell: 7.3 speaks of 16-bit words, but
  existing files, and pydicom, have whole cells in big endian.
- Fragments are copied as they are, in any transfer syntax.
- A deflated dataset is explicit VR little endian already. Its only piece counts in the inflated dataset
  (window.Inflater).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from streamsrv.dicom import tags
from streamsrv.dicom.elements import (
    BINARY_VRS,
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED,
    Elements,
    Event,
)
from streamsrv.dicom.frames import scan_items
from streamsrv.dicom.part10 import (
    GROUP_LENGTH,
    PREAMBLE,
    PREFIX,
    TRANSFER_SYNTAX_UID,
    Encoding,
    FileMeta,
    encoding_of,
    read_file_meta,
)
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from streamsrv.dicom.values import WORDS, swapped
from streamsrv.dicom.window import UNKNOWN_END, Inflater, Pread, ReadLimits, ReadWindow
from streamsrv.errors import InstanceRefused

LITERAL = 64 * 1024  # literals are joined up to this size, and longer values are not loaded
CHUNK = 256 * 1024  # a multiple of every word width
# PS3.5 7.1: lengths are even, and 0xFFFFFFFF means undefined.
LONGEST = 0xFFFFFFFE
LONGEST_SHORT = 0xFFFE
ITEM_HEAD = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"  # of undefined length
ITEM_DELIMITER = b"\xfe\xff\x0d\xe0\0\0\0\0"
SEQUENCE_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
# This implementation (PS3.7 D.3.3.2). The UID is made from a UUID, which needs no registration (PS3.5 B.2).
IMPLEMENTATION_CLASS_UID = "2.25.1654476643511246558269671314570338076"
IMPLEMENTATION_VERSION_NAME = "STREAMSRV"

_BITS_ALLOCATED = 0x00280100
_OFFSETS = int(tags.EXTENDED_OFFSET_TABLE, 16)
_LENGTHS = int(tags.EXTENDED_OFFSET_TABLE_LENGTHS, 16)
_PIXEL_DATA = int(tags.PIXEL_DATA, 16)
_DEFAULT_LIMITS = ReadLimits()

_DELIMITERS = frozenset((ITEM, ITEM_END, SEQUENCE_END))

_short = struct.Struct("<HH2sH").pack
_long = struct.Struct("<HH2sHI").pack
_fragment = struct.Struct("<HHI").pack
_SHORT = frozenset(SHORT_VRS.values())
_NUL_PADDED = frozenset(("UI", *BINARY_VRS))


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes of the source."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Swap:
    """Bytes of the source with the bytes of each word of `width` reversed."""

    offset: int
    length: int
    width: int


@dataclass(frozen=True, slots=True)
class Here:
    """The place of an element that the caller writes: header, value and delimiter."""

    tag: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of the top level of a dataset: for each tag VR and little endian value, or Here, or None to
    remove the element. `syntax` is the transfer syntax for the file meta information."""

    syntax: str
    elements: Mapping[int, tuple[str, bytes] | Here | None]


Piece = bytes | Copy | Swap


def explicit_pieces(pread: Pread, size: int, limits: ReadLimits = _DEFAULT_LIMITS) -> Iterator[Piece]:
    """The Part 10 file of `size` bytes, encoded again. `inflater` reads the pieces of a deflated one.
    Raises NotDicom and InstanceRefused."""
    window = ReadWindow(pread, size)
    meta = read_file_meta(window, size, limits)
    encoding = encoding_of(meta, window)
    head = window.bytes_at(0, PREAMBLE) + PREFIX + file_meta(meta, EXPLICIT_VR_LITTLE_ENDIAN)
    if encoding.deflated:
        yield head
        yield Copy(0, _inflated_length(pread, size, meta.end, limits))
        return
    unchanged = Changes(EXPLICIT_VR_LITTLE_ENDIAN, {})
    for piece in _encoded_again(pread, window, (meta.end, size), encoding, limits, unchanged, head):
        if not isinstance(piece, Here):
            yield piece


def changed_pieces(
    pread: Pread, size: int, changes: Changes, limits: ReadLimits = _DEFAULT_LIMITS
) -> Iterator[Piece | Here]:
    """As `explicit_pieces`, with changes. All pieces of a deflated file but the first count in its inflated
    dataset."""
    window = ReadWindow(pread, size)
    meta = read_file_meta(window, size, limits)
    encoding = encoding_of(meta, window)
    head = window.bytes_at(0, PREAMBLE) + PREFIX + file_meta(meta, changes.syntax)
    extent = meta.end, size
    if encoding.deflated:
        pread, extent = inflater(pread, size, limits).pread, (0, UNKNOWN_END)
        window = ReadWindow(pread, UNKNOWN_END)
    yield from _encoded_again(pread, window, extent, encoding, limits, changes, head)


def _encoded_again(
    pread: Pread,
    window: ReadWindow,
    extent: tuple[int, int],
    encoding: Encoding,
    limits: ReadLimits,
    changes: Changes,
    head: bytes,
) -> Iterator[Piece | Here]:
    """`extent` are the begin and the end of the dataset in offsets of `pread`."""
    limits = replace(limits, bulk_threshold=LITERAL, text_threshold=LITERAL)
    encoder = _ExplicitWriter(pread, limits)
    elements = Elements(
        window,
        *extent,
        explicit=encoding.explicit,
        little=encoding.little,
        limits=limits,
        skip_fragments=encoder.skip_fragments,
    )
    yield from encoder.pieces(elements, changes, head)


def inflater(pread: Pread, size: int, limits: ReadLimits = _DEFAULT_LIMITS) -> Inflater:
    """The source of the pieces, frames and bulk values of a deflated file."""
    return Inflater(
        pread, read_file_meta(ReadWindow(pread, size), size, limits).end, size, limits.max_inflated
    )


def swap_width(vr: str, bits_allocated: int = 0) -> int:
    """Bytes of the words of a big endian value. Pass `bits_allocated` for Pixel Data of the image."""
    if vr == "OW" and bits_allocated in (32, 64):
        return bits_allocated // 8
    return WORDS.get(vr, 1)


def file_meta(meta: FileMeta, syntax: str) -> bytes:
    """File meta information with another transfer syntax and a correct group length."""
    elements = {tag: (vr, value) for tag, vr, value in meta.elements if tag != GROUP_LENGTH}
    elements[TRANSFER_SYNTAX_UID] = ("UI", syntax.encode())
    body = b"".join([whole_element(tag, vr, value) for tag, (vr, value) in sorted(elements.items())])
    return whole_element(GROUP_LENGTH, "UL", struct.pack("<I", len(body))) + body


def element_head(tag: int, vr: str, length: int) -> bytes:
    """Tag, VR and length. The VR becomes UN if the value is too long for a 16-bit length (PS3.5 6.2.2)."""
    group, element = tag >> 16, tag & 0xFFFF
    if vr in _SHORT:
        if length <= LONGEST_SHORT:
            return _short(group, element, vr.encode(), length)
        vr = "UN"
    return _long(group, element, vr.encode(), 0, length)


def padding(vr: str, length: int) -> bytes:
    """The byte that makes the length even."""
    return (b"\0" if vr in _NUL_PADDED else b" ") if length % 2 else b""


def whole_element(tag: int, vr: str, value: bytes) -> bytes:
    value += padding(vr, len(value))
    return element_head(tag, vr, len(value)) + value


def fragments(ranges: Sequence[Copy]) -> Iterator[bytes | Copy]:
    """Pixel Data with one fragment for each frame. Raises InstanceRefused for a frame that is too long.

    The basic offset table has 32-bit offsets. If these do not suffice it is empty, and the extended one
    stands before Pixel Data (PS3.3 C.7.6.3.1.8).
    """
    if any(each.length > LONGEST for each in ranges):
        raise InstanceRefused("a frame is longer than a fragment can be", tag=tags.PIXEL_DATA)
    offsets, at = [], 0
    for each in ranges:
        offsets.append(at)
        at += 8 + each.length + each.length % 2
    basic = b""
    if offsets[-1] <= LONGEST:
        basic = struct.pack(f"<{len(offsets)}I", *offsets)
    else:
        lengths = [each.length for each in ranges]
        tables = (_OFFSETS, offsets), (_LENGTHS, lengths)
        for tag, table in tables:
            yield whole_element(tag, "OV", struct.pack(f"<{len(table)}Q", *table))
    yield element_head(_PIXEL_DATA, "OB", UNDEFINED) + _fragment(0xFFFE, 0xE000, len(basic)) + basic
    for each in ranges:
        yield _fragment(0xFFFE, 0xE000, each.length + each.length % 2)
        yield each
        if each.length % 2:
            yield b"\0"
    yield SEQUENCE_DELIMITER


def part10_head(sop_class: str, instance: str, syntax: str) -> bytes:
    """Preamble, prefix and file meta information."""
    body = b"".join(
        (
            whole_element(0x00020001, "OB", b"\0\1"),
            whole_element(0x00020002, "UI", sop_class.encode("ascii", "replace")),
            whole_element(0x00020003, "UI", instance.encode("ascii", "replace")),
            whole_element(TRANSFER_SYNTAX_UID, "UI", syntax.encode("ascii", "replace")),
            whole_element(0x00020012, "UI", IMPLEMENTATION_CLASS_UID.encode()),
            whole_element(0x00020013, "SH", IMPLEMENTATION_VERSION_NAME.encode()),
        )
    )
    return bytes(PREAMBLE) + PREFIX + whole_element(0x00020000, "UL", struct.pack("<I", len(body))) + body


def _inflated_length(pread: Pread, size: int, start: int, limits: ReadLimits) -> int:
    source = Inflater(pread, start, size, limits.max_inflated)
    length = 0
    while piece := source.pread(length, CHUNK):
        length += len(piece)
    return length


def _changed(tag: int, change: tuple[str, bytes] | Here | None) -> Iterator[bytes | Here]:
    if isinstance(change, Here):
        yield change
    elif change is not None:
        yield whole_element(tag, *change)


class _ExplicitWriter:
    """Encodes one dataset that is not deflated."""

    def __init__(self, pread: Pread, limits: ReadLimits) -> None:
        self._pread = pread
        self._limits = limits
        self._fragments = UNKNOWN_END  # offset of the last fragments
        self._bits_allocated = 0

    def skip_fragments(self, tag: int, start: int, end: int, little: bool) -> int:
        self._fragments = start
        return scan_items(self._pread, start, end, self._limits.max_fragments, little=little).end

    def pieces(self, elements: Elements, changes: Changes, head: bytes) -> Iterator[Piece | Here]:
        literal = [head]
        pending = len(head)
        for piece in self._with_changes(elements, changes):
            if isinstance(piece, bytes):
                literal.append(piece)
                pending += len(piece)
                if pending <= LITERAL:
                    continue
            if literal:
                yield b"".join(literal)
                literal, pending = [], 0
            if not isinstance(piece, bytes):
                yield piece
        if literal:
            yield b"".join(literal)

    def _with_changes(self, elements: Elements, changes: Changes) -> Iterator[Piece | Here]:
        waiting = sorted(changes.elements.items(), reverse=True)
        levels = elements.levels
        left_out = False  # inside a removed sequence
        for event in elements.events():
            tag, vr = event[0], event[1]
            if left_out:
                left_out = len(levels) > 1
                continue
            if tag == _BITS_ALLOCATED and len(levels) == 1 and event[4]:
                self._bits_allocated = event[4][0] or event[4][-1]
            # A sequence has opened its container before its event.
            if len(levels) - (vr == "SQ") == 1 and tag not in _DELIMITERS:
                while waiting and waiting[-1][0] <= tag:
                    yield from _changed(*waiting.pop())
                if tag in changes.elements:
                    left_out = vr == "SQ" and len(levels) > 1
                    continue
            yield from self._encoded(event, levels[-1].little)
        while waiting:
            yield from _changed(*waiting.pop())

    def _encoded(self, event: Event, little: bool) -> Iterator[Piece]:
        tag, vr, offset, length, value = event
        width = 1 if little else swap_width(vr, self._bits_allocated if tag == _PIXEL_DATA else 0)
        if value is not None:
            if tag & 0xFFFF:
                yield element_head(tag, vr, length) + swapped(value, width)
        elif tag == ITEM:
            yield ITEM_HEAD
        elif tag == ITEM_END:
            yield ITEM_DELIMITER
        elif tag == SEQUENCE_END:
            yield SEQUENCE_DELIMITER
        elif vr == "SQ":
            yield element_head(tag, vr, UNDEFINED)
        elif offset == self._fragments:
            yield element_head(tag, vr, UNDEFINED)
            yield Copy(offset, length)
            yield SEQUENCE_DELIMITER
        elif tag & 0xFFFF:
            yield element_head(tag, vr, length)
            yield Copy(offset, length) if width == 1 else Swap(offset, length, width)
