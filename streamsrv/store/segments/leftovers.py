"""Bytes behind the committed end of a segment, of a writer that died: *leftovers*. They are cut off, and
copied to DATA/lost+found first if they may have been acknowledged.

    DATA/lost+found/SSSSSSSS-BEGIN-END[-N].part     bytes BEGIN to END of segment S, as they were

A part holds a request that was never acknowledged, according to index and manifest. If they are damaged or
older than the segment, it may hold acknowledged data, so only a person deletes it. No program reads these
files.

Rules of this file
- Nothing before the end in the manifest is cut: if the index ends earlier, it is an older index.
- A part is durable before the segment is cut.
- Nothing is kept of a transaction that aborts, nor of leftovers that begin with a valid PENDING record:
  neither was acknowledged. So a large upload whose worker is killed takes no space.
- A cut of bytes that may hold valid records is synced at once, so that a power loss cannot undo it.
"""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path

from streamsrv.errors import StoreCorrupt
from streamsrv.store.fileops import FileOps, copy_all
from streamsrv.store.folder import Layout
from streamsrv.store.index import Index
from streamsrv.store.locks import Locks
from streamsrv.store.rows import SegmentRow
from streamsrv.store.segments.manifest import Slot, State
from streamsrv.store.segments.records import HEADER, FoundRecord, HeaderDamaged, RecordFormat, RecordKind

log = logging.getLogger("streamsrv.store")


class Leftovers:
    def __init__(self, layout: Layout, index: Index, form: RecordFormat, ops: FileOps) -> None:
        self._layout = layout
        self._index = index
        self._form = form
        self._ops = ops

    def cut(self, fd: int, row: SegmentRow, length: int, locks: Locks) -> SegmentRow:
        """Cut a segment of `length` bytes that the caller has locked. Returns the current row: the writer may
        have died in a commit that readers did not see. Raises StoreCorrupt, OSError."""
        if length > row.committed_end:
            self._index.catch_up()
            row = self._index.segment(row.segment) or row
        if length > row.committed_end:
            self._require_unacknowledged(fd, row, length, locks)
            if not self._is_pending(fd, row, length):
                keep(self._layout, self._ops, fd, row.segment, row.committed_end, length)
            self._ops.truncate(fd, row.committed_end)
            if not row.sealed:
                self._ops.sync(fd)
        locks.ensure(row.segment, Slot(State.SEALED if row.sealed else State.GROWING, row.committed_end))
        return row

    def _require_unacknowledged(self, fd: int, row: SegmentRow, length: int, locks: Locks) -> None:
        """Leftovers belong to one request. An acknowledged end in the manifest, or a second request, proves
        that the index is older than the segment (from a backup, for example). Then nothing is cut."""
        _, slot = locks.slot(row.segment)
        acknowledged = slot.end if slot else 0
        for step in self._form.walk(fd, row.segment, length, start=row.committed_end):
            if isinstance(step, FoundRecord):
                acknowledged = max(acknowledged, step.header.began)
        if acknowledged > row.committed_end:
            raise StoreCorrupt(
                f"segment {row.segment} holds requests that the index does not know, from byte "
                f"{row.committed_end} to {acknowledged}: the index is an older one, run `streamsrv reindex`"
            )

    def _is_pending(self, fd: int, row: SegmentRow, length: int) -> bool:
        """True if the leftovers were never acknowledged: part of a body, copies of a compaction, or a SEAL
        record alone."""
        try:
            header = self._form.header_at(fd, row.segment, row.committed_end, length)
        except HeaderDamaged:
            return False
        sealing = header.kind is RecordKind.SEAL and length == row.committed_end + HEADER
        return header.kind is RecordKind.PENDING or sealing


def keep(layout: Layout, ops: FileOps, fd: int, segment: int, begin: int, end: int) -> Path:
    """Copy bytes of a segment durably, and log it. Raises OSError."""
    folder = layout.lost_and_found
    if not folder.exists():
        ops.make_folder(folder)
        ops.sync_folder(layout.root)
    path, target = _create(ops, folder, f"{segment:08d}-{begin}-{end}")
    try:
        copy_all(ops, fd, begin, target, 0, end - begin)
        ops.sync(target)
    except OSError:
        ops.unlink(path)
        raise
    finally:
        os.close(target)
    ops.sync_folder(folder)
    log.warning("bytes %d to %d of segment %d were not acknowledged: moved to %s", begin, end, segment, path)
    return path


def take_file(layout: Layout, ops: FileOps, segment: int, length: int) -> Path:
    """Move the file of a segment there instead of removing it, and log it."""
    folder = layout.lost_and_found
    ops.make_folder(folder)
    path, target = _create(ops, folder, f"{segment:08d}-0-{length}")
    os.close(target)
    ops.rename(layout.segment(segment), path)
    ops.sync_folder(folder)
    ops.sync_folder(layout.root)
    log.warning("segment %d has damaged records: moved to %s", segment, path)
    return path


def parts(layout: Layout) -> list[Path]:
    folder = layout.lost_and_found
    return sorted(folder.glob("*.part")) if folder.is_dir() else []


def _create(ops: FileOps, folder: Path, stem: str) -> tuple[Path, int]:
    for number in itertools.count(1):
        path = folder / f"{stem}{f'-{number}' if number > 1 else ''}.part"
        try:
            return path, ops.create(path)
        except FileExistsError:
            continue
    raise AssertionError
