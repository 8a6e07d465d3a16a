"""Brings the database of a cluster to the state of its bucket: an empty one after a loss, or an older one
that was restored from a backup.

Strategy: the objects and tombstones of the bucket are listed into a scratch table. Instances that a tombstone
names leave the database. Then each object that the database does not have is read, in the order in which the
objects were written. Its instances are derived from their bytes and committed, unless a tombstone names them.
An upload and a compaction may take several transactions, and an older database may have the first ones only.
So objects are read too that were new then.

Rules of this file
- No node runs meanwhile: the database says that it is being filled, and no node opens it.
- No object of the bucket is changed or removed. Tombstones that wait in the database are added to it.
- A run that broke off goes on when it is repeated.
- Of two records of one instance that no tombstone names, the one that was stored later wins. Both are named.
- An object without a living instance is condemned, and stays for KEPT seconds.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from streamsrv.errors import InstanceError, StoreError
from streamsrv.run_table import open_table
from streamsrv.store.cluster import identity as identities
from streamsrv.store.cluster.tombstones import TombstoneWriter
from streamsrv.store.fileops import FileOps
from streamsrv.store.folder import Layout, require_writable
from streamsrv.store.index import Index, record_id_of
from streamsrv.store.maintenance.check import (
    Derive,
    Finding,
    Severity,
    at,
    error,
    stored_record,
    wrong_payload,
)
from streamsrv.store.maintenance.objects.reading import ObjectFile, copies_of
from streamsrv.store.maintenance.portions import portions
from streamsrv.store.maintenance.reindex import Reindexing
from streamsrv.store.objects import bucket as buckets
from streamsrv.store.objects.bucket import Bucket, ListedObject
from streamsrv.store.objects.layout import SEGMENTS, TOMBSTONES, segment_of, walk_object
from streamsrv.store.postgresql import cluster_row
from streamsrv.store.postgresql.connections import Connections
from streamsrv.store.postgresql.database import open_object_index
from streamsrv.store.postgresql.object_table import ObjectState, ObjectTable
from streamsrv.store.postgresql.tombstone_table import TombstoneTable
from streamsrv.store.rows import (
    NO_SEGMENT,
    SLICE_BYTES,
    SLICE_INSTANCES,
    InstanceKey,
    InstanceRow,
    Location,
    NewInstance,
)
from streamsrv.store.segments.records import (
    DamagedBytes,
    FoundRecord,
    RecordFormat,
    RecordKind,
    TombstoneDamaged,
    unpack_ids,
)
from streamsrv.store.segments.verifying import (
    MISSING_OBJECT,
    WRONG_DIGEST,
    damaged_record,
    digest_of,
    register,
)
from streamsrv.store.store import StoreOptions

KEPT = 7 * 86_400.0  # seconds
# The node of objects whose instances are being taken, and of those that are done.
FILLING, FILLED = "reindex", "reindexed"
# So many seconds after an object is in the bucket, its transactions have ended. The clocks of bucket and
# database may differ by less.
COMMITTING = 3_600.0
PAGE = 1_000
SCHEMA = """
CREATE TABLE objects (segment INTEGER, key TEXT PRIMARY KEY, length INTEGER, modified REAL) WITHOUT ROWID;
CREATE INDEX objects_by_segment ON objects (segment);
CREATE TABLE deleted (record_id BLOB, key TEXT, PRIMARY KEY (record_id, key)) WITHOUT ROWID;
"""
LOSS = (
    "the database was empty, so the tombstones of the bucket alone tell which instances were deleted. A "
    "deletion that was acknowledged while the bucket did not answer may be missing"
)
TWICE = "stored twice, and no tombstone names either record: the later one is kept"


def reindex(folder: Path, options: StoreOptions, derive: Derive) -> Reindexing:
    """Fill the database. Raises StoreError, WrongStore, and StoreLocked beside nodes and other verbs."""
    ops, layout = FileOps(), Layout(folder)
    ops.make_folder(layout.root)
    require_writable(layout)
    bucket = buckets.opened(options.segments)
    identity = identities.in_bucket(bucket)
    if identity is None:
        raise StoreError(
            f"the bucket has no {identities.KEY}, which has the secret of its records: put a copy back. "
            "Without it `streamsrv salvage` reads the objects"
        )
    bucket.proof = identities.KEY
    with contextlib.ExitStack() as held:
        connections = Connections(options.index)
        held.callback(connections.close)
        held.enter_context(connections.excluding_nodes())
        was_empty = cluster_row.begin_filling(connections, identity)
        index = open_object_index(
            connections,
            read_only=False,
            store=identity.fingerprint,
            keep_changes=options.keep_changes,
            grace=options.grace,
            node=FILLING,
        )
        held.callback(index.close)
        table = ObjectTable(connections, FILLING)
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="reindex-", dir=layout.root)))
        listed = open_table(scratch / "listed.sqlite", SCHEMA, "reindex")
        held.callback(listed.close)
        form = RecordFormat(identity.secret, identity.fingerprint)
        tombstones = TombstoneWriter(TombstoneTable(connections, FILLING), bucket, form)
        filling = ObjectReindex(bucket, form, index, table, tombstones, derive, layout.root, listed)
        report = filling.run(was_empty)
        cluster_row.end_filling(connections, filling.last_segment)
        return report


class ObjectReindex:
    def __init__(
        self,
        bucket: Bucket,
        form: RecordFormat,
        index: Index,
        table: ObjectTable,
        tombstones: TombstoneWriter,
        derive: Derive,
        folder: Path,
        listed: sqlite3.Connection,
    ) -> None:
        self._bucket = bucket
        self._form = form
        self._index = index
        self._table = table
        self._tombstones = tombstones
        self._derive = derive
        self._folder = folder
        self._listed = listed
        self._findings: list[Finding] = []
        # Objects that the bucket has had since may be in the database in part.
        self._whole_until = table.last_made(FILLED) - COMMITTING
        self.last_segment = 0

    def run(self, was_empty: bool) -> Reindexing:
        """`was_empty`: the database was lost."""
        self._tombstones.write_all(0)  # those that a restored database has
        self._list()
        self._read_tombstones()
        if was_empty:
            self._find(Severity.NOTE, "tombstones", LOSS)
        else:
            self._delete_dead()
        for each, file in copies_of(self._bucket, self._unknown(), self._folder):
            if file is not None:
                self._object(each, file)
        self._find_missing()
        self._tombstones.write_all(0)
        ((number,),) = self._listed.execute("SELECT count(*) FROM objects")
        return Reindexing(self._index.statistics()["instances"], number, self._findings)

    def _find(self, severity: Severity, where: str, what: str) -> None:
        self._findings.append(Finding(severity, where, what))

    # Bucket

    def _list(self) -> None:
        for each in self._bucket.listed(SEGMENTS):
            segment = segment_of(each.key)
            if segment is None:
                self._find(Severity.NOTE, each.key, "it is no object of a store: left out")
                continue
            self._listed.execute("INSERT INTO objects VALUES (?, ?, ?, ?)", (segment, *each))
            self.last_segment = max(self.last_segment, segment)

    def _read_tombstones(self) -> None:
        """A tombstone that the database does not have belongs to the objects that are read, if they have its
        records. A damaged one stays in the bucket."""
        known = self._tombstones.table.keys()
        for each, file in copies_of(self._bucket, self._bucket.listed(TOMBSTONES), self._folder):
            if file is None:
                continue
            ids: list[bytes] = []
            is_whole = True
            for step in self._form.walk(file.fileno(), NO_SEGMENT, each.length):
                if isinstance(step, DamagedBytes):
                    self._hidden(each.key, step.reason)
                    is_whole = False
                elif step.header.kind is RecordKind.TOMBSTONE:
                    payload = os.pread(file.fileno(), step.header.length, step.payload)
                    is_whole &= self._read_tombstone(each.key, payload, ids)
            self._listed.executemany(
                "INSERT OR IGNORE INTO deleted VALUES (?, ?)", ((record_id, each.key) for record_id in ids)
            )
            if is_whole and each.key not in known:
                self._tombstones.table.adopt(each.key, ids)

    def _read_tombstone(self, key: str, payload: bytes, ids: list[bytes]) -> bool:
        """Adds the ids that are certain. Returns whether these are all."""
        try:
            ids += unpack_ids(payload)
        except TombstoneDamaged as reason:
            self._hidden(key, str(reason))
            ids += reason.certain
            return False
        return True

    def _hidden(self, key: str, reason: str) -> None:
        self._find(Severity.ERROR, key, f"tombstone: {reason}: deleted instances may be among the others")

    def _tombstones_of(self, record_id: bytes) -> list[str]:
        """The keys of the tombstones that name a record."""
        select = "SELECT key FROM deleted WHERE record_id = ?"
        return [key for (key,) in self._listed.execute(select, (record_id,))]

    def _is_listed(self, segment: int) -> bool:
        select = "SELECT 1 FROM objects WHERE segment = ?"
        return self._listed.execute(select, (segment,)).fetchone() is not None

    # An older database

    def _delete_dead(self) -> None:
        """Instances that were deleted or replaced since."""
        for portion in portions(self._index.dump("instances")):
            dead = [pair for pair in portion if self._tombstones_of(record_id_of(pair[1]))]
            if dead:
                self._index.delete(dead, segment=NO_SEGMENT, committed_end=0, dead_bytes=0)

    def _find_missing(self) -> None:
        """Objects that the database names, and that are not in the bucket."""
        rows = self._index.segments()
        missing = {
            segment
            for segment, _, _ in self._table.complete()
            if segment in rows and not self._is_listed(segment)
        }
        for segment in sorted(missing):
            self._find(Severity.ERROR, f"segment {segment}", MISSING_OBJECT)
        for lost in portions(self._index.instances_in(missing)) if missing else ():
            register(self._index, [damaged_record(row, MISSING_OBJECT) for row in lost])

    # Objects that the database does not have, or may have in part

    def _unknown(self) -> Iterator[ListedObject]:
        select = "SELECT key, length, modified FROM objects ORDER BY modified, key"
        cursor = self._listed.execute(select)
        while page := cursor.fetchmany(PAGE):
            objects = [ListedObject(*row) for row in page]
            states = self._table.states([number_of(each) for each in objects])
            for each in objects:
                state = states.get(number_of(each))
                if state is not None and state.key != each.key:
                    self._is_taken(each)
                elif state is None or is_unknown(state) or self._may_be_partial(state, each):
                    yield each

    def _may_be_partial(self, state: ObjectState, each: ListedObject) -> bool:
        """An object whose instances were deleted or moved is condemned, until the next slice is committed."""
        is_named = state.state in ("complete", "condemned") and state.node != FILLED
        return is_named and each.modified >= self._whole_until

    def _is_taken(self, each: ListedObject) -> None:
        what = f"another object is segment {number_of(each)}, too: `streamsrv salvage` reads it"
        self._find(Severity.ERROR, each.key, what)

    def _object(self, each: ListedObject, file: ObjectFile) -> None:
        segment = number_of(each)
        if not self._table.adopt(segment, each.key, KEPT):
            state = self._table.states([segment]).get(segment)
            if state is None or state.key != each.key:
                self._is_taken(each)
                return
        slice_ = FilledSlice(self._index, self._tombstones.table, segment, each.length, self._is_listed)
        damaged, stored = False, 0
        tombstones: set[str] = set()
        for step in walk_object(self._form, file.fileno(), segment, each.length):
            if isinstance(step, DamagedBytes):
                what = f"record header: {step.reason}; no record up to byte {step.end}"
                self._findings.append(error(at(segment, step.offset), what))
                damaged = True
            elif step.header.kind is RecordKind.INSTANCE:
                stored += step.header.length
                if keys := self._tombstones_of(step.header.record_id):
                    tombstones.update(keys)
                else:
                    damaged |= not self._instance(file, step, slice_)
        self._findings += slice_.flush()
        if damaged or slice_.others:
            self._table.copied({segment, *slice_.others})
        if tombstones:
            self._tombstones.table.lies_in(segment, tombstones)
        row = self._index.segment(segment)
        if row is not None:
            # A run that broke off, or an older database, may have counted some.
            self._index.seal(segment, dead_bytes=max(stored - row.live - row.dead, 0))
            self._table.filled(segment, FILLED)
        elif damaged:
            self._table.give_up(segment, uploading=False)  # it stays in the bucket, and its tombstones do
            for key in tombstones:
                self._tombstones.table.forget(key)
        else:
            self._table.condemn(segment, each.length, FILLED, KEPT)

    def _instance(self, file: ObjectFile, found: FoundRecord, slice_: FilledSlice) -> bool:
        """Whether its bytes are whole."""
        header, segment = found.header, slice_.segment
        reason = ""
        if digest_of(file.fileno(), found.payload, header.length) != header.digest:
            reason = wrong_payload(Location(segment, found.payload, header.length))
        try:
            new = self._derive(stored_record(file.fileno(), segment, found))
        except InstanceError as fault:
            what = reason or f"instance cannot be read: {fault.detail}"
            self._findings.append(error(at(segment, found.payload), f"{what}; it is not in the index"))
            return False
        if reason:
            what = f"{reason}; it is that of instance {'/'.join(new.row.key)}"
            self._findings.append(error(at(segment, found.payload), what))
        self._findings += slice_.add(new, damaged=bool(reason))
        return not reason


class FilledSlice:
    """Instances of one object on their way into the index."""

    def __init__(
        self,
        index: Index,
        tombstones: TombstoneTable,
        segment: int,
        length: int,
        is_listed: Callable[[int], bool],
    ) -> None:
        self._index = index
        self._tombstones = tombstones
        self.segment = segment
        self._length = length
        self._is_listed = is_listed
        self._waiting: dict[InstanceKey, NewInstance] = {}
        self._size = 0
        self._damaged: list[InstanceRow] = []
        self.others: set[int] = set()  # segments that have copies of its records

    def add(self, new: NewInstance, *, damaged: bool) -> list[Finding]:
        """Findings are those of a commit that it may cause."""
        findings: list[Finding] = []
        full = len(self._waiting) == SLICE_INSTANCES or self._size >= SLICE_BYTES
        if full or new.row.key in self._waiting:
            findings = self.flush()
        self._waiting[new.row.key] = new
        self._size += new.size
        if damaged:
            self._damaged.append(new.row)
        return findings

    def flush(self) -> list[Finding]:
        waiting, self._waiting, self._size = list(self._waiting.values()), {}, 0
        damaged, self._damaged = self._damaged, []
        findings: list[Finding] = []
        winners: list[NewInstance] = []
        replaced: list[InstanceRow] = []
        moves: list[tuple[InstanceRow, Location]] = []
        refused: list[bytes] = []
        for new, row in zip(waiting, self._index.existing([each.row.key for each in waiting]), strict=True):
            if row is None:
                winners.append(new)
            elif row.record_id == new.row.record_id:  # a copy of a compaction
                if not self._is_listed(row.location.segment):
                    moves.append((row, new.row.location))
                elif row.location.segment != self.segment:
                    self.others.add(row.location.segment)
            else:
                findings.append(error(f"instance {'/'.join(row.key)}", TWICE))
                if new.row.stored_at > row.stored_at:
                    winners.append(new)
                    replaced.append(row)
                else:
                    refused.append(new.row.record_id)
        if winners:
            self._index.commit(winners, segment=self.segment, committed_end=self._length, replaced=replaced)
        if moves:
            self._index.relocate(moves, segment=self.segment, committed_end=self._length)
        if refused:
            self._tombstones.add(refused, self.segment)
        register(self._index, [damaged_record(row, WRONG_DIGEST) for row in damaged])
        return findings


def number_of(each: ListedObject) -> int:
    segment = segment_of(each.key)
    assert segment is not None
    return segment


def is_unknown(state: ObjectState) -> bool:
    """Whether the database has not taken the instances of an object, or has begun to."""
    return state.state in ("intent", "swept") or state.node == FILLING
