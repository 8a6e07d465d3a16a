"""The engines that the contract (docs/store-contract.md) is run against. `open` returns a Store."""

import dataclasses
import hashlib
from functools import partial

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


def schema_of(folder):
    return "test_" + hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()


def engine_of(name, server):
    """A function from a folder to its engine, which another process can be sent. `server` starts the
    database."""
    return LocalEngine if name == "local" else partial(DatabaseEngine, server().url())


ENGINES = ("local", "postgresql")
