"""Reading from the index: instances, frame tables, metadata, bulk values (the reading half of `index`).

Strategy: each call, and each batch of an iterator, has its own read transaction, which ends before anything
is handed out. Pages go on behind a key, so they are right whatever is stored or deleted between them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, islice

from streamsrv.bounded_cache import SizedCache
from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.errors import SegmentGone, StoreCorrupt
from streamsrv.store.index.damage import DamagedRecord, DamageReader
from streamsrv.store.index.environment import Environment, Transaction
from streamsrv.store.index.metadata_blobs import Inflating, Run, Texts, find_texts
from streamsrv.store.index.rows import (
    FRAMES_A_CHUNK,
    LevelRow,
    PackedRow,
    bulk_path_key,
    chunk_key,
    number_key,
    prefix,
    record_id_of,
    segment_in,
    serial_of,
    serials_of,
    split_triple,
    triple,
    unpack_bulk,
    unpack_instance,
    unpacked,
    without_sum,
)
from streamsrv.store.rows import METADATA_CHUNK, InstanceKey, InstanceRow

# Texts that were decompressed for the sake of a neighbour: whoever asks for one instance asks for others of
# its series, in any order. That is a CT of 700 slices.
TEXTS_KEPT = 4 << 20
# Rows of single instances that are kept unpacked, 2 kB each with the value that they were made of.
ROWS_KEPT = 2048
ROWS_A_BATCH = 1000  # read in one transaction: some milliseconds
RUN = 64  # of them taken in one go: so many too many are read at most
CHUNKS_A_BATCH = 64  # of metadata: at most 16 MB of text
# Instances whose metadata are one chunk are read together: so many, and so much of text.
SHORT_A_BATCH = 256
SHORT_BYTES = 16 << 20
CHANGED = "an instance was deleted or replaced while it was being read"


class Reading:
    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._handles = environment.handles
        self._unpacked: dict[InstanceKey, tuple[bytes, InstanceRow]] = {}
        self._texts: SizedCache[bytes, Texts] = SizedCache(TEXTS_KEPT, lambda texts: texts.size)
        self._damage = DamageReader(environment.handles)

    def instance(
        self, key: InstanceKey, frames: Sequence[int] = ()
    ) -> tuple[InstanceRow, list[tuple[int, int]]] | None:
        """An instance, and if it has a frame table the entries of these frames (those that are there), as of
        one moment."""
        with self._environment.reading("looking up an instance") as transaction:
            value = transaction.get(triple(key), db=self._handles["instances"])
            if value is None:
                return None
            row, entries = self._row(key, value), []
            if row.frame_kind is FrameKind.TABLE:
                there = [index for index in frames if index < row.number_of_frames]
                entries = self._entries(transaction, serial_of(value), there)
            damaged = self._damage.has(transaction, row.record_id)
        return row._replace(damaged=True) if damaged else row, entries

    def _row(self, key: InstanceKey, value: bytes) -> InstanceRow:
        """Unpacked anew only if its value is another than last time."""
        known = self._unpacked.get(key)
        if known is not None and known[0] == value:
            return known[1]
        row = unpack_instance(key, value)
        if len(self._unpacked) >= ROWS_KEPT:
            self._unpacked.clear()
        self._unpacked[key] = value, row
        return row

    def damaged_among(self, ids: Iterable[bytes]) -> list[DamagedRecord]:
        """Those of the records that are registered as damaged."""
        with self._environment.reading("looking for damaged records") as transaction:
            return self._damage.among(transaction, ids)

    def damage(self, after: bytes = b"", limit: int = ROWS_A_BATCH) -> list[DamagedRecord]:
        """The register of damaged records in the order of their ids; a page begins behind the id `after`."""
        with self._environment.reading("listing damaged records") as transaction:
            return self._damage.page(transaction, after, limit)

    def moment(self) -> int:
        """As long as it stays the same, so does everything that can be read."""
        return self._environment.moment()

    def existing(self, keys: Sequence[InstanceKey]) -> list[InstanceRow | None]:
        with self._environment.reading("looking up instances") as transaction:
            values = [transaction.get(triple(key), db=self._handles["instances"]) for key in keys]
        return [
            unpack_instance(key, value) if value else None for key, value in zip(keys, values, strict=True)
        ]

    def packed(
        self,
        study: str,
        series: str | None = None,
        instance: str | None = None,
        *,
        after: InstanceKey | None = None,
        limit: int = ROWS_A_BATCH,
    ) -> list[PackedRow]:
        """What `lookup` finds, its rows not unpacked: that takes five times as long as finding them."""
        if series is not None and instance is not None:
            key = InstanceKey(study, series, instance)
            return [] if after is not None and key <= after else self.packed_rows([key])
        return self._page("instances", prefix(study, series), after, limit)

    def packed_rows(self, keys: Iterable[InstanceKey]) -> list[PackedRow]:
        """Those that are there."""
        with self._environment.reading("looking up instances") as transaction:
            cursor = transaction.cursor(db=self._handles["instances"])
            found: list[PackedRow] = cursor.getmulti([triple(key) for key in keys])
        return found

    def lookup(
        self,
        study: str,
        series: str | None = None,
        instance: str | None = None,
        *,
        after: InstanceKey | None = None,
        limit: int = ROWS_A_BATCH,
    ) -> list[InstanceRow]:
        """Everything under a target resource, in key order; the next page begins `after` the last key of this
        one."""
        return [unpacked(row) for row in self.packed(study, series, instance, after=after, limit=limit)]

    def rows(self, after: InstanceKey | None = None, limit: int = ROWS_A_BATCH) -> list[InstanceRow]:
        """Pages through all instances, in key order."""
        return [unpacked(row) for row in self._page("instances", b"", after, limit)]

    def instances_in(self, segments: Collection[int]) -> Iterator[InstanceRow]:
        """Every instance that lies in one of the segments, by one walk through the whole index."""
        after: InstanceKey | None = None
        while page := self._page("instances", b"", after, ROWS_A_BATCH):
            after = split_triple(page[-1][0])
            for key, value in page:
                if segment_in(value) in segments:
                    yield unpack_instance(split_triple(key), value)

    def _page(self, name: str, start: bytes, after: InstanceKey | None, limit: int) -> list[PackedRow]:
        found: list[PackedRow] = []
        # UIDs hold no byte below 0x2E, so a NUL behind a key is before every later one.
        first = max(triple(after) + b"\0" if after is not None else b"", start)
        with self._environment.reading("paging through instances") as transaction:
            cursor = transaction.cursor(db=self._handles[name])
            there = cursor.set_range(first) if first else cursor.first()
            rows = cursor.iternext() if there else iter(())
            while run := list(islice(rows, min(limit - len(found), RUN))):
                found += run
                if not run[-1][0].startswith(start):
                    break
        while found and not found[-1][0].startswith(start):
            found.pop()
        return found

    def count(self, study: str, series: str | None = None) -> int:
        """Instances of a study or series."""
        name, key = ("studies", study) if series is None else ("series", f"{study}\0{series}")
        row = self._level_row(name, key)
        return row.instances if row else 0

    def first_series(self, studies: Iterable[str]) -> dict[str, tuple[str, LevelRow]]:
        """The first series of each study, in the order of their UIDs."""
        found: dict[str, tuple[str, LevelRow]] = {}
        with self._environment.reading("looking up series") as transaction:
            cursor = transaction.cursor(db=self._handles["series"])
            for study in studies:
                start = prefix(study)
                if cursor.set_range(start) and cursor.key().startswith(start):
                    uid = cursor.key()[len(start) :].decode()
                    found[study] = uid, LevelRow.unpack(cursor.value())
        return found

    def _level_row(self, name: str, key: str) -> LevelRow | None:
        with self._environment.reading("counting instances") as transaction:
            value = transaction.get(key.encode(), db=self._handles[name])
        return LevelRow.unpack(value) if value else None

    def _serial(self, transaction: Transaction, row: InstanceRow) -> int:
        """SegmentGone where the instance has been deleted or replaced since the row was read: look up
        again."""
        value = transaction.get(triple(row.key), db=self._handles["instances"])
        if value is None or record_id_of(value) != row.record_id:
            raise SegmentGone(CHANGED)
        return serial_of(value)

    def frame_entries(self, row: InstanceRow, indices: Sequence[int]) -> list[tuple[int, int]]:
        """The entries (offset, length) of a frame table, as they are stored."""
        with self._environment.reading("reading a frame table") as transaction:
            return self._entries(transaction, self._serial(transaction, row), indices)

    def _entries(
        self, transaction: Transaction, serial: int, indices: Sequence[int]
    ) -> list[tuple[int, int]]:
        chunks: dict[int, bytes | None] = {}
        entries = []
        for index in indices:
            number, within = divmod(index, FRAMES_A_CHUNK)
            if number not in chunks:
                chunks = {number: transaction.get(chunk_key(serial, number), db=self._handles["frames"])}
            entries.append(_frame_entry(chunks[number], within))
        return entries

    def metadata(self, rows: Sequence[InstanceRow]) -> Iterator[bytes]:
        """For each row in turn its JSON text in chunks of at most METADATA_CHUNK; `metadata_length` tells
        where one ends."""
        texts = Inflating(self._texts if len(rows) == 1 else None)
        for run in _runs(rows):
            short = len(run) > 1 or 0 < run[0].metadata_length <= METADATA_CHUNK
            found = self._single_chunks(run) if short else None
            if found is None:
                yield from map(texts.frame, self._all_chunks(run))
            else:
                yield from chain.from_iterable(texts.each(found))

    def texts(self, rows: Sequence[PackedRow]) -> Iterator[list[bytes]] | None:
        """The JSON texts of the rows, which are not many, and short: some at a time; None where one is
        longer, or its instance has gone: `metadata` tells."""
        with self._environment.reading("reading metadata") as transaction:
            cursor = transaction.cursor(db=self._handles["metadata"])
            found = find_texts(cursor, serials_of(rows))
        return None if found is None else Inflating().each(found)

    def _single_chunks(self, rows: Sequence[InstanceRow]) -> list[Run] | None:
        """Of rows that have one chunk each, in two looks; None where one is missing."""
        keys = [triple(row.key) for row in rows]
        with self._environment.reading("reading metadata") as transaction:
            values = transaction.cursor(db=self._handles["instances"]).getmulti(keys)
            found = [value for _, value in values]
            if [record_id_of(value) for value in found] != [row.record_id for row in rows]:
                raise SegmentGone(CHANGED)
            return find_texts(transaction.cursor(db=self._handles["metadata"]), list(map(serial_of, found)))

    def _all_chunks(self, rows: Sequence[InstanceRow]) -> Iterator[bytes]:
        waiting = iter(rows)
        row, chunk = next(waiting, None), 0
        while row is not None:
            frames: list[bytes] = []
            with self._environment.reading("reading metadata") as transaction:
                while row is not None and len(frames) < CHUNKS_A_BATCH:
                    page = self._metadata_chunks(transaction, row, chunk, CHUNKS_A_BATCH - len(frames))
                    frames += page
                    chunk += len(page)
                    if len(frames) < CHUNKS_A_BATCH:
                        row, chunk = next(waiting, None), 0
            yield from frames

    def _metadata_chunks(
        self, transaction: Transaction, row: InstanceRow, chunk: int, limit: int
    ) -> list[bytes]:
        serial = self._serial(transaction, row)
        start = number_key(serial)
        cursor = transaction.cursor(db=self._handles["metadata"])
        found: list[bytes] = []
        more = cursor.set_range(chunk_key(serial, chunk))
        while more and len(found) < limit and cursor.key().startswith(start):
            found.append(without_sum("metadata", cursor.key(), cursor.value()))
            more = cursor.next()
        return found

    def bulk_value(self, key: InstanceKey, path: str) -> BulkValue | None:
        with self._environment.reading("reading a bulk value") as transaction:
            value = transaction.get(triple(key), db=self._handles["instances"])
            if value is None:
                return None
            path_key = bulk_path_key(path)
            found = transaction.get(number_key(serial_of(value)) + path_key, db=self._handles["bulk"])
        return unpack_bulk(path_key, found) if found else None

    def bulk_values(
        self, row: InstanceRow, *, after: str | None = None, limit: int = ROWS_A_BATCH
    ) -> list[BulkValue]:
        """All that were left out of an instance's metadata, in the order of their keys; pages like
        `lookup`."""
        found: list[BulkValue] = []
        with self._environment.reading("listing bulk values") as transaction:
            start = number_key(self._serial(transaction, row))
            cursor = transaction.cursor(db=self._handles["bulk"])
            more = cursor.set_range(start + (bulk_path_key(after) + b"\0" if after is not None else b""))
            while more and len(found) < limit and cursor.key().startswith(start):
                found.append(unpack_bulk(cursor.key()[len(start) :], cursor.value()))
                more = cursor.next()
        return found


def _runs(rows: Iterable[InstanceRow]) -> Iterator[list[InstanceRow]]:
    """Neighbours whose metadata are one chunk each; every other row by itself."""
    run: list[InstanceRow] = []
    length = 0
    for row in rows:
        single = 0 < row.metadata_length <= METADATA_CHUNK
        if run and (not single or len(run) == SHORT_A_BATCH or length >= SHORT_BYTES):
            yield run
            run, length = [], 0
        if single:
            run.append(row)
            length += row.metadata_length
        else:
            yield [row]
    if run:
        yield run


def _frame_entry(chunk: bytes | None, within: int) -> tuple[int, int]:
    pair = chunk[within * 16 : within * 16 + 16] if chunk is not None else b""
    if len(pair) < 16:
        raise StoreCorrupt("a frame table is shorter than its instance says: run check, then reindex")
    return int.from_bytes(pair[:8], "little"), int.from_bytes(pair[8:], "little")
