"""Answers to requests for bulk data: one value, or all of a study, series or instance (PS3.18 10.4.1.1.5,
CP 2040).

Strategy: the parts of all bulk data are made lazily, from pages of the index: once for the length, once while
they are sent. So 100,000 bulk values are never held.

Rules
- Bulk data are all values that the metadata name by a BulkDataURI except pixel data, nested ones too.
- If there is none, the answer is 404.
"""

from __future__ import annotations

from collections.abc import Iterator

from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from streamsrv.errors import NotFound
from streamsrv.plans import payloads
from streamsrv.plans.parts import PARTS_KEPT, Part
from streamsrv.retrieve.answering import Planned, Retrieval
from streamsrv.retrieve.frames import frames_answer
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer
from streamsrv.wire.mediatypes import OCTETS
from streamsrv.wire.resources import bulk_url

PIXEL_DATA = frozenset(("7FE00010", "7FE00008", "7FE00009"))
VALUES_AT_ONCE = 1_000
# The number of parts is unknown until they are made: the plan is lazy.
MANY = PARTS_KEPT + 1
LABEL = f"{OCTETS}; transfer-syntax={EXPLICIT_VR_LITTLE_ENDIAN}"


def bulk_data(retrieval: Retrieval) -> Planned:
    path = retrieval.target.bulk
    if path is None:
        return all_bulk_data(retrieval)
    row = next(retrieval.selection.rows())
    value = retrieval.store.bulk_value(row.key, path)
    if value is None:
        raise NotFound(f"the instance has no bulk value {path}")
    if path in PIXEL_DATA and row.frame_kind is FrameKind.TABLE:
        # Encapsulated pixel data are sent as frames (PS3.18 8.7.3.3).
        return frames_answer(retrieval, row, range(1, row.number_of_frames + 1))
    return bulk_answer(retrieval, row, value)


def bulk_answer(retrieval: Retrieval, row: InstanceRow, value: BulkValue) -> Answer:
    offer = accept.choose_bulk(retrieval.ranges())
    pieces = [payloads.bulk_piece(retrieval.selection, row, value)]
    if not offer.multipart:
        return retrieval.single_part(LABEL, pieces)
    url = bulk_url(retrieval.request.base_url, *row.key, value.path)
    return retrieval.multipart((OCTETS, value.path), lambda: [Part(LABEL, url, pieces)], 1)


def all_bulk_data(retrieval: Retrieval) -> Answer:
    accept.choose_bulk(retrieval.ranges(), single=False)
    selection, base_url = retrieval.selection, retrieval.request.base_url

    def parts() -> Iterator[Part]:
        for row in selection.rows():
            for value in bulk_values(retrieval, row):
                piece = payloads.bulk_piece(selection, row, value)
                yield Part(LABEL, bulk_url(base_url, *row.key, value.path), [piece])

    if next(parts(), None) is None:
        raise NotFound("these instances have no bulk data except pixel data")
    return retrieval.multipart((OCTETS, "bulkdata"), parts, MANY)


def bulk_values(retrieval: Retrieval, row: InstanceRow) -> Iterator[BulkValue]:
    """The bulk values of one instance, without pixel data."""
    after: str | None = None
    while page := retrieval.store.index.bulk_values(row, after=after, limit=VALUES_AT_ONCE):
        yield from (value for value in page if value.path not in PIXEL_DATA)
        if len(page) < VALUES_AT_ONCE:
            return
        after = page[-1].path
