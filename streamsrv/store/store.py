"""The store for the rooms above it: the index, the segments, and the order of their writes.

Data is synced before the index commits, and the index before a client is answered. docs/store-contract.md is
the contract of each call.

A store that is opened compares manifest, index and segment files. Only names, lengths and headers are read,
so it takes milliseconds; `check` reads the bytes.

Rules of this file
- The manifest is read before the index. A writer updates it after the index, so it is never ahead of it.
- An index older than the manifest is refused: it would cut off acknowledged bytes.
- All other problems are reported, and the rest of the store is served.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

from streamsrv.errors import Forbidden, StoreCorrupt, StoreError
from streamsrv.query.rules import Rule
from streamsrv.store import folder as folders
from streamsrv.store.documents import Documents, FolderDocuments
from streamsrv.store.fileops import FileOps
from streamsrv.store.folder import FolderLock, Identity, Layout, Reserve
from streamsrv.store.index import USUAL_MEMORY, DamagedRecord, Index
from streamsrv.store.locks import Locks
from streamsrv.store.rows import InstanceRow, SegmentRow
from streamsrv.store.segments import tombstones, verifying
from streamsrv.store.segments.leases import Readers, SegmentLease
from streamsrv.store.segments.manifest import Manifest, Slot, State
from streamsrv.store.segments.records import NO_HEADER, RecordFormat, damaged_headers
from streamsrv.store.segments.segments import SEGMENT_SIZE, Segments
from streamsrv.store.segments.transaction import SegmentTransaction
from streamsrv.store.transaction import Transaction

log = logging.getLogger("streamsrv.store")

# The row of `about` that the target of a move has until its end.
MOVE = "move"


@dataclass(frozen=True, slots=True)
class StoreOptions:
    segment_size: int = SEGMENT_SIZE
    min_free: int | None = None  # bytes; None: 1 GiB or 2 % of the disk, whichever is less
    ballast: int = 0  # bytes; see folder
    keep_changes: int = 0  # of the latest ones; 0: all
    index: str = ""  # the URL of a PostgreSQL database; empty: in the folder of the store
    segments: str = ""  # the URL of a bucket; empty: in the folder of the store
    cache: Path | None = None  # of objects; None: in the folder of the node
    cache_size: int = 10 << 30
    grace: float = 3600.0  # seconds: the bytes of objects without instances stay so long
    upload_lease: float = 600.0  # seconds: an upload that is not renewed is given up
    rules_memory: int = USUAL_MEMORY  # bytes in which rules of access remember studies
    existing: bool = False  # of a cluster: refuse to make a store
    moving: bool = False  # for the move that writes to this store


class Store:
    """One open store. Several processes may have it open; threads may share one."""

    scrubs = True  # whether a scrub reads its segments

    def __init__(
        self,
        layout: Layout,
        identity: Identity,
        manifest: Manifest,
        index: Index,
        options: StoreOptions,
        ops: FileOps,
        read_only: bool,
        reserve: Reserve,
    ) -> None:
        self.layout = layout
        self.store_id = identity.store_id
        self.secret = identity.secret
        self.read_only = read_only
        self.ops = ops
        self.manifest = manifest
        self.form = RecordFormat(identity.secret, identity.fingerprint)
        self.reserve = reserve
        self.segments = Segments(layout, manifest, index, self.form, ops, options.segment_size, reserve)
        self.readers = Readers(layout)
        self._whole: Store | None = None  # of a view
        self._see(index, None)
        self._held = contextlib.ExitStack()
        self._closed = False

    def _see(self, index: Index, rule: Rule | None) -> None:
        """Read from this index."""
        self.index, self.rule, self.remote = index, rule, index.remote
        self.version, self.version_at_hand, self.probe = index.version, index.version_at_hand, index.probe
        self.lookup, self.packed, self.instance = index.lookup, index.packed, index.instance
        self.metadata, self.short_metadata = index.metadata, index.short_metadata
        self.frame_entries, self.bulk_value = index.frame_entries, index.bulk_value
        self.changes, self.first_change = index.changes, index.first_change
        self.changes_before, self.latest_change = index.changes_before, index.latest_change
        self.damaged_among = index.damaged_among

    @classmethod
    def open(
        cls,
        folder: Path,
        options: StoreOptions | None = None,
        *,
        read_only: bool = False,
        exclusive: bool = False,
        fileops: FileOps | None = None,
    ) -> Store:
        """Open the store; makes it unless `read_only`. With `exclusive` it also locks the folder, as `lock`
        does."""
        options = options or StoreOptions()
        if options.segments:
            return opened_cluster(folder, options, read_only=read_only, fileops=fileops)
        ops, layout = fileops or FileOps(), Layout(folder)
        with contextlib.ExitStack() as held:
            if exclusive:
                held.enter_context(folders.lock(layout, ops))
            if not read_only:
                folders.prepare(layout, ops)
            identity = folders.identity_of(layout)
            held.enter_context(folders.use(layout))
            if options.index:
                folders.require_no_index(layout)
            else:
                folders.ensure_index(layout, ops)
            manifest = Manifest(layout.manifest, ops, identity.fingerprint)
            if not read_only:
                folders.prepare_manifest(layout, manifest)
            manifest.open()
            reserve = Reserve(layout.root, ops, options.min_free, options.ballast)
            index = _index(layout, identity, options, read_only, reserve)
            held.callback(index.close)
            index.rules.limit = options.rules_memory
            if not (read_only or options.moving):
                require_no_move(index)
            store = cls(layout, identity, manifest, index, options, ops, read_only, reserve)
            for problem in problems(layout, store.form, manifest, index):
                log.error("%s", problem)
            if not read_only:
                store.reserve.with_room(store.segments.recover_all)
            store._held = held.pop_all()
            return store

    @staticmethod
    def lock(folder: Path, fileops: FileOps | None = None, *, shared: bool = False) -> FolderLock:
        """Lock the folder for one server; its workers open the store without this lock. Servers that only
        read share a lock. Raises StoreLocked."""
        return folders.lock(Layout(folder), fileops or FileOps(), shared=shared)

    def close(self) -> None:
        """Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._sync_manifest()
        self.readers.end()
        self._held.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Writing

    def begin(self) -> Transaction:
        """Raises InsufficientStorage if less than `min_free` is left, Forbidden if the store is read-only."""
        self._require_writable()
        whole = self._whole or self
        transaction = SegmentTransaction(self.segments, self.readers, whole.index, self.form)
        transaction.open_body(self.rule)
        return transaction

    def delete(self, study: str, series: str | None = None, instance: str | None = None) -> int:
        """Delete a study, series or instance durably; returns the number of instances."""
        self._require_writable()
        target = study, series, instance
        return self.reserve.with_room(lambda: tombstones.delete(self.segments, self.index, self.form, target))

    def restricted(self, rule: Rule) -> Store:
        """This store as if it held only the studies that the rule shows. Not to be closed."""
        view = copy.copy(self)
        view._whole = whole = self._whole or self
        view._see(whole.index.restricted(rule), rule)
        return view

    def _sync_manifest(self) -> None:
        if not self.read_only:
            with (
                contextlib.suppress(OSError, StoreError),
                contextlib.closing(Locks(self.manifest)) as locks,
            ):
                locks.sync()

    def _require_writable(self) -> None:
        if self.read_only:
            raise Forbidden("this store is read-only")

    # Reading

    def open_segments(self, segments: Iterable[int]) -> SegmentLease:
        """Descriptors for the spans of an answer. Raises SegmentGone if a segment was removed: look the
        instances up again."""
        return self.readers.open(segments)

    def require_whole(self, row: InstanceRow, lease: SegmentLease) -> None:
        """Read all bytes of an instance. If they differ from those that arrived, registers the damage and
        raises InstanceDamaged."""
        reason = verifying.damage_of(self.form, lease, row)
        if reason:
            self._damaged(row, reason)

    def _damaged(self, row: InstanceRow, reason: str) -> NoReturn:
        found = [verifying.damaged_record(row, reason)]
        verifying.register(self.index, found)
        raise verifying.refusal(found)

    def lost_among(self, rows: Iterable[InstanceRow]) -> list[DamagedRecord]:
        """The instances whose bytes are lost, after SegmentGone from their lease. The files of leased
        segments on a local disk are never lost."""
        return []


def _index(
    layout: Layout, identity: Identity, options: StoreOptions, read_only: bool, reserve: Reserve
) -> Index:
    def opened() -> Index:
        if options.index:
            return opened_in_database(
                options.index,
                read_only=read_only,
                store=identity.fingerprint,
                keep_changes=options.keep_changes,
            )
        return Index.open(
            layout.index,
            read_only=read_only,
            store=identity.fingerprint,
            keep_changes=options.keep_changes,
        )

    return opened() if read_only else reserve.with_room(opened)


def require_no_move(index: Index) -> None:
    """Raises StoreError if the store is the target of a move that has not ended."""
    if MOVE in index.about():
        raise StoreError(
            "this store is the target of a move that has not ended: run `streamsrv move` with --finish, or "
            "only read it (`serve --read-only`)"
        )


def opened_cluster(folder: Path, options: StoreOptions, *, read_only: bool, fileops: FileOps | None) -> Store:
    """`folder` is that of the node. Raises StoreError."""
    room = _optional("streamsrv.store.cluster", "a bucket for the segments")
    opened: Store = room.open_cluster(folder, options, read_only=read_only, fileops=fileops)
    return opened


def opened_in_database(url: str, *, read_only: bool, store: bytes, keep_changes: int) -> Index:
    opened: Index = _postgresql().open_index(url, read_only=read_only, store=store, keep_changes=keep_changes)
    return opened


def migrate_index(url: str) -> tuple[int, int]:
    """Bring the tables of an index in PostgreSQL to the layout of this version; returns the layouts before
    and after. Raises StoreError."""
    before, after = _postgresql().migrate(url)
    return before, after


def open_documents(kind: str, data: Path, index: str = "", segments: str = "") -> Documents:
    """The documents of one kind: in `data`, the folder of the store, or in the database of a cluster. Raises
    StoreError."""
    if not index or not segments:
        return FolderDocuments(data / kind)
    room = _optional("streamsrv.store.postgresql.documents", "a bucket for the segments")
    opened: Documents = room.DatabaseDocuments(index, kind)
    return opened


def _postgresql() -> Any:
    return _optional("streamsrv.store.postgresql", "an index in PostgreSQL")


def _optional(room: str, subject: str) -> Any:
    """The room of an engine. Raises StoreError if its packages are not installed."""
    try:
        return import_module(room)
    except ModuleNotFoundError as error:
        raise StoreError(f"{subject} needs the package {error.name}: install streamsrv[cluster]") from error


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
    headers = list(damaged_headers(layout.segment_files(), form))
    rows: dict[int, SegmentRow] = {}
    unread = ""
    try:
        rows = _rows(index, slots.known)
    except StoreCorrupt as reason:
        unread = reason.detail
    for segment, what in headers:
        # The power may go before the header of a new segment is on the disk: its next writer writes it.
        if what != NO_HEADER or segment not in rows or not rows[segment].empty:
            yield Problem(f"segment {segment}, byte 0", f"{what}: run reindex")
    if unread:
        yield Problem("index database segments", unread)
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
