"""Reading from the index: instances, frame tables, metadata, bulk values.

Strategy: each call, and each batch of an iterator, has its own read transaction. It ends before the result is
handed out. A page continues behind a key, so pages stay right if instances are stored or deleted between
them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain

from streamsrv.bounded_cache import SizedCache
from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.errors import SegmentGone, StoreCorrupt
from streamsrv.query.rules import Rule, facts_of
from streamsrv.store.index.damage import DamagedRecord, DamageReader
from streamsrv.store.index.metadata_blobs import BlobRange, BlobReader, BlobTexts, Decompressors, find_blobs
from streamsrv.store.index.rows import (
    FRAMES_A_CHUNK,
    LevelRow,
    PackedRow,
    Variant,
    bulk_path_key,
    chunk_key,
    json_object,
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
    variant_key,
    variant_of,
    without_sum,
)
from streamsrv.store.ordered_map import OrderedMap, Transaction
from streamsrv.store.rows import METADATA_CHUNK, InstanceKey, InstanceRow

# Decompressed metadata of neighbours: a client that asks for one instance asks for others of its series, in
# any order. This holds a CT of 700 slices.
BLOBS_KEPT = 4 << 20  # bytes
ROWS_A_BATCH = 1000  # in one transaction: some milliseconds
CHUNKS_A_BATCH = 64  # of metadata: at most 16 MB of text
# Instances with one chunk of metadata are read together: so many, and so many bytes of text.
SHORT_A_BATCH = 256
SHORT_BYTES = 16 << 20
CHANGED = "an instance was deleted or replaced while it was being read"


class Reading:
    def __init__(self, environment: OrderedMap) -> None:
        self._environment = environment
        self._handles = environment.handles
        # Whether even a look-up waits for another process: the event loop makes none then.
        self.remote = environment.remote
        self._blobs: SizedCache[bytes, BlobTexts] = SizedCache(BLOBS_KEPT, lambda texts: texts.size)
        self._decompressors = Decompressors()
        self._damage = DamageReader(environment.handles)

    def _reading(self, doing: str) -> AbstractContextManager[Transaction]:
        return self._environment.reading(doing)

    def _get(self, transaction: Transaction, name: str, key: bytes) -> bytes | None:
        value: bytes | None = transaction.get(key, db=self._handles[name])
        return value

    # A restricted view decides which instances the reader may know of.

    def _visible(self, transaction: Transaction, rows: Iterable[PackedRow]) -> Iterable[PackedRow]:
        """Those of the rows of instances that are visible."""
        return rows

    def _instance_in(self, transaction: Transaction, key: bytes) -> bytes | None:
        """The packed row of a visible instance."""
        return self._get(transaction, "instances", key)

    def _level(self, transaction: Transaction, study: str, series: str | None, value: bytes) -> bytes | None:
        """The packed row of a study or series, `value`, as it is without invisible instances."""
        return value

    def version(self) -> int:
        """A number that every commit of any process changes. While it stays the same, so does all content."""
        return self._environment.version()

    def version_at_hand(self) -> int | None:
        """Never blocks. None if only a question tells. While it stays the same, no instance was deleted or
        replaced, and no damage was registered."""
        return self._environment.version_at_hand()

    # -- instances

    def instance(
        self, key: InstanceKey, frames: Sequence[int] = ()
    ) -> tuple[InstanceRow, list[tuple[int, int]]] | None:
        """An instance and, if it has a frame table, the entries of these frames that exist, from one
        transaction."""
        with self._reading("looking up an instance") as transaction:
            value = self._instance_in(transaction, triple(key))
            if value is None:
                return None
            row, entries = unpack_instance(key, value), []
            if row.frame_kind is FrameKind.TABLE:
                there = [index for index in frames if index < row.number_of_frames]
                entries = self._entries(transaction, serial_of(value), there)
            damaged = self._damage.has(transaction, row.record_id)
        return row._replace(damaged=True) if damaged else row, entries

    def existing(self, keys: Sequence[InstanceKey]) -> list[InstanceRow | None]:
        with self._reading("looking up instances") as transaction:
            if len(keys) == 1:  # usual: a request with one instance
                (key,) = keys
                value = self._instance_in(transaction, triple(key))
                return [unpack_instance(key, value) if value else None]
            cursor = transaction.cursor(db=self._handles["instances"])
            packed = list(map(triple, keys))
            found = dict(self._visible(transaction, cursor.getmulti(packed)))
        values = [found.get(key) for key in packed]
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
        """Everything under a target resource, in key order. The next page begins `after` the last key of this
        page. Unpacking the rows takes five times as long as finding them."""
        if series is not None and instance is not None:
            key = InstanceKey(study, series, instance)
            return [] if after is not None and key <= after else self.packed_rows([key])
        return self._page(prefix(study, series), after, limit)

    def packed_rows(self, keys: Iterable[InstanceKey]) -> list[PackedRow]:
        """The rows of those instances that exist."""
        with self._reading("looking up instances") as transaction:
            cursor = transaction.cursor(db=self._handles["instances"])
            return list(self._visible(transaction, cursor.getmulti(list(map(triple, keys)))))

    def lookup(
        self,
        study: str,
        series: str | None = None,
        instance: str | None = None,
        *,
        after: InstanceKey | None = None,
        limit: int = ROWS_A_BATCH,
    ) -> list[InstanceRow]:
        """Like `packed`, with the rows unpacked."""
        return [unpacked(row) for row in self.packed(study, series, instance, after=after, limit=limit)]

    def page(self, after: InstanceKey | None = None, limit: int = ROWS_A_BATCH) -> list[PackedRow]:
        """Pages through all instances, in key order."""
        return self._page(b"", after, limit)

    def rows(self, after: InstanceKey | None = None, limit: int = ROWS_A_BATCH) -> list[InstanceRow]:
        """Like `page`, with the rows unpacked."""
        return [unpacked(row) for row in self.page(after, limit)]

    def instances_in(self, segments: Collection[int]) -> Iterator[InstanceRow]:
        """The instances in these segments, found by reading the whole index."""
        after: InstanceKey | None = None
        while page := self.page(after):
            after = split_triple(page[-1][0])
            for key, value in page:
                if segment_in(value) in segments:
                    yield unpack_instance(split_triple(key), value)

    def _page(self, start: bytes, after: InstanceKey | None, limit: int) -> list[PackedRow]:
        # UIDs hold no byte below 0x2E, so a NUL behind a key is before every later one.
        first = max(triple(after) + b"\0" if after is not None else b"", start)
        with self._reading("paging through instances") as transaction:
            return self._under(transaction, start, first, limit)

    def _under(self, transaction: Transaction, start: bytes, first: bytes, limit: int) -> list[PackedRow]:
        """Visible instances whose keys begin with `start`, from the key `first` on."""
        return self._environment.under(transaction, "instances", start, first, limit)

    def outside(self, new: Sequence[tuple[Rule | None, InstanceKey, bytes]]) -> list[bool]:
        """Which instances their senders would not see, or would replace without seeing the stored one. Each
        of `new` is the rule of its sender, its key and its variant."""
        with self._reading("looking up instances of senders with rules") as transaction:
            return [
                rule is not None and self._is_outside(transaction, rule, key, variant)
                for rule, key, variant in new
            ]

    def _is_outside(self, transaction: Transaction, rule: Rule, key: InstanceKey, variant: bytes) -> bool:
        texts = [variant]
        stored = self._get(transaction, "instances", triple(key))
        if stored is not None:
            value = self._get(transaction, "variants", variant_key(key, variant_of(stored)))
            texts.append(Variant.unpack(value or b"").text)
        return not all(rule.accepts(key.study, facts_of(json_object(text))) for text in texts)

    # -- damage

    def damaged_among(self, ids: Iterable[bytes]) -> list[DamagedRecord]:
        """Those of the records that are registered as damaged."""
        with self._reading("looking for damaged records") as transaction:
            return self._damage.among(transaction, ids)

    def damage(self, after: bytes = b"", limit: int = ROWS_A_BATCH) -> list[DamagedRecord]:
        """The register of damaged records, in the order of their ids. A page begins behind the id `after`."""
        with self._reading("listing damaged records") as transaction:
            return self._damage.page(transaction, after, limit)

    # -- studies and series

    def count(self, study: str, series: str | None = None) -> int:
        """Number of instances of a study or series."""
        row = self._level_row(study, series)
        return row.instances if row else 0

    def _level_row(self, study: str, series: str | None = None) -> LevelRow | None:
        name, key = ("studies", study) if series is None else ("series", f"{study}\0{series}")
        with self._reading("counting instances") as transaction:
            value = self._get(transaction, name, key.encode())
            if value is not None:
                value = self._level(transaction, study, series, value)
        return LevelRow.unpack(value) if value is not None else None

    # -- values of an instance

    def _serial(self, transaction: Transaction, row: InstanceRow) -> int:
        """Raises SegmentGone if the instance has been deleted or replaced since the row was read."""
        value = self._get(transaction, "instances", triple(row.key))
        if value is None or record_id_of(value) != row.record_id:
            raise SegmentGone(CHANGED)
        return serial_of(value)

    def frame_entries(self, row: InstanceRow, indices: Sequence[int]) -> list[tuple[int, int]]:
        """The entries (offset, length) of a frame table, as stored. Raises SegmentGone as `metadata` does."""
        with self._reading("reading a frame table") as transaction:
            return self._entries(transaction, self._serial(transaction, row), indices)

    def _entries(
        self, transaction: Transaction, serial: int, indices: Sequence[int]
    ) -> list[tuple[int, int]]:
        chunks: dict[int, bytes | None] = {}
        entries = []
        for index in indices:
            number, within = divmod(index, FRAMES_A_CHUNK)
            if number not in chunks:
                chunks = {number: self._get(transaction, "frames", chunk_key(serial, number))}
            entries.append(_frame_entry(chunks[number], within))
        return entries

    def metadata(self, rows: Sequence[InstanceRow]) -> Iterator[bytes]:
        """The JSON text of each row in turn, in chunks of at most METADATA_CHUNK; a text has
        `metadata_length` bytes. Raises SegmentGone if an instance has been deleted or replaced."""
        reader = BlobReader(self._blobs if len(rows) == 1 else None, self._decompressors)
        for run in _runs(rows):
            short = len(run) > 1 or 0 < run[0].metadata_length <= METADATA_CHUNK
            found = self._single_chunks(run) if short else None
            if found is None:
                yield from map(reader.frame, self._all_chunks(run))
            else:
                yield from chain.from_iterable(reader.each(found))

    def short_metadata(self, rows: Sequence[PackedRow]) -> Iterator[list[bytes]] | None:
        """The JSON texts of a few rows with short metadata, some at a time. None if a text is longer or its
        instance is gone: then use `metadata`."""
        with self._reading("reading metadata") as transaction:
            cursor = transaction.cursor(db=self._handles["metadata"])
            found = find_blobs(cursor, serials_of(rows))
        return None if found is None else BlobReader(None, self._decompressors).each(found)

    def _single_chunks(self, rows: Sequence[InstanceRow]) -> list[BlobRange] | None:
        """For rows with one chunk each; None if one is missing."""
        keys = [triple(row.key) for row in rows]
        with self._reading("reading metadata") as transaction:
            values = transaction.cursor(db=self._handles["instances"]).getmulti(keys)
            found = [value for _, value in values]
            if [record_id_of(value) for value in found] != [row.record_id for row in rows]:
                raise SegmentGone(CHANGED)
            return find_blobs(transaction.cursor(db=self._handles["metadata"]), list(map(serial_of, found)))

    def _all_chunks(self, rows: Sequence[InstanceRow]) -> Iterator[bytes]:
        waiting = iter(rows)
        row, chunk = next(waiting, None), 0
        while row is not None:
            frames: list[bytes] = []
            with self._reading("reading metadata") as transaction:
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
        rows = self._environment.under(transaction, "metadata", start, chunk_key(serial, chunk), limit)
        return [without_sum("metadata", key, value) for key, value in rows]

    def bulk_value(self, key: InstanceKey, path: str) -> BulkValue | None:
        with self._reading("reading a bulk value") as transaction:
            value = self._instance_in(transaction, triple(key))
            if value is None:
                return None
            path_key = bulk_path_key(path)
            found = self._get(transaction, "bulk", number_key(serial_of(value)) + path_key)
        return unpack_bulk(path_key, found) if found else None

    def bulk_values(
        self, row: InstanceRow, *, after: str | None = None, limit: int = ROWS_A_BATCH
    ) -> list[BulkValue]:
        """The bulk values of an instance, in the order of their keys; pages like `lookup`. Raises SegmentGone
        as `metadata` does."""
        with self._reading("listing bulk values") as transaction:
            start = number_key(self._serial(transaction, row))
            first = start + (bulk_path_key(after) + b"\0" if after is not None else b"")
            found = self._environment.under(transaction, "bulk", start, first, limit)
        return [unpack_bulk(key[len(start) :], value) for key, value in found]


def _runs(rows: Iterable[InstanceRow]) -> Iterator[list[InstanceRow]]:
    """Neighbours whose metadata are one chunk each; every other row alone."""
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
