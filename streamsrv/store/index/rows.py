"""The keys and values of every database of the index.

    instances   study \\0 series \\0 instance -> the struct below, SOP class and syntax, search answer
    metadata    serial u64, chunk u32         -> zstd frame of DICOM JSON text, or of several (metadata_blobs)
    frames      serial u64, chunk u32         -> up to 1,024 pairs (offset u64, length u64)
    bulk        serial u64, path              -> VR, offset u64, length u64, path where the key is its digest
    variants    study \\0 series \\0 digest   -> count u64, order of the latest, the attributes as JSON
    studies     study                         -> LevelRow: counts, order of the latest, search answer
    series      study \\0 series              -> LevelRow
    attributes  level u8, tag u32, normal form -> study, or study \\0 series (several); see `apart`
    uids        "i" instance / "s" series     -> study \\0 series / study (several)
    changes     sequence u64                  -> one change, or several
    damage      record id                     -> a record whose bytes are damaged (damage)
    segments    segment u32                   -> committed end, live, dead, sealed
    about       name                          -> text

A checksum of key and value (xxh32) follows the values of metadata, changes, damage, segments and about: no
record can prove them to the byte. It is verified at each read.

Integers in keys are big-endian, so that they sort; those in values are little-endian.

The *serial* of an instance is the sequence of the change that stored it. Three databases have it in their
keys instead of the triple. That saves 180 bytes a key, and the rows land at the end of the tree, on full
pages. The *order* of an instance (stored_at, record id) decides which of two is the later one. Unlike the
serial it survives a rebuild.

A change is kind u8, at u64, record id, digest of the facts, key. Instances that were deleted together have
one row, under the sequence of the last one: a row for each would take ten times the bytes and the work. This
row is 255, at u64, count u32, length u16 of the common beginning of all keys; then the record ids, the
digests, that beginning, and the rest of each key (\\n between). The log may be bounded: then `about` has the
sequence of the first change that is kept. The last change always stays, because the next sequence follows
from it.
"""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeAlias

import orjson
import xxhash

from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.errors import StoreCorrupt, StoreError
from streamsrv.store.rows import (
    Change,
    ChangeKind,
    InstanceKey,
    InstanceRow,
    Location,
    SegmentRow,
)
from streamsrv.store.segments.records import ID_LENGTH

FRAMES_A_CHUNK = 1024
LONGEST_PATH = 400  # of a bulk value, that is part of its key
_PAIR = 16
_APART = 0x10  # in the level of a term
VARIANT_BYTES = 16
# Of these: equal if the facts for rules of access are; the first ones if all but the modality are.
FACTS_BYTES, OTHER_FACTS_BYTES = 6, 4

PackedRow: TypeAlias = tuple[bytes, bytes]  # key and value of `instances`

_TRIPLE = re.compile(r"[0-9.]{1,64}\0[0-9.]{1,64}\0[0-9.]{1,64}")
_SERIAL = struct.Struct("<Q")
_NUMBER = struct.Struct(">Q")
_CHUNK_KEY = struct.Struct(">QI")
_BULK = struct.Struct("<2sQQ")
_SEGMENT = struct.Struct("<QQQ?")
_VARIANT = struct.Struct("<Q24s")
_LEVEL = struct.Struct("<QQ24sII")
_ORDER = struct.Struct(">Q16s")
_ID_AND_TIME = struct.Struct("<16sQ")

# location, record id, stored at, digest; dataset offset, deflated; pixels; geometry and pixel facts; frames;
# metadata; variant; lengths of the two UIDs that follow
_INSTANCE = struct.Struct("<IQQ16sQ20sQ?QQIHHHHBQQQQI16sBB")
UIDS_AT = _SERIAL.size + _INSTANCE.size  # SOP class and syntax, in an instance's row
VARIANT_AT = UIDS_AT - VARIANT_BYTES - 2
_VARIANT_END = VARIANT_AT + VARIANT_BYTES
METADATA_AT = VARIANT_AT - 12  # its length u64, its slots u32
_FRAME_KIND = 15  # among these
# Three times as fast as the enumerations.
_FRAME_KINDS, _KINDS = {int(kind): kind for kind in FrameKind}, {int(kind): kind for kind in ChangeKind}
_ORDER_AT = _SERIAL.size + 20  # record id, then stored_at
_ID_END = _ORDER_AT + 16
# Segment, offset and length of the record, and its id, behind the serial.
PLACE = struct.Struct("<IQQ16s")
_PLACE_AT = _SERIAL.size
_PLACE_END = _PLACE_AT + PLACE.size
_METADATA_SIZE = struct.Struct("<QI")
_new = tuple.__new__  # faster than calling the class of a named tuple

UNREADABLE = "a row of the database instances cannot be read: run check, then reindex"

_ROW_NAMES: dict[str, Callable[[bytes], str]] = {
    "metadata": lambda key: (
        f"serial {int.from_bytes(key[:8], 'big')}, chunk {int.from_bytes(key[8:], 'big')}"
    ),
    "changes": lambda key: f"change {int.from_bytes(key, 'big')}",
    "damage": lambda key: f"record {key.hex()}",
    "segments": lambda key: f"segment {int.from_bytes(key, 'big')}",
    "about": lambda key: key.decode("ascii", "replace"),
}
_SUM = 4

_CHANGE = struct.Struct(f"<BQ16s{FACTS_BYTES}s")
_DELETIONS = struct.Struct("<BQIH")
_AT = struct.Struct("<xQ")  # in both
_SEVERAL = 255


def with_sum(key: bytes, value: bytes) -> bytes:
    return value + xxhash.xxh32_digest(key + value)


def without_sum(database: str, key: bytes, stored: bytes) -> bytes:
    """The value. Raises StoreCorrupt, with the name of the row, if its checksum is wrong."""
    value = stored[:-_SUM]
    if xxhash.xxh32_digest(key + value) != stored[-_SUM:]:
        where = f"index database {database}, {row_name(database, key)}"
        raise StoreCorrupt(f"{where}: its checksum is wrong: run check, then reindex")
    return value


def row_name(database: str, key: bytes) -> str:
    """The name of a row in a report."""
    return _ROW_NAMES[database](key)


def triple(key: InstanceKey) -> bytes:
    """The key of `instances`. Raises StoreError for a malformed UID: it would break the order of keys."""
    text = "\0".join(key)
    if _TRIPLE.fullmatch(text) is None:
        raise StoreError("a UID that is not digits and dots, 64 at most, cannot be indexed")
    return text.encode()


def split_triple(key: bytes) -> InstanceKey:
    return InstanceKey(*key.decode().split("\0"))


def prefix(study: str, series: str | None = None, instance: str | None = None) -> bytes:
    """The beginning of all keys below a target resource."""
    parts = [part for part in (study, series, instance) if part is not None]
    return "\0".join(parts).encode() + (b"\0" if len(parts) < 3 else b"")


def order_of(row: InstanceRow) -> bytes:
    return _ORDER.pack(row.stored_at, row.record_id)


def number_key(number: int) -> bytes:
    return _NUMBER.pack(number)


def segment_key(segment: int) -> bytes:
    return struct.pack(">I", segment)


def chunk_key(serial: int, chunk: int) -> bytes:
    return _CHUNK_KEY.pack(serial, chunk)


def variant_key(key: InstanceKey, digest: bytes) -> bytes:
    return prefix(key.study, key.series) + digest


def bulk_path_key(path: str) -> bytes:
    """The path, or its digest if it is too long for a key."""
    return path.encode() if len(path) <= LONGEST_PATH else b"#" + xxhash.xxh3_128_digest(path.encode())


def pack_bulk(value: BulkValue) -> bytes:
    tail = value.path.encode() if len(value.path) > LONGEST_PATH else b""
    return _BULK.pack(value.vr.encode(), value.offset, value.length) + tail


def unpack_bulk(path_key: bytes, value: bytes) -> BulkValue:
    try:
        vr, offset, length = _BULK.unpack_from(value)
        path = (value[_BULK.size :] or path_key).decode()
        if bulk_path_key(path) != path_key:
            raise ValueError
        return BulkValue(path, vr.decode(), offset, length)
    except (struct.error, ValueError) as error:
        raise StoreCorrupt("a row of the database bulk cannot be read: run check, then reindex") from error


def frame_chunks(table: bytes) -> Iterator[bytes]:
    size = FRAMES_A_CHUNK * _PAIR
    return (table[start : start + size] for start in range(0, len(table), size))


def pack_instance(row: InstanceRow, variant: bytes, answer: bytes) -> bytes:
    """The row without the serial in front, which only the writer has."""
    sop_class, syntax = row.sop_class_uid.encode(), row.transfer_syntax.encode()
    try:
        packed = _INSTANCE.pack(
            *row.location,
            row.record_id,
            row.stored_at,
            row.digest,
            row.dataset_offset,
            row.deflated,
            row.pixel_offset,
            row.pixel_length,
            row.rows,
            row.columns,
            row.pixel_facts,
            row.samples_per_pixel,
            row.bits_allocated,
            row.frame_kind,
            row.number_of_frames,
            row.frame_base,
            row.frame_stride,
            row.metadata_length,
            row.metadata_slots,
            variant,
            len(sop_class),
            len(syntax),
        )
    except struct.error as error:
        raise StoreError(f"a fact of an instance does not fit its index row: {error}") from error
    return packed + sop_class + syntax + answer


def with_serial(serial: int, packed: bytes) -> bytes:
    return _SERIAL.pack(serial) + packed


def serial_of(value: bytes | memoryview) -> int:
    serial: int = _SERIAL.unpack_from(value)[0]
    return serial


def serials_of(rows: Sequence[PackedRow]) -> tuple[int, ...]:
    return struct.unpack(f"<{len(rows)}Q", b"".join([value[: _SERIAL.size] for _, value in rows]))


def record_id_of(value: bytes | memoryview) -> bytes:
    return bytes(value[_ORDER_AT:_ID_END])


def record_ids_of(rows: Sequence[PackedRow]) -> list[bytes]:
    return [value[_ORDER_AT:_ID_END] for _, value in rows]


def segment_in(value: bytes) -> int:
    """The segment of an instance, 0 if the row cannot be read."""
    return int.from_bytes(value[_SERIAL.size : _SERIAL.size + 4], "little")


def sop_class_in(value: bytes) -> bytes:
    return value[UIDS_AT : UIDS_AT + value[UIDS_AT - 2]]


def order_in(value: bytes | memoryview) -> bytes:
    record_id, stored_at = _ID_AND_TIME.unpack_from(value, _ORDER_AT)
    return _ORDER.pack(stored_at, record_id)


def order_from(order: bytes) -> tuple[int, bytes]:
    stored_at, record_id = _ORDER.unpack(order)
    return stored_at, record_id


def apart(term: bytes) -> bytes:
    """The term of an entry that is listed apart (levels.py): a part of the study or series may have the
    value, and the whole has not."""
    return bytes((term[0] | _APART,)) + term[1:]


def together(term: bytes) -> bytes:
    """The term of the whole."""
    return bytes((term[0] & ~_APART,)) + term[1:] if term[0] & _APART else term


def variant_of(value: bytes | memoryview) -> bytes:
    return bytes(value[VARIANT_AT:_VARIANT_END])


def unpack_instance(key: InstanceKey, value: bytes) -> InstanceRow:
    try:
        facts = _INSTANCE.unpack_from(value, _SERIAL.size)
        kind = _FRAME_KINDS[facts[_FRAME_KIND]]
        sop_class, syntax = facts[-2:]
        uids = value[UIDS_AT : UIDS_AT + sop_class + syntax].decode()
    except (struct.error, LookupError, ValueError) as error:
        raise StoreCorrupt(UNREADABLE) from error
    syntaxes = uids[:sop_class], uids[sop_class:]
    others = *facts[6:_FRAME_KIND], kind, *facts[_FRAME_KIND + 1 : -3]
    return _new(InstanceRow, (key, _new(Location, facts[:3]), *facts[3:6], *syntaxes, *others, False))


# Plans read these from packed rows: unpacking a row takes ten times as long.


def places_in(rows: Sequence[PackedRow]) -> bytes:
    """The PLACE of each row, joined."""
    places = b"".join([value[_PLACE_AT:_PLACE_END] for _, value in rows])
    if len(places) != PLACE.size * len(rows):
        raise StoreCorrupt(UNREADABLE)
    return places


def metadata_in(rows: Sequence[PackedRow]) -> list[tuple[int, int]]:
    """metadata_length and metadata_slots of each row."""
    try:
        return [_METADATA_SIZE.unpack_from(value, METADATA_AT) for _, value in rows]
    except struct.error as error:
        raise StoreCorrupt(UNREADABLE) from error


def syntax_in(row: PackedRow) -> str:
    """The transfer syntax."""
    value = row[1]
    try:
        start = UIDS_AT + value[UIDS_AT - 2]
        return value[start : start + value[UIDS_AT - 1]].decode()
    except (LookupError, ValueError) as error:
        raise StoreCorrupt(UNREADABLE) from error


def unpacked(row: PackedRow) -> InstanceRow:
    """All of it."""
    return unpack_instance(split_triple(row[0]), row[1])


def moved(value: bytes, location: Location) -> bytes:
    """An instance row with another location."""
    return value[: _SERIAL.size] + struct.pack("<IQQ", *location) + value[_SERIAL.size + 20 :]


def instance_answer(value: bytes) -> bytes:
    """The search answer at the end of an instance row."""
    return value[UIDS_AT + value[UIDS_AT - 2] + value[UIDS_AT - 1] :]


@dataclass(slots=True)
class LevelRow:
    """A study or series in searches. `answer` and `more` are JSON objects with slots (see answers); `more`
    has the attributes that are returned only on request. `tallies` counts the series by modality, the
    instances by SOP class, and the variants by the facts that rules of access compare (studies only)."""

    instances: int
    series: int
    latest: bytes
    answer: bytes
    more: bytes
    tallies: bytes

    def pack(self) -> bytes:
        head = _LEVEL.pack(self.instances, self.series, self.latest, len(self.answer), len(self.more))
        return head + self.answer + self.more + self.tallies

    @classmethod
    def unpack(cls, value: bytes) -> LevelRow:
        try:
            instances, series, latest, answer, more = _LEVEL.unpack_from(value)
        except struct.error as error:
            raise StoreCorrupt("a row of the databases studies or series cannot be read") from error
        at = _LEVEL.size
        texts = value[at : at + answer], value[at + answer : at + answer + more], value[at + answer + more :]
        return cls(instances, series, latest, *texts)


def counts_in(value: bytes) -> tuple[int, int]:
    """The series and instances in the row of a study. Raises StoreCorrupt."""
    try:
        instances, series, *_ = _LEVEL.unpack_from(value)
    except struct.error as error:
        raise StoreCorrupt("a row of the database studies cannot be read") from error
    return series, instances


def tallies_at(value: bytes) -> int:
    """Where the tallies begin in the row of a study. Raises StoreCorrupt."""
    try:
        _, _, _, answer, more = _LEVEL.unpack_from(value)
    except struct.error as error:
        raise StoreCorrupt("a row of the database studies cannot be read") from error
    return int(_LEVEL.size + answer + more)


@dataclass(slots=True)
class Variant:
    """A set of study and series attributes that `count` instances of a series share; `latest` is the order of
    the latest one."""

    count: int
    latest: bytes
    text: bytes
    was: bytes = b""  # the latest when the row was read

    def pack(self) -> bytes:
        return _VARIANT.pack(self.count, self.latest) + self.text

    @classmethod
    def unpack(cls, value: bytes) -> Variant:
        try:
            count, latest = _VARIANT.unpack_from(value)
        except struct.error as error:
            raise StoreCorrupt("a row of the database variants cannot be read") from error
        return cls(count, latest, value[_VARIANT.size :], latest)


def pack_segment(row: SegmentRow) -> bytes:
    value = _SEGMENT.pack(row.committed_end, row.live, row.dead, row.sealed)
    return with_sum(segment_key(row.segment), value)


def unpack_segment(key: bytes, stored: bytes) -> SegmentRow:
    value = without_sum("segments", key, stored)
    try:
        (segment,) = struct.unpack(">I", key)
        return SegmentRow(segment, *_SEGMENT.unpack(value))
    except struct.error as error:
        raise StoreCorrupt("a row of the database segments cannot be read") from error


def json_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object of a row; an empty text gives an empty object."""
    try:
        loaded: dict[str, Any] = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError as error:
        raise StoreCorrupt("the text of an index row cannot be read: run check, then reindex") from error
    return loaded


def pack_change(
    sequence: int, kind: ChangeKind, at: int, record_id: bytes, facts: bytes, key: bytes
) -> bytes:
    return with_sum(number_key(sequence), _CHANGE.pack(kind, at, record_id, facts) + key)


def pack_deletions(
    last: int, at: int, ids: Sequence[bytes], facts: Sequence[bytes], keys: Sequence[bytes]
) -> bytes:
    """One row for instances that were deleted together, in the order of their keys; `last` is the sequence of
    the last one."""
    first = keys[0]
    # The keys are in order: all have the common beginning of the first and the last.
    shared = sum(takewhile(bool, map(operator.eq, first, keys[-1])))
    head = _DELETIONS.pack(_SEVERAL, at, len(keys), shared)
    rest = b"\n".join([key[shared:] for key in keys])
    return with_sum(number_key(last), b"".join((head, *ids, *facts, first[:shared], rest)))


def unpack_changes(sequence: int, stored: bytes) -> list[Change]:
    """The changes of a row; `sequence` is that of the last one."""
    value = without_sum("changes", number_key(sequence), stored)
    try:
        if value[0] == _SEVERAL:
            return _unpack_deletions(sequence, value)
        kind, at, record_id, facts = _CHANGE.unpack_from(value)
        return [Change(sequence, _KINDS[kind], split_triple(value[_CHANGE.size :]), record_id, at, facts)]
    except (struct.error, ValueError, TypeError, LookupError) as error:
        raise StoreCorrupt(f"change {sequence} cannot be read") from error


def change_time(sequence: int, stored: bytes) -> int:
    """The time of a row of changes, in microseconds since 1970; `sequence` is that of the last one."""
    value = without_sum("changes", number_key(sequence), stored)
    try:
        at: int = _AT.unpack_from(value)[0]
    except struct.error as error:
        raise StoreCorrupt(f"change {sequence} cannot be read") from error
    return at


def studies_changed(sequence: int, stored: bytes) -> tuple[int, set[str]]:
    """The sequence of the first change of a row, and the studies of all changes in it. `sequence` is that of
    the last one."""
    value = without_sum("changes", number_key(sequence), stored)
    if value[:1] == b"\xff":
        changes = unpack_changes(sequence, stored)
        return changes[0].sequence, {change.key.study for change in changes}
    return sequence, {value[_CHANGE.size :].partition(b"\0")[0].decode()}


def _unpack_deletions(last: int, value: bytes) -> list[Change]:
    _, at, count, rest = _DELETIONS.unpack_from(value)
    middle = _DELETIONS.size + count * ID_LENGTH
    begin = middle + count * FACTS_BYTES
    ids = (value[place : place + ID_LENGTH] for place in range(_DELETIONS.size, middle, ID_LENGTH))
    facts = (value[place : place + FACTS_BYTES] for place in range(middle, begin, FACTS_BYTES))
    common, keys = value[begin : begin + rest], value[begin + rest :].split(b"\n")
    return [
        Change(sequence, ChangeKind.DELETED, split_triple(common + key), record_id, at, of_rules)
        for sequence, (record_id, of_rules, key) in enumerate(
            zip(ids, facts, keys, strict=True), last - count + 1
        )
    ]
