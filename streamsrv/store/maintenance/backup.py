"""Copies a store to another folder, beside a running server: each run copies the bytes that the folder lacks.

Strategy: one read transaction of the index gives the committed end of every segment: the state of the store
at one moment. Deletes and replacements are records, so they are part of it. Bytes before a committed end
never change, and each segment is copied up to there. A segment with the length and time of change of the last
backup is not read again. One that has grown is read whole: if it begins with the copied bytes, the rest is
appended, else it is copied again under another name. At last the table is replaced (see backup_table), and
files that it does not name are removed: copies of segments that compaction has removed.

The index is left out, because restore derives it. Its pages change everywhere, so each backup would copy all
of it. Deriving it reads every record again, so it also verifies the restored bytes.

Every payload is compared with its digest while it is copied. Damage does not stop the copy: the copy has the
same bytes, zeros for pages that cannot be read, and the finding. The next backup reads such a segment again,
and keeps the better copy.

Rules of this file
- Nothing in the store is written or locked. If a compaction removes a segment before it is copied, the
  backup takes the state of the store again. Segments that are copied already stay.
- Bytes are read and written, never linked or copied within the kernel: else both files may share blocks.
- A file and its name are synced before a table names it.
- Files of the last complete backup are removed after the next table is on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from streamsrv import __version__
from streamsrv.errors import (
    NO_DESCRIPTORS,
    NO_SPACE,
    InsufficientStorage,
    StoreCorrupt,
    StoreError,
    WrongStore,
)
from streamsrv.store import failpoints
from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.maintenance.backup_table import (
    DRAFT,
    IDENTITY,
    LOCK,
    OF_THE_FILE_SYSTEM,
    TABLE,
    UNFINISHED,
    BackupFolder,
    BackupTable,
    SegmentCopy,
    pieces_of,
)
from streamsrv.store.maintenance.check import Finding, error
from streamsrv.store.maintenance.segment_reader import SegmentReader
from streamsrv.store.rows import SegmentRow
from streamsrv.store.segments.manifest import State
from streamsrv.store.store import Store, require_no_move

SAVE_EVERY = 10.0  # seconds: a crash loses at most so much work, and the segment at hand
GATHERED = 1 << 20  # bytes written at once

Progress = Callable[[int, int], None]  # bytes done, and of all


class _SegmentMoved(Exception):
    """Compaction has removed a segment since the state was taken."""


@dataclass(slots=True)
class BackupReport:
    """`bytes` and `segments` of the backup; `copied` bytes of this run. `state_of` is the time at which the
    store had this state, in UTC."""

    state_of: str = ""
    segments: int = 0
    bytes: int = 0
    copied: int = 0
    removed_files: int = 0
    findings: list[Finding] = field(default_factory=list)

    def counts(self) -> dict[str, str | int]:
        """Everything but the findings."""
        names = ("state_of", "segments", "bytes", "copied", "removed_files")
        return {name: getattr(self, name) for name in names}


def back_up(
    store: Store,
    folder: Path,
    taken: Callable[[int], None],
    progress: Progress,
    *,
    ops: FileOps | None = None,
    save_every: float = SAVE_EVERY,
) -> BackupReport:
    """Bring the backup in `folder` to the present state of the store. `taken` gets the bytes of each read.
    Raises StoreLocked if another process uses the folder, WrongStore if it has another store,
    InsufficientStorage if it is full; then it still has the last complete backup. Raises StoreError for the
    target of a move that has not ended."""
    require_no_move(store.index)
    target = BackupFolder(folder, ops or FileOps())
    _require_apart(store, folder)
    _require_backup_or_empty(target)
    with _writing(folder), target.locked():
        backup = _Backup(store, target, taken, progress, save_every)
        backup.begin()
        return backup.run()


def _require_apart(store: Store, folder: Path) -> None:
    """Raises StoreError for a folder in the store: compaction and erasure would not reach its copies."""
    inside = {
        (found.st_dev, found.st_ino) for found in map(os.stat, (store.layout.root, store.layout.segments))
    }
    place = folder.resolve()
    for each in (place, *place.parents):
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(each)
            if (found.st_dev, found.st_ino) in inside:
                raise StoreError(f"{folder} is in the folder of the store: name one on another disk")


def _require_backup_or_empty(target: BackupFolder) -> None:
    """Raises StoreError if the folder has files, and none of them is a table."""
    if not target.root.exists():
        return
    if not target.root.is_dir():
        raise StoreError(f"{target.root} is a file: name a folder")
    found = {each.name for each in target.root.iterdir()}
    others = found - {LOCK, OF_THE_FILE_SYSTEM, UNFINISHED + DRAFT}
    if others and not found & {TABLE, UNFINISHED}:
        raise StoreError(
            f"{target.root} is neither empty nor a backup: it has {min(others)!r}. Nothing was changed. "
            "Name another folder"
        )


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """An error of a system call as a sentence."""
    try:
        yield
    except OSError as failure:
        if failure.errno in NO_SPACE:
            raise InsufficientStorage(
                f"the disk of {folder} is full. The last complete backup in it has not changed. Make room "
                "and run the backup again: it goes on there"
            ) from failure
        raise


class _Backup:
    def __init__(
        self,
        store: Store,
        target: BackupFolder,
        taken: Callable[[int], None],
        progress: Progress,
        save_every: float,
    ) -> None:
        self._store = store
        self._target = target
        self._ops = target.ops
        self._taken = taken
        self._progress = progress
        self._save_every = save_every
        self._saved = time.monotonic()
        self._report = BackupReport()
        self._known: dict[int, SegmentCopy] = {}  # copied by this backup or an earlier one
        self._identity = store.layout.identity.read_bytes()
        digest = hashlib.sha256(self._identity).hexdigest()
        self._table = BackupTable(store.store_id, digest, __version__, secrets.token_hex(8))
        self._done = self._all = 0  # bytes

    # The folder

    def begin(self) -> None:
        """Take over the folder, or make it. Raises WrongStore or StoreError if it is something else."""
        complete, unfinished = (self._own(self._target.table(name)) for name in (TABLE, UNFINISHED))
        if complete and unfinished and unfinished.run == complete.run:
            unfinished = None
        kept = set[str]()
        for table in (complete, unfinished):
            self._known |= table.segments if table else {}
            kept |= table.files if table else set()
        self._ops.make_folder(self._target.segments)
        self._save()  # the table of an earlier run may end segments too early: replaced by one of this run
        self._sweep(kept)
        path = self._target.identity
        if not path.exists() or path.read_bytes() != self._identity:
            self._target.replace(IDENTITY, self._identity)

    def _own(self, table: BackupTable | None) -> BackupTable | None:
        if table is not None and table.store != self._store.store_id:
            raise WrongStore(
                f"{self._target.root} is the backup of another store, {table.store}: nothing was changed. "
                "Name another folder"
            )
        return table

    def _sweep(self, kept: set[str]) -> int:
        """Remove files that no table names; returns their number."""
        others = [each for each in self._target.segments.iterdir() if each.name not in kept]
        for path in others:
            self._ops.unlink(path)
            failpoints.hit("in-backup")
        return len(others)

    # The whole

    def run(self) -> BackupReport:
        try:
            while not self._copy_all():
                pass
            self._finish()
        except BaseException:
            with contextlib.suppress(OSError):
                self._save()
            raise
        return self._report

    def _copy_all(self) -> bool:
        """False if compaction moved something meanwhile."""
        removed = [number for number, slot in self._slots().items() if slot is State.REMOVED]
        self._table.began = _now()
        gone = set(removed)
        rows = [
            row for row in self._store.index.segments().values() if not row.empty and row.segment not in gone
        ]
        self._table.removed = removed
        self._report.findings = []
        self._done, self._all = 0, sum(row.committed_end for row in rows if not self._is_current(row))
        try:
            self._table.segments = {row.segment: self._segment(row) for row in rows}
        except _SegmentMoved:
            return False
        return True

    def _slots(self) -> dict[int, State]:
        return {number: slot.state for number, slot in self._store.manifest.read().known.items()}

    def _finish(self) -> None:
        self._ops.sync_folder(self._target.segments)
        self._table.ended = _now()
        failpoints.hit("in-backup")
        self._target.replace(TABLE, self._table.packed())
        failpoints.hit("in-backup")
        with contextlib.suppress(FileNotFoundError):
            self._ops.unlink(self._target.root / UNFINISHED)
        self._report.removed_files = self._sweep(self._table.files)
        self._report.state_of = self._table.began
        self._report.segments = len(self._table.segments)
        self._report.bytes = self._table.length

    def _save(self) -> None:
        """Note the files that are copied, for a later run."""
        self._saved = time.monotonic()
        self._ops.sync_folder(self._target.segments)
        self._target.replace(UNFINISHED, replace(self._table, segments=self._known, ended="").packed())

    # One segment

    def _is_current(self, row: SegmentRow) -> bool:
        """Whether the copy has these bytes, without reading them."""
        old = self._known.get(row.segment)
        if old is None or old.findings or not (old.length == old.end == row.committed_end):
            return False
        try:
            modified = self._store.layout.segment(row.segment).stat().st_mtime_ns
        except FileNotFoundError:
            return False
        return modified == old.modified and self._has(old)

    def _has(self, copy: SegmentCopy) -> bool:
        return bool(copy.file) and self._ops.length(self._target.path(copy.file)) >= copy.length

    def _segment(self, row: SegmentRow) -> SegmentCopy:
        old = self._known.get(row.segment)
        if self._is_current(row):
            assert old is not None
            return replace(old, sealed=row.sealed)
        try:
            reader = SegmentReader(self._store, row, self._read)
        except FileNotFoundError:
            self._require_lost(row)
            return self._without_source(row, old, "its file is missing")
        except OSError as failure:
            if failure.errno in NO_DESCRIPTORS:
                raise
            return self._without_source(row, old, f"its file cannot be opened: {failure.strerror}")
        with contextlib.closing(reader):
            copied = self._copied(reader, row, old)
        self._report.findings += reader.findings
        self._known[row.segment] = kept = self._better(copied, old)
        failpoints.hit("in-backup")
        if time.monotonic() - self._saved >= self._save_every:
            self._save()
        return kept

    def _read(self, length: int) -> None:
        self._taken(length)
        self._done += length
        self._progress(min(self._done, self._all), self._all)

    def _require_lost(self, row: SegmentRow) -> None:
        """Raises _SegmentMoved if compaction removed the segment."""
        if self._slots().get(row.segment) is State.REMOVED or self._store.index.segment(row.segment) is None:
            raise _SegmentMoved

    def _without_source(self, row: SegmentRow, old: SegmentCopy | None, what: str) -> SegmentCopy:
        """Keeps an earlier copy."""
        where = f"segment {row.segment}"
        copy = SegmentCopy(row.segment, "", 0, 0, False, hashlib.sha256().hexdigest(), 0)
        if old is not None and self._has(old) and old.length <= row.committed_end:
            copy, what = old, f"{what}; the backup keeps its copy of {old.length} bytes"
        self._report.findings.append(error(where, what))
        missing = (f"{where}: {what}",) if copy.length < row.committed_end else ()
        findings = tuple(dict.fromkeys(copy.findings + missing))
        return replace(copy, end=row.committed_end, sealed=row.sealed, findings=findings)

    def _better(self, copied: SegmentCopy, old: SegmentCopy | None) -> SegmentCopy:
        """The copy with fewer faults. The other one is removed at the end."""
        if old is None or not copied.findings or not self._has(old) or old.file == copied.file:
            return copied
        covers = copied.length <= old.length <= copied.end
        if not covers or len(old.findings) > len(copied.findings):
            return copied
        return replace(old, end=copied.end, sealed=copied.sealed)

    def _copied(self, reader: SegmentReader, row: SegmentRow, old: SegmentCopy | None) -> SegmentCopy:
        """Appends to the old copy, or makes another one."""
        if old is not None and not old.findings and old.length <= reader.end and self._has(old):
            found = self._extended(reader, row, old)
            if found is not None:
                return found
        name, fd = self._create(row.segment)
        writer = _CopyWriter(self._ops, fd, 0, hashlib.sha256())
        try:
            self._write(writer, reader.pieces())
        except BaseException:
            self._ops.unlink(self._target.path(name))
            raise
        finally:
            os.close(fd)
        return self._entry(row, reader, name, writer, 0)

    def _extended(self, reader: SegmentReader, row: SegmentRow, old: SegmentCopy) -> SegmentCopy | None:
        """None if the segment does not begin with the copied bytes: an older state of the store has come
        back, or a repair has changed it. If they have decayed in the store, the copy keeps them."""
        fd = self._ops.open(self._target.path(old.file))
        try:
            self._ops.truncate(fd, old.length)  # behind it are bytes of an interrupted backup
            pieces, first = reader.pieces(), b""
            digest, at = hashlib.sha256(), 0
            for piece in pieces:
                if at >= old.length:
                    first = piece
                    break
                digest.update(piece)
                at += len(piece)
            if at != old.length or digest.hexdigest() != old.sha256:
                whole = self._digest_of(old) if reader.errors and at == old.length else None
                if whole is None:
                    return None
                digest = whole
            writer = _CopyWriter(self._ops, fd, old.length, digest)
            self._write(writer, itertools.chain([first], pieces))
        except BaseException:
            with contextlib.suppress(OSError):
                self._ops.truncate(fd, old.length)
            raise
        finally:
            os.close(fd)
        return self._entry(row, reader, old.file, writer, old.length)

    def _digest_of(self, copy: SegmentCopy) -> hashlib._Hash | None:
        """The digest of a copy, read again; None if its bytes have changed."""
        digest = hashlib.sha256()
        with contextlib.suppress(StoreCorrupt, OSError):
            for piece in pieces_of(self._target.path(copy.file), copy.length, self._taken):
                digest.update(piece)
        return digest if digest.hexdigest() == copy.sha256 else None

    def _write(self, writer: _CopyWriter, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            writer.write(piece)
        writer.end()
        self._report.copied += writer.written

    def _create(self, segment: int) -> tuple[str, int]:
        number = 1
        while True:
            name = f"{segment:08d}{f'-{number}' if number > 1 else ''}.seg"
            try:
                return name, self._ops.create(self._target.path(name))
            except FileExistsError:
                number += 1

    def _entry(
        self, row: SegmentRow, reader: SegmentReader, name: str, writer: _CopyWriter, begin: int
    ) -> SegmentCopy:
        """Faults before `begin` are none of the copy."""
        faults = tuple(text for offset, text in reader.errors if offset >= begin)
        digest = writer.digest.hexdigest()
        return SegmentCopy(
            row.segment, name, reader.end, row.committed_end, row.sealed, digest, reader.modified, faults
        )


class _CopyWriter:
    """Appends to a file of the backup, and takes the digest of the whole file."""

    def __init__(self, ops: FileOps, fd: int, offset: int, digest: hashlib._Hash) -> None:
        self._ops = ops
        self._fd = fd
        self._offset = offset
        self._gathered: list[bytes] = []
        self._length = 0
        self.written = 0
        self.digest = digest  # of the bytes before `offset`, at first

    def write(self, piece: bytes) -> None:
        self.digest.update(piece)
        self._gathered.append(piece)
        self._length += len(piece)
        if self._length >= GATHERED:
            self._flush()

    def _flush(self) -> None:
        length = write_all(self._ops, self._fd, self._gathered, self._offset, keep=False)
        self._offset += length
        self.written += length
        self._gathered, self._length = [], 0
        failpoints.hit("in-backup")

    def end(self) -> None:
        """The bytes are on the disk when this returns."""
        self._flush()
        self._ops.sync(self._fd)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
