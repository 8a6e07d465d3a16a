"""The database of the index, as the ordered map that the index asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

from streamsrv.boot_clock import boot_seconds
from streamsrv.errors import StoreError
from streamsrv.store.fileops import FileOps
from streamsrv.store.index import Index
from streamsrv.store.ordered_map import KeysRead, Needle
from streamsrv.store.postgresql import schema
from streamsrv.store.postgresql.batches import TableBatch
from streamsrv.store.postgresql.connections import READING, Connections, failure, translated
from streamsrv.store.postgresql.freshness import QUESTION, AnnouncedRemoval, Freshness, Removals
from streamsrv.store.postgresql.object_batches import ObjectBatch
from streamsrv.store.postgresql.tables import TABLES, Table
from streamsrv.store.postgresql.transactions import ReadingTables, WritingTables


class Database:
    """An open database. Thread-safe."""

    remote = True
    scanned, keys_at_once = 200, 20_000

    def __init__(self, connections: Connections, *, read_only: bool, store: str) -> None:
        """Raises StoreError as `schema.prepare` does."""
        self.handles: dict[str, Table] = dict(TABLES)
        self._read_only = read_only
        self._connections = connections
        self._freshness = Freshness(self.version)
        self._removals = Removals(connections)
        schema.prepare(self._connections, read_only=read_only, store=store)

    @property
    def read_only(self) -> bool:
        return self._read_only

    def reading(self, doing: str) -> ReadingTables:
        return ReadingTables(self._connections, doing)

    def begin(self) -> WritingTables:
        return WritingTables(self._connections)

    def entries(
        self,
        transaction: ReadingTables,
        low: bytes,
        high: bytes,
        place: tuple[bytes, bytes] | None,
        *,
        descending: bool,
        size: int,
    ) -> Iterator[tuple[bytes, bytes]]:
        return transaction.entries(low, high, place, descending=descending, size=size)

    def under(
        self, transaction: ReadingTables, name: str, start: bytes, first: bytes, size: int
    ) -> list[tuple[bytes, bytes]]:
        return transaction.under(TABLES[name], start, first, size)

    def under_each(
        self, transaction: ReadingTables, name: str, starts: Sequence[bytes], size: int
    ) -> list[list[tuple[bytes, bytes]]]:
        return transaction.under_each(TABLES[name], starts, size)

    def rows_at_hand(self, name: str) -> int | None:
        return self._connections.counted.get(name)

    def keys(
        self, transaction: ReadingTables, at: bytes, end: bytes, size: int, needle: Needle, most: int
    ) -> KeysRead:
        return transaction.keys(at, end, size, needle, most)

    def lists(
        self, transaction: ReadingTables, keys: Sequence[bytes], most: int, *, exact: bool, counting: bool
    ) -> Iterator[tuple[bytes, int, Iterable[bytes]]]:
        return transaction.lists(keys, most, exact=exact, counting=counting)

    def numbers(
        self, transaction: ReadingTables, low: bytes, end: bytes, size: int
    ) -> Iterator[tuple[bytes, int]]:
        return transaction.numbers(low, end, size)

    def expect_list(self, transaction: ReadingTables, key: bytes, most: int) -> None:
        transaction.expect_list(key, most)

    def failure(self, error: BaseException, doing: str) -> BaseException:
        return failure(error, doing)

    def require_files(self) -> None:
        """There are none."""

    def version(self) -> int:
        asked_at = boot_seconds()
        with translated("looking for changes"):
            link, (((commit, announced),),) = self._connections.begun([QUESTION], READING)
        version = link.numbered(commit)
        self._connections.give_back(link, usable=True)
        if not announced:
            self._freshness.note(version, asked_at)
        elif not self._read_only:
            self._removals.sweep()
        return version

    def version_at_hand(self) -> int | None:
        return self._freshness.at_hand()

    def removing(self) -> AbstractContextManager[AnnouncedRemoval]:
        return self._removals.announced()

    def unseen(self) -> int:
        """Waits until no commit is under way: one whose client died may still become visible."""
        with self.begin():
            return 0

    def sizes(self) -> dict[str, int]:
        statement = (
            "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class WHERE relkind = 'r' "
            "AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'head'::regclass)"
        )
        with self.reading("measuring the index") as transaction:
            ((size,),) = transaction.ask(statement)
        return {"bytes_used": size, "bytes_file": size}

    def rewrite(self, ops: FileOps) -> None:
        raise StoreError("the index is a database: VACUUM FULL in PostgreSQL removes deleted rows")

    def close(self) -> None:
        self._freshness.close()
        self._connections.close()


def open_index(url: str, *, read_only: bool = False, store: bytes = b"", keep_changes: int = 0) -> Index:
    """The index in a database; makes its tables unless `read_only`. `url` is one of libpq, `store` the
    fingerprint of its store. Raises StoreError, WrongStore."""
    database = Database(Connections(url), read_only=read_only, store=store.hex())
    return Index(database, keep_changes, TableBatch)


def open_object_index(
    connections: Connections, *, read_only: bool, store: bytes, keep_changes: int, grace: float, node: str
) -> Index:
    """The index of a store whose segments are objects; closes the connections. Bytes of an object without
    instances stay for `grace` seconds. `node` names this process in the tables."""
    database = Database(connections, read_only=read_only, store=store.hex())
    return Index(database, keep_changes, partial(ObjectBatch, grace=grace, node=node))
