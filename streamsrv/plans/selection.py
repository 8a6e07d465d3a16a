"""The SOP instances of a target resource, pinned for as long as their answer is being sent.

Strategy: one pass over the index pages learns how many there are, where their bytes lie and what the ETag is,
from fixed places in their rows; a lease keeps their segments open. Up to ROWS_KEPT rows stay in memory,
packed, and are unpacked when more has to be known of them. Of a longer study only 36 bytes an instance are
kept (its place), and the rows are looked up again, page by page, while the answer is sent. An instance that
has vanished by then ends the answer (the connection is closed, never a silent gap); one that compaction has
moved is still read where it was, under the lease.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias
from weakref import WeakKeyDictionary

import xxhash

from streamsrv.dicom.window import Pread
from streamsrv.errors import NotFound, SegmentGone, StoreError, WouldBlock
from streamsrv.store import (
    MISSING_SEGMENT,
    PLACE,
    DamagedRecord,
    InstanceKey,
    InstanceRow,
    Location,
    PackedRow,
    SegmentLease,
    Store,
    damaged_record,
    metadata_in,
    places_in,
    refusal,
    split_triple,
    syntax_in,
    unpacked,
)
from streamsrv.wire.answers import StoredParts
from streamsrv.wire.resources import Kind, Target

ROWS_KEPT = 4_096  # about 1 kB each
PAGE = 1_000
# Compaction may unlink a segment between the look-up and its opening; it swaps a segment at most once a pass.
ATTEMPTS = 5
# Frames whose entries are read together with the row.
ENTRIES_AT_ONCE = 64
NOT_THERE = "there is no such SOP instance, series or study in this store"


class Found:
    """What a walk over the pages of a target resource has found: true until the next commit, and not to be
    changed. `packed` are the rows of all if they are few enough to be kept, else none; `places` of all;
    `damaged` are those whose bytes are registered as damaged."""

    __slots__ = (
        "_metadata",
        "_rows",
        "count",
        "damaged",
        "digest",
        "moment",
        "packed",
        "places",
        "plan",
        "segments",
        "syntaxes",
    )

    def __init__(self, store: Store, moment: int, pages: Iterator[list[PackedRow]]) -> None:
        self.moment = moment
        self.count = 0
        self.packed: list[PackedRow] = []
        self.places = bytearray()
        self.syntaxes: set[str] = set()  # transfer syntaxes as stored
        self.segments: set[int] = set()
        self.plan: tuple[bytes, StoredParts] | None = None  # made last of it: boundary and plan
        self._rows: list[InstanceRow] | None = None
        self._metadata: list[tuple[int, int]] | None = None
        digest = xxhash.xxh3_128()
        for page in pages:
            places = places_in(page)
            facts = list(PLACE.iter_unpack(places))
            self.count += len(page)
            self.places += places
            self.packed += page[: ROWS_KEPT + 1 - len(self.packed)]
            self.syntaxes.update(map(syntax_in, page))
            self.segments.update([segment for segment, _, _, _ in facts])
            digest.update(b"".join([record_id for _, _, _, record_id in facts]))
        if not self.count:
            raise NotFound(NOT_THERE)
        if self.count > ROWS_KEPT:
            self.packed = []
        self.digest = digest.digest()
        self.damaged: list[DamagedRecord] = store.damaged_among(self._ids())

    def _ids(self) -> Iterator[bytes]:
        """Of all records."""
        for _, _, _, record_id in PLACE.iter_unpack(bytes(self.places)):
            yield record_id

    def metadata(self) -> list[tuple[int, int]]:
        """Length and slots of each row that is kept."""
        if self._metadata is None:
            self._metadata = metadata_in(self.packed)
        return self._metadata

    def rows(self) -> list[InstanceRow]:
        """Those that are kept."""
        if self._rows is None:
            self._rows = list(map(unpacked, self.packed))
        return self._rows


# Viewers ask for the metadata of a series and then for its instances, and several of them do.
SELECTIONS_REMEMBERED = 8
ROWS_REMEMBERED = 1_000
_Memory: TypeAlias = dict[tuple[str, str | None, str | None], Found]
_memories: WeakKeyDictionary[Store, _Memory] = WeakKeyDictionary()


class Selection:
    """Use as a context manager only while planning; afterwards `release` belongs to the answer."""

    def __init__(
        self,
        store: Store,
        study: str,
        series: str | None,
        instance: str | None,
        frames: Sequence[int] = (),
        *,
        brief: bool = False,
        reads: bool = True,
    ) -> None:
        self._store = store
        self._brief = brief
        self._reads = reads  # bytes of segments
        self.frames = frames
        self._target = (study, series, instance)
        self._found: Found | None = None  # of a study or series
        self._one: list[InstanceRow] = []  # else
        self.count = 0
        self.syntaxes: set[str] = set()  # transfer syntaxes as stored
        self.digest = b""  # of all record ids in order: the same digest means the same stored bytes
        self._inflated: tuple[bytes, Pread] | None = None
        # Entries of the frame table of a single instance that were read with its row: those of `frames`.
        self.entries: list[tuple[int, int]] = []
        self.lease = self._pin()

    def _pin(self) -> SegmentLease:
        for _ in range(ATTEMPTS):
            try:
                segments = self._learn()
                return self._store.open_segments(segments if self._reads else ())
            except SegmentGone:
                continue
        raise self._missing()

    def _missing(self) -> StoreError:
        """Why segments cannot be opened, again and again."""
        for row in self.rows():
            try:
                self._store.open_segments([row.location.segment]).release()
            except SegmentGone:
                return refusal([damaged_record(row, MISSING_SEGMENT)])
        return StoreError("segments were replaced again and again while they were being opened")

    def require_undamaged(self) -> None:
        """Raises InstanceDamaged if the bytes of an instance are known to be damaged."""
        if self._found is not None:
            damaged = self._found.damaged
        else:
            ids = [row.record_id for row in self._one if row.damaged]
            damaged = self._store.damaged_among(ids) if ids else []
        if damaged:
            raise refusal(damaged)

    def _learn(self) -> set[int]:
        """What there is; returns the segments that hold it."""
        study, series, instance = self._target
        if series is not None and instance is not None:
            return self._learn_one(InstanceKey(study, series, instance))
        found = self._found = self._remembered()
        self.count, self.syntaxes, self.digest = found.count, found.syntaxes, found.digest
        return found.segments

    def _remembered(self) -> Found:
        """What there is, looked up again after a commit."""
        moment, memory = self._store.version(), _memories.setdefault(self._store, {})
        found = memory.get(self._target)
        if found is None or found.moment != moment:
            if self._brief:
                raise WouldBlock("a study or series is looked up in a thread")
            found = Found(self._store, moment, self._pages())
            if found.count <= ROWS_REMEMBERED:
                while len(memory) >= SELECTIONS_REMEMBERED:
                    memory.pop(next(iter(memory)), None)
                memory[self._target] = found
        return found

    def _learn_one(self, key: InstanceKey) -> set[int]:
        found = self._store.instance(key, self.frames)
        if found is None:
            raise NotFound(NOT_THERE)
        row, self.entries = found
        self._one, self.count, self.syntaxes = [row], 1, {row.transfer_syntax}
        self.digest = xxhash.xxh3_128_digest(row.record_id)
        return {row.location.segment}

    def _pages(self) -> Iterator[list[PackedRow]]:
        study, series, _ = self._target
        after: InstanceKey | None = None
        while page := self._store.packed(study, series, after=after, limit=PAGE):
            yield page
            if len(page) < PAGE:
                return
            after = split_triple(page[-1][0])

    def rows(self) -> Iterator[InstanceRow]:
        """The rows in key order, as they were when the selection was made."""
        if self._found is None:
            yield from self._one
            return
        if self._found.packed:
            yield from self._found.rows()
            return
        places = PLACE.iter_unpack(bytes(self._found.places))
        number = 0
        for row in map(unpacked, itertools.chain.from_iterable(self._pages())):
            *location, record_id = next(places, (0, 0, 0, b""))
            if row.record_id != record_id:
                raise StoreError(f"instance {number + 1} of the answer has changed while it was being sent")
            number += 1
            yield row._replace(location=Location(*location))
        if number != self.count:
            raise StoreError(
                f"{self.count - number} instances of the answer were deleted while it was being sent"
            )

    @property
    def one(self) -> InstanceRow | None:
        """The row, if a single instance is selected."""
        return self._one[0] if self._one else None

    @property
    def found(self) -> Found | None:
        """Of a study or series that is not long: its rows, packed."""
        return self._found if self._found is not None and self._found.packed else None

    def pread(self, row: InstanceRow, offset: int, length: int) -> bytes:
        """Bytes of one instance's Part 10 file."""
        return self.lease.pread(row.location.segment, row.location.offset + offset, length)

    def inflated(self, row: InstanceRow, make: Callable[[], Pread]) -> Pread:
        """The reader of a deflated dataset that was used last, or a new one. An answer is made by one thread
        at a time."""
        if self._inflated is None or self._inflated[0] != row.record_id:
            self._inflated = row.record_id, make()
        return self._inflated[1]

    def release(self) -> None:
        self.lease.release()


def select(store: Store, target: Target, *, brief: bool = False) -> Selection:
    """Raises NotFound where the whole path names nothing: an instance under another series is not there;
    WouldBlock if it is to be brief and that takes more than what is remembered, or one instance."""
    if target.study is None:
        raise NotFound("the target resource names no study")
    frames = [number - 1 for number in target.frames] if len(target.frames) <= ENTRIES_AT_ONCE else ()
    reads = target.kind is not Kind.METADATA  # they come from the index
    path = target.study, target.series, target.instance
    return Selection(store, *path, frames, brief=brief, reads=reads)
