"""The instances of a store for an export, beside a running server."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence

import xxhash

from streamsrv.config import SettingsError
from streamsrv.dicom.instance import JsonDataset
from streamsrv.errors import BadRequest, SegmentGone, StoreCorrupt
from streamsrv.query.attributes import QUERY_ATTRIBUTES, Level
from streamsrv.query.budget import Budget
from streamsrv.query.conditions import query_of
from streamsrv.search.parameters import SearchLimits, parameters_of
from streamsrv.settings import Settings
from streamsrv.store import (
    InstanceKey,
    InstanceRow,
    LevelRow,
    Store,
    damaged_record,
    instance_attributes,
    reader_of,
    refusal,
)
from streamsrv.tools.outgoing.exported import ExportItem, Fetched
from streamsrv.verbs import open_store

PIECE = 1 << 20
ATTEMPTS = 5  # to read an instance that compaction moves
UNLIMITED = 1 << 62


class StoreSource:
    """The instances that a search finds. Threads may share it, but `items` has one reader at a time."""

    def __init__(self, store: Store, parameters: Sequence[tuple[str, str]], tags: Collection[str]) -> None:
        """Items have the attributes `tags`. Raises BadRequest for a parameter that is not supported."""
        self._store = store
        asked = parameters_of(parameters, Level.INSTANCE, SearchLimits())
        self._query = query_of(Level.INSTANCE, None, None, asked.matching, asked.options)
        self._readers = [_reader(level, tags) for level in (Level.STUDY, Level.SERIES)]

    def close(self) -> None:
        self._store.close()

    def items(self) -> Iterator[ExportItem]:
        above: tuple[LevelRow | None, LevelRow | None] = (None, None)
        attributes: JsonDataset = {}
        for hit in self._store.index.search(self._query, Budget(UNLIMITED, UNLIMITED)):
            if hit.series is None or hit.instance is None or hit.instance_row is None:
                raise StoreCorrupt("a search for instances found a study without them: run check")
            if hit.study_row is not above[0] or hit.series_row is not above[1]:
                above, attributes = (hit.study_row, hit.series_row), {}
                for read, row in zip(self._readers, above, strict=True):
                    attributes |= read(row) if read and row else {}
            own = instance_attributes(hit.instance_row)
            yield ExportItem(hit.study, hit.series, hit.instance, "", attributes | own)

    def fetch(
        self, item: ExportItem, version: str, begin: Callable[[], None], write: Callable[[bytes], None]
    ) -> Fetched | None:
        """Calls `begin`, then `write` with the stored bytes; again if compaction moved them. None if they
        have the version that is given. Raises LookupError if the instance was deleted, InstanceDamaged,
        OSError."""
        lost = ""
        for _ in range(ATTEMPTS):
            found = self._store.instance(InstanceKey(*item.key))
            if found is None:
                break
            row = found[0]
            if row.record_id.hex() == version:
                return None
            try:
                begin()
                copy_bytes(self._store, row, write)
                return Fetched(row.record_id.hex(), row.transfer_syntax)
            except SegmentGone as gone:
                lost = gone.lost
        else:
            raise refusal([damaged_record(row, lost)])
        raise LookupError("it was deleted")


def copy_bytes(store: Store, row: InstanceRow, write: Callable[[bytes], object]) -> None:
    """Calls `write` with the stored bytes, in pieces. Raises SegmentGone, OSError, and after the last piece
    InstanceDamaged."""
    segment, offset, length = row.location
    digest = xxhash.xxh3_128()
    with store.open_segments([segment]) as lease:
        for fd, begin, size in lease.windows(segment, offset, length):
            for at in range(begin, begin + size, PIECE):
                piece = os.pread(fd, min(PIECE, begin + size - at), at)
                digest.update(piece)
                write(piece)
    if digest.digest() != row.digest[: digest.digest_size]:
        raise refusal([damaged_record(row, "its checksum is not that of its arrival")])


def open_source(
    settings: Settings, parameters: Sequence[tuple[str, str]], tags: Collection[str]
) -> StoreSource:
    """Close it. Raises SettingsError for a parameter that is not supported."""
    store = open_store(settings, read_only=True)
    try:
        return StoreSource(store, parameters, tags)
    except BadRequest as error:
        store.close()
        raise SettingsError(f"--query: {error.detail}") from None


def _reader(level: Level, tags: Collection[str]) -> Callable[[LevelRow], JsonDataset] | None:
    wanted = [row.tag for row in QUERY_ATTRIBUTES if row.level is level and row.tag in tags]
    return reader_of(level, wanted) if wanted else None
