"""The index, built again from the segments, and held against the one that it replaces.

Strategy: walk all segments for tombstones, replacements and instances (see
scanning); sort those by the time they were stored; derive each from its bytes and commit it to a new index
beside the old one. Then compare: an instance that the old index has and the new one has not, though nothing
killed it, is taken over from the old index. It is registered as damaged, so that its bytes are refused
loudly instead of being absent. Then the two indexes change places.

Rules of this file
- Nobody else has the store open, not even to read.
- Segments change only after the new index is complete. Only headers and tombstones change that were mended,
  or records that were never acknowledged; bytes of those go to lost+found first.
- Where damage may hide a tombstone, an instance that the old index does not have stays dead, and gets a new
  tombstone. Without an old index that cannot be told, and the damage is an error.
- The old index is kept as index.old until the next reindex. A crash leaves one of the two in place.
"""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from streamsrv.errors import StreamsrvError
from streamsrv.store import folder as folders
from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.folder import Layout
from streamsrv.store.index import Index
from streamsrv.store.maintenance.check import Derive, Finding, Severity
from streamsrv.store.maintenance.old_index import OldIndex
from streamsrv.store.maintenance.rebuilding import Rebuild, void
from streamsrv.store.maintenance.scanning import Scan
from streamsrv.store.reserve import Reserve
from streamsrv.store.segments import header as segment_header
from streamsrv.store.segments import lost_and_found
from streamsrv.store.segments.header import damaged_headers
from streamsrv.store.segments.manifest import Manifest, Slot, Slots, State
from streamsrv.store.segments.records import (
    RecordFormat,
)


@dataclass(slots=True)
class Reindexing:
    """The result of a reindex. Findings are errors where something acknowledged is damaged or missing."""

    instances: int = 0
    segments: int = 0
    findings: list[Finding] = field(default_factory=list)


def reindex(folder: Path, derive: Derive, *, fileops: FileOps | None = None) -> Reindexing:
    """Build the index of a store again. StoreLocked while anything has the store open, WrongStore if a file
    in it is another store's."""
    ops, layout = fileops or FileOps(), Layout(folder)
    identity = folders.identity_of(layout)
    folders.require_writable(layout)
    form = RecordFormat(identity.secret, identity.fingerprint)
    with folders.lock(layout, ops), folders.use(layout, exclusive=True), ExitStack() as held:
        folders.undo_exchange(layout, ops)
        headers = dict(damaged_headers(layout.segment_files(), form))
        manifest = Manifest(layout.manifest, ops, form.fingerprint)
        witness = Witness(manifest)
        old = OldIndex.open(layout.index, form.fingerprint)
        # A foreign file has been refused by now. The next store makes the ballast again.
        Reserve(layout.root, ops, None, 0).release()
        if old is None:  # on a full disk LMDB may have had no room for its lock file
            old = OldIndex.open(layout.index, form.fingerprint)
        if old is not None:
            held.enter_context(closing(old))
        builder = _Builder(layout, form, derive, ops, witness, old)
        held.enter_context(closing(builder.scan))
        return builder.run(headers)


class Witness:
    """The contents of the manifest, as far as it can be read."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.there = True
        try:
            self.slots = manifest.read()
        except FileNotFoundError:
            self.there, self.slots = False, Slots({}, [])


class _Builder:
    def __init__(
        self,
        layout: Layout,
        form: RecordFormat,
        derive: Derive,
        ops: FileOps,
        witness: Witness,
        old: OldIndex | None,
    ) -> None:
        self._layout = layout
        self._form = form
        self._derive = derive
        self._ops = ops
        self._witness = witness
        self._old = old
        self._report = Reindexing()
        self.scan = Scan(form, ops, old, witness.slots.known, self._find)
        self._missing: dict[int, int] = {}  # segments without a file -> acknowledged end

    def run(self, damaged_headers: dict[int, str]) -> Reindexing:
        self._tell_witnesses()
        files = self._layout.segment_files()
        for number, path in files.items():
            self.scan.add(number, path, damaged_headers.get(number))
        self._find_missing(files)
        for leftover in (self._layout.new_index, self._layout.unfinished_index):
            self._ops.remove_folder(leftover)
        try:
            self._build()
            self._mend_segments()
            self._exchange()
        except (OSError, StreamsrvError):
            with suppress(OSError):  # it may have filled the disk
                self._ops.remove_folder(self._layout.unfinished_index)
            raise
        self._write_manifest()
        self._report.segments = len(files)
        return self._report

    def _build(self) -> None:
        with closing(Index.open(self._layout.unfinished_index, store=self._form.fingerprint)) as index:
            rebuild = Rebuild(
                *(self._layout, self._form, self._derive, self._ops, self.scan, self._old),
                *(self._witness.slots.known, self._missing, self._find),
            )
            rebuild.fill(index)
            self._report.instances = index.statistics()["instances"]

    def _find(self, severity: Severity, where: str, what: str) -> None:
        self._report.findings.append(Finding(severity, where, what))

    # Witnesses

    def _tell_witnesses(self) -> None:
        if self._old is None and self._layout.index.exists():
            self._find(Severity.NOTE, "the old index", "it cannot be read, so nothing is compared with it")
        slots = self._witness.slots
        if not self._witness.there:
            self._find(Severity.NOTE, "manifest", "there is none: made again")
        if slots.header_damaged:
            self._find(Severity.NOTE, "manifest, byte 0", "its header is damaged: written again")
        for segment in slots.damaged:
            what = "its checksum is wrong: written again"
            self._find(Severity.NOTE, f"manifest, segment {segment}", what)

    def _find_missing(self, files: dict[int, Path]) -> None:
        """A segment that manifest or old index know must have a file, unless it was removed."""
        slots = self._witness.slots
        known = {number: slot.end for number, slot in slots.known.items() if slot.has_records}
        for number, row in self._old.segments.items() if self._old else ():
            if not row.empty and number not in slots.known:
                known[number] = row.committed_end
        self._missing = {number: end for number, end in sorted(known.items()) if number not in files}
        for number, end in self._missing.items():
            what = f"its file is missing, with {end} acknowledged bytes"
            self._find(Severity.ERROR, f"segment {number}", what)
        for number in slots.damaged:
            if number not in files and self._old is None:
                what = "it has no file, and its slot in the manifest cannot be read: it may be missing"
                self._find(Severity.ERROR, f"segment {number}", what)
        gaps = self._gaps(files)
        for first, last in gaps:
            numbers = f"segment {first}" if first == last else f"segments {first} to {last}"
            what = (
                "no file, and no manifest or old index says that a compaction removed it: it may be missing"
            )
            self._find(Severity.ERROR, numbers, what)
        self.scan.hidden |= bool(self._missing or gaps)

    def _gaps(self, files: dict[int, Path]) -> list[tuple[int, int]]:
        """Without a manifest: numbers without a file, behind the last segment of the old index. A backup that
        has a manifest may lack segments that were made while it was copied."""
        if self._witness.there:
            return []
        last = max(self._old.segments if self._old else (), default=0)
        numbers = [last, *(number for number in files if number > last)]
        return [(one + 1, other - 1) for one, other in pairwise(numbers) if other - one > 1]

    # Taking its place

    def _mend_segments(self) -> None:
        for number, segment in self.scan.segments.items():
            fd = self.scan.files.fd(number)
            for begin, end in segment.torn:
                lost_and_found.keep(self._layout, self._ops, fd, number, begin, end)
                segment.headers[begin] = void(begin, end)
            for offset, header in segment.headers.items():
                write_all(self._ops, fd, [self._form.pack(header, number, offset)], offset)
            for offset, payload in segment.payloads.items():
                write_all(self._ops, fd, [payload], offset)
            if segment.new_header:
                write_all(self._ops, fd, [segment_header.pack(self._form, number)], 0)
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
        known = self._witness.slots.known
        slots = {number: slot for number, slot in known.items() if slot.state is State.REMOVED}
        slots |= {number: Slot(State.GROWING, end) for number, end in self._missing.items()}
        for number, segment in self.scan.segments.items():
            sealed = segment.damaged or segment.sealed
            slots[number] = Slot(State.SEALED if sealed else State.GROWING, segment.end)
        self._witness.manifest.replace(slots)
