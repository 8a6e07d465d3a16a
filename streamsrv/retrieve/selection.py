"""The SOP instances of a target resource, pinned for as long as their answer is being sent.

Strategy: one pass over the index pages learns how many there are, where their bytes lie and what the ETag is;
a lease keeps their segments open. Up to ROWS_KEPT rows stay in memory. Of a longer study only 36 bytes an
instance are kept (its record id and location), and the rows are looked up again, page by page, while the
answer is sent. An instance that has vanished by then ends the answer (the connection is closed, never a
silent gap); one that compaction has moved is still read where it was, under the lease.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import xxhash

from streamsrv.dicom.window import Pread
from streamsrv.errors import NotFound, SegmentGone, StoreError
from streamsrv.store.leases import SegmentLease
from streamsrv.store.rows import InstanceKey, InstanceRow, Location
from streamsrv.store.store import Store
from streamsrv.wire.resources import Target

ROWS_KEPT = 4_096  # about 1 kB each
PAGE = 1_000
# Compaction may unlink a segment between the look-up and its opening; it swaps a segment at most once a pass.
ATTEMPTS = 5
# Frames whose entries are read together with the row.
ENTRIES_AT_ONCE = 64
NOT_THERE = "there is no such SOP instance, series or study in this store"

_PIN = struct.Struct("<16sIQQ")


class Learned(NamedTuple):
    """What a walk over the pages of a study or series has found: true until the next commit, and not to be
    changed."""

    moment: int
    rows: list[InstanceRow]
    syntaxes: set[str]
    digest: bytes
    segments: set[int]


# Viewers ask for the metadata of a series and then for its instances, and several of them do.
SELECTIONS_REMEMBERED = 8
ROWS_REMEMBERED = 1_000
_Memory: TypeAlias = dict[tuple[str, str | None, str | None], Learned]
_memories: WeakKeyDictionary[Store, _Memory] = WeakKeyDictionary()


class Selection:
    """Use as a context manager only while planning; afterwards `release` belongs to the answer."""

    def __init__(
        self,
        store: Store,
        study: str,
        series: str | None,
        instance: str | None,
        frames: Sequence[int] = (),
    ) -> None:
        self._store = store
        self.frames = frames
        self._target = (study, series, instance)
        self._kept: list[InstanceRow] = []
        self._pins = bytearray()
        self.count = 0
        self.syntaxes: set[str] = set()  # transfer syntaxes as stored
        self.digest = b""  # of all record ids in order: the same digest means the same stored bytes
        self._inflated: tuple[bytes, Pread] | None = None
        # Entries of the frame table of a single instance that were read with its row: those of `frames`.
        self.entries: list[tuple[int, int]] = []
        self.lease = self._pin()

    def _pin(self) -> SegmentLease:
        for _ in range(ATTEMPTS):
            try:
                return self._store.open_segments(self._learn())
            except SegmentGone:
                continue
        raise StoreError("segments were replaced again and again while they were being opened")

    def _learn(self) -> set[int]:
        """What there is; returns the segments that hold it."""
        study, series, instance = self._target
        if series is not None and instance is not None:
            return self._learn_one(InstanceKey(study, series, instance))
        moment, memory = self._store.moment(), _memories.setdefault(self._store, {})
        learned = memory.get(self._target)
        if learned is None or learned.moment != moment:
            segments = self._walk()
            learned = Learned(moment, self._kept, self.syntaxes, self.digest, segments)
            if self.count <= ROWS_REMEMBERED:
                while len(memory) >= SELECTIONS_REMEMBERED:
                    memory.pop(next(iter(memory)), None)
                memory[self._target] = learned
        else:
            self._kept, self.count = learned.rows, len(learned.rows)
            self.syntaxes, self.digest = learned.syntaxes, learned.digest
        return learned.segments

    def _walk(self) -> set[int]:
        """Over the pages, once."""
        self._kept, self._pins, self.count, self.syntaxes = [], bytearray(), 0, set()
        digest, segments = xxhash.xxh3_128(), set()
        for page in self._pages():
            self.count += len(page)
            digest.update(b"".join([row.record_id for row in page]))
            segments.update({row.location.segment for row in page})
            self.syntaxes.update({row.transfer_syntax for row in page})
            self._kept += page[: max(ROWS_KEPT - len(self._kept), 0)]
            self._pins += b"".join([_PIN.pack(row.record_id, *row.location) for row in page])
        if not self.count:
            raise NotFound(NOT_THERE)
        self.digest = digest.digest()
        return segments

    def _learn_one(self, key: InstanceKey) -> set[int]:
        found = self._store.instance(key, self.frames)
        if found is None:
            raise NotFound(NOT_THERE)
        row, self.entries = found
        self._kept, self.count, self.syntaxes = [row], 1, {row.transfer_syntax}
        self.digest = xxhash.xxh3_128_digest(row.record_id)
        return {row.location.segment}

    def _pages(self) -> Iterator[list[InstanceRow]]:
        after: InstanceKey | None = None
        while page := self._store.lookup(*self._target, after=after, limit=PAGE):
            yield page
            if len(page) < PAGE:
                return
            after = page[-1].key

    def rows(self) -> Iterator[InstanceRow]:
        """The rows in key order, as they were when the selection was made."""
        if self.count <= ROWS_KEPT:
            yield from self._kept
            return
        pins = _PIN.iter_unpack(bytes(self._pins))
        number = 0
        for row in itertools.chain.from_iterable(self._pages()):
            record_id, *location = next(pins, (b"", 0, 0, 0))
            if row.record_id != record_id:
                raise StoreError(f"instance {number + 1} of the answer has changed while it was being sent")
            number += 1
            yield row._replace(location=Location(*location))
        if number != self.count:
            raise StoreError(
                f"{self.count - number} instances of the answer were deleted while it was being sent"
            )

    def pread(self, row: InstanceRow, offset: int, length: int) -> bytes:
        """Bytes of one instance's Part 10 file."""
        return self.lease.pread(row.location.segment, row.location.offset + offset, length)

    def inflated(self, row: InstanceRow, make: Callable[[], Pread]) -> Pread:
        """The reader of a deflated dataset that was used last, or a new one. An answer is made by one thread
        at a time."""
        if self._inflated is None or self._inflated[0] != row.record_id:
            self._inflated = row.record_id, make()
        return self._inflated[1]

    def release(self) -> None:
        self.lease.release()


def select(store: Store, target: Target) -> Selection:
    """Raises NotFound where the whole path names nothing: an instance under another series is not there."""
    if target.study is None:
        raise NotFound("the target resource names no study")
    frames = [number - 1 for number in target.frames] if len(target.frames) <= ENTRIES_AT_ONCE else ()
    return Selection(store, target.study, target.series, target.instance, frames)
