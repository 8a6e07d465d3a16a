"""The engines that the contract (docs/store-contract.md) is run against. `open` returns a Store."""

import dataclasses
import hashlib
import os
from functools import partial

from seaweed import BUCKET, variables

from streamsrv.store import Store, StoreOptions

OPTIONS = StoreOptions(segment_size=64 << 10, min_free=0)


class LocalEngine:
    """Segments in a folder, and LMDB."""

    options = OPTIONS

    def __init__(self, folder):
        self._folder = folder

    def open(self, **options):
        return Store.open(self._folder, self.options, **options)


class DatabaseEngine(LocalEngine):
    """Segments in a folder, and PostgreSQL: a schema a folder."""

    def __init__(self, url, folder):
        super().__init__(folder)
        self.options = dataclasses.replace(OPTIONS, index=url.replace("public", schema_of(folder)))


class ClusterEngine(DatabaseEngine):
    """Objects in a bucket, and PostgreSQL: a prefix and a schema a folder, and a node a process."""

    def __init__(self, url, endpoint, folder):
        super().__init__(url, folder)
        self.options = dataclasses.replace(self.options, segments=f"s3://{BUCKET}/{schema_of(folder)}")
        self._folder = folder / str(os.getpid())
        os.environ.update(variables(endpoint))


def schema_of(folder):
    return "test_" + hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()


def engine_of(name, database, gateway):
    """A function from a folder to its engine, which another process can be sent. `database` and `gateway`
    start the servers."""
    if name == "local":
        return LocalEngine
    if name == "postgresql":
        return partial(DatabaseEngine, database())
    return partial(ClusterEngine, database(), gateway())


ENGINES = ("local", "postgresql", "cluster")
