"""The files that an import has taken: a table of the run. A file is taken again if its size or time of change
differs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from streamsrv.run_table import open_table

SCHEMA = """
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER) WITHOUT ROWID
"""


class ImportedFiles:
    """Raises StreamsrvError if another run uses the table. Close it."""

    def __init__(self, path: Path) -> None:
        self._rows = open_table(path, SCHEMA, "import")

    def close(self) -> None:
        self._rows.execute("COMMIT")
        self._rows.close()

    def has(self, path: Path, state: os.stat_result) -> bool:
        select = "SELECT size, changed FROM files WHERE path = ?"
        row = self._rows.execute(select, (os.fsencode(path),)).fetchone()
        return row is not None and tuple(row) == (state.st_size, state.st_mtime_ns)

    def add(self, files: Iterable[tuple[Path, os.stat_result]]) -> None:
        """These are in the store."""
        rows = ((os.fsencode(path), state.st_size, state.st_mtime_ns) for path, state in files)
        self._rows.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)
        self._rows.execute("COMMIT")
        self._rows.execute("BEGIN EXCLUSIVE")
