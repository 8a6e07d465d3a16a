"""The index: which SOP instances there are, where their bytes lie, and what is known of them (facade).

Strategy: an ordered map under a few verbs, in batches. Writing verbs block until durable and may be called
from any thread; reading verbs see everything that was acknowledged, by any process. The rows are drawn in
`index_rows`, how writes are grouped is told in `index_writer`, how studies and series follow their instances
in `index_levels`.

Rules of this file: no transaction, cursor or view of the map outlives a call, or between two batches of an
iterator. No word of the map underneath is in a signature: another database can stand behind the same verbs.

One process opens a folder once; several processes may have it open at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard

from streamsrv.dicom.instance import BulkValue
from streamsrv.errors import SegmentGone, StoreCorrupt
from streamsrv.store.index_batch import Batch, prepare
from streamsrv.store.index_environment import DATABASES, Environment, Transaction
from streamsrv.store.index_rows import (
    FRAMES_A_CHUNK,
    LevelRow,
    bulk_path_key,
    chunk_key,
    number_key,
    prefix,
    record_id_of,
    segment_key,
    serial_of,
    split_triple,
    triple,
    unpack_bulk,
    unpack_change,
    unpack_instance,
    unpack_segment,
)
from streamsrv.store.index_writer import Writer
from streamsrv.store.rows import (
    METADATA_CHUNK,
    Change,
    InstanceKey,
    InstanceRow,
    Location,
    NewInstance,
    SegmentRow,
)

ROWS_A_BATCH = 1000  # read in one transaction: some milliseconds
CHUNKS_A_BATCH = 64  # of metadata: at most 16 MB of text


class Index:
    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._handles = environment.handles
        self._writer = Writer(environment)

    @classmethod
    def open(cls, folder: Path, *, read_only: bool = False) -> Index:
        """A folder without an index gets an empty one, unless opened for reading only."""
        return cls(Environment(folder, read_only=read_only))

    def close(self) -> None:
        """Waiting writes are finished first."""
        self._writer.close()
        self._environment.close()

    # -- writing

    def commit(
        self,
        new: Sequence[NewInstance],
        *,
        segment: int,
        committed_end: int,
        dead_bytes: int = 0,
        replaced: Sequence[InstanceRow] = (),
    ) -> None:
        """All of `new` or nothing, in one transaction: callers come with at most some 1,000. `dead_bytes` are
        those of `segment` that never lived (voids); what was replaced is counted as dead here."""
        prepared = [prepare(instance) for instance in new]
        self._writer.submit(
            lambda batch: batch.store(prepared, segment, committed_end, dead_bytes, replaced),
            instances=len(prepared),
            size=sum(each.size for each in prepared),
        )

    def delete(
        self, rows: Sequence[InstanceRow], *, segment: int, committed_end: int, dead_bytes: int
    ) -> list[InstanceRow]:
        """Those that were still there, and are not any more. `segment` holds their tombstone."""
        return self._writer.submit(
            lambda batch: batch.delete(rows, segment, committed_end, dead_bytes), instances=len(rows)
        )

    def relocate(
        self, moves: Sequence[tuple[InstanceRow, Location]], *, segment: int, committed_end: int
    ) -> list[bool]:
        """Compare and set: False where an instance does not lie any more where its row says."""
        return self._writer.submit(
            lambda batch: batch.relocate(moves, segment, committed_end), instances=len(moves)
        )

    def add_segment(self) -> int:
        return self._writer.submit(Batch.add_segment)

    def put_segment(self, row: SegmentRow) -> None:
        """For a rebuild: the segment is there already, with this number."""
        self._writer.submit(lambda batch: batch.put_segment(row))

    def seal(self, segment: int) -> None:
        self._writer.submit(lambda batch: batch.seal(segment))

    def drop_segment(self, segment: int) -> None:
        """StoreError while instances still live in it."""
        self._writer.submit(lambda batch: batch.drop_segment(segment))

    # -- instances

    def existing(self, keys: Sequence[InstanceKey]) -> list[InstanceRow | None]:
        with self._environment.reading("looking up instances") as transaction:
            values = [transaction.get(triple(key), db=self._handles["instances"]) for key in keys]
        return [
            unpack_instance(key, value) if value else None for key, value in zip(keys, values, strict=True)
        ]

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
        if series is not None and instance is not None:
            key = InstanceKey(study, series, instance)
            return [] if after is not None and key <= after else [row for row in self.existing([key]) if row]
        start = prefix(study, series)
        return [
            unpack_instance(split_triple(key), value)
            for key, value in self._page("instances", start, after, limit)
        ]

    def instances_in(self, segment: int) -> Iterator[InstanceRow]:
        """Every instance that lies in a segment, by walking the whole index."""
        after: InstanceKey | None = None
        while page := self._page("instances", b"", after, ROWS_A_BATCH):
            after = split_triple(page[-1][0])
            rows = (unpack_instance(split_triple(key), value) for key, value in page)
            yield from (row for row in rows if row.location.segment == segment)

    def _page(
        self, name: str, start: bytes, after: InstanceKey | None, limit: int
    ) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        # UIDs hold no byte below 0x2E, so a NUL behind a key is before every later one.
        first = triple(after) + b"\0" if after is not None else start
        with self._environment.reading("paging through instances") as transaction:
            cursor = transaction.cursor(db=self._handles[name])
            more = limit > 0 and cursor.set_range(max(first, start)) if first or start else cursor.first()
            while more and len(found) < limit:
                key = cursor.key()
                if not key.startswith(start):
                    break
                found.append((key, cursor.value()))
                more = cursor.next()
        return found

    def count(self, study: str, series: str | None = None) -> int:
        """Instances of a study or series."""
        name, key = ("studies", study) if series is None else ("series", f"{study}\0{series}")
        with self._environment.reading("counting instances") as transaction:
            value = transaction.get(key.encode(), db=self._handles[name])
        return LevelRow.unpack(value).instances if value else 0

    def _serial(self, transaction: Transaction, row: InstanceRow) -> int:
        """SegmentGone where the instance has been deleted or replaced since the row was read: look up
        again."""
        value = transaction.get(triple(row.key), db=self._handles["instances"])
        if value is None or record_id_of(value) != row.record_id:
            raise SegmentGone("an instance was deleted or replaced while it was being read")
        return serial_of(value)

    def frame_entries(self, row: InstanceRow, indices: Sequence[int]) -> list[tuple[int, int]]:
        """The entries (offset, length) of a frame table, as they are stored."""
        chunks: dict[int, bytes | None] = {}
        entries = []
        with self._environment.reading("reading a frame table") as transaction:
            serial = self._serial(transaction, row)
            for index in indices:
                number, within = divmod(index, FRAMES_A_CHUNK)
                if number not in chunks:
                    chunks = {number: transaction.get(chunk_key(serial, number), db=self._handles["frames"])}
                entries.append(_frame_entry(chunks[number], within))
        return entries

    def metadata(self, rows: Sequence[InstanceRow]) -> Iterator[bytes]:
        """For each row in turn its JSON text in chunks of at most METADATA_CHUNK; `metadata_length` tells
        where one ends."""
        inflate = zstandard.ZstdDecompressor()
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
            for frame in frames:
                yield _inflated(inflate, frame)

    def _metadata_chunks(
        self, transaction: Transaction, row: InstanceRow, chunk: int, limit: int
    ) -> list[bytes]:
        serial = self._serial(transaction, row)
        start = number_key(serial)
        cursor = transaction.cursor(db=self._handles["metadata"])
        found: list[bytes] = []
        more = cursor.set_range(chunk_key(serial, chunk))
        while more and len(found) < limit and cursor.key().startswith(start):
            found.append(cursor.value())
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

    # -- segments, changes, the index itself

    def segments(self) -> dict[int, SegmentRow]:
        with self._environment.reading("listing segments") as transaction:
            rows = [
                unpack_segment(key, value) for key, value in transaction.cursor(db=self._handles["segments"])
            ]
        return {row.segment: row for row in rows}

    def segment(self, segment: int) -> SegmentRow | None:
        key = segment_key(segment)
        with self._environment.reading("looking up a segment") as transaction:
            value = transaction.get(key, db=self._handles["segments"])
        return unpack_segment(key, value) if value else None

    def changes(self, after: int = 0, limit: int = ROWS_A_BATCH) -> list[Change]:
        """In commit order, from sequence `after` + 1 on."""
        found: list[Change] = []
        with self._environment.reading("reading changes") as transaction:
            cursor = transaction.cursor(db=self._handles["changes"])
            more = cursor.set_range(number_key(after + 1))
            while more and len(found) < limit:
                found.append(unpack_change(int.from_bytes(cursor.key(), "big"), cursor.value()))
                more = cursor.next()
        return found

    def about(self) -> dict[str, str]:
        """schema, table (of attributes), epoch, next_segment."""
        with self._environment.reading("reading about the index") as transaction:
            rows = list(transaction.cursor(db=self._handles["about"]))
        return {key.decode(): value.decode() for key, value in rows}

    @property
    def epoch(self) -> str:
        """Sequences of changes count within it; a rebuilt index has another."""
        return self.about()["epoch"]

    def statistics(self) -> dict[str, int]:
        """Rows in each database, and the bytes of the index file in use and in all."""
        with self._environment.reading("measuring the index") as transaction:
            rows = {name: transaction.stat(self._handles[name]) for name in DATABASES}
        info, page = self._environment.lmdb.info(), self._environment.lmdb.stat()["psize"]
        pages = sum(
            stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in rows.values()
        )
        counts: dict[str, int] = {name: stat["entries"] for name, stat in rows.items()}
        return counts | {"bytes_used": pages * page, "bytes_file": (info["last_pgno"] + 1) * page}


def _frame_entry(chunk: bytes | None, within: int) -> tuple[int, int]:
    pair = chunk[within * 16 : within * 16 + 16] if chunk is not None else b""
    if len(pair) < 16:
        raise StoreCorrupt("a frame table is shorter than its instance says: run check, then reindex")
    return int.from_bytes(pair[:8], "little"), int.from_bytes(pair[8:], "little")


def _inflated(inflate: zstandard.ZstdDecompressor, frame: bytes) -> bytes:
    try:
        return inflate.decompress(frame, max_output_size=METADATA_CHUNK)
    except zstandard.ZstdError as error:
        raise StoreCorrupt("stored metadata cannot be read: run check, then reindex") from error
