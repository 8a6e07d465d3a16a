"""The index that a reindex replaces: a second source for the existing instances.

Strategy: segments are read first, and they decide. Where they are damaged, the old index still has the
instance, its metadata and its place. So nothing in it is dropped without a finding.

Rules of this file
- A damaged LMDB file may kill the process that reads it. So a child process reads every row first.
- If a row cannot be read, only its key counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import orjson

from streamsrv.dicom.instance import BulkValue, FrameKind, JsonDataset
from streamsrv.errors import StoreCorrupt, StoreError, StreamsrvError, WrongStore
from streamsrv.query.attributes import KEEP
from streamsrv.store.index import Index, compressed
from streamsrv.store.rows import METADATA_CHUNK, SHORT_TEXT, InstanceKey, InstanceRow, NewInstance, SegmentRow

FOREIGN = 2  # exit code of the child
ENTRIES_AT_ONCE = 10_000


class OldIndex:
    """The index, open for reading. Close it."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.segments = index.segments()
        self._by_place: dict[int, dict[int, InstanceRow]] = {}

    @classmethod
    def open(cls, folder: Path, fingerprint: bytes) -> OldIndex | None:
        """None if it is missing or cannot be read. Raises WrongStore if it is another store's."""
        if not folder.exists() or not _is_readable(folder, fingerprint):
            return None
        index = Index.open(folder, read_only=True, store=fingerprint)
        try:
            return cls(index)
        except StreamsrvError:
            index.close()
            return None

    def close(self) -> None:
        self._index.close()

    def end(self, segment: int) -> int:
        """Its committed end, 0 for an unknown segment."""
        row = self.segments.get(segment)
        return row.committed_end if row else 0

    def known(self, segment: int) -> SegmentRow | None:
        return self.segments.get(segment)

    def rows(self) -> Iterator[tuple[InstanceKey, InstanceRow | None]]:
        return self._index.all_rows()

    def has(self, key: InstanceKey, record_id: bytes) -> bool:
        (row,) = self._index.existing([key])
        return row is not None and row.record_id == record_id

    def placed(self, segment: int) -> dict[int, InstanceRow]:
        """The instances of a segment by the offset of their payloads, in ascending order."""
        if segment not in self._by_place:
            rows = sorted(self._index.instances_in([segment]), key=lambda row: row.location.offset)
            self._by_place[segment] = {row.location.offset: row for row in rows}
        return self._by_place[segment]

    def taken_over(self, row: InstanceRow) -> NewInstance:
        """The whole entry of an instance. Raises StoreError if it cannot be read."""
        text = b"".join(self._index.metadata([row]))
        if len(text) <= SHORT_TEXT:
            chunks, short = [], text
        else:
            starts = range(0, len(text), METADATA_CHUNK)
            chunks, short = [compressed(text[at : at + METADATA_CHUNK]) for at in starts], b""
        return NewInstance(row, chunks, self._frame_table(row), self._bulk(row), attributes_in(text), short)

    def _frame_table(self, row: InstanceRow) -> bytes:
        if row.frame_kind is not FrameKind.TABLE:
            return b""
        table = bytearray()
        for start in range(0, row.number_of_frames, ENTRIES_AT_ONCE):
            stop = min(start + ENTRIES_AT_ONCE, row.number_of_frames)
            for offset, length in self._index.frame_entries(row, range(start, stop)):
                table += offset.to_bytes(8, "little") + length.to_bytes(8, "little")
        return bytes(table)

    def _bulk(self, row: InstanceRow) -> list[BulkValue]:
        found: list[BulkValue] = []
        while page := self._index.bulk_values(row, after=found[-1].path if found else None):
            found += page
        return found


def attributes_in(text: bytes) -> JsonDataset:
    """The attributes that searches use, from metadata with slots. Raises StoreCorrupt."""
    try:
        whole: JsonDataset = orjson.loads(text.replace(b"\0", b""))
        return {tag: element for tag, element in whole.items() if tag in KEEP}
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise StoreCorrupt("the metadata of an instance cannot be read") from error


def _is_readable(folder: Path, fingerprint: bytes) -> bool:
    child = os.fork()
    if child == 0:
        _read_all(folder, fingerprint)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == FOREIGN:
        Index.open(folder, read_only=True, store=fingerprint).close()  # raises WrongStore
    return status == 0


def _read_all(folder: Path, fingerprint: bytes) -> None:
    """Ends this process, with exit code 0 if every row can be read."""
    code = 1
    try:
        Index.open(folder, read_only=True, store=fingerprint).read_all()
        code = 0
    except WrongStore:
        code = FOREIGN
    except (StoreError, UnicodeDecodeError):
        pass
    finally:
        os._exit(code)
