"""The table of a run that writes many files into a folder, so that a later run goes on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from streamsrv.errors import StreamsrvError


def open_table(path: Path, schema: str, kind: str, *, by_threads: bool = False) -> sqlite3.Connection:
    """Opens or makes the database at `path`, for this run alone, in a transaction. `kind` names the run in
    the error. With `by_threads` any thread may use it; the caller has a lock. Raises StreamsrvError if
    another run works there."""
    try:
        rows = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=not by_threads)
    except sqlite3.OperationalError as fault:
        raise StreamsrvError(f"{path}: {fault}") from fault
    try:
        rows.execute("PRAGMA locking_mode = EXCLUSIVE")
        rows.executescript(schema)
        rows.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as fault:
        rows.close()
        raise StreamsrvError(f"{path.parent}: {fault}: another {kind} may work there") from fault
    return rows
