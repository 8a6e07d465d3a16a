"""Builds the index again from the segments, and compares it with the index that it replaces.

Strategy: scan all segments for tombstones, replacements and instances (see scanning). Sort the instances by
the time they were stored, derive each from its bytes, and commit it to a new index beside the old one. Then
take over from the old index every instance that is missing and was not deleted, and register it as damaged.
At last exchange the two indexes.

Rules of this file
- No other process has the store open, not even to read.
- Segments change only after the new index is complete. Only mended headers and tombstones change, and records
  that were never acknowledged; bytes of those go to lost+found first.
- Where damage may hide a tombstone, an instance that the old index does not have stays deleted, and gets a
  new tombstone. Without an old index this is unknown, and the damage is an error.
- The old index is kept as index.old until the next reindex. A crash leaves one of the two in place.
"""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from streamsrv.errors import StreamsrvError
from streamsrv.store import folder as folders
from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.folder import Layout, Reserve
from streamsrv.store.index import Index
from streamsrv.store.maintenance.check import Derive, Finding, Severity
from streamsrv.store.maintenance.rebuilding import Rebuild, void
from streamsrv.store.maintenance.scanning import OldIndex, Scan, Sources
from streamsrv.store.segments import leftovers
from streamsrv.store.segments.manifest import Manifest, Slot, State
from streamsrv.store.segments.records import (
    RecordFormat,
    damaged_headers,
    pack_file_header,
)


@dataclass(slots=True)
class Reindexing:
    """The result of a reindex. A finding is an error if something acknowledged is damaged or missing."""

    instances: int
    segments: int
    findings: list[Finding]


def reindex(folder: Path, derive: Derive, *, fileops: FileOps | None = None) -> Reindexing:
    """Build the index of a store again. Raises StoreLocked while anything has the store open, WrongStore if a
    file belongs to another store."""
    ops, layout = fileops or FileOps(), Layout(folder)
    identity = folders.identity_of(layout)
    folders.require_writable(layout)
    form = RecordFormat(identity.secret, identity.fingerprint)
    with folders.lock(layout, ops), folders.use(layout, exclusive=True), ExitStack() as held:
        folders.undo_exchange(layout, ops)
        headers = dict(damaged_headers(layout.segment_files(), form))
        manifest = Manifest(layout.manifest, ops, form.fingerprint)
        slots = None
        with suppress(FileNotFoundError):
            slots = manifest.read()
        old = OldIndex.open(layout.index, form.fingerprint)
        # A foreign file has been refused by now. The next store makes the ballast again.
        Reserve(layout.root, ops, None, 0).release()
        if old is None:  # on a full disk LMDB may have had no room for its lock file
            old = OldIndex.open(layout.index, form.fingerprint)
        if old is not None:
            held.enter_context(closing(old))
            old.require_no_move()
        builder = _Builder(Sources(layout, form, ops, derive, slots, old), manifest)
        held.enter_context(closing(builder.scan))
        return builder.run(headers)


class _Builder:
    def __init__(self, sources: Sources, manifest: Manifest) -> None:
        self._sources = sources
        self._layout = sources.layout
        self._form = sources.form
        self._ops = sources.ops
        self._old = sources.old
        self._find = sources.find
        self._manifest = manifest
        self.scan = Scan(sources)
        self._missing: dict[int, int] = {}  # segments without a file -> acknowledged end

    def run(self, damaged_headers: dict[int, str]) -> Reindexing:
        self._report_sources()
        files = self._layout.segment_files()
        for number, path in files.items():
            self.scan.add(number, path, damaged_headers.get(number))
        self._find_missing(files)
        for leftover in (self._layout.new_index, self._layout.unfinished_index):
            self._ops.remove_folder(leftover)
        try:
            instances = self._build()
            self._mend_segments()
            self._exchange()
        except (OSError, StreamsrvError):
            with suppress(OSError):  # it may have filled the disk
                self._ops.remove_folder(self._layout.unfinished_index)
            raise
        self._write_manifest()
        return Reindexing(instances, len(files), self._sources.findings)

    def _build(self) -> int:
        """Returns the number of instances."""
        with closing(Index.open(self._layout.unfinished_index, store=self._form.fingerprint)) as index:
            Rebuild(self._sources, self.scan, self._missing).fill(index)
            return index.statistics()["instances"]

    # Manifest and old index

    def _report_sources(self) -> None:
        if self._old is None and self._layout.index.exists():
            self._find(Severity.NOTE, "the old index", "it cannot be read, so nothing is compared with it")
        slots = self._sources.slots
        if slots is None:
            self._find(Severity.NOTE, "manifest", "there is none: made again")
            return
        if slots.header_damaged:
            self._find(Severity.NOTE, "manifest, byte 0", "its header is damaged: written again")
        for segment in slots.damaged:
            what = "its checksum is wrong: written again"
            self._find(Severity.NOTE, f"manifest, segment {segment}", what)

    def _find_missing(self, files: dict[int, Path]) -> None:
        """A segment that manifest or old index know must have a file, unless it was removed."""
        slots = self._sources.known_slots
        known = {number: slot.end for number, slot in slots.items() if slot.has_records}
        for number, row in self._old.segments.items() if self._old else ():
            if not row.empty and number not in slots:
                known[number] = row.committed_end
        self._missing = {number: end for number, end in sorted(known.items()) if number not in files}
        for number, end in self._missing.items():
            what = f"its file is missing, with {end} acknowledged bytes"
            self._find(Severity.ERROR, f"segment {number}", what)
        for number in self._sources.slots.damaged if self._sources.slots else ():
            if number not in files and self._old is None:
                what = "it has no file, and its slot in the manifest cannot be read: it may be missing"
                self._find(Severity.ERROR, f"segment {number}", what)
        gaps = self._gaps(files)
        for first, last in gaps:
            numbers = f"segment {first}" if first == last else f"segments {first} to {last}"
            what = (
                "no file, and no manifest or old index proves that a compaction removed it: it may be missing"
            )
            self._find(Severity.ERROR, numbers, what)
        self.scan.hidden |= bool(self._missing or gaps)

    def _gaps(self, files: dict[int, Path]) -> list[tuple[int, int]]:
        """Without a manifest: numbers without a file, behind the last segment of the old index. A backup that
        has a manifest may lack segments that were made while it was copied."""
        if self._sources.slots is not None:
            return []
        last = max(self._old.segments if self._old else (), default=0)
        numbers = [last, *(number for number in files if number > last)]
        return [(one + 1, other - 1) for one, other in pairwise(numbers) if other - one > 1]

    # Taking its place

    def _mend_segments(self) -> None:
        for number, segment in self.scan.segments.items():
            fd = self.scan.files.fd(number)
            for begin, end in segment.torn:
                leftovers.keep(self._layout, self._ops, fd, number, begin, end)
                segment.headers[begin] = void(begin, end)
            for offset, header in segment.headers.items():
                write_all(self._ops, fd, [self._form.pack(header, number, offset)], offset)
            for offset, payload in segment.payloads.items():
                write_all(self._ops, fd, [payload], offset)
            if segment.new_header:
                write_all(self._ops, fd, [pack_file_header(self._form, number)], 0)
            if segment.headers or segment.payloads or segment.new_header:
                self._ops.sync(fd)

    def _exchange(self) -> None:
        """New index in, old one out; opening a store undoes an exchange that was cut short."""
        layout, ops = self._layout, self._ops
        ops.sync_folder(layout.unfinished_index)
        if layout.index.exists():
            ops.remove_folder(layout.old_index)
            ops.rename(layout.unfinished_index, layout.new_index)
            ops.rename(layout.index, layout.old_index)
            ops.rename(layout.new_index, layout.index)
        else:
            ops.rename(layout.unfinished_index, layout.index)
        ops.sync_folder(layout.root)

    def _write_manifest(self) -> None:
        """Missing segments stay in it, so that they are named until nothing lives in them."""
        known = self._sources.known_slots
        slots = {number: slot for number, slot in known.items() if slot.state is State.REMOVED}
        slots |= {number: Slot(State.GROWING, end) for number, end in self._missing.items()}
        for number, segment in self.scan.segments.items():
            sealed = segment.damaged or segment.sealed
            slots[number] = Slot(State.SEALED if sealed else State.GROWING, segment.end)
        self._manifest.replace(slots)
