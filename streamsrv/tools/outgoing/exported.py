"""The instances that an export has written: a table in the folder of the export, with a row for each file.

Rules of this file
- A path is reserved before its file is written, and a row is complete only after it. An incomplete row has
  no version. A run that is repeated writes files without a complete row again, at the same path.
- Rows are committed after their files are on the disk.
- Paths are compared as macOS and Windows compare them.
"""

from __future__ import annotations

import csv
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from streamsrv.config import SettingsError
from streamsrv.dicom.instance import JsonDataset
from streamsrv.run_table import open_table
from streamsrv.tools.file_names import folded
from streamsrv.tools.outgoing import dicomdir
from streamsrv.tools.outgoing.dicomdir import InstanceRecords, file_id

FILE = "export.sqlite"
MANIFEST = "manifest.csv"
RESERVED = frozenset((FILE, f"{FILE}-journal", MANIFEST, "dicomdir"))
BATCH = 1_000  # files of one commit

SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    study TEXT, series TEXT, instance TEXT, version TEXT, path TEXT, folded TEXT UNIQUE,
    length INTEGER, sha256 TEXT, sop_class TEXT, syntax TEXT, remark TEXT DEFAULT '',
    PRIMARY KEY (study, series, instance)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leaves_of (
    study TEXT, series TEXT, instance TEXT, PRIMARY KEY (study, series, instance)
) WITHOUT ROWID;
"""
COLUMNS = "path, sha256, length, study, series, instance, sop_class, syntax"
ONE = "(study, series, instance) = (?, ?, ?)"
HEAD = (
    *("path", "sha256", "bytes", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
    *("SOPClassUID", "TransferSyntaxUID"),
)


class ExportItem(NamedTuple):
    """An instance to export, with its attributes of search results."""

    study: str
    series: str
    instance: str
    syntax: str  # as stored, or "" if the service does not say it
    attributes: JsonDataset

    @property
    def key(self) -> tuple[str, str, str]:
        return self[:3]


class Fetched(NamedTuple):
    """`version` names the stored bytes, as an ETag does."""

    version: str
    syntax: str


class ExportedFile(NamedTuple):
    """`version` is empty until the file is written; then it names the stored bytes, as an ETag does."""

    path: str
    version: str
    length: int


class ExportedFiles:
    """Thread-safe. Raises StreamsrvError if another export works in the folder, SettingsError if it has files
    without a place in a DICOMDIR. Close it."""

    def __init__(
        self,
        out: Path,
        *,
        has_directory: bool = False,
        private: Path | None = None,
        uid_of: Callable[[str], str] = str,
    ) -> None:
        """With `has_directory` the files have File IDs, and `finish` writes a DICOMDIR. `private` is the
        folder of the table. `uid_of` gives the UIDs of the manifest."""
        self._out = out
        self._uid_of = uid_of
        self._has_directory = has_directory
        self._lock = threading.Lock()
        self._waiting = 0  # files behind the last commit
        self._rows = open_table((private or out) / FILE, SCHEMA + dicomdir.SCHEMA, "export", by_threads=True)
        self._count = int(self._rows.execute("SELECT count(*) FROM files").fetchone()[0])
        others = "SELECT 1 FROM files WHERE (path LIKE 'DICOM/D%') != ? LIMIT 1"
        if self._rows.execute(others, (has_directory,)).fetchone():
            self._rows.close()
            other = "without" if has_directory else "with"
            raise SettingsError(f"{out} has an export {other} --dicomdir: give another folder")

    def close(self) -> None:
        self._rows.close()

    def place(self, item: ExportItem, path: str) -> ExportedFile:
        """The row of an instance. A new one reserves `path`, or a similar one if that is another file's."""
        with self._lock:
            select = "SELECT path, version, coalesce(length, 0) FROM files"
            known = self._rows.execute(f"{select} WHERE {ONE}", item.key).fetchone()
            if known is not None:
                return ExportedFile(*known)
            path = file_id(self._count) if self._has_directory else self._free(item, path)
            self._count += 1
            columns = "study, series, instance, path, folded, version"
            values = *item.key, path, folded(path)
            self._rows.execute(f"INSERT INTO files ({columns}) VALUES (?, ?, ?, ?, ?, '')", values)
            return ExportedFile(path, "", 0)

    def _free(self, item: ExportItem, path: str) -> str:
        if not self._is_taken(path):
            return path
        stem, dot, suffix = path.rpartition(".")
        if not dot or "/" in suffix:
            stem, suffix = path, ""
        digest = hashlib.sha256("/".join(item.key).encode()).hexdigest()
        return f"{stem}-{digest[:16]}{dot}{suffix}"

    def _is_taken(self, path: str) -> bool:
        name = folded(path)
        found = self._rows.execute("SELECT 1 FROM files WHERE folded = ?", (name,)).fetchone()
        return found is not None or name in RESERVED

    def is_there(self, file: ExportedFile) -> bool:
        """Whether the file was written, and is still there."""
        try:
            return bool(file.version) and (self._out / file.path).stat().st_size == file.length
        except OSError:
            return False

    def has_records(self, item: ExportItem) -> bool:
        """Whether the DICOMDIR has the instance."""
        select = "SELECT 1 FROM leaves_of WHERE (study, series, instance) = (?, ?, ?)"
        with self._lock:
            return self._rows.execute(select, item.key).fetchone() is not None

    def add_records(self, item: ExportItem, records: InstanceRecords) -> None:
        with self._lock:
            dicomdir.keep(self._rows, records)
            self._rows.execute("INSERT OR REPLACE INTO leaves_of VALUES (?, ?, ?)", item.key)

    def written(self, item: ExportItem, fetched: Fetched, length: int, sha256: str, remark: str = "") -> None:
        """The file of the instance is complete. `remark` is about its pixels."""
        sop_class = next(iter(item.attributes.get("00080016", {}).get("Value", ())), "")
        update = "UPDATE files SET version = ?, length = ?, sha256 = ?, sop_class = ?, syntax = ?, remark = ?"
        with self._lock:
            self._rows.execute(
                f"{update} WHERE {ONE}",
                (fetched.version, length, sha256, sop_class, fetched.syntax, remark, *item.key),
            )
            self._waiting += 1
            if self._waiting >= BATCH:
                self._commit()

    def write_originals(self, path: Path) -> None:
        """The original UIDs of each file."""
        head = ("path", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        select = "SELECT path, study, series, instance FROM files WHERE version != '' ORDER BY path"
        self._write(path, head, select)

    def write_remarks(self, path: Path, remarks: Sequence[str]) -> int:
        """The files with one of these remarks; returns how many these are."""
        marks = ", ".join("?" * len(remarks))
        select = f"SELECT path, remark FROM files WHERE version != '' AND remark IN ({marks}) ORDER BY path"
        return self._write(path, ("path", "pixels"), select, remarks)

    def _write(self, path: Path, head: Sequence[str], select: str, values: Sequence[str] = ()) -> int:
        count = 0
        with self._lock, path.open("w", encoding="utf-8", newline="") as stream:
            path.chmod(0o600)
            lines = csv.writer(stream)
            lines.writerow(head)
            for row in self._rows.execute(select, tuple(values)):
                lines.writerow(row)
                count += 1
        return count

    def finish(self) -> None:
        """Writes the manifest."""
        with self._lock:
            self._commit()
            part = self._out / f"{MANIFEST}.part"
            with part.open("w", encoding="utf-8", newline="") as stream:
                lines = csv.writer(stream)
                lines.writerow(HEAD)
                for row in self._rows.execute(
                    f"SELECT {COLUMNS} FROM files WHERE version != '' ORDER BY path"
                ):
                    lines.writerow((*row[:3], *map(self._uid_of, row[3:6]), *row[6:]))
            os.replace(part, self._out / MANIFEST)
            if self._has_directory:
                dicomdir.write(self._rows, self._out)

    def _commit(self) -> None:
        if hasattr(os, "sync"):  # Windows has none
            os.sync()
        self._rows.execute("COMMIT")
        self._rows.execute("BEGIN EXCLUSIVE")
        self._waiting = 0
