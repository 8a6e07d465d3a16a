"""The layout of a segment file: a header of 64 bytes, then records. Each record has a header of 104 bytes and
a payload. All numbers are little endian.

The header of the file never changes:

    offset  bytes
       0      8   magic, "SRVSEG\\r\\n"
       8      2   format version, 3
      10      2   zero
      12      4   segment id
      16     16   fingerprint of the store (see folder)
      32      8   record marker of the store: a tool without the secret finds records by it
      40      8   zero
      48     16   check: xxh3-128 of bytes 0-47, without a key

The header of a record:

    offset  bytes
       0      8   marker, derived from the store's secret: no client can put it into a file
       8      1   format version, 3
       9      1   kind: 1 PENDING, 2 INSTANCE, 3 VOID, 4 TOMBSTONE, 5 SEAL, 6 TRAILER
      10      2   zero
      12     16   record id, unique forever
      28     16   id of the record that this one replaces, or zeros: a tombstone that is valid exactly when
                  its record is
      44      8   stored at, microseconds since 1970 UTC
      52      8   payload length
      60     20   digest of the payload: its xxh3-128, then its CRC-32, which ZIP archives need
      80      8   began: all bytes of the segment before this offset had been committed when this header
                  became valid
      88     16   check: BLAKE2b keyed with the secret over bytes 0-87, the segment's id and the record's
                  own offset
     104          payload: INSTANCE and VOID: the Part 10 file as received; TOMBSTONE: record ids, 16 bytes
                  each, their xxh3-128, and the same ids again

Rules of this file
- A file header with a valid check that names another store or segment is *foreign*: the store is refused.
  One with a wrong check is *damaged*: the records still count, because each has a keyed check. A file shorter
  than a header was never used, because its creator died.
- A record is PENDING until its request commits. PENDING is never valid: a walk ends there. Then it becomes
  INSTANCE, or VOID if it was refused. A header is rewritten in place once.
- A replacement is part of the new record's header. So after a power loss either the new record exists and the
  old one is dead, or neither.
- A damaged record header costs its own record only: a walk finds the next header by marker and check. Bytes
  of a payload cannot pass for a header, nor can a header that was copied elsewhere.
- Commits follow each other in a segment, and each is synced before the next begins. So a power loss can tear
  only records of the last commit in a segment; all other damage is decay. `began` tells them apart. A SEAL
  record without payload ends a full segment, so that it also proves the last commit.
"""

from __future__ import annotations

import enum
import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import xxhash
from isal.isal_zlib import crc32

from streamsrv.errors import StoreError, WrongStore
from streamsrv.store.fileops import Buffer
from streamsrv.store.rows import FIRST_RECORD, Location

FORMAT_VERSION = 3
ID_LENGTH = 16
NO_ID = bytes(ID_LENGTH)
NO_DIGEST = bytes(20)
_DIGEST_LENGTH = 16
# Of a digest between two equal copies. If both copies had changed alike, about half of its 128 bits would.
_MOST_FLIPPED = 8

_FIELDS = struct.Struct("<8sBB2x16s16sQQ20sQ")
_PLACE = struct.Struct("<QQ")
CHECK_LENGTH = 16
HEADER = _FIELDS.size + CHECK_LENGTH

SEARCH_WINDOW = 1 << 20
PAGE = 4096  # where a window cannot be read, its pages are tried one by one

_FILE_FIELDS = struct.Struct("<8sH2xI16s8s8x")
SEGMENT_MAGIC = b"SRVSEG\r\n"


class PayloadDigest:
    """The digest of a payload while it is read: its xxh3-128, then its CRC-32 (4 bytes, big endian).

    The first finds damage, a ZIP archive needs the second. One pass over the bytes takes both.
    """

    __slots__ = ("_crc", "_hash")

    def __init__(self, payload: Buffer = b"") -> None:
        self._hash = xxhash.xxh3_128(payload)
        self._crc = crc32(payload)

    def update(self, piece: Buffer) -> None:
        self._hash.update(piece)
        self._crc = crc32(piece, self._crc)

    def digest(self) -> bytes:
        return self._hash.digest() + self._crc.to_bytes(4, "big")


class RecordKind(enum.IntEnum):
    PENDING = 1
    INSTANCE = 2
    VOID = 3
    TOMBSTONE = 4
    SEAL = 5
    TRAILER = 6  # of objects only (objects/layout.py)


@dataclass(frozen=True, slots=True)
class RecordHeader:
    kind: RecordKind
    record_id: bytes
    stored_at: int
    length: int
    digest: bytes
    began: int
    replaced: bytes = NO_ID


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record in a segment; its header is at `offset`."""

    offset: int
    header: RecordHeader

    @property
    def payload(self) -> int:
        return self.offset + HEADER

    @property
    def end(self) -> int:
        return self.offset + HEADER + self.header.length


@dataclass(frozen=True, slots=True)
class DamagedBytes:
    """Bytes from `offset` to `end` that are no record. `mended` is the original header, if it is certain."""

    offset: int
    end: int
    reason: str
    mended: RecordHeader | None = None


Step: TypeAlias = FoundRecord | DamagedBytes


class HeaderDamaged(ValueError):
    """These bytes are not a header of this offset. The message is the reason."""


class UnprovedHeader(NamedTuple):
    """The fields of a record header, without a look at its keyed check."""

    marker: bytes
    version: int
    kind: int
    record_id: bytes
    replaced: bytes
    stored_at: int
    length: int
    digest: bytes
    began: int

    def as_kind(self, kind: RecordKind) -> RecordHeader:
        return RecordHeader(
            kind, self.record_id, self.stored_at, self.length, self.digest, self.began, self.replaced
        )


def unproved(raw: bytes) -> UnprovedHeader:
    """`raw` has at least HEADER bytes."""
    return UnprovedHeader(*_FIELDS.unpack(raw[: _FIELDS.size]))


class RecordFormat:
    """Headers of one store: the layout with its secret. `fingerprint` is that of the store (see folder)."""

    def __init__(self, secret: bytes, fingerprint: bytes = bytes(16)) -> None:
        self._secret = secret
        self.fingerprint = fingerprint
        self.marker = hashlib.blake2b(b"streamsrv record", key=secret, digest_size=8).digest()

    def pack(self, header: RecordHeader, segment: int, offset: int) -> bytes:
        fields = _FIELDS.pack(
            self.marker,
            FORMAT_VERSION,
            header.kind,
            header.record_id,
            header.replaced,
            header.stored_at,
            header.length,
            header.digest,
            header.began,
        )
        return fields + self._check(fields, segment, offset)

    def unpack(self, raw: bytes, segment: int, offset: int) -> RecordHeader:
        """Raises HeaderDamaged with the reason."""
        if len(raw) < HEADER:
            raise HeaderDamaged(f"only {len(raw)} bytes are left for a header of {HEADER}")
        fields = raw[: _FIELDS.size]
        marker, version, kind, record_id, replaced, stored_at, length, digest, began = _FIELDS.unpack(fields)
        if marker != self.marker:
            raise HeaderDamaged("no record begins here: the marker is wrong")
        if raw[_FIELDS.size : HEADER] != self._check(fields, segment, offset):
            raise HeaderDamaged("the header's check is wrong")
        if version != FORMAT_VERSION:
            raise HeaderDamaged(f"format version {version} is not known to this program")
        return RecordHeader(RecordKind(kind), record_id, stored_at, length, digest, began, replaced)

    def mend(self, raw: bytes, segment: int, offset: int) -> RecordHeader | None:
        """The header from which `raw` differs in one byte, found by trying every byte (30 ms). The keyed
        check proves it."""
        trial = bytearray(raw)
        for place, byte in enumerate(raw):
            for value in range(256):
                trial[place] = value
                if self._check(trial[: _FIELDS.size], segment, offset) == trial[_FIELDS.size : HEADER]:
                    return self.unpack(bytes(trial), segment, offset)
            trial[place] = byte
        return None

    def _check(self, fields: bytes | bytearray, segment: int, offset: int) -> bytes:
        place = _PLACE.pack(segment, offset)
        return hashlib.blake2b(fields + place, key=self._secret, digest_size=CHECK_LENGTH).digest()

    def header_at(self, fd: int, segment: int, offset: int, end: int) -> RecordHeader:
        """Read a header of a segment that ends at `end`. Raises HeaderDamaged, also if the payload does not
        fit."""
        try:
            raw = os.pread(fd, min(HEADER, end - offset), offset)
        except OSError as error:
            raise HeaderDamaged(f"it cannot be read: {error.strerror}") from error
        header = self.unpack(raw, segment, offset)
        if offset + HEADER + header.length > end:
            raise HeaderDamaged(f"its payload of {header.length} bytes runs past the end")
        return header

    def walk(
        self, fd: int, segment: int, end: int, *, start: int = FIRST_RECORD, mend: bool = False
    ) -> Iterator[Step]:
        """Every record from `start` up to `end`, and every damaged range between them; ends after a PENDING
        record. With `mend`, DamagedBytes.mended is set for a header with one wrong byte."""
        offset = start
        while offset < end:
            try:
                header = self.header_at(fd, segment, offset, end)
            except HeaderDamaged as reason:
                damage = self._damage(fd, segment, offset, end, str(reason), mend)
                yield damage
                offset = damage.end
                continue
            found = FoundRecord(offset, header)
            yield found
            if header.kind is RecordKind.PENDING:
                return
            offset = found.end

    def _damage(self, fd: int, segment: int, offset: int, end: int, reason: str, mend: bool) -> DamagedBytes:
        mended = self.mend(_readable(fd, HEADER, offset), segment, offset) if mend else None
        if mended is not None and offset + HEADER + mended.length <= end:
            return DamagedBytes(offset, offset + HEADER + mended.length, reason, mended)
        return DamagedBytes(offset, self.resync(fd, segment, offset + 1, end), reason)

    def resync(self, fd: int, segment: int, start: int, end: int) -> int:
        """The offset of the next valid header from `start` on, or `end`. Pages that cannot be read are
        skipped."""
        overlap, size = len(self.marker) - 1, SEARCH_WINDOW
        while start < end:
            window = _readable(fd, min(size, end - start), start)
            if not window:
                start += PAGE - start % PAGE if size == PAGE else 0
                size = PAGE
                continue
            at = window.find(self.marker)
            while at >= 0:
                if self._valid_at(fd, segment, start + at, end):
                    return start + at
                at = window.find(self.marker, at + 1)
            if len(window) <= overlap:
                break
            start += len(window) - overlap
        return end

    def _valid_at(self, fd: int, segment: int, offset: int, end: int) -> bool:
        try:
            self.header_at(fd, segment, offset, end)
        except HeaderDamaged:
            return False
        return True


def _readable(fd: int, length: int, offset: int) -> bytes:
    """Returns b"" if the disk cannot be read."""
    try:
        return os.pread(fd, length, offset)
    except OSError:
        return b""


class OpenFile(Protocol):
    """A file that may be closed while a record still refers to it; then its descriptor is negative."""

    fd: int


class Record:
    """A record that has been received whole. It can be read until its transaction ends."""

    __slots__ = ("_file", "body", "digest", "location", "number", "record_id", "replaced", "stored_at")

    def __init__(
        self,
        file: OpenFile,
        number: int,
        location: Location,
        record_id: bytes,
        digest: bytes,
        stored_at: int,
        body: int = 0,
    ) -> None:
        self._file = file
        self.number = number
        self.body = body  # the records of a body have higher numbers than this
        self.location = location
        self.record_id = record_id
        self.digest = digest
        self.stored_at = stored_at
        self.replaced = NO_ID

    @property
    def begin(self) -> int:
        return self.location.offset - HEADER

    @property
    def end(self) -> int:
        return self.location.offset + self.location.length

    def header(
        self, form: RecordFormat, began: int, replaced: bytes = NO_ID, *, digest: bytes = b""
    ) -> bytes:
        """The header of a record that has won, with its digest or another one. `replaced` is the id of the
        record that it replaces."""
        header = RecordHeader(
            RecordKind.INSTANCE,
            self.record_id,
            self.stored_at,
            self.location.length,
            digest or self.digest,
            began,
            replaced,
        )
        return form.pack(header, self.location.segment, self.begin)

    def pread(self, offset: int, length: int) -> bytes:
        """Bytes of the payload, fewer at its end."""
        length = min(length, self.location.length - offset)
        if length <= 0:
            return b""
        if self._file.fd < 0:
            raise StoreError("the record's transaction has ended")
        return os.pread(self._file.fd, length, self.location.offset + offset)


class TombstoneDamaged(ValueError):
    """The ids of a tombstone cannot be read. The message is the reason; `certain` are ids that can be
    read."""

    def __init__(self, reason: str, certain: Sequence[bytes] = ()) -> None:
        super().__init__(reason)
        self.certain = certain


def pack_ids(ids: Sequence[bytes]) -> bytes:
    """The payload of a tombstone: the ids, their xxh3-128, and the ids again. So a flipped bit, or a lost
    sector of a long tombstone, brings no instance back."""
    body = b"".join(ids)
    return body + xxhash.xxh3_128_digest(body) + body


def unpack_ids(payload: bytes) -> list[bytes]:
    """Raises TombstoneDamaged if both copies of the ids are damaged."""
    count, odd = divmod(len(payload) - _DIGEST_LENGTH, 2 * ID_LENGTH)
    if count < 0 or odd:
        raise TombstoneDamaged(f"its length of {len(payload)} bytes is wrong")
    middle = count * ID_LENGTH
    first, digest = payload[:middle], payload[middle : middle + _DIGEST_LENGTH]
    second = payload[middle + _DIGEST_LENGTH :]
    for body in (first, second):
        if xxhash.xxh3_128_digest(body) == digest:
            return _split(body)
    if first == second and _differing_bits(xxhash.xxh3_128_digest(first), digest) <= _MOST_FLIPPED:
        return _split(first)
    pairs = zip(_split(first), _split(second), strict=True)
    raise TombstoneDamaged(
        "both copies of its ids are damaged", [one for one, other in pairs if one == other]
    )


def _differing_bits(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


def _split(body: bytes) -> list[bytes]:
    return [body[at : at + ID_LENGTH] for at in range(0, len(body), ID_LENGTH)]


def pack_file_header(form: RecordFormat, segment: int) -> bytes:
    fields = _FILE_FIELDS.pack(SEGMENT_MAGIC, FORMAT_VERSION, segment, form.fingerprint, form.marker)
    return fields + xxhash.xxh3_128_digest(fields)


def marker_in(raw: bytes) -> bytes | None:
    """The record marker in the header of a segment file; None if the header is damaged or unknown."""
    fields = raw[: _FILE_FIELDS.size]
    if len(raw) < FIRST_RECORD or raw[_FILE_FIELDS.size : FIRST_RECORD] != xxhash.xxh3_128_digest(fields):
        return None
    magic, version, _, _, marker = _FILE_FIELDS.unpack(fields)
    return marker if magic == SEGMENT_MAGIC and version == FORMAT_VERSION else None


def is_file_header_damaged(raw: bytes, form: RecordFormat, path: Path) -> bool:
    """Whether the first bytes of the segment file `path` are damaged. Raises WrongStore if it is foreign."""
    if raw == pack_file_header(form, int(path.stem)):
        return False
    fields = raw[: _FILE_FIELDS.size]
    if len(raw) < FIRST_RECORD or raw[_FILE_FIELDS.size :] != xxhash.xxh3_128_digest(fields):
        return True
    _, version, segment, fingerprint, _ = _FILE_FIELDS.unpack(fields)
    if version != FORMAT_VERSION:
        raise WrongStore(
            f"{path} has format version {version}, and this program reads only {FORMAT_VERSION}: nothing was "
            "changed. Bring back the file that belongs here"
        )
    if fingerprint != form.fingerprint:
        raise WrongStore(
            f"{path} belongs to another store, or store.toml does: nothing was changed. "
            "Bring back the file that belongs here"
        )
    raise WrongStore(f"{path} is segment {segment} of this store: give the file its name back")


NO_HEADER = "segment header: it is not written"


def damaged_headers(files: dict[int, Path], form: RecordFormat) -> Iterator[tuple[int, str]]:
    """(segment, reason) of each damaged header; a file shorter than a header is left out. Raises WrongStore
    if a file is foreign."""
    for segment, path in files.items():
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                raw = os.pread(fd, FIRST_RECORD, 0)
            finally:
                os.close(fd)
        except FileNotFoundError:
            continue  # compacted since it was listed
        except OSError as error:
            yield segment, f"segment header: {error.strerror}"
            continue
        if len(raw) == FIRST_RECORD and is_file_header_damaged(raw, form, path):
            yield segment, "segment header: its checksum is wrong" if any(raw) else NO_HEADER
