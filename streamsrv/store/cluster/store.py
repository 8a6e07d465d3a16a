"""The store of a cluster for the rooms above it: the same calls, on objects of a bucket and a database.

A node keeps nothing of the store in its folder, only its cache and the files of uploads that are under way.
So a node may be killed, stopped or thrown away at any moment, and others go on.

Rules of this file
- Nothing is locked between nodes. A decision that another node has overtaken is refused by the index.
- A process that reads only begins no thread that writes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from streamsrv.errors import Overloaded, StoreError
from streamsrv.query.rules import Rule
from streamsrv.store import failpoints
from streamsrv.store.cluster import identity as identities
from streamsrv.store.cluster.leases import IntentKeeper
from streamsrv.store.cluster.places import ObjectPlaces
from streamsrv.store.cluster.sweeper import Sweeper
from streamsrv.store.cluster.tombstones import TombstoneWriter
from streamsrv.store.cluster.transaction import ATTEMPTS, ObjectRooms, ObjectTransaction
from streamsrv.store.fileops import FileOps
from streamsrv.store.folder import Identity, Layout, Reserve, require_writable
from streamsrv.store.index import DamagedRecord, Index, PackedRow, split_triple
from streamsrv.store.objects import bucket as buckets
from streamsrv.store.objects.cache import ObjectCache
from streamsrv.store.postgresql.connections import Connections
from streamsrv.store.postgresql.database import open_object_index
from streamsrv.store.postgresql.object_table import ObjectTable
from streamsrv.store.postgresql.tombstone_table import TombstoneTable
from streamsrv.store.rows import NO_SEGMENT, SLICE_INSTANCES, InstanceKey, InstanceRow
from streamsrv.store.segments import verifying
from streamsrv.store.segments.leases import SegmentLease
from streamsrv.store.segments.records import PayloadDigest, RecordFormat
from streamsrv.store.segments.segments import Clock
from streamsrv.store.store import Store, require_no_move

if TYPE_CHECKING:
    from streamsrv.store.store import StoreOptions

# The bucket is asked so often whether it is there, in seconds: each time is a request that may cost money.
BUCKET_PROBED = 5.0
PIECE = 8 << 20


class ClusterStore(Store):
    scrubs = False  # the bucket compares its bytes itself

    def __init__(
        self,
        layout: Layout,
        identity: Identity,
        index: Index,
        rooms: ObjectRooms,
        read_only: bool,
    ) -> None:
        self.layout = layout
        self.identity = identity
        self.store_id, self.secret = identity.store_id, identity.secret
        self.read_only = read_only
        self.ops, self.form, self.reserve = rooms.ops, rooms.form, rooms.reserve
        self.rooms = rooms
        self._whole: Store | None = None
        self._bucket_probed = 0.0
        self._see(index, None)
        self._held = contextlib.ExitStack()
        self._closed = False

    def _see(self, index: Index, rule: Rule | None) -> None:
        super()._see(index, rule)
        self.probe = self._probe

    def _probe(self) -> None:
        """Raises a StoreError that names the engine that is missing."""
        self.index.probe()
        if time.monotonic() - self._bucket_probed > BUCKET_PROBED:
            identities.require(self.rooms.bucket, self.identity)
            self._bucket_probed = time.monotonic()

    def close(self) -> None:
        self._closed = True
        self._held.close()

    def begin(self) -> ObjectTransaction:
        self._require_writable()
        whole = self._whole or self
        transaction = ObjectTransaction(self.rooms, whole.index)
        transaction.open_body(self.rule)
        return transaction

    def delete(self, study: str, series: str | None = None, instance: str | None = None) -> int:
        self._require_writable()
        if not self.index.packed(study, series, instance, limit=1):
            self.rooms.tombstones.write_own()
            return 0
        removed = 0
        after: InstanceKey | None = None
        with self.index.removing():
            while True:
                rows = self.index.packed(study, series, instance, after=after, limit=SLICE_INSTANCES)
                removed += self._delete(rows)
                if len(rows) < SLICE_INSTANCES:
                    break
                self.rooms.tombstones.write_own()
                after = split_triple(rows[-1][0])
        self.rooms.tombstones.write_own()
        return removed

    def _delete(self, rows: list[PackedRow]) -> int:
        """An instance that is replaced meanwhile is deleted too: it was there all the time."""
        removed = 0
        for _ in range(ATTEMPTS):
            if not rows:
                return removed
            failpoints.hit("in-delete")
            count = self.index.delete(rows, segment=NO_SEGMENT, committed_end=0, dead_bytes=0)
            removed += count
            if count == len(rows):
                return removed
            rows = self.index.packed_rows([split_triple(key) for key, _ in rows])
        raise Overloaded("other senders replace the same instances at the same time: try again")

    def open_segments(self, segments: Iterable[int]) -> SegmentLease:
        return self.rooms.readers.open(segments)

    def require_whole(self, row: InstanceRow, lease: SegmentLease) -> None:
        """The bytes in the bucket decide: those in the cache may have changed on this node alone. Raises
        StoreError then."""
        reason = verifying.damage_of(self.form, lease, row)
        if not reason:
            return
        if self._digest_in_bucket(row) == row.digest:
            raise StoreError(
                "the cache of this node has wrong bytes of the instance: remove the folder of the cache"
            )
        self._damaged(row, reason)

    def _digest_in_bucket(self, row: InstanceRow) -> bytes:
        segment, offset, length = row.location
        ((_, key, _),) = self.rooms.table.find([segment]) or [(segment, "", 0)]
        running = PayloadDigest()
        for at in range(offset, offset + length, PIECE):
            running.update(self.rooms.bucket.read(key, at, min(PIECE, offset + length - at)))
        return running.digest()

    def lost_among(self, rows: Iterable[InstanceRow]) -> list[DamagedRecord]:
        """Those of the first object that is not in the bucket. They are registered as damaged."""
        there = set[int]()
        lost: int | None = None
        found: list[InstanceRow] = []
        for row in rows:
            segment = row.location.segment
            if lost is None and segment not in there:
                if self._is_there(segment):
                    there.add(segment)
                else:
                    lost = segment
            if segment == lost and len(found) < SLICE_INSTANCES:
                found.append(row)
        current = self.index.existing([row.key for row in found])
        records = [
            verifying.damaged_record(row, verifying.MISSING_OBJECT)
            for row, now in zip(found, current, strict=True)
            if now is not None and (now.record_id, now.location) == (row.record_id, row.location)
        ]
        verifying.register((self._whole or self).index, records)
        return records

    def _is_there(self, segment: int) -> bool:
        found = self.rooms.table.find([segment])
        return bool(found) and self.rooms.bucket.has(found[0][1])


def open_cluster(
    folder: Path, options: StoreOptions, *, read_only: bool = False, fileops: FileOps | None = None
) -> ClusterStore:
    """Open the store of a cluster; makes it unless `read_only`. `folder` is that of the node. Raises
    StoreError, WrongStore."""
    ops, layout = fileops or FileOps(), Layout(folder)
    if not options.index:
        raise StoreError("segments in a bucket need an index in PostgreSQL: give `--index` too")
    if layout.identity.exists():
        raise StoreError(
            f"{folder} holds a store with segments of its own: start without `--segments`, or name another "
            "folder for this node"
        )
    ops.make_folder(layout.root)
    require_writable(layout)
    bucket = buckets.opened(options.segments)
    with contextlib.ExitStack() as held:
        connections = Connections(options.index, present=True)
        held.callback(connections.close)
        identity = identities.agreed(
            bucket, connections, read_only=read_only, makes=not (read_only or options.existing)
        )
        connections.announce()
        bucket.proof = identities.KEY
        node = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        index = open_object_index(
            connections,
            read_only=read_only,
            store=identity.fingerprint,
            keep_changes=options.keep_changes,
            grace=options.grace,
            node=node,
        )
        held.callback(index.close)
        if not (read_only or options.moving):
            require_no_move(index)
        table = ObjectTable(connections, node)
        cache = options.cache or layout.root / "cache"
        readers = ObjectCache(cache, options.cache_size, bucket, ObjectPlaces(table).find)
        held.callback(readers.close)
        intents = IntentKeeper(table, options.upload_lease)
        held.callback(intents.close)
        form = RecordFormat(identity.secret, identity.fingerprint)
        reserve = Reserve(layout.root, ops, options.min_free, 0)
        tombstones = TombstoneWriter(TombstoneTable(connections, node), bucket, form)
        rooms = ObjectRooms(
            bucket, table, intents, tombstones, readers, form, Clock(), layout.root, ops, reserve
        )
        if not read_only:
            soonest = min(options.grace, options.upload_lease)
            held.callback(Sweeper(table, bucket, tombstones, soonest).close)
        store = ClusterStore(layout, identity, index, rooms, read_only)
        store._held = held.pop_all()
        return store
