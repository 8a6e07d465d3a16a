"""A store of several nodes over PostgreSQL and a bucket, for tests that look at both."""

import dataclasses

from seaweed import BUCKET
from store_world import add, key_of

from streamsrv.errors import SegmentGone
from streamsrv.store import Store, StoreOptions
from streamsrv.store.cluster.sweeper import sweep

KEYS = [key_of(1, 1, number) for number in range(4)]


class Cluster:
    """Its database is a schema, its bucket a prefix. `node` opens the store of another node."""

    def __init__(self, name, folder, database, object_store, held):
        self.name, self.folder, self._database, self._held = name, folder, database, held
        self.options = StoreOptions(
            min_free=0,
            index=database.url(name),
            segments=f"s3://{BUCKET}/{name}",
            cache_size=64 << 20,
            grace=10_000,  # no sweeper begins by itself
            upload_lease=10_000,
        )

    def node(self, name, **options):
        return self._held.enter_context(Store.open(self.folder / name, self.options_with(**options)))

    def options_with(self, **options):
        return dataclasses.replace(self.options, **options)

    def end(self):
        """All nodes."""
        self._held.close()

    def sql(self, statement):
        return self._database.sql(f"SET search_path = {self.name}; {statement}")

    def states(self):
        return self.sql("SELECT state FROM objects ORDER BY segment").split()

    def pass_time(self):
        """Everything that waits for a time is due."""
        self.sql("UPDATE objects SET until = now() - interval '1 second' WHERE until IS NOT NULL")


def swept(store):
    return sweep(store.rooms.table, store.rooms.bucket)


def swept_twice(cluster, store):
    """After this no row tells of the objects that were removed."""
    for _ in range(2):
        cluster.pass_time()
        swept(store)


def is_in_bucket(store, segment, key):
    try:
        return store.rooms.bucket.length(key) > 0
    except SegmentGone:
        return False


def begun(store, *payloads):
    transaction = store.begin()
    return transaction, [add(transaction, payload) for payload in payloads]


def flip(store, segment, offset):
    """Change one byte of an object, as a bucket that decays does."""
    ((_, key, length),) = store.rooms.table.find([segment])
    content = bytearray(store.rooms.bucket.read(key, 0, length))
    content[offset] ^= 1
    store.rooms.bucket.put(key, bytes(content))
    return key


def key_in_bucket(store, instance):
    """Segment, key and content of the object of an instance."""
    segment = store.lookup(*instance)[0].location.segment
    ((_, key, length),) = store.rooms.table.find([segment])
    return segment, key, bytes(store.rooms.bucket.read(key, 0, length))
