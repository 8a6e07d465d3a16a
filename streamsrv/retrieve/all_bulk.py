"""All bulk data, and all pixel data, of a study, series or instance (PS3.18 10.4.1.1.5 and .6, CP 2040).

Strategy: the parts are made lazily, from pages of the index, each time the plan is walked: once for its
length, once while it is sent. So neither 100,000 bulk values nor a million frames are ever held.

Rules
- Bulk data are every value that the metadata name by a BulkDataURI except pixel data, nested ones too.
- Pixel data are frames, labelled each with its own transfer syntax; instances without any are left out.
- Nothing to send is 404.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from streamsrv.errors import NotFound
from streamsrv.retrieve import payloads, transcoding
from streamsrv.retrieve.answering import Retrieval
from streamsrv.retrieve.parts import PARTS_KEPT, Part
from streamsrv.store.rows import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer
from streamsrv.wire.mediatypes import OCTETS
from streamsrv.wire.ranges import Offer
from streamsrv.wire.resources import bulk_url, frame_url

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


def all_pixel_data(retrieval: Retrieval) -> Answer:
    offers: dict[str, Offer] = {}
    for row in with_frames(retrieval):
        stored = transcoding.stored_syntax(row)
        if stored not in offers:
            offers[stored] = offer_of(retrieval, stored)
    if not offers:
        raise NotFound("these instances have no pixel data")

    def parts() -> Iterator[Part]:
        for row in with_frames(retrieval):
            yield from frame_parts(retrieval, row, offers[transcoding.stored_syntax(row)])

    first = next(iter(offers.values()))
    chosen = ",".join(sorted(f"{stored}>{offer.syntax}" for stored, offer in offers.items()))
    return retrieval.multipart((first.media_type, "pixeldata", chosen), parts, MANY)


def with_frames(retrieval: Retrieval) -> Iterator[InstanceRow]:
    without = (FrameKind.NONE, FrameKind.EMPTY)
    return (row for row in retrieval.selection.rows() if row.frame_kind not in without)


def offer_of(retrieval: Retrieval, stored: str) -> Offer:
    """How frames of a stored syntax go out. All must be acceptable: a gap would go unseen."""
    return accept.choose_frames(
        retrieval.ranges(),
        stored,
        lookup(stored).media_type,
        transcodable=transcoding.targets(stored),
        single=False,
        keep=True,
    )


def frame_parts(retrieval: Retrieval, row: InstanceRow, offer: Offer) -> Iterator[Part]:
    store, selection, indices = retrieval.store, retrieval.selection, range(row.number_of_frames)
    source: transcoding.PiecesSource = partial(payloads.frame_pieces, store, selection, row, indices)
    if offer.syntax != transcoding.stored_syntax(row):
        # Never at once: the walk for the length would make every frame.
        one = transcoding.transcoder(store, selection, row, retrieval.pool, offer.syntax)
        source = transcoding.Made(one, indices).pieces
    for number, pieces in enumerate(source(), 1):
        yield Part(offer.content_type, frame_url(retrieval.request.base_url, *row.key, number), pieces)
