"""All rows of the index: listing them for a check, and writing them anew for the right to erasure.

Strategy: what is deleted from the map is only forgotten; its bytes stay in free pages, and in the gaps of
pages in use, until they are written over. So `compact --all` copies row by row into a new file, puts that in
the place of the old one, and opens it. Only a process that has the index to itself may do so (others would go
on with the old file, and their commits would be lost): StoreLocked otherwise. A rewrite that was cut short
before the exchange leaves a folder behind, which the next one removes.

Rules of this file: `dump` pages like every reader; `rewrite` is for tools without other threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import lmdb

from streamsrv.store.fileops import FileOps
from streamsrv.store.index.environment import DATABASES, MAP_SIZE, Environment, translated

PAIRS_A_BATCH = 2000

Pair = tuple[bytes, bytes]


def dump(environment: Environment, name: str) -> Iterator[Pair]:
    """Every key and value of a database, in the order of the keys, then of the values."""
    last: Pair | None = None
    more = True
    while more:
        batch: list[Pair] = []
        with environment.reading(f"reading the database {name}") as transaction:
            cursor = transaction.cursor(db=environment.handles[name])
            there = cursor.first() if last is None else _behind(cursor, last, several=DATABASES[name])
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
    """Afterwards the environment is open again, on a file that holds nothing but its rows."""
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
