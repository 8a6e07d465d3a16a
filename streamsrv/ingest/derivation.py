"""What the index keeps of a SOP instance, derived from its bytes and nothing else.

So the index can be lost: storing derives a row when the instance arrives, `check` derives it again and
compares, `reindex` derives them all.
"""

from __future__ import annotations

from typing import Protocol

from streamsrv.dicom.arriving import Arriving
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

MOST_REMEMBERED = 8  # about 200 kB each


class Source(Protocol):
    """A record: a Part 10 file in a segment."""

    @property
    def location(self) -> Location: ...
    @property
    def record_id(self) -> bytes: ...
    @property
    def stored_at(self) -> int: ...
    @property
    def digest(self) -> bytes: ...
    def pread(self, offset: int, length: int) -> bytes: ...


class Remembered:
    """SeriesReaders that wait for the next request: a PACS may send each instance of a series by itself.
    Threads may share it; what has been taken belongs to one of them."""

    def __init__(self) -> None:
        self._idle: list[SeriesReader] = []

    def take(self) -> SeriesReader:
        try:
            return self._idle.pop()  # the latest: those who send one after the other get the same
        except IndexError:
            return SeriesReader()

    def give(self, reader: SeriesReader) -> None:
        if len(self._idle) < MOST_REMEMBERED:
            self._idle.append(reader)


def derive(
    source: Source,
    limits: ReadLimits | None = None,
    reader: SeriesReader | None = None,
    arriving: Arriving | None = None,
    pread: Pread | None = None,
) -> tuple[SOPInstance, NewInstance]:
    """Read a stored Part 10 file, with the facts that were found while it arrived. Raises InstanceError, and
    the errors of `pread`. A `pread` that is given reads in place of the source's."""
    metadata = MetadataChunks()
    pread = pread or source.pread
    learned = (reader.read if reader else read_instance)(
        arriving.reading(pread) if arriving else pread,
        source.location.length,
        keep=KEEP,
        emit=metadata.add,
        limits=limits or ReadLimits(),
    )
    row, table, (chunks, text) = row_of(source, learned), learned.frames.table, metadata.finish()
    return learned, NewInstance(row, chunks, table, learned.bulk, learned.attributes, text)


def row_of(source: Source, learned: SOPInstance) -> InstanceRow:
    frames = learned.frames
    return InstanceRow(
        key=InstanceKey(learned.study_uid, learned.series_uid, learned.instance_uid),
        location=source.location,
        record_id=source.record_id,
        stored_at=source.stored_at,
        digest=source.digest,
        sop_class_uid=learned.sop_class_uid,
        transfer_syntax=learned.transfer_syntax,
        dataset_offset=learned.dataset_offset,
        deflated=learned.deflated,
        pixel_offset=learned.pixel_offset,
        pixel_length=learned.pixel_length,
        rows=learned.rows,
        columns=learned.columns,
        samples_per_pixel=learned.samples_per_pixel,
        bits_allocated=learned.bits_allocated,
        pixel_facts=learned.pixel_facts,
        frame_kind=frames.kind,
        number_of_frames=frames.number,
        frame_base=frames.base,
        frame_stride=frames.stride,
        metadata_length=learned.metadata_length,
        metadata_slots=learned.metadata_slots,
    )


class MetadataChunks:
    """Collects pieces of JSON text. What has more than SHORT_TEXT bytes is compressed, a zstd frame for each
    METADATA_CHUNK bytes."""

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
        """Frames, and text: one of the two is empty."""
        if not self._chunks and self._length <= SHORT_TEXT:
            return [], b"".join(self._text)
        self._cut()
        return self._chunks, b""
