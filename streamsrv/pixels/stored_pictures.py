"""Stored JPEG frames that are sent as pictures, without decoding.

Strategy: the query and the description are checked first (`may_be`, `is_unchanged`), then the first few
kilobytes of the frame (`framecodecs.rendering.jpeg_pictures`). If rendering changed nothing but added a
second loss, the kernel sends the stored bytes (PS3.18 8.3.5.1.2 allows it). A colour profile of the dataset
is inserted at its place, and is sent as it is stored too.

Rules of this file
- A window, a viewport that scales, a quality, annotations and other colours need pixels: the frame is drawn.
  In doubt it is drawn, too.
- The choice depends only on stored bytes and the request, so every worker gives the same answer.
- Only the head and the end are read: a damaged scan is sent as it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from framecodecs.frameinfo import FrameInfo
from framecodecs.rendering.jpeg_pictures import (
    LONGEST_HEAD,
    PictureHead,
    is_unchanged,
    picture_head,
    profile_parts,
)
from framecodecs.rendering.pictures import fitted_size
from framecodecs.rendering.rendering import AS_STORED
from streamsrv.dicom.instance import FrameKind
from streamsrv.dicom.json.values import inline_binary
from streamsrv.pixels.description import Description
from streamsrv.pixels.viewing import RenderingParameters, icc_profile_place, rendering_of
from streamsrv.plans.payloads import bulk_piece, frame_pieces
from streamsrv.plans.selection import Selection
from streamsrv.store import InstanceRow, Store
from streamsrv.wire.answers import Literal, Piece, Span
from streamsrv.wire.conditional import slice_plan

JPEG = "image/jpeg"
SYNTAXES = frozenset(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"))
# The end of a frame, with its padding to an even length.
END = 8
# Look-up tables and ICC profiles have under 1 MB; longer ones are ignored.
LARGEST_TABLE = 16 << 20
SHORT_PROFILE = 64 << 10
LOOK_UP_TABLES = ("00283000", "00283010")


def may_be(row: InstanceRow, parameters: RenderingParameters, media_type: str) -> bool:
    """Whether the query and the transfer syntax allow it."""
    return (
        media_type == JPEG
        and row.transfer_syntax in SYNTAXES
        and row.frame_kind is FrameKind.TABLE
        and not row.deflated
        and parameters.quality is None
        and parameters.window is None
        and not parameters.annotations
    )


def keeps_size(info: FrameInfo, parameters: RenderingParameters) -> bool:
    viewport = parameters.viewport
    if viewport is None:
        return True
    whole = info.columns, info.rows
    return viewport.region is None and fitted_size(viewport, info.rows, info.columns) == whole


@dataclass(frozen=True, slots=True)
class StoredPictures:
    """Frames of an instance for which `may_be` holds. If it is `brief`, nothing is read from the disk."""

    store: Store
    selection: Selection
    row: InstanceRow
    description: Description
    parameters: RenderingParameters
    brief: bool

    def at(self, index: int) -> Sequence[Piece] | None:
        """The picture of one frame; empty if it has to be drawn. None if the disk has to be read to decide.
        Raises NotAcceptable."""
        info = self.description.info
        if not keeps_size(info, self.parameters) or not self._is_unchanged(index):
            return ()
        pieces = next(frame_pieces(self.store, self.selection, self.row, [index]))
        spans = [piece for piece in pieces if isinstance(piece, Span)]
        starts = [self._read(piece) for piece in cut(spans, 0, LONGEST_HEAD)]
        end = self._read(tail_of(spans[-1]))
        if end is None or None in starts:
            return None
        start = b"".join(filter(None, starts))
        head = picture_head(start, end, info)
        return () if head is None else self._coloured(spans, start, head)

    def _is_unchanged(self, index: int) -> bool:
        info = self.description.info
        if info.samples_per_pixel > 1:
            return is_unchanged(info, AS_STORED)
        if any(tag in self.description.dataset for tag in LOOK_UP_TABLES):
            return False
        return is_unchanged(info, rendering_of(self.description, index, None, lambda path: b""))

    def _read(self, one: Span) -> bytes | None:
        lease = self.selection.lease
        if self.brief:
            return at_hand(*lease.file_at(one.segment, one.offset), one.length)
        return lease.pread(one.segment, one.offset, one.length)

    def _coloured(self, spans: Sequence[Span], start: bytes, head: PictureHead) -> Sequence[Piece]:
        """With the colour profile that the client requests (PS3.18 8.3.5.1.5): that of the dataset, else the
        one in the frame. Empty if the frame has to be drawn."""
        wanted = self.parameters.icc_profile
        if self.description.info.samples_per_pixel == 1:
            return () if head.has_profile else spans
        if wanted == "srgb" or (wanted == "no" and head.has_profile):
            return ()
        profile = None if wanted == "no" else self._profile()
        if profile is None:
            return () if wanted == "yes" and not head.has_profile else spans
        parts = profile_parts(profile.length)
        if head.has_profile or not parts:
            return ()
        before = start[: head.profile_at]
        rest = cut(spans, head.profile_at, sum(one.length for one in spans))
        if isinstance(profile, Literal):
            text = profile.payload
            inserted = (part for marker, at, length in parts for part in (marker, text[at : at + length]))
            return [Literal(before + b"".join(inserted)), *rest]
        made: list[Piece] = [Literal(before)]
        for marker, at, length in parts:
            made += (Literal(marker), Span(profile.segment, profile.offset + at, length))
        return [*made, *rest]

    def _profile(self) -> Literal | Span | None:
        """The stored profile. A short one that is in memory is sent together with the start of the frame."""
        holder, path = icc_profile_place(self.description.dataset)
        if "BulkDataURI" not in holder.get("00282000", {}):
            inline = inline_binary(holder, "00282000")
            return Literal(inline) if inline else None
        value = self.store.bulk_value(self.row.key, f"{path}00282000")
        if value is None or not 0 < value.length <= LARGEST_TABLE:
            return None
        piece = bulk_piece(self.selection, self.row, value)
        if not isinstance(piece, Span):
            return None
        content = self._read(piece) if piece.length <= SHORT_PROFILE else None
        return piece if content is None else Literal(content)


def head_at_hand(fd: int, offset: int, length: int, info: FrameInfo) -> PictureHead | None:
    """The head of a frame in one piece of a file. None if the frame is no picture, or is not in memory."""
    start = at_hand(fd, offset, min(length, LONGEST_HEAD))
    tail = min(length, END)
    end = at_hand(fd, offset + length - tail, tail)
    return None if start is None or end is None else picture_head(start, end, info)


def at_hand(fd: int, offset: int, length: int) -> bytes | None:
    """A few bytes of a file, if they are in memory."""
    found = bytearray(length)
    try:
        count = os.preadv(fd, [found], offset, os.RWF_NOWAIT)
    except OSError:  # not in memory, or the file system cannot tell
        return None
    return bytes(found) if count == length else None


def tail_of(one: Span) -> Span:
    (tail,) = cut((one,), one.length - END, one.length) or (one,)
    return tail


def cut(spans: Sequence[Span], start: int, stop: int) -> list[Span]:
    """The spans of the bytes [start, stop) of a frame."""
    return [piece for piece in slice_plan(spans, start, stop) if isinstance(piece, Span)]
