"""All bulk data of a study, series or instance (PS3.18 10.4.1.1.5, CP 2040).

Strategy: the parts are made lazily, from pages of the index, each time the plan is walked: once for its
length, once while it is sent. So 100,000 bulk values are never held.

Rules
- Bulk data are every value that the metadata name by a BulkDataURI except pixel data, nested ones too.
- Nothing to send is 404.
"""

from __future__ import annotations

from collections.abc import Iterator

from streamsrv.dicom.instance import BulkValue
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from streamsrv.errors import NotFound
from streamsrv.plans import payloads
from streamsrv.plans.parts import PARTS_KEPT, Part
from streamsrv.retrieve.answering import Retrieval
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer
from streamsrv.wire.mediatypes import OCTETS
from streamsrv.wire.resources import bulk_url

PIXEL_DATA = frozenset(("7FE00010", "7FE00008", "7FE00009"))
VALUES_AT_ONCE = 1_000
# How many parts there are is known only when they have been walked: the plan is lazy.
MANY = PARTS_KEPT + 1


def all_bulk_data(retrieval: Retrieval) -> Answer:
    accept.choose_bulk(retrieval.ranges(), single=False)
    selection, base_url = retrieval.selection, retrieval.request.base_url
    label = f"{OCTETS}; transfer-syntax={EXPLICIT_VR_LITTLE_ENDIAN}"

    def parts() -> Iterator[Part]:
        for row in selection.rows():
            for value in bulk_values(retrieval, row):
                piece = payloads.bulk_piece(selection, row, value)
                yield Part(label, bulk_url(base_url, *row.key, value.path), [piece])

    if next(parts(), None) is None:
        raise NotFound("these instances have no bulk data besides pixel data")
    return retrieval.multipart((OCTETS, "bulkdata"), parts, MANY)


def bulk_values(retrieval: Retrieval, row: InstanceRow) -> Iterator[BulkValue]:
    """Those of one instance, without pixel data."""
    after: str | None = None
    while page := retrieval.store.index.bulk_values(row, after=after, limit=VALUES_AT_ONCE):
        yield from (value for value in page if value.path not in PIXEL_DATA)
        if len(page) < VALUES_AT_ONCE:
            return
        after = page[-1].path
