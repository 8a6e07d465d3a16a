"""Compaction: living records of mostly dead segments move to another segment, and the old files are removed.

Strategy: a victim is sealed, so that only the set of its living records can change. Those records are copied
within the kernel to an acquired segment in slices, synced, and swapped in the index by compare-and-set. Then
tombstones follow that are still needed, and the file is removed. It runs beside a live server: readers that
have the file open keep it, others look up again.

The living records of a segment are found by reading the whole index. So victims are taken in groups, as many
as the disk has room for, with one pass for each group.

A crash leaves copies without index row, and a victim that the next compaction takes up again. Copies keep
their record id, so a tombstone deletes both.

Rules of this file
- A tombstone goes with its segment only if no other segment holds a record that it deletes. Where a damaged
  header might hide such a record, all are kept.
- A victim is removed only when no instance lives in it. If something in it cannot be read, it may hide a
  tombstone, and stays. When every segment is compacted, no other segment can hold a record that it deletes:
  then its file is moved to lost+found."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from streamsrv.errors import InsufficientStorage, SegmentGone, StoreLocked
from streamsrv.store import failpoints
from streamsrv.store.locks import Locks
from streamsrv.store.maintenance.portions import sized_portions
from streamsrv.store.rows import SLICE_INSTANCES, InstanceRow, Location, SegmentRow
from streamsrv.store.segments import leftovers
from streamsrv.store.segments.leases import LINGER, FileLease
from streamsrv.store.segments.manifest import Slot, State
from streamsrv.store.segments.records import (
    HEADER,
    NO_DIGEST,
    NO_ID,
    DamagedBytes,
    FoundRecord,
    RecordHeader,
    RecordKind,
    TombstoneDamaged,
    unpack_ids,
)
from streamsrv.store.segments.segments import SegmentWriter, refused
from streamsrv.store.segments.tombstones import write_tombstone
from streamsrv.store.segments.verifying import damage_of, damaged_record, header_of, register
from streamsrv.store.store import Store

# Above half alive, a segment costs more writing than it frees.
MOSTLY_DEAD = 0.5
# The copies of one group may take this share of the free space: one part in GROUP_SHARE.
GROUP_SHARE = 4
# Victims in one group: a process may have 1,024 descriptors.
GROUP_MOST = 512
# Bytes copied and synced at once: bounds the waste of a crash, and the growth of a segment over its size.
MOVED_BYTES = 256 << 20


@dataclass(slots=True)
class Compaction:
    """The result of a compaction. `damaged` are segments that stay because something in them cannot be read;
    `busy` are segments with a writer; `index_rewritten` is None if not requested."""

    segments: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)
    moved: int = 0
    damaged_instances: int = 0
    freed: int = 0
    index_rewritten: bool | None = None


def compact(store: Store, everything: bool = False) -> Compaction:
    """Compact mostly dead segments; with `everything` each segment and the index, waiting for running
    requests. Raises StoreLocked during another compaction. The index is rewritten only if no other process
    has it open."""
    locks = Locks(store.manifest)
    try:
        if not locks.try_lock_compaction():
            raise StoreLocked("another compaction is running on this store")
        compactor = _Compactor(store, locks)
        try:
            return compactor.run(everything)
        except InsufficientStorage:
            time.sleep(2 * LINGER)  # readers still hold the space of removed segments
            return store.reserve.with_room(lambda: compactor.run(everything))
    finally:
        locks.close()


class _Compactor:
    def __init__(self, store: Store, locks: Locks) -> None:
        self._store = store
        self._index = store.index
        self._locks = locks
        self._report = Compaction()
        self._holders: dict[bytes, set[int]] = {}  # id that a victim's tombstone deletes -> segments with it
        self._certain = True
        self._everything = False
        self._damaged: set[int] = set()  # victims with unreadable parts
        self._output: SegmentWriter | None = None

    def run(self, everything: bool) -> Compaction:
        self._everything = everything
        victims = [row.segment for row in self._chosen(everything) if self._sealed(row, everything)]
        self._find_holders(victims)
        try:
            for group in self._groups(victims):
                self._compact_group(group)
        finally:
            self._release_output()
        if everything:
            self._rewrite_index()
        return self._report

    def _rewrite_index(self) -> None:
        try:
            self._index.rewrite()
            self._report.index_rewritten = True
        except StoreLocked:
            self._report.index_rewritten = False

    # Choosing

    def _chosen(self, everything: bool) -> Iterator[SegmentRow]:
        for row in self._index.segments().values():
            if not row.empty and not self._store.layout.segment(row.segment).exists():
                if not row.live:
                    self._drop_missing(row, everything)
            elif not row.empty and (everything or self._worth_it(row)):
                yield row

    def _drop_missing(self, row: SegmentRow, everything: bool) -> None:
        """Drop a segment without file and without living instances: an interrupted compaction removed it, or
        it is lost and, as all segments are compacted, no other can hold a record that its tombstones
        deleted."""
        _, slot = self._locks.slot(row.segment)
        if everything or (slot is not None and slot.state is State.REMOVED):
            self._locks.ensure(row.segment, Slot(State.REMOVED, row.committed_end))
            self._locks.sync()
            self._index.drop_segment(row.segment)

    def _worth_it(self, row: SegmentRow) -> bool:
        """A growing segment is left alone while it would free little."""
        enough = row.sealed or row.dead >= self._store.segments.size // 16
        return enough and row.dead > (row.live + row.dead) * MOSTLY_DEAD

    def _sealed(self, row: SegmentRow, waiting: bool) -> bool:
        """Seal a segment; False if it has a writer."""
        if row.sealed:
            return True
        if self._store.segments.seal_growing(row.segment, waiting=waiting):
            return True
        self._report.busy.append(row.segment)
        return False

    # Tombstones

    def _find_holders(self, victims: list[int]) -> None:
        """Find the segments that hold records which the victims' tombstones delete, by reading all
        headers."""
        for victim in victims:
            for deleted in self._deletes(victim):
                self._holders.update((record_id, set()) for record_id in deleted)
        if not self._holders:
            return
        for segment in self._store.layout.segment_files():
            for step in self._walk(segment):
                if isinstance(step, DamagedBytes):
                    self._certain = False
                    self._damaged.add(segment)
                elif step.header.kind is RecordKind.INSTANCE and step.header.record_id in self._holders:
                    self._holders[step.header.record_id].add(segment)

    def _walk(self, segment: int) -> Iterator[FoundRecord | DamagedBytes]:
        row = self._index.segment(segment)
        try:
            with self._store.readers.open([segment]) as lease:
                end = row.committed_end if row else os.fstat(lease.fd(segment)).st_size
                yield from self._store.form.walk(lease.fd(segment), segment, end)
        except SegmentGone:
            return

    def _deletes(self, segment: int) -> Iterator[Sequence[bytes]]:
        """The ids that each record of a segment deletes."""
        with self._store.readers.open([segment]) as lease:
            for step in self._walk(segment):
                if isinstance(step, DamagedBytes):
                    self._damaged.add(segment)
                    continue
                if step.header.kind is RecordKind.TOMBSTONE:
                    yield self._ids(segment, lease.pread(segment, step.payload, step.header.length))
                elif step.header.kind is RecordKind.INSTANCE and step.header.replaced != NO_ID:
                    yield [step.header.replaced]

    def _ids(self, segment: int, payload: bytes) -> Sequence[bytes]:
        try:
            return unpack_ids(payload)
        except TombstoneDamaged as reason:
            self._certain = False
            self._damaged.add(segment)
            return reason.certain

    def _keep_tombstones(self, victim: int) -> None:
        """The copy of a living record names the record that it replaces, too; a second tombstone does no
        harm."""
        needed: list[bytes] = []
        for deleted in self._deletes(victim):
            # A tombstone that could not be read before has no holders: any segment may be one.
            held = (each for each in deleted if self._holders.get(each, {0}) - {victim})
            needed += held if self._certain else deleted
            if len(needed) >= SLICE_INSTANCES:
                self._write_tombstone(needed)
                needed = []
        if needed:
            self._write_tombstone(needed)

    def _write_tombstone(self, ids: list[bytes]) -> None:
        output = self._room()
        dead = write_tombstone(output, self._store.form, ids)
        output.sync()
        self._index.delete((), segment=output.segment, committed_end=output.end, dead_bytes=dead)
        output.commit_up_to(output.end)

    # Moving

    def _groups(self, victims: list[int]) -> Iterator[list[int]]:
        """All copies of a group are made before its first victim goes. Victims with the least to copy come
        first, because the disk may be full."""
        live = {victim: row.live for victim, row in self._index.segments().items()}
        group: list[int] = []
        size = 0
        for victim in sorted(victims, key=lambda victim: (victim in self._damaged, live[victim])):
            free, _ = self._store.ops.space(self._store.layout.root)
            if group and (size + live[victim] > free // GROUP_SHARE or len(group) == GROUP_MOST):
                yield group
                group, size = [], 0
            group.append(victim)
            size += live[victim]
        if group:
            yield group

    def _compact_group(self, victims: list[int]) -> None:
        for rows in sized_portions(self._index.instances_in(frozenset(victims)), MOVED_BYTES):
            self._move(rows)
        for victim in victims:
            self._keep_tombstones(victim)
            self._unlink(victim)

    def _move(self, rows: list[InstanceRow]) -> None:
        output = self._room()
        with self._store.readers.open({row.location.segment for row in rows}) as lease:
            moves = [(row, self._copy(lease, row, output)) for row in rows]
            output.sync()
            output.mark_dirty()
            for row, moved in moves:
                self._validate(lease, row, moved, output)
        output.sync()
        failpoints.hit("in-compaction")
        output.locks.lock(row.key for row in rows)
        done = self._index.relocate(moves, segment=output.segment, committed_end=output.end)
        output.commit_up_to(output.end)
        output.locks.release()
        failpoints.hit("in-compaction")
        self._report.moved += sum(done)

    def _copy(self, lease: FileLease, row: InstanceRow, output: SegmentWriter) -> Location:
        """PENDING, so that after a crash a partial copy is cut off and not kept in lost+found."""
        segment, offset, length = row.location
        header = RecordHeader(RecordKind.PENDING, row.record_id, 0, 0, NO_DIGEST, output.committed)
        output.append([self._store.form.pack(header, output.segment, output.end)])
        moved = Location(output.segment, output.end, length)
        self._verify(lease, row)
        output.append_copy(lease.fd(segment), offset, length)
        return moved

    def _verify(self, lease: FileLease, row: InstanceRow) -> None:
        """A damaged instance moves with its old digest, so it stays registered as damaged."""
        try:
            reason = damage_of(self._store.form, lease, row)
        except OSError as error:
            raise refused(error, "reading", row.location.segment) from error
        if reason:
            register(self._index, [damaged_record(row, reason)])
            self._report.damaged_instances += 1

    def _validate(self, lease: FileLease, row: InstanceRow, moved: Location, output: SegmentWriter) -> None:
        """A damaged header is made again from the index; then all tombstones of its victim are kept."""
        old = header_of(self._store.form, lease, row)
        digest, replaced = (old.digest, old.replaced) if old else (row.digest, NO_ID)
        began = output.committed
        header = RecordHeader(
            RecordKind.INSTANCE, row.record_id, row.stored_at, moved.length, digest, began, replaced
        )
        at = moved.offset - HEADER
        output.overwrite(self._store.form.pack(header, output.segment, at), at)

    def _room(self) -> SegmentWriter:
        """The segment for the copies; another one when it is full."""
        if self._output is not None and self._output.end >= self._store.segments.size:
            self._release_output()
        if self._output is None:
            self._output = self._store.segments.acquire()
        return self._output

    def _release_output(self) -> None:
        if self._output is not None:
            self._output.release()
        self._output = None

    def _unlink(self, victim: int) -> None:
        row = self._index.segment(victim)
        if row is None or row.live:
            self._report.busy.append(victim)
            return
        if victim in self._damaged and not self._everything:
            self._report.damaged.append(victim)
            return
        self._locks.put(victim, Slot(State.REMOVED, row.committed_end))
        self._locks.sync()
        if victim in self._damaged:
            leftovers.take_file(self._store.layout, self._store.ops, victim, row.committed_end)
        else:
            self._store.ops.unlink(self._store.layout.segment(victim))
        self._store.readers.gone(victim)
        self._store.ops.sync_folder(self._store.layout.segments)
        failpoints.hit("in-compaction")
        self._index.drop_segment(victim)
        for holders in self._holders.values():
            holders.discard(victim)
        self._report.segments.append(victim)
        self._report.freed += row.committed_end
