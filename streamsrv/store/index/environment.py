"""The LMDB environment of the index: databases, limits, errors, listing and rewriting of all rows.

Strategy: a process opens the environment once, after it has started; nothing forks later. A reader begins a
transaction for each batch and ends it with the batch: an open transaction pins every page that is freed
meanwhile, and the file grows. Writes go through `writer`, one at a time.

LMDB only forgets deleted rows: their bytes stay in free pages and in gaps of used pages. So `compact --all`
calls `rewrite`, which copies all rows to a new file and opens that. Only a process that has the index alone
may do so, because other processes would go on with the old file. A rewrite that was cut short leaves a
folder, which the next one removes.

Rules of this file: names and exceptions of LMDB do not leave this room.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb

from streamsrv.errors import (
    IndexFailed,
    InsufficientStorage,
    StoreCorrupt,
    StoreError,
    StoreLocked,
    StreamsrvError,
    WrongStore,
    system_error,
)
from streamsrv.query.attributes import TABLE_DIGEST
from streamsrv.store.fileops import FileOps
from streamsrv.store.index.rows import with_sum, without_sum
from streamsrv.store.ordered_map import Cursor, KeysRead, LocalMap, Needle, OrderedMap, Pair, Transaction

SCHEMA = "3"
# LMDB of another minor version may have another file format: 1.0 cannot read the files of 0.9.
FILE_FORMAT = "LMDB {}.{}".format(*lmdb.version())

FIRST_RUN, RUN = 4, 64  # rows read at once: at most so many too many
MAP_SIZE = 1 << 40  # sparse: address space, not disk
PAIRS_A_BATCH = 2000
STARTING = 2.0  # seconds that another process may take to create its lock file
MAX_READERS = 1024  # one for each thread that reads, of all processes; LMDB's default is 126
LOCKS_SIZE = 64 * (MAX_READERS + 64)  # a slot of LMDB's lock file has 64 bytes; behind a header of some 200

# Name -> several values a key.
DATABASES: dict[str, bool] = {
    "instances": False,
    "metadata": False,
    "frames": False,
    "bulk": False,
    "variants": False,
    "studies": False,
    "series": False,
    "attributes": True,
    "uids": True,
    "changes": False,
    "damage": False,
    "segments": False,
    "about": False,
}

_CORRUPT = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.BadValsizeError,
)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Translate exceptions of LMDB."""
    try:
        yield
    except StreamsrvError:
        raise
    except lmdb.Error as error:
        raise store_error(error, doing) from error


def store_error(
    error: lmdb.Error, doing: str, folder: Path | None = None
) -> StoreError | InsufficientStorage:
    # LMDB reports a short write as EIO.
    short = folder is not None and os.strerror(errno.EIO) in str(error) and not os.statvfs(folder).f_bavail
    full = isinstance(error, lmdb.MapFullError | lmdb.DiskError) or os.strerror(errno.ENOSPC) in str(error)
    if short or full:
        return InsufficientStorage(f"no space left while {doing}")
    if isinstance(error, lmdb.VersionMismatchError) or "data format" in str(error):
        return StoreError(f"the file format of the index is not that of {FILE_FORMAT}: run reindex")
    if isinstance(error, _CORRUPT):
        return StoreCorrupt(f"the index is damaged ({error}), found while {doing}: run reindex")
    if isinstance(error, lmdb.PanicError):
        return IndexFailed(f"the index of this process cannot be used any more ({doing}: {error})")
    return StoreError(f"the index failed while {doing}: {error}")


class ReadTransaction:
    """A context manager without a generator, because a look-up takes no longer than a generator would."""

    __slots__ = ("_doing", "_lmdb", "_transaction")

    def __init__(self, environment: Any, doing: str) -> None:
        self._lmdb = environment
        self._doing = doing

    def __enter__(self) -> Transaction:
        try:
            self._transaction = self._lmdb.begin()
        except lmdb.Error as error:
            raise store_error(error, self._doing) from error
        return self._transaction

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._transaction.abort()
        if isinstance(error, lmdb.Error):
            raise store_error(error, self._doing) from error


class Environment(LocalMap):
    """The open index folder. `handles` maps the name of a database to its LMDB handle."""

    scanned, keys_at_once = 8, 5_000
    under_each = None

    def __init__(self, folder: Path, *, read_only: bool, store: bytes = b"") -> None:
        """`store` is the fingerprint of the store; WrongStore if the index has another."""
        self.folder = folder
        self.read_only = read_only
        self._store = store.hex()
        self._files: tuple[int, ...] = ()
        self._unchanged_since = 0
        self._paths = [str(folder / name) for name in ("data.mdb", "lock.mdb")]
        self.handles: dict[str, Any] = {}
        if not read_only:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not (folder / "data.mdb").exists():
            raise StoreError("there is no index: run reindex")
        self._users = self._join()
        try:
            with translated("opening the index"):
                self.open_map()
        except BaseException:
            os.close(self._users)
            raise

    def _join(self) -> int:
        """Share a lock on the folder until the process ends, so that a rewrite knows whether it is alone."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if os.access(self.folder, os.W_OK):  # else there is no writer, and no lock file
                self._require_their_lock(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    def _require_their_lock(self, descriptor: int) -> None:
        """Another process has the index open. If LMDB's lock file is gone, a new one would allow two
        writers."""
        deadline = time.monotonic() + STARTING
        while (self.folder / "data.mdb").exists() and not (self.folder / "lock.mdb").exists():
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise StoreLocked(
                    f"{self.folder / 'lock.mdb'} was removed while another process has the index open: end "
                    "that process first"
                )
            time.sleep(0.01)

    def require_files(self) -> None:
        """Raises StoreError if the open files were removed or replaced: a write would be lost, or there would
        be two writers."""
        changed = os.fstat(self._users).st_mtime_ns  # of the folder: a change of names in it changes this
        if changed == self._unchanged_since:
            return
        try:
            found = self._file_numbers()
        except FileNotFoundError:
            found = ()
        if found == self._files:
            self._unchanged_since = changed
        else:
            raise StoreError(
                f"a file in {self.folder} was removed or replaced while the index is open: nothing is "
                "written any more. Stop all processes that have the store open, and start again"
            )

    def _file_numbers(self) -> tuple[int, ...]:
        """Inode numbers of data and locks."""
        return tuple(os.stat(each).st_ino for each in self._paths)

    def _allocate_locks(self) -> None:
        """LMDB makes its lock file with holes and maps it. On a full disk the first use of a hole is
        SIGBUS."""
        descriptor = os.open(self._paths[1], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not os.fstat(descriptor).st_size:
                os.posix_fallocate(descriptor, 0, LOCKS_SIZE)
        except OSError as error:
            raise system_error(error, "allocating the lock file of the index") from error
        finally:
            os.close(descriptor)

    def open_map(self) -> None:
        lock = not self.read_only or os.access(self.folder, os.W_OK)
        if lock:
            self._allocate_locks()
        self.lmdb = lmdb.open(
            str(self.folder),
            map_size=MAP_SIZE,
            max_dbs=len(DATABASES),
            max_readers=MAX_READERS,
            readonly=self.read_only,
            lock=lock,
            mode=0o600,
        )
        try:
            if lock:
                self.lmdb.reader_check()  # slots of processes that died
            self._unchanged_since = 0
            self._files = () if self.read_only else self._file_numbers()
            self._open_databases()
        except BaseException:
            self.lmdb.close()
            raise

    def _open_databases(self) -> None:
        try:
            if not self.read_only:
                self._found()
            for name, several in DATABASES.items():
                self.handles[name] = self.lmdb.open_db(name.encode(), dupsort=several, create=False)
            with self.lmdb.begin(self.handles["about"]) as transaction:
                found = {name: transaction.get(name.encode()) or b"" for name in ABOUT}
        except lmdb.NotFoundError as error:
            raise StoreError("the index lacks a database: run reindex") from error
        for name, expected in (("format", FILE_FORMAT), ("schema", SCHEMA), ("table", TABLE_DIGEST)):
            if (stored := without_sum("about", name.encode(), found[name]).decode()) != expected:
                raise StoreError(
                    f"the index was made by another version ({name} is {stored}, not {expected}): run reindex"
                )
        if without_sum("about", b"store", found["store"]).decode() != self._store:
            raise WrongStore(
                f"{self.folder} is the index of another store, or store.toml is another store's: nothing was "
                "changed. Bring back the file that belongs here, or move a foreign index away and run reindex"
            )

    def _found(self) -> None:
        """Make the databases of a new folder and the rows of `about`, in one transaction."""
        with self.lmdb.begin(write=True) as transaction:
            if transaction.stat()["entries"]:
                return
            for name, several in DATABASES.items():
                handle = self.lmdb.open_db(name.encode(), txn=transaction, dupsort=several)
            for name, text in (birth() | {"store": self._store}).items():
                transaction.put(name.encode(), with_sum(name.encode(), text.encode()), db=handle)

    def reading(self, doing: str) -> ReadTransaction:
        """A read transaction for one batch."""
        return ReadTransaction(self.lmdb, doing)

    def under(self, transaction: Transaction, name: str, start: bytes, first: bytes, size: int) -> list[Pair]:
        """Rows whose keys begin with `start`."""
        found: list[Pair] = []
        cursor = transaction.cursor(db=self.handles[name])
        there = cursor.set_range(first) if first else cursor.first()
        rows = cursor.iternext() if there else iter(())
        while run := list(islice(rows, min(size - len(found), RUN if found else FIRST_RUN))):
            found += run
            if not run[-1][0].startswith(start):
                break
        while found and not found[-1][0].startswith(start):
            found.pop()
        return found

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
        """Entries of lists in the order of a walk."""
        cursor = transaction.cursor(db=self.handles["attributes"])
        if not descending:
            there = _forward_on(cursor, *place) if place else cursor.set_range(low)
            for item in cursor.iternext() if there else ():
                if item[0] > high:
                    return
                yield item
            return
        there = _back_on(cursor, *place) if place else _last(cursor, high)
        while there and (key := cursor.key()) >= low:
            for study in cursor.iternext_dup():
                yield key, study
            there = cursor.prev_nodup() and cursor.first_dup()

    def keys(
        self, transaction: Transaction, at: bytes, end: bytes, size: int, needle: Needle, most: int
    ) -> KeysRead:
        cursor = transaction.cursor(db=self.handles["attributes"])
        following = cursor.iternext_nodup(keys=True, values=False) if cursor.set_range(at) else iter(())
        found = list(islice(following, size))
        inside = bisect.bisect(found, end)
        return KeysRead(found[:inside], inside, found[-1] if inside == size else b"")

    def lists(
        self, transaction: Transaction, keys: Sequence[bytes], most: int, *, exact: bool, counting: bool
    ) -> Iterator[tuple[bytes, int, Iterable[bytes]]]:
        """The entries of lists."""
        cursor = transaction.cursor(db=self.handles["attributes"])
        for key in keys:
            if cursor.set_key(key):
                yield key, cursor.count(), cursor.iternext_dup()

    def expect_list(self, transaction: Transaction, key: bytes, most: int) -> None:
        """Nothing waits here."""

    def begin(self) -> Any:
        """The write transaction, as a context manager."""
        return self.lmdb.begin(write=True)

    def failure(self, error: BaseException, doing: str) -> BaseException:
        """An error of LMDB as a StoreError."""
        return store_error(error, doing, self.folder) if isinstance(error, lmdb.Error) else error

    def sizes(self) -> dict[str, int]:
        """Bytes of used pages, and of the index file."""
        with self.reading("measuring the index") as transaction:
            rows = [transaction.stat(handle) for handle in self.handles.values()]
        pages = sum(each["branch_pages"] + each["leaf_pages"] + each["overflow_pages"] for each in rows)
        page = self.lmdb.stat()["psize"]
        return {"bytes_used": pages * page, "bytes_file": (self.lmdb.info()["last_pgno"] + 1) * page}

    def version(self) -> int:
        """The number of the last commit that readers see."""
        try:
            transaction = self.lmdb.begin()
        except lmdb.Error as error:
            raise store_error(error, "looking for changes") from error
        number: int = transaction.id()
        transaction.abort()
        return number

    version_at_hand = version

    def unseen(self) -> int:
        """The number of a commit that is in the file but not visible to readers, or 0. LMDB makes a commit
        durable before readers see it. If the writer dies in between, they see it when the next one begins."""
        with self.reading("looking for commits") as transaction:
            last: int = self.lmdb.info()["last_txnid"]
            return last if transaction.id() < last else 0

    def rewrite(self, ops: FileOps) -> None:
        """Copy all rows to a new file, and open that."""
        rewrite(self, ops)

    def close_map(self) -> None:
        self.lmdb.close()

    def close(self) -> None:
        self.close_map()
        os.close(self._users)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No other process has the index open or can open it during the block. Raises StoreLocked."""
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            # A failed attempt may have lost the shared lock.
            fcntl.flock(self._users, fcntl.LOCK_SH)
            raise StoreLocked("the index can be rewritten only while no other process has it open") from error
        try:
            yield
        finally:
            fcntl.flock(self._users, fcntl.LOCK_SH)


ABOUT = frozenset(("format", "schema", "table", "epoch", "next_segment", "first_change", "store"))


def birth() -> dict[str, str]:
    """The rows of `about` of a new index, without that of its store."""
    return {
        "format": FILE_FORMAT,
        "schema": SCHEMA,
        "table": TABLE_DIGEST,
        "epoch": secrets.token_hex(8),
        "next_segment": "1",
        "first_change": "1",
    }


def dump(environment: OrderedMap, name: str, first: bytes = b"") -> Iterator[Pair]:
    """Every key and value of a database, in order, from the key `first` on."""
    last: Pair | None = None
    more = True
    while more:
        batch: list[Pair] = []
        with environment.reading(f"reading the database {name}") as transaction:
            cursor = transaction.cursor(db=environment.handles[name])
            if last is not None:
                there = _behind(cursor, last, several=DATABASES[name])
            else:
                there = cursor.set_range(first) if first else cursor.first()
            while there and len(batch) < PAIRS_A_BATCH:
                batch.append(cursor.item())
                there = cursor.next()
            more = there
        yield from batch
        last = batch[-1] if batch else None


def _behind(cursor: lmdb.Cursor, last: Pair, *, several: bool) -> bool:
    if several and cursor.set_range_dup(last[0], last[1] + b"\0"):
        return True
    return bool(cursor.set_range(last[0] + b"\0"))


def rewrite(environment: Environment, ops: FileOps) -> None:
    """Copy all rows to a new file, and open that."""
    folder = environment.folder
    new = folder / "rewrite"
    with environment.alone():
        if new.exists():
            ops.remove_folder(new)
        ops.make_folder(new)  # LMDB would give it the mode of its files
        with translated("rewriting the index"):
            _copy(environment, str(new))
        environment.close_map()
        try:
            ops.rename(new / "data.mdb", folder / "data.mdb")
            ops.sync_folder(folder)
        finally:
            with translated("opening the index again"):
                environment.open_map()
    ops.remove_folder(new)


def _copy(environment: Environment, folder: str) -> None:
    # Synced once, at the end.
    copy = lmdb.open(folder, map_size=MAP_SIZE, max_dbs=len(DATABASES), sync=False, mode=0o600)
    try:
        for name, several in DATABASES.items():
            handle = copy.open_db(name.encode(), dupsort=several)
            pairs = dump(environment, name)
            while _copy_batch(copy, handle, pairs, append=not several):
                pass
        copy.sync(True)
    finally:
        copy.close()
    descriptor = os.open(f"{folder}/data.mdb", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_batch(copy: lmdb.Environment, handle: Any, pairs: Iterator[Pair], *, append: bool) -> bool:
    with copy.begin(handle, write=True) as transaction:
        for number, (key, value) in enumerate(pairs, 1):
            transaction.put(key, value, append=append)
            if number == PAIRS_A_BATCH:
                return True
    return False


# Forwards, or backwards by key and forwards under each key.


def _forward_on(cursor: Cursor, key: bytes, study: bytes) -> bool:
    """Move to the first entry from `study` on."""
    return bool(cursor.set_range_dup(key, study) or cursor.set_range(key + b"\0"))


def _last(cursor: Cursor, high: bytes) -> bool:
    """Move to the first study under the last key before `high`."""
    there = cursor.prev_nodup() if cursor.set_range(high) else cursor.last()
    return bool(there and cursor.first_dup())


def _back_on(cursor: Cursor, key: bytes, study: bytes) -> bool:
    return bool(cursor.set_range_dup(key, study)) or _last(cursor, key)
