"""The SOP instances of a target resource, and a lease on their segments while their answer is sent.

Strategy: one pass over the index pages finds the number of instances, their places and the ETag, from fixed
offsets in their rows. A lease keeps the segments open. Up to ROWS_KEPT packed rows stay in memory, and are
unpacked when an answer needs more of them. Of a longer study only the places are kept, in 36 bytes each.
The rows are looked up again, page by page, while the answer is sent. If an instance is gone by then, the
connection is closed: an answer never has a silent gap. If compaction has moved an instance, it is read at
its old place, under the lease.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import xxhash

from streamsrv.dicom.window import Pread
from streamsrv.errors import NotFound, SegmentGone, StoreError
from streamsrv.query.rules import Rule
from streamsrv.store import (
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
SELECTIONS_KEPT, ROWS_REMEMBERED = 8, 1_000
NOT_THERE = "there is no such SOP instance, series or study in this store"


Pack: TypeAlias = Callable[[str, str | None], "PackedInstances"]


class PackedInstances:
    """The instances of a study or series. Valid until the next commit (`moment` is the index version), and
    not to be changed. `packed` has all rows, or none if they are too many; `places` has all places; `damaged`
    has the records whose bytes are registered as damaged."""

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
        self.plan: tuple[bytes, StoredParts] | None = None  # the last one: boundary and plan
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
        """The record ids of all instances."""
        for _, _, _, record_id in PLACE.iter_unpack(bytes(self.places)):
            yield record_id

    def metadata(self) -> list[tuple[int, int]]:
        """Length and slots of the metadata of each packed row."""
        if self._metadata is None:
            self._metadata = metadata_in(self.packed)
        return self._metadata

    def rows(self) -> list[InstanceRow]:
        """The packed rows, unpacked."""
        if self._rows is None:
            self._rows = list(map(unpacked, self.packed))
        return self._rows


class Selection:
    """The instances of one target resource. `reads` says whether bytes of their segments are read; the answer
    calls `release`. `pack` makes the instances of a study or series. Raises NotFound, StoreError and
    InstanceDamaged."""

    def __init__(
        self,
        store: Store,
        study: str,
        series: str | None,
        instance: str | None,
        frames: Sequence[int] = (),
        *,
        reads: bool = True,
        pack: Pack | None = None,
    ) -> None:
        self._store = store
        self._reads = reads
        self._pack = pack or partial(pack_instances, store)
        self.frames = frames
        self._target = (study, series, instance)
        self._packed: PackedInstances | None = None  # of a study or series
        self._one: list[InstanceRow] = []  # of an instance
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
                segments = self._look_up()
                return self._store.open_segments(segments if self._reads else ())
            except SegmentGone:
                continue
        raise self._missing()

    def _missing(self) -> StoreError:
        """The reason why the segments cannot be opened."""
        for row in self.rows():
            try:
                self._store.open_segments([row.location.segment]).release()
            except SegmentGone as gone:
                return refusal([damaged_record(row, gone.lost)])
        return StoreError("segments were replaced again and again while they were being opened")

    def loss(self, gone: SegmentGone) -> StoreError:
        """The error for a client whose bytes could not be fetched. Blocks."""
        lost = self._store.lost_among(self.rows())
        return refusal(lost) if lost else gone

    def require_undamaged(self) -> None:
        """Raises InstanceDamaged if the bytes of an instance are known to be damaged."""
        if self._packed is not None:
            damaged = self._packed.damaged
        else:
            ids = [row.record_id for row in self._one if row.damaged]
            damaged = self._store.damaged_among(ids) if ids else []
        if damaged:
            raise refusal(damaged)

    def _look_up(self) -> set[int]:
        """The segments that hold the instances."""
        study, series, instance = self._target
        if series is not None and instance is not None:
            return self._look_up_one(InstanceKey(study, series, instance))
        packed = self._packed = self._pack(study, series)
        self.count, self.syntaxes, self.digest = packed.count, packed.syntaxes, packed.digest
        return packed.segments

    def _look_up_one(self, key: InstanceKey) -> set[int]:
        found = self._store.instance(key, self.frames)
        if found is None:
            raise NotFound(NOT_THERE)
        row, self.entries = found
        self._one, self.count, self.syntaxes = [row], 1, {row.transfer_syntax}
        self.digest = xxhash.xxh3_128_digest(row.record_id)
        return {row.location.segment}

    def rows(self) -> Iterator[InstanceRow]:
        """The rows in key order, as they were when the selection was made."""
        if self._packed is None:
            yield from self._one
            return
        if self._packed.packed:
            yield from self._packed.rows()
            return
        places = PLACE.iter_unpack(bytes(self._packed.places))
        number = 0
        for row in map(unpacked, itertools.chain.from_iterable(pages(self._store, *self._target[:2]))):
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
    def packed(self) -> PackedInstances | None:
        """The instances of a study or series, if their rows are kept."""
        return self._packed if self._packed is not None and self._packed.packed else None

    def pread(self, row: InstanceRow, offset: int, length: int) -> bytes:
        """Bytes of one instance's Part 10 file."""
        return self.lease.pread(row.location.segment, row.location.offset + offset, length)

    def inflated(self, row: InstanceRow, make: Callable[[], Pread]) -> Pread:
        """The reader of the last deflated dataset, or a new one. One thread at a time makes an answer."""
        if self._inflated is None or self._inflated[0] != row.record_id:
            self._inflated = row.record_id, make()
        return self._inflated[1]

    def release(self) -> None:
        self.lease.release()


def pages(store: Store, study: str, series: str | None) -> Iterator[list[PackedRow]]:
    after: InstanceKey | None = None
    while page := store.packed(study, series, after=after, limit=PAGE):
        yield page
        if len(page) < PAGE:
            return
        after = split_triple(page[-1][0])


def pack_instances(store: Store, study: str, series: str | None) -> PackedInstances:
    return PackedInstances(store, store.version(), pages(store, study, series))


class Selections:
    """Makes selections. Keeps the instances of the last studies and series until the next commit: several
    viewers request the metadata of a series, and then its instances."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[tuple[Rule | None, str, str | None], PackedInstances] = {}

    def restricted(self, store: Store) -> Selections:
        """The selections of a view of the store. They share the memory for instances."""
        view = copy.copy(self)
        view._store = store
        return view

    def select(self, target: Target) -> Selection:
        """Raises NotFound if the path does not name an instance, series or study of this store."""
        if target.study is None:
            raise NotFound("the target resource names no study")
        frames = [number - 1 for number in target.frames] if len(target.frames) <= ENTRIES_AT_ONCE else ()
        reads = target.kind is not Kind.METADATA  # the index has the metadata
        path = target.study, target.series, target.instance
        return Selection(self._store, *path, frames, reads=reads, pack=self._pack)

    def at_hand(self, target: Target) -> Selection | None:
        """For the event loop: a single instance, or the instances of a study or series that are kept. Else
        None."""
        if target.study is None or target.instance is not None:
            return self.select(target)
        is_kept = self._current(target.study, target.series, self._store.version()) is not None
        return self.select(target) if is_kept else None

    def _current(self, study: str, series: str | None, moment: int) -> PackedInstances | None:
        kept = self._kept.get((self._store.rule, study, series))
        return kept if kept is not None and kept.moment == moment else None

    def _pack(self, study: str, series: str | None) -> PackedInstances:
        packed = self._current(study, series, self._store.version())
        if packed is None:
            packed = pack_instances(self._store, study, series)
            if packed.count <= ROWS_REMEMBERED:
                while len(self._kept) >= SELECTIONS_KEPT:
                    self._kept.pop(next(iter(self._kept)), None)
                self._kept[self._store.rule, study, series] = packed
        return packed
