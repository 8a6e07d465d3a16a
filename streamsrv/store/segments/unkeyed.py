"""Reads a segment without the secret of its store, so without the keyed checks of its headers.

Strategy: the records of a segment follow each other without a gap. So a header is authentic if it lies where
an authentic record ends, and the first record lies at a fixed offset. The end of a record is certain if its
payload has the digest of its header, or if the next marker lies there. After damage a search finds the next
marker. It is derived from the secret, and no answer of the server shows it.

An object has a trailer at its end, which lists its records with their final headers. If the trailer has the
digest of its header, it decides: a record that it does not list was refused, or dropped.

Rules of this file
- Bytes within the payload of an authentic record are never read as records, even if they imitate some.
- A search behind a damaged header first looks for the end that fits the digest of this header. Only if there
  is none, it takes the next header with a plausible content. All records from there on are marked SEARCH.
- The reason: a user that has read the segments could have stored a file that imitates records. Without the
  secret nothing tells such a file from real records.
- A wrong record id, time or kind in a header cannot be noticed if the rest of the header is right.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple, TypeAlias

from streamsrv.store.objects.layout import entries_in
from streamsrv.store.rows import FIRST_RECORD
from streamsrv.store.segments.records import (
    FORMAT_VERSION,
    HEADER,
    NO_DIGEST,
    PAGE,
    SEARCH_WINDOW,
    DamagedBytes,
    FoundRecord,
    HeaderDamaged,
    PayloadDigest,
    RecordHeader,
    RecordKind,
    UnprovedHeader,
    unproved,
)

# Markers behind a damaged header that are tried as the end of its record: an imitation has more of them only
# if it is made for this search.
MOST_ENDS = 64
KINDS = frozenset(map(int, RecordKind))
_XXH3 = 16  # bytes of a digest; the CRC-32 follows


class Proof(enum.StrEnum):
    """How the place of a record was found."""

    CHAIN = "chain"  # it begins where the record before it ends
    TRAILER = "trailer"  # the trailer of its object lists it
    SEARCH = "search"  # by its marker, after damage


class UnkeyedRecord(NamedTuple):
    """`fault` names damage of the header if its payload is certain all the same, else "". Then its record id
    is not certain."""

    found: FoundRecord
    proof: Proof
    fault: str = ""


UnkeyedStep: TypeAlias = UnkeyedRecord | DamagedBytes


class UnkeyedWalk:
    """The records of one segment file of `size` bytes whose records have this marker."""

    def __init__(self, fd: int, size: int, marker: bytes) -> None:
        self._fd = fd
        self._size = size
        self._marker = marker

    def steps(self) -> Iterator[UnkeyedStep]:
        """Every record, and every damaged range between them. A PENDING record has no length, unless the
        trailer of an object has it: else a search follows it."""
        if self.is_listed:
            for at, header in sorted(self._listed.items()):
                yield UnkeyedRecord(FoundRecord(at, header), Proof.TRAILER)
            return
        offset, proof = FIRST_RECORD, Proof.CHAIN
        while offset < self._size:
            raw = _read(self._fd, HEADER, offset)
            step = self._step(raw, offset, proof)
            if isinstance(step, UnkeyedRecord) and step.found.header.kind is RecordKind.PENDING:
                step = self._listed_at(offset, proof) or step
            yield step
            if isinstance(step, UnkeyedRecord) and step.found.header.kind is not RecordKind.PENDING:
                offset = step.found.end
                continue
            if isinstance(step, UnkeyedRecord):
                offset, _ = self._search(offset, None)
            else:
                offset = step.end
            proof = Proof.SEARCH

    def _listed_at(self, offset: int, proof: Proof) -> UnkeyedRecord | None:
        """The record of an object whose header in front is not final, if its payload is whole."""
        header = self._listed.get(offset)
        if header is None or not 0 < header.length <= self._size - offset - HEADER:
            return None
        found = FoundRecord(offset, header)
        return UnkeyedRecord(found, proof) if self.is_whole(found) else None

    @property
    def is_listed(self) -> bool:
        """Whether the segment is an object whose trailer is whole."""
        return self._trailer[1]

    @cached_property
    def _trailer(self) -> tuple[bytes, bool]:
        """The payload of the trailer of an object (objects/layout.py), and whether it is whole."""
        seal = self._header(self._size - HEADER, RecordKind.SEAL)
        trailer = self._header(seal.began, RecordKind.TRAILER) if seal else None
        if trailer is None or seal is None or seal.began + HEADER + trailer.length != self._size - HEADER:
            return b"", False
        payload = _read(self._fd, trailer.length, seal.began + HEADER)
        return payload, agree(PayloadDigest(payload).digest(), trailer.digest)

    @cached_property
    def _listed(self) -> dict[int, RecordHeader]:
        """The final headers in the trailer of an object; none in a segment file."""
        found = {offset: unproved(raw) for offset, raw in entries_in(self._trailer[0])}
        return {
            offset: fields.as_kind(RecordKind.INSTANCE)
            for offset, fields in found.items()
            if fields.marker == self._marker and fields.kind == RecordKind.INSTANCE
        }

    def _header(self, offset: int, kind: RecordKind) -> RecordHeader | None:
        try:
            header = self._plausible(_read(self._fd, HEADER, offset), offset)
        except HeaderDamaged:
            return None
        return header if header.kind is kind else None

    def is_whole(self, found: FoundRecord) -> bool:
        """Whether the payload has the digest of its header. Reads it all."""
        return agree(self._digest(found.payload, found.end), found.header.digest)

    def _step(self, raw: bytes, offset: int, proof: Proof) -> UnkeyedStep:
        try:
            found = FoundRecord(offset, self._plausible(raw, offset))
        except HeaderDamaged as damage:
            reason = str(damage)
        else:
            if found.header.kind is RecordKind.PENDING:
                return UnkeyedRecord(found, proof)
            if self._is_followed(found) or self.is_whole(found):
                return UnkeyedRecord(found, proof)
            reason = "neither its payload nor the record behind it fits its header"
        fields = unproved(raw) if len(raw) == HEADER else None
        if fields is not None and fields.digest == NO_DIGEST:
            fields = None
        if fields is not None and 0 < fields.length <= self._size - offset - HEADER:
            found = FoundRecord(offset, self._mended(fields, offset, fields.length))
            if self.is_whole(found):
                return UnkeyedRecord(found, proof, reason)
        end, certain = self._search(offset, fields)
        if fields is not None and certain:
            found = FoundRecord(offset, self._mended(fields, offset, end - offset - HEADER))
            return UnkeyedRecord(found, proof, reason)
        return DamagedBytes(offset, end, reason)

    def _plausible(self, raw: bytes, offset: int) -> RecordHeader:
        """Raises HeaderDamaged."""
        if len(raw) < HEADER:
            raise HeaderDamaged(f"only {len(raw)} bytes can be read of a header of {HEADER}")
        fields = unproved(raw)
        if fields.marker != self._marker:
            raise HeaderDamaged("its marker is wrong")
        if fields.version != FORMAT_VERSION or fields.kind not in KINDS or any(raw[10:12]):
            raise HeaderDamaged("its version or kind is wrong")
        if not FIRST_RECORD <= fields.began <= self._size:  # records may have moved
            raise HeaderDamaged("its begin of the commit is wrong")
        if fields.length > self._size - offset - HEADER:
            raise HeaderDamaged(f"its payload of {fields.length} bytes runs past the end of the file")
        return fields.as_kind(RecordKind(fields.kind))

    def _mended(self, fields: UnprovedHeader, offset: int, length: int) -> RecordHeader:
        """A damaged header of a payload that is certain."""
        kind = fields.kind
        if kind not in KINDS or kind == RecordKind.PENDING:
            prefix = _read(self._fd, 4, offset + HEADER + 128)
            kind = RecordKind.INSTANCE if prefix == b"DICM" else RecordKind.TOMBSTONE
        return fields._replace(length=length).as_kind(RecordKind(kind))

    def _is_followed(self, found: FoundRecord) -> bool:
        return found.end == self._size or _read(self._fd, len(self._marker), found.end) == self._marker

    def _search(self, offset: int, fields: UnprovedHeader | None) -> tuple[int, bool]:
        """The end of a damaged record at `offset`, and whether its digest proves it. Else the end is the next
        header that is plausible, or the end of the file."""
        running = _GrowingDigest(offset + HEADER, fields.digest) if fields else None
        next_record, tried = self._size, 0
        for start, window in self._windows(offset + 1):
            if running:
                running.offer(start, window)
            at = window.find(self._marker)
            while at >= 0:
                end = start + at
                if running and running.ends_at(end):
                    return end, True
                if next_record == self._size and self._is_record(end):
                    next_record = end
                tried += 1
                if next_record < self._size and (not running or running.lost or tried >= MOST_ENDS):
                    return next_record, False
                at = window.find(self._marker, at + 1)
            if running:
                running.drop(start + len(window) - len(self._marker) + 1)
        if running and running.ends_at(self._size):
            return self._size, True
        return next_record, False

    def _is_record(self, offset: int) -> bool:
        try:
            found = FoundRecord(offset, self._plausible(_read(self._fd, HEADER, offset), offset))
        except HeaderDamaged:
            return False
        pending = found.header.kind is RecordKind.PENDING
        return pending or self._is_followed(found) or self.is_whole(found)

    def _windows(self, start: int) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) from `start` on. They overlap by the length of a marker less one. Pages that cannot
        be read are left out."""
        overlap = len(self._marker) - 1
        while start < self._size:
            window = _read(self._fd, min(SEARCH_WINDOW, self._size - start), start)
            window = window or _read(self._fd, PAGE - start % PAGE, start)
            if not window:
                start += PAGE - start % PAGE
                continue
            yield start, window
            if start + len(window) >= self._size:
                return
            start += max(1, len(window) - overlap)

    def _digest(self, start: int, end: int) -> bytes:
        """b"" if bytes cannot be read."""
        running = PayloadDigest()
        while start < end:
            piece = _read(self._fd, min(SEARCH_WINDOW, end - start), start)
            if not piece:
                return b""
            running.update(piece)
            start += len(piece)
        return running.digest()


class _GrowingDigest:
    """The digest of a payload whose end is searched. `lost` is set if bytes of it cannot be read."""

    def __init__(self, start: int, digest: bytes) -> None:
        self._next = start  # offset of the first byte that is not in the digest
        self._expected = digest
        self._digest = PayloadDigest()
        self._start, self._window = 0, b""
        self.lost = False

    def offer(self, start: int, window: bytes) -> None:
        """The bytes that the next calls may take."""
        self._start, self._window = start, window
        self.lost |= start > self._next

    def ends_at(self, end: int) -> bool:
        """Whether the payload up to here has the digest. Ends have to ascend."""
        if self.lost or end < self._next:
            return False
        self.drop(end)
        return not self.lost and agree(self._digest.digest(), self._expected)

    def drop(self, end: int) -> None:
        """Take the bytes up to `end`."""
        if self.lost or end <= self._next:
            return
        piece = self._window[self._next - self._start : end - self._start]
        self.lost = len(piece) != end - self._next
        self._digest.update(piece)
        self._next = end


def agree(one: bytes, other: bytes) -> bool:
    """One half of a digest may be damaged itself."""
    return one[:_XXH3] == other[:_XXH3] or one[_XXH3:] == other[_XXH3:]


def _read(fd: int, length: int, offset: int) -> bytes:
    """Returns b"" if the disk cannot be read."""
    try:
        return os.pread(fd, length, offset)
    except OSError:
        return b""
