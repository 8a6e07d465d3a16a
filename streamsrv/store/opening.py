"""Checks of a store that is being opened: manifest, index and segment files against each other.

Strategy: only names, lengths and headers are read, so it takes milliseconds. `check` reads the bytes.

Rules of this file
- The manifest is read before the index. A writer updates it after the index, so it is never ahead of it.
- An index older than the manifest is refused: it would cut off acknowledged bytes.
- All other problems are reported, and the rest of the store is served.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from streamsrv.errors import StoreCorrupt
from streamsrv.store.folder import Layout
from streamsrv.store.index import Index
from streamsrv.store.rows import SegmentRow
from streamsrv.store.segments.header import damaged_headers
from streamsrv.store.segments.manifest import Manifest, Slot, State
from streamsrv.store.segments.records import RecordFormat


class Problem(NamedTuple):
    """A part of the store that cannot be served or trusted."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def problems(layout: Layout, form: RecordFormat, manifest: Manifest, index: Index) -> Iterator[Problem]:
    """Raises StoreCorrupt if the index is older than the manifest, WrongStore if a file is another
    store's."""
    slots = manifest.read()
    if slots.header_damaged:
        yield Problem("manifest, byte 0", "its header is damaged: run reindex")
    for segment in slots.damaged:
        yield Problem(f"manifest, segment {segment}", "its checksum is wrong: run reindex")
    for segment, reason in damaged_headers(layout.segment_files(), form):
        yield Problem(f"segment {segment}, byte 0", f"{reason}: run reindex")
    try:
        rows = _rows(index, slots.known)
    except StoreCorrupt as reason:
        yield Problem("index database segments", reason.detail)
        return
    _require_current(rows, slots.known)
    for row in rows.values():
        if not row.empty:
            yield from _file(layout, manifest, index, row)


def _rows(index: Index, slots: dict[int, Slot]) -> dict[int, SegmentRow]:
    rows = index.segments()
    if any(is_behind(rows.get(segment), slot) for segment, slot in slots.items()) and not index.read_only:
        index.catch_up()
        rows = index.segments()
    return rows


def is_behind(row: SegmentRow | None, slot: Slot) -> bool:
    """Whether the index ends a segment before the manifest does."""
    return slot.has_records and (row is None or row.committed_end < slot.end)


def _require_current(rows: dict[int, SegmentRow], slots: dict[int, Slot]) -> None:
    for segment, slot in slots.items():
        row = rows.get(segment)
        if is_behind(row, slot):
            known = f"only up to byte {row.committed_end}" if row else "not at all"
            raise StoreCorrupt(
                f"segment {segment} is acknowledged up to byte {slot.end}, and the index knows it {known}: "
                "the index is an older one, run `streamsrv reindex`"
            )


def _file(layout: Layout, manifest: Manifest, index: Index, row: SegmentRow) -> Iterator[Problem]:
    try:
        length = os.stat(layout.segment(row.segment)).st_size
    except FileNotFoundError:
        if _is_removed(manifest, index, row.segment):
            return
        yield Problem(
            f"segment {row.segment}",
            "its file is missing: bring it back from a backup",
        )
        return
    if length < row.committed_end:
        where = f"segment {row.segment}, byte {length}"
        yield Problem(where, f"the file ends here, not at {row.committed_end}: bring it back from a backup")


def _is_removed(manifest: Manifest, index: Index, segment: int) -> bool:
    """Whether a compaction removed it."""
    slot = manifest.read().known.get(segment)
    row = index.segment(segment)
    return row is None or (slot is not None and slot.state is State.REMOVED and not row.live)
