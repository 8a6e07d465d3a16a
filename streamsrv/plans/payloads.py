"""The bytes of one instance as the pieces of a plan, and multipart plans of many (RFC 2387, PS3.18 8.6.1.2).

Stored bytes are spans of their segment. Bytes that have to be changed become literals, or a ByteStream that
makes them while they are sent: implicit VR and big endian are not sent (PS3.18 8.7.3), deflated datasets
hide their frames, and a 1-bit frame may begin inside a byte. The heads of parts are literals.

A representation has the same bytes each time, because viewers join ranges of it. The boundary comes from the
ETag and the secret of the store: it changes with the content, and no client can plant it in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamsrv.dicom import explicit
from streamsrv.dicom.frames import fragment_spans
from streamsrv.dicom.instance import FRAGMENTED, BulkValue, FrameKind
from streamsrv.dicom.syntaxes import lookup
from streamsrv.dicom.window import Pread
from streamsrv.errors import NotFound, StoreCorrupt
from streamsrv.plans.selection import Selection
from streamsrv.store import InstanceRow, Store
from streamsrv.wire.answers import ByteStream, Literal, Piece, Span
from streamsrv.wire.multipart import PAYLOAD_END, closing, part_head

CHUNK = 1 << 20  # bytes that a ByteStream makes at a time
# Entries of a frame table looked up at once: 64 kB of table.
FRAMES_AT_ONCE = 4_096
# Answers of up to this many parts keep their plan. Longer ones make it twice: for the length, and while they
# are sent.
PARTS_KEPT = 2_048


def span(row: InstanceRow, offset: int, length: int) -> Span:
    return Span(row.location.segment, row.location.offset + offset, length)


def instance_pieces(selection: Selection, row: InstanceRow, syntax: str) -> list[Piece]:
    """The stored Part 10 file if `syntax` is the stored one, else the dataset in Explicit VR Little
    Endian."""
    if syntax == row.transfer_syntax:
        return [span(row, 0, row.location.length)]
    made = explicit.explicit_pieces(reader(selection, row), row.location.length)
    return [as_piece(selection, row, piece) for piece in made]


def as_piece(selection: Selection, row: InstanceRow, piece: explicit.Piece) -> Piece:
    if isinstance(piece, bytes):
        return Literal(piece)
    if isinstance(piece, explicit.Swap):
        return swapped(selection, row, piece.offset, 0, piece.length, piece.width)
    return stored_piece(selection, row, piece.offset, piece.length)


def stored_piece(selection: Selection, row: InstanceRow, offset: int, length: int) -> Piece:
    """Unchanged bytes of the dataset: a span, or a ByteStream if they have to be inflated."""
    if not row.deflated:
        return span(row, offset, length)

    def chunks(start: int, stop: int | None) -> Iterator[bytes]:
        pread, at = dataset_reader(selection, row), offset + start
        end = offset + (length if stop is None else stop)
        while at < end:
            chunk = pread(at, min(CHUNK, end - at))
            if not chunk:
                raise StoreCorrupt(f"a dataset ended {end - at} bytes before a value that the index knows")
            yield chunk
            at += len(chunk)

    return ByteStream(chunks, length)


def frame_pieces(
    store: Store, selection: Selection, row: InstanceRow, indices: Sequence[int]
) -> Iterator[list[Piece]]:
    """The pieces of each frame: little endian, without padding."""
    if row.frame_kind in (FrameKind.NONE, FrameKind.EMPTY):
        raise NotFound("this SOP instance has no frames")
    if row.frame_kind is FrameKind.TABLE:
        yield from encapsulated_frames(store, selection, row, indices)
        return
    for index in indices:
        yield [native_frame(selection, row, index)]


def encapsulated_frames(
    store: Store, selection: Selection, row: InstanceRow, indices: Sequence[int]
) -> Iterator[list[Piece]]:
    for at in range(0, len(indices), FRAMES_AT_ONCE):
        batch = indices[at : at + FRAMES_AT_ONCE]
        # The entries of the requested frames were read with the row.
        entries = selection.entries if batch == selection.frames else store.frame_entries(row, batch)
        for offset, length in entries:
            if length & FRAGMENTED:
                fragments = fragment_spans(reader(selection, row), offset, length)
                yield [span(row, start, size) for start, size in fragments]
            else:
                yield [span(row, offset, length)]


def native_frame(selection: Selection, row: InstanceRow, index: int) -> Piece:
    if row.frame_kind is FrameKind.BITS:
        return unaligned_bits(selection, row, index)
    offset = row.frame_base + index * row.frame_stride
    width = 1 if lookup(row.transfer_syntax).little_endian else pixel_word(selection, row)
    if width > 1:
        return swapped(selection, row, row.frame_base, offset - row.frame_base, row.frame_stride, width)
    return stored_piece(selection, row, offset, row.frame_stride)


def pixel_word(selection: Selection, row: InstanceRow) -> int:
    """Bytes of a word of big endian Pixel Data, by its VR. Tag, VR, two reserved bytes and length stand
    before the value (PS3.5 7.1.2)."""
    vr = selection.pread(row, row.pixel_offset - 8, 2).decode("latin-1")
    return explicit.swap_width(vr, row.bits_allocated)


def swapped(
    selection: Selection, row: InstanceRow, base: int, at: int, length: int, width: int
) -> ByteStream:
    """`length` bytes from `at` bytes behind `base`, in words of `width` bytes that count from `base`."""

    def chunks(start: int, stop: int | None) -> Iterator[bytes]:
        first, last = at + start, at + (length if stop is None else stop)
        while first < last:
            low = first - first % width
            high = min(low + CHUNK, last + (-last) % width)
            words = selection.pread(row, base + low, high - low)
            whole = np.frombuffer(words, f">u{width}").astype(f"<u{width}").tobytes()
            part = whole[first - low : last - low]
            yield part
            first += len(part)

    return ByteStream(chunks, length)


def unaligned_bits(selection: Selection, row: InstanceRow, index: int) -> ByteStream:
    """A frame of 1-bit pixels, shifted so that its first pixel is bit 0 of the first byte (PS3.5 8.1.1: bits
    fill bytes from the low end). The bits after its last pixel are zero."""
    first_bit = index * row.frame_stride
    shift, length = first_bit % 8, (row.frame_stride + 7) // 8
    offset, tail = row.frame_base + first_bit // 8, row.frame_stride % 8

    def chunks(start: int, stop: int | None) -> Iterator[bytes]:
        pread, end = dataset_reader(selection, row), length if stop is None else stop
        while start < end:
            number = min(CHUNK, end - start)
            # The byte after the frame is needed for its low bits, and may lie beyond the value.
            there = min(number + 1, row.pixel_offset + row.pixel_length - offset - start)
            packed = np.zeros(number + 1, np.uint16)
            packed[:there] = np.frombuffer(pread(offset + start, there), np.uint8)
            moved = ((packed[:-1] >> shift) | (packed[1:] << (8 - shift))).astype(np.uint8)
            if tail and start + number == length:
                moved[-1] &= (1 << tail) - 1
            yield moved.tobytes()
            start += number

    return ByteStream(chunks, length)


def bulk_piece(selection: Selection, row: InstanceRow, value: BulkValue) -> Piece:
    """A bulk value as little endian bytes."""
    if value.offset == row.pixel_offset and row.frame_kind is FrameKind.NATIVE:
        width = 1 if lookup(row.transfer_syntax).little_endian else pixel_word(selection, row)
    else:
        width = 1 if lookup(row.transfer_syntax).little_endian else explicit.swap_width(value.vr)
    if width > 1:
        return swapped(selection, row, value.offset, 0, value.length, width)
    return stored_piece(selection, row, value.offset, value.length)


def reader(selection: Selection, row: InstanceRow) -> Pread:
    """Reads the Part 10 file of one instance in place."""
    return lambda offset, length: selection.pread(row, offset, length)


def dataset_reader(selection: Selection, row: InstanceRow) -> Pread:
    """Reads the dataset at the offsets of the index. A deflated dataset (PS3.5 A.5) is inflated from its
    start, so a value costs all bytes before it. The next frame continues at the end of the last one."""
    if not row.deflated:
        return reader(selection, row)
    return selection.inflated(
        row, lambda: explicit.inflater(reader(selection, row), row.location.length).pread
    )


@dataclass(slots=True)
class Part:
    media_type: str  # with its transfer-syntax parameter
    location: str  # Content-Location; none if it is empty
    pieces: Iterable[Piece]


PartSource = Callable[[], Iterable[Part]]  # the same parts at each call


def multipart_plan(parts: PartSource, count: int, boundary: bytes) -> tuple[Iterable[Piece], int | None]:
    """The plan and its length (None if a piece's length is not known)."""
    if count <= PARTS_KEPT:
        kept = list(pieces_of(parts(), boundary))
        return kept, total_length(kept)
    return LazyPlan(parts, boundary), total_length(pieces_of(parts(), boundary))


@dataclass(frozen=True, slots=True)
class LazyPlan:
    """Makes its pieces on each iteration, so that a plan of 100,000 parts is never held."""

    parts: PartSource
    boundary: bytes

    def __iter__(self) -> Iterator[Piece]:
        return pieces_of(self.parts(), self.boundary)


def pieces_of(parts: Iterable[Part], boundary: bytes) -> Iterator[Piece]:
    before = b""
    for part in parts:
        headers = {"Content-Type": part.media_type, "Content-Location": part.location}
        yield Literal(before + part_head(boundary, headers))
        yield from part.pieces
        before = PAYLOAD_END
    yield Literal(before + closing(boundary))


def total_length(pieces: Iterable[Piece]) -> int | None:
    total = 0
    for piece in pieces:
        if piece.length is None:
            return None
        total += piece.length
    return total
