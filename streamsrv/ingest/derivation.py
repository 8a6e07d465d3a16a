"""Derives the index row of a SOP instance from its bytes and nothing else.

Therefore the index can be rebuilt. Storing derives a row when the instance arrives, `check` derives it again
and compares, `reindex` derives all rows.
"""

from __future__ import annotations

from typing import Protocol

from streamsrv.dicom.arriving import ArrivingValue
from streamsrv.dicom.instance import SOPInstance
from streamsrv.dicom.part10 import read_instance
from streamsrv.dicom.series_template import SeriesReader
from streamsrv.dicom.window import Pread, ReadLimits
from streamsrv.query.attributes import KEEP
from streamsrv.store import (
    METADATA_CHUNK,
    SHORT_TEXT,
    InstanceKey,
    InstanceRow,
    Location,
    NewInstance,
    compressed,
)

IDLE_READERS = 8  # of about 200 kB, at most 1 MB


class StoredFile(Protocol):
    """A record with a Part 10 file: one that is being stored, or one of a segment that is checked."""

    @property
    def location(self) -> Location: ...
    @property
    def record_id(self) -> bytes: ...
    @property
    def stored_at(self) -> int: ...
    @property
    def digest(self) -> bytes: ...
    def pread(self, offset: int, length: int) -> bytes: ...


class ReaderPool:
    """SeriesReaders that wait for the next request: a PACS may send each instance of a series by itself.
    Thread-safe; a reader belongs to one thread from `acquire` to `release`."""

    def __init__(self) -> None:
        self._idle: list[SeriesReader] = []

    def acquire(self) -> SeriesReader:
        try:
            return self._idle.pop()  # the latest one: it has read the instance before
        except IndexError:
            return SeriesReader()

    def release(self, reader: SeriesReader) -> None:
        if len(self._idle) < IDLE_READERS:
            self._idle.append(reader)


def derive(
    source: StoredFile,
    limits: ReadLimits | None = None,
    reader: SeriesReader | None = None,
    arriving: ArrivingValue | None = None,
    pread: Pread | None = None,
) -> tuple[SOPInstance, NewInstance]:
    """Reads a stored Part 10 file. `arriving` holds facts that were found while it arrived; `pread` reads
    instead of the source's. Raises InstanceError and the errors of `pread`."""
    metadata = MetadataChunks()
    pread = pread or source.pread
    instance = (reader.read if reader else read_instance)(
        arriving.reading(pread) if arriving else pread,
        source.location.length,
        keep=KEEP,
        emit=metadata.add,
        limits=limits or ReadLimits(),
    )
    row, table, (chunks, text) = row_of(source, instance), instance.frames.table, metadata.finish()
    return instance, NewInstance(row, chunks, table, instance.bulk, instance.attributes, text)


def row_of(source: StoredFile, instance: SOPInstance) -> InstanceRow:
    frames = instance.frames
    return InstanceRow(
        key=InstanceKey(instance.study_uid, instance.series_uid, instance.instance_uid),
        location=source.location,
        record_id=source.record_id,
        stored_at=source.stored_at,
        digest=source.digest,
        sop_class_uid=instance.sop_class_uid,
        transfer_syntax=instance.transfer_syntax,
        dataset_offset=instance.dataset_offset,
        deflated=instance.deflated,
        pixel_offset=instance.pixel_offset,
        pixel_length=instance.pixel_length,
        rows=instance.rows,
        columns=instance.columns,
        samples_per_pixel=instance.samples_per_pixel,
        bits_allocated=instance.bits_allocated,
        pixel_facts=instance.pixel_facts,
        frame_kind=frames.kind,
        number_of_frames=frames.number,
        frame_base=frames.base,
        frame_stride=frames.stride,
        metadata_length=instance.metadata_length,
        metadata_slots=instance.metadata_slots,
    )


class MetadataChunks:
    """Collects pieces of JSON text. A text of more than SHORT_TEXT bytes is compressed, as one zstd frame for
    each METADATA_CHUNK bytes."""

    def __init__(self) -> None:
        self._text: list[bytes] = []
        self._length = 0
        self._chunks: list[bytes] = []

    def add(self, piece: bytes) -> None:
        if self._length + len(piece) > METADATA_CHUNK:
            self._cut()
        for at in range(0, len(piece), METADATA_CHUNK):
            part = piece[at : at + METADATA_CHUNK]
            self._text.append(part)
            self._length += len(part)
            if self._length >= METADATA_CHUNK:
                self._cut()

    def _cut(self) -> None:
        if self._text:
            self._chunks.append(compressed(b"".join(self._text)))
        self._text, self._length = [], 0

    def finish(self) -> tuple[list[bytes], bytes]:
        """Returns frames and text; one of the two is empty."""
        if not self._chunks and self._length <= SHORT_TEXT:
            return [], b"".join(self._text)
        self._cut()
        return self._chunks, b""
