"""Leftovers: bytes behind the committed end of a segment, of a writer that died. They are cut off.

Rules of this file
- Nothing before the end in the manifest is cut: if the index ends earlier, it is an older index.
- Leftovers that begin with a valid PENDING record were never acknowledged, and are cut. All others are copied
  to lost+found first.
- A cut of bytes that may hold valid records is synced at once, so that a power loss cannot undo it.
"""

from __future__ import annotations

from streamsrv.errors import StoreCorrupt
from streamsrv.store.fileops import FileOps
from streamsrv.store.folder import Layout
from streamsrv.store.index import Index
from streamsrv.store.locks import Locks
from streamsrv.store.rows import SegmentRow
from streamsrv.store.segments import lost_and_found
from streamsrv.store.segments.manifest import Slot, State
from streamsrv.store.segments.records import HEADER, FoundRecord, HeaderDamaged, RecordFormat, RecordKind


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
                lost_and_found.keep(self._layout, self._ops, fd, row.segment, row.committed_end, length)
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
