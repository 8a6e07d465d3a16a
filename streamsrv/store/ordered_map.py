"""The database behind the index: named maps of bytes in the order of keys.

Strategy: the index (rows, searches, commits) is written once. LMDB and PostgreSQL are two maps behind it. A
transaction and its cursors have the names and meanings of py-lmdb: `get`, `put`, `delete`, `cursor`, `stat`,
`id`. Their keys and values are bytes. A map may hold several values under a key, which are then in order too.

Where each step of a cursor would wait for another process, a reader asks the map for many rows at once:
`under`, `entries`, `keys`, `lists`, `expect_list`.

Rules of this file: a transaction sees one version. A writer is alone, in all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, TypeAlias

from streamsrv.store.fileops import FileOps

Transaction: TypeAlias = Any  # lmdb.Transaction and lmdb.Cursor: py-lmdb's stubs are not read
Cursor: TypeAlias = Any
Pair: TypeAlias = tuple[bytes, bytes]  # key and value
UnderEach: TypeAlias = Callable[[Transaction, str, Sequence[bytes], int], list[list[Pair]]]


# A version is the number of a commit, and above these bits the number of the server that made it. After a
# failover that lost commits, another server gives the same numbers to other content.
COMMIT_BITS = 64


def same_server(version: int, other: int) -> bool:
    """Whether one server made both versions, so that the changes between them are known."""
    return version >> COMMIT_BITS == other >> COMMIT_BITS


class Needle(NamedTuple):
    """Bytes that a key must hold, with `caseless` in ASCII letters of either case. It also holds `other`,
    which need not be looked for. A key of `long` bytes or more is always taken."""

    text: bytes
    other: bytes
    caseless: bool
    long: int


class KeysRead(NamedTuple):
    """At least those of the keys that hold the needle, and the number of all that were read. `last` is the
    last one that was read if there may be more, else empty."""

    keys: list[bytes]
    number: int
    last: bytes


class Announcement(Protocol):
    """Of removals, to other processes."""

    def announce(self) -> None:
        """Once more."""

    def confirm(self, transaction: Transaction) -> None:
        """Called in each transaction that removes. Raises AnnouncementLost: announce it once more."""


class LocalMap:
    """The part of a map whose readers see each commit at once."""

    remote = False
    handles: dict[str, Any]

    def numbers(
        self, transaction: Transaction, low: bytes, end: bytes, size: int
    ) -> Iterator[tuple[bytes, int]]:
        cursor = transaction.cursor(db=self.handles["attributes"])
        more = cursor.set_range(low)
        while more and (key := cursor.key()) <= end:
            yield key, cursor.count()
            more = cursor.next_nodup()

    def rows_at_hand(self, name: str) -> int | None:
        return None

    def removing(self) -> AbstractContextManager[Announcement | None]:
        return nullcontext()


class OrderedMap(Protocol):
    """The open database. `handles` maps the name of a map to its handle."""

    handles: dict[str, Any]
    remote: bool  # whether each transaction waits for another process
    scanned: int  # so many keys of a list are read and compared in the time of a row
    keys_at_once: int

    @property
    def read_only(self) -> bool: ...

    def reading(self, doing: str) -> AbstractContextManager[Transaction]:
        """A read transaction for one batch. Errors of the database become a StoreError that names `doing`."""

    def under(self, transaction: Transaction, name: str, start: bytes, first: bytes, size: int) -> list[Pair]:
        """Rows of a map whose keys begin with `start`, from the key `first` on, at most `size`."""

    @property
    def under_each(self) -> UnderEach | None:
        """`under` for several studies, each with a NUL, in one question, in their order, if a question is a
        round trip."""

    def entries(
        self,
        transaction: Transaction,
        low: bytes,
        high: bytes,
        place: Pair | None,
        *,
        descending: bool,
        size: int,
    ) -> Iterator[Pair]:
        """The entries of lists (`attributes`) whose keys are between two, from `place` on. They come by key,
        forwards or backwards, and forwards under each key. The first `size` come at once, and the rows of
        their studies with them."""

    def rows_at_hand(self, name: str) -> int | None:
        """The number of rows of a map in the version that was read last, if that is known without waiting."""

    def keys(
        self, transaction: Transaction, at: bytes, end: bytes, size: int, needle: Needle, most: int
    ) -> KeysRead:
        """The keys of lists between two. At most `size` are read. Their lists will be asked for, usually not
        more than `most` entries."""

    def lists(
        self, transaction: Transaction, keys: Sequence[bytes], most: int, *, exact: bool, counting: bool
    ) -> Iterator[tuple[bytes, int, Iterable[bytes]]]:
        """Of each of these lists that exists its key, the number of its entries, and the entries. Usually not
        more than `most` are wanted: without `exact` a longer list may have no entries, and its number may be
        too low. With `counting` that of a single list is right."""

    def numbers(
        self, transaction: Transaction, low: bytes, end: bytes, size: int
    ) -> Iterator[tuple[bytes, int]]:
        """The keys of lists between two, with their numbers of entries. The first `size` come at once."""

    def expect_list(self, transaction: Transaction, key: bytes, most: int) -> None:
        """A cursor will ask for this list and for the rows of its studies, if it has not more than `most`
        entries."""

    def begin(self) -> AbstractContextManager[Transaction]:
        """The write transaction. It is durable when the block ends, or has changed nothing."""

    def failure(self, error: BaseException, doing: str) -> BaseException:
        """The StoreError for an error of the database; any other error is returned unchanged."""

    def require_files(self) -> None:
        """Raises StoreError if a write would go into files that were removed or replaced."""

    def version(self) -> int:
        """A number that every commit of any process changes."""

    def version_at_hand(self) -> int | None:
        """A version that is known without waiting. No removal has been committed since. None if none is."""

    def removing(self) -> AbstractContextManager[Announcement | None]:
        """Commits within the block may be removals. Blocks until no reader has a version at hand."""

    def unseen(self) -> int:
        """The number of a commit that readers do not see yet, 0 without one. An empty write shows it."""

    def sizes(self) -> Mapping[str, int]:
        """`bytes_used` by rows, and `bytes_file` of all files of the index."""

    def rewrite(self, ops: FileOps) -> None:
        """Write all rows again, so that nothing of deleted rows is left."""

    def close(self) -> None: ...
