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
from streamsrv.store.cluster.transaction import ATTEMPTS, ObjectRooms, ObjectTransaction
from streamsrv.store.fileops import FileOps
from streamsrv.store.folder import Identity, Layout, Reserve, require_writable
from streamsrv.store.index import Index, PackedRow, split_triple
from streamsrv.store.objects import bucket as buckets
from streamsrv.store.objects.cache import ObjectCache
from streamsrv.store.postgresql.connections import Connections
from streamsrv.store.postgresql.database import open_object_index
from streamsrv.store.postgresql.object_table import ObjectTable
from streamsrv.store.rows import NO_SEGMENT, SLICE_INSTANCES, InstanceKey
from streamsrv.store.segments.leases import SegmentLease
from streamsrv.store.segments.records import RecordFormat
from streamsrv.store.segments.segments import Clock
from streamsrv.store.store import Store, require_no_move

if TYPE_CHECKING:
    from streamsrv.store.store import StoreOptions

# The bucket is asked so often whether it is there, in seconds: each time is a request that may cost money.
BUCKET_PROBED = 5.0


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
        removed = 0
        after: InstanceKey | None = None
        while True:
            rows = self.index.packed(study, series, instance, after=after, limit=SLICE_INSTANCES)
            removed += self._delete(rows)
            if len(rows) < SLICE_INSTANCES:
                return removed
            after = split_triple(rows[-1][0])

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
        connections = Connections(options.index)
        held.callback(connections.close)
        identity = identities.agreed(bucket, connections, read_only=read_only)
        bucket.proof = identities.KEY
        index = open_object_index(
            connections,
            read_only=read_only,
            store=identity.fingerprint,
            keep_changes=options.keep_changes,
            grace=options.grace,
        )
        held.callback(index.close)
        if not (read_only or options.moving):
            require_no_move(index)
        table = ObjectTable(connections, f"{socket.gethostname()}:{os.getpid()}")
        cache = options.cache or layout.root / "cache"
        readers = ObjectCache(cache, options.cache_size, bucket, ObjectPlaces(table).find)
        held.callback(readers.close)
        intents = IntentKeeper(table, options.upload_lease)
        held.callback(intents.close)
        form = RecordFormat(identity.secret, identity.fingerprint)
        reserve = Reserve(layout.root, ops, options.min_free, 0)
        rooms = ObjectRooms(bucket, table, intents, readers, form, Clock(), layout.root, ops, reserve)
        if not read_only:
            held.callback(Sweeper(table, bucket, min(options.grace, options.upload_lease)).close)
        store = ClusterStore(layout, identity, index, rooms, read_only)
        store._held = held.pop_all()
        return store
