"""Makes a store from a backup, and verifies backups.

Strategy: copy each file and compare its SHA-256 meanwhile; make the manifest from the table; write
store.toml; derive the index by reindex, which compares every record with its digest.

Rules of this file
- Only an empty folder becomes a store. It gets store.toml last: an interrupted restore cannot be served.
- Only bytes that the table names are copied. A file with other bytes is a finding; it is restored as it is,
  because its other records may be whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from streamsrv.errors import NO_SPACE, InsufficientStorage, StoreCorrupt, StoreError
from streamsrv.store import folder as folders
from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.folder import Layout
from streamsrv.store.maintenance.backup import BackupReport, Progress
from streamsrv.store.maintenance.backup_table import (
    OF_THE_FILE_SYSTEM,
    BackupFolder,
    BackupTable,
    SegmentCopy,
    make_durable,
    pieces_of,
)
from streamsrv.store.maintenance.check import Derive, Finding, Severity, error
from streamsrv.store.maintenance.reindex import Reindexing, reindex
from streamsrv.store.segments.manifest import Manifest, Slot, State

WRONG_FILE = "its bytes are not those of the backup: its SHA-256 is wrong"


def verify_backup(folder: Path, taken: Callable[[int], None], progress: Progress) -> BackupReport:
    """Compare every byte of the last complete backup with its digests. Raises StoreError if there is none."""
    source = BackupFolder(folder, FileOps())
    with source.shared():
        reader = _BackupReader(source, taken, progress)
        findings = list(reader.identity_findings())
        for copy in reader.table.segments.values():
            findings += reader.faults_of_source(copy)
            for _ in reader.pieces(copy):
                pass
        table = reader.table
        return BackupReport(
            table.began, len(table.segments), table.length, findings=findings + reader.findings
        )


def restore(
    source_folder: Path,
    folder: Path,
    derive: Derive,
    taken: Callable[[int], None],
    progress: Progress,
    *,
    ops: FileOps | None = None,
) -> Reindexing:
    """Make a store in `folder` from the last complete backup. Raises StoreError if the folder is not empty or
    there is no backup, StoreCorrupt if the table or store.toml of the backup is damaged; then nothing is
    restored."""
    ops, layout = ops or FileOps(), Layout(folder)
    source = BackupFolder(source_folder, FileOps())
    with source.shared():
        reader = _BackupReader(source, taken, progress)
        for finding in reader.identity_findings():
            raise StoreCorrupt(f"{finding.where}: {finding.what}. Nothing was restored")
        identity = folders.identity_of(Layout(source_folder))
        _require_empty(layout, source_folder, ops, reader.table.length)
        with folders.lock(layout, ops):
            _copy_segments(reader, layout, ops)
            slots = {number: Slot(State.REMOVED, 0) for number in reader.table.removed}
            for number, copy in reader.table.segments.items():
                slots[number] = Slot(State.SEALED if copy.sealed else State.GROWING, copy.end)
            Manifest(layout.manifest, ops, identity.fingerprint).replace(slots)
            BackupFolder(folder, ops).replace(layout.identity.name, source.identity.read_bytes())
    found = reindex(folder, derive, fileops=ops)
    found.findings[:0] = reader.findings
    return found


def _require_empty(layout: Layout, source: Path, ops: FileOps, length: int) -> None:
    root, place = layout.root.resolve(), source.resolve()
    if root == place or place in root.parents:
        raise StoreError(f"{layout.root} is in the backup: name a folder elsewhere")
    if layout.root.exists() and not layout.root.is_dir():
        raise StoreError(f"{layout.root} is a file: name a folder")
    make_durable(layout.root, ops)
    found = {each.name for each in layout.root.iterdir()} - {OF_THE_FILE_SYSTEM}
    if found:
        raise StoreError(
            f"{layout.root} is not empty, it has {min(found)!r}: a restore changes no folder with contents. "
            "Name another folder, or empty this one"
        )
    free, _ = ops.space(layout.root)
    if free < length:
        raise InsufficientStorage(
            f"the disk of {layout.root} has {free} free bytes, and the backup has {length}. Nothing was "
            "restored"
        )


def _copy_segments(reader: _BackupReader, layout: Layout, ops: FileOps) -> None:
    """On a full disk nothing stays."""
    ops.make_folder(layout.segments)
    try:
        for copy in reader.table.segments.values():
            _copy_segment(reader, copy, layout.segment(copy.segment), ops)
        ops.sync_folder(layout.segments)
        ops.sync_folder(layout.root)
    except OSError as failure:
        ops.remove_folder(layout.segments)
        if failure.errno in NO_SPACE:
            raise InsufficientStorage(f"the disk of {layout.root} is full. Nothing was restored") from failure
        raise


def _copy_segment(reader: _BackupReader, copy: SegmentCopy, path: Path, ops: FileOps) -> None:
    fd, offset = -1, 0
    try:
        for piece in reader.pieces(copy):
            if fd < 0:
                fd = ops.create(path)
            offset += write_all(ops, fd, [piece], offset, keep=False)
        if fd >= 0:
            ops.sync(fd)
    finally:
        if fd >= 0:
            os.close(fd)


class _BackupReader:
    """Reads the files of the last complete backup and compares them with its table."""

    def __init__(self, source: BackupFolder, taken: Callable[[int], None], progress: Progress) -> None:
        self._source = source
        self.table: BackupTable = source.complete()
        self._taken = taken
        self._progress = progress
        self._done = 0
        self.findings: list[Finding] = []

    def identity_findings(self) -> Iterator[Finding]:
        try:
            body = self._source.identity.read_bytes()
        except FileNotFoundError:
            yield error(str(self._source.identity), "it is missing")
            return
        if hashlib.sha256(body).hexdigest() != self.table.identity:
            yield error(str(self._source.identity), WRONG_FILE)

    def faults_of_source(self, copy: SegmentCopy) -> Iterator[Finding]:
        """The findings of the backup, again, as notes."""
        for each in copy.findings:
            yield Finding(Severity.NOTE, f"segment {copy.segment}", f"the store had this fault: {each}")

    def pieces(self, copy: SegmentCopy) -> Iterator[bytes]:
        """The bytes of a segment. Wrong or missing ones are findings. A page that cannot be read ends it."""
        if not copy.file:
            return
        digest, path = hashlib.sha256(), self._source.path(copy.file)
        try:
            for piece in pieces_of(path, copy.length, self._count):
                digest.update(piece)
                yield piece
        except StoreCorrupt as fault:
            self.findings.append(error(str(path), fault.detail))
            return
        except OSError as failure:
            self.findings.append(error(str(path), f"it cannot be read: {failure.strerror}"))
            return
        if digest.hexdigest() != copy.sha256:
            self.findings.append(error(str(path), WRONG_FILE))

    def _count(self, length: int) -> None:
        self._taken(length)
        self._done += length
        self._progress(min(self._done, self.table.length), self.table.length)
