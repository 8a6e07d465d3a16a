"""Bytes behind the committed end of a segment, left by a writer that died: they are cut off.

Rules of this file
- Nothing before the end in the manifest is cut: an index that says so is an older one.
- Leftovers that begin with a valid PENDING record were never acknowledged, and are cut. All others go to
  lost+found first.
- A cut of bytes that may hold valid records is synced at once: a cut that a power loss undoes would bring
  them back.
"""

from __future__ import annotations

from typing import Protocol

from streamsrv.errors import StoreCorrupt
from streamsrv.store.fileops import FileOps
from streamsrv.store.folder import Layout
from streamsrv.store.locks import Claims
from streamsrv.store.rows import SegmentRow
from streamsrv.store.segments import lost_and_found
from streamsrv.store.segments.manifest import Slot, State
from streamsrv.store.segments.records import HEADER, Found, HeaderDamaged, Kind, RecordFormat


class LeftoversIndex(Protocol):
    """The part of the index that a cut needs."""

    def catch_up(self) -> None: ...
    def segment(self, segment: int) -> SegmentRow | None: ...


class Leftovers:
    """Those of a store."""

    def __init__(self, layout: Layout, index: LeftoversIndex, form: RecordFormat, ops: FileOps) -> None:
        self._layout = layout
        self._index = index
        self._form = form
        self._ops = ops

    def cut(self, fd: int, row: SegmentRow, length: int, claims: Claims) -> SegmentRow:
        """Cut the segment, of this length, whose lock the caller has. Returns the row by which it was cut:
        its writer may have died in a commit that readers had not seen. Raises StoreCorrupt, OSError."""
        if length > row.committed_end:
            self._index.catch_up()
            row = self._index.segment(row.segment) or row
        if length > row.committed_end:
            self._require_unacknowledged(fd, row, length, claims)
            if not self._is_pending(fd, row, length):
                lost_and_found.keep(self._layout, self._ops, fd, row.segment, row.committed_end, length)
            self._ops.truncate(fd, row.committed_end)
            if not row.sealed:
                self._ops.sync(fd)
        claims.ensure(row.segment, Slot(State.SEALED if row.sealed else State.GROWING, row.committed_end))
        return row

    def _require_unacknowledged(self, fd: int, row: SegmentRow, length: int, claims: Claims) -> None:
        """Leftovers belong to one request. An acknowledged end in the manifest, or a second request, shows
        that the index is older than the segment: it came from a backup, for example. Nothing is destroyed
        then."""
        _, slot = claims.slot(row.segment)
        acknowledged = slot.end if slot else 0
        for step in self._form.walk(fd, row.segment, length, start=row.committed_end):
            if isinstance(step, Found):
                acknowledged = max(acknowledged, step.header.began)
        if acknowledged > row.committed_end:
            raise StoreCorrupt(
                f"segment {row.segment} holds requests that the index does not know, from byte "
                f"{row.committed_end} to {acknowledged}: the index is an older one, run `streamsrv reindex`"
            )

    def _is_pending(self, fd: int, row: SegmentRow, length: int) -> bool:
        """Nothing behind the committed end was ever acknowledged, and it may be long: a body that was being
        received, copies of a compaction, or a SEAL record alone."""
        try:
            header = self._form.header_at(fd, row.segment, row.committed_end, length)
        except HeaderDamaged:
            return False
        sealing = header.kind is Kind.SEAL and length == row.committed_end + HEADER
        return header.kind is Kind.PENDING or sealing
