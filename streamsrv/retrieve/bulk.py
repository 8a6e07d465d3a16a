"""Answers to requests for bulk data: one value, or all of a study, series or instance (PS3.18 10.4.1.1.5),
and all pixel data (10.4.1.1.6; both CP 2040).

Strategy: the parts are made lazily, from pages of the index: once for the length, once while they are sent.
So 100,000 bulk values or a million frames are never held. If frames have to be transcoded, the body is made
while it is sent. The first frames of the next instances are made ahead.

Rules
- Bulk data are all values that the metadata name by a BulkDataURI except pixel data, nested ones too.
- Each frame has its own transfer syntax. Instances without frames are left out.
- If there is no value or frame, the answer is 404.
- An encapsulated document goes out in its own media type if the request names that.
- All frames must be acceptable, because a client would not notice a gap. A frame that cannot be transcoded is
  sent as it is stored if that is acceptable.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from streamsrv.errors import NotAcceptable, NotFound
from streamsrv.pixels import transcoding
from streamsrv.pixels.transcoding import has_frames, piece_chunks
from streamsrv.plans import payloads
from streamsrv.plans.payloads import PARTS_KEPT, Part
from streamsrv.retrieve.answering import MAKER, Planned, Retrieval
from streamsrv.retrieve.documents import DOCUMENT, ENCAPSULATED, stored_document
from streamsrv.retrieve.frames import first_frames, frames_answer, part_texts
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.accept import Offer
from streamsrv.wire.answers import Answer
from streamsrv.wire.mediatypes import OCTETS
from streamsrv.wire.multipart import PAYLOAD_END, closing, part_head
from streamsrv.wire.resources import bulk_url, frame_url

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


def bulk_answer(retrieval: Retrieval, row: InstanceRow, value: BulkValue) -> Answer | None:
    own_type = ENCAPSULATED.get(row.sop_class_uid) if value.path == DOCUMENT else None
    offer = accept.choose_bulk(retrieval.ranges(), (OCTETS, own_type) if own_type else (OCTETS,))
    if offer.media_type == own_type:
        url = bulk_url(retrieval.request.base_url, *row.key, DOCUMENT)
        return stored_document(retrieval, row, offer, url)
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


def all_pixel_data(retrieval: Retrieval) -> Answer:
    offers: dict[str, Offer] = {}
    for row in with_frames(retrieval):
        stored = transcoding.stored_syntax(row)
        if stored not in offers:
            offers[stored] = offer_of(retrieval, stored, makes=True)
    if not offers:
        raise NotFound("these instances have no pixel data")
    chosen = ",".join(sorted(f"{stored}>{offer.syntax}" for stored, offer in offers.items()))
    representation = (next(iter(offers.values())).media_type, "pixeldata", chosen)
    if any(offer.syntax != stored for stored, offer in offers.items()):
        return retrieval.made_multipart(
            (*representation, MAKER), lambda boundary: body(retrieval, offers, boundary)
        )

    def parts() -> Iterator[Part]:
        for row in with_frames(retrieval):
            yield from frame_parts(retrieval, row, offers[transcoding.stored_syntax(row)])

    return retrieval.multipart(representation, parts, MANY)


def with_frames(retrieval: Retrieval) -> Iterator[InstanceRow]:
    return filter(has_frames, retrieval.selection.rows())


def offer_of(retrieval: Retrieval, stored: str, *, makes: bool) -> Offer:
    """How frames of a stored syntax are sent. Raises NotAcceptable."""
    return accept.choose_frames(
        retrieval.ranges(),
        stored,
        lookup(stored).media_type,
        transcodable=transcoding.targets(stored) if makes else (),
        single=False,
    )


def frame_parts(retrieval: Retrieval, row: InstanceRow, offer: Offer) -> Iterator[Part]:
    """The parts of an instance whose stored frames are sent."""
    source = payloads.frame_pieces(retrieval.store, retrieval.selection, row, range(row.number_of_frames))
    for number, pieces in enumerate(source, 1):
        yield Part(offer.content_type, frame_url(retrieval.request.base_url, *row.key, number), pieces)


def body(retrieval: Retrieval, offers: dict[str, Offer], boundary: bytes) -> Generator[bytes, None, None]:
    for first in first_frames(retrieval, targets_of(retrieval, offers)):
        if first is None:
            yield b""  # nothing is ready
            continue
        row, made, number = first.row, first.made, first.row.number_of_frames
        stored = transcoding.stored_syntax(row)
        if made is not None:
            batches = made.batches(range(number), made.made(first.results))
            yield from part_texts(retrieval, row, range(1, number + 1), offers[stored], batches, boundary)
            continue
        offer = offers[stored] if first.error is None else offer_instead(retrieval, stored, first.error)
        for part in frame_parts(retrieval, row, offer):
            yield part_head(boundary, {"Content-Type": part.media_type, "Content-Location": part.location})
            for piece in part.pieces:
                yield from piece_chunks(retrieval.selection, piece)
            yield PAYLOAD_END
    yield closing(boundary)


def targets_of(retrieval: Retrieval, offers: dict[str, Offer]) -> Iterator[tuple[InstanceRow, str | None]]:
    for row in with_frames(retrieval):
        stored = transcoding.stored_syntax(row)
        target = offers[stored].syntax
        yield row, None if target == stored else target


def offer_instead(retrieval: Retrieval, stored: str, error: NotAcceptable) -> Offer:
    """The offer of stored frames, if frames cannot be transcoded. Raises the error if it is refused."""
    try:
        return offer_of(retrieval, stored, makes=False)
    except NotAcceptable as refusal:
        raise NotAcceptable(error.detail, refusal.acceptable) from error
