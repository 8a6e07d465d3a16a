"""Answers to requests for bulk data: one value, or all of a study, series or instance (PS3.18 10.4.3.3.5),
and all pixel data (10.4.1.1.6).

Strategy: the parts are made lazily, from pages of the index: once for the length, once while they are sent.
So 100,000 bulk values or a million frames are never held. If frames have to be transcoded, the body is made
while it is sent. The first frames of the next instances are made ahead.

Rules
- Bulk data are all values that the metadata name by a BulkDataURI, pixel data and nested ones too. Each is a
  part with this URI.
- Encapsulated pixel data are one part with the value of Explicit VR Little Endian: decoded frames back to
  back. Compressed ones are a part for each frame, with the URI of the frame: if their media type or syntax is
  named, or if they cannot be decoded.
- All pixel data are a part for each frame. Each has its own transfer syntax. Instances without frames are
  left out.
- If there is no value or frame, the answer is 404.
- An encapsulated document goes out in its own media type if the request names that.
- All values and frames must be acceptable, because a client would not notice a gap. A frame that cannot be
  transcoded is sent as it is stored if that is acceptable.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from streamsrv.errors import NotAcceptable, NotFound
from streamsrv.pixels import transcoding
from streamsrv.pixels.transcoding import has_frames
from streamsrv.plans import payloads
from streamsrv.plans.payloads import PARTS_KEPT, Part
from streamsrv.retrieve import datasets
from streamsrv.retrieve.answering import MAKER, Planned, Retrieval, part_chunks
from streamsrv.retrieve.documents import DOCUMENT, ENCAPSULATED, stored_document
from streamsrv.retrieve.frames import (
    FirstFrames,
    chosen,
    first_frames,
    frames_answer,
    part_texts,
    stored_instead,
)
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.accept import Offer
from streamsrv.wire.answers import Answer, Piece
from streamsrv.wire.mediatypes import OCTETS
from streamsrv.wire.multipart import closing
from streamsrv.wire.resources import bulk_url, frame_url

VALUES_AT_ONCE = 1_000
# The number of parts is unknown until they are made: the plan is lazy.
MANY = PARTS_KEPT + 1
LABEL = f"{OCTETS}; transfer-syntax={EXPLICIT_VR_LITTLE_ENDIAN}"
PIXEL_DATA = "7FE00010"

Offers = dict[str, Offer]  # by the syntax of the stored frames


# One value


def bulk_data(retrieval: Retrieval) -> Planned:
    path = retrieval.target.bulk
    if path is None:
        return all_bulk_data(retrieval)
    row = next(retrieval.selection.rows())
    value = retrieval.store.bulk_value(row.key, path)
    if value is None:
        raise NotFound(f"the instance has no bulk value {path}")
    if is_encapsulated(row, value):
        return encapsulated_value(retrieval, row)
    own_type = ENCAPSULATED.get(row.sop_class_uid) if path == DOCUMENT else None
    if own_type is not None:
        offer = accept.choose_bulk(retrieval.ranges(), (OCTETS, own_type))
        if offer.media_type == own_type:
            url = bulk_url(retrieval.request.base_url, *row.key, DOCUMENT)
            return stored_document(retrieval, row, offer, url)
    return value_answer(retrieval, row, value.path, [payloads.bulk_piece(retrieval.selection, row, value)])


def is_encapsulated(row: InstanceRow, value: BulkValue) -> bool:
    """Whether the value is the encapsulated pixel data of the instance."""
    return value.path == PIXEL_DATA and row.frame_kind is FrameKind.TABLE


def value_answer(
    retrieval: Retrieval, row: InstanceRow, path: str, pieces: Iterable[Piece], *maker: str
) -> Answer:
    """`pieces` are made only if the client does not have them."""
    offer = accept.choose_bulk(retrieval.ranges())
    part = Part(LABEL, bulk_url(retrieval.request.base_url, *row.key, path), pieces)
    if not offer.multipart:
        return retrieval.single_part(part, *maker)
    return retrieval.multipart((OCTETS, path, *maker), lambda: [part], 1)


def encapsulated_value(retrieval: Retrieval, row: InstanceRow) -> Planned:
    """The decoded frames as one value, or compressed frames."""
    numbers = range(1, row.number_of_frames + 1)
    offer = chosen(retrieval, row, single=True)
    if offer is not None and not offer.multipart and len(numbers) > 1:
        decoded = offer.syntax == EXPLICIT_VR_LITTLE_ENDIAN
        offer = offer if decoded else chosen(retrieval, row, single=False)
    if offer is None or offer.syntax != EXPLICIT_VR_LITTLE_ENDIAN:
        return frames_answer(retrieval, row, numbers)

    def pieces() -> Iterator[Piece]:
        (first,) = filter(None, first_frames(retrieval, [(row, EXPLICIT_VR_LITTLE_ENDIAN)]))
        if first.error is not None:
            raise first.error
        yield from datasets.native_value(datasets.transcoded(first))

    try:
        return value_answer(retrieval, row, PIXEL_DATA, pieces(), MAKER)
    except NotAcceptable as error:
        return stored_instead(numbers, retrieval, error)


# All values


def all_bulk_data(retrieval: Retrieval) -> Answer:
    selection, base_url = retrieval.selection, retrieval.request.base_url
    offers = offers_of(retrieval, (row for row in selection.rows() if row.frame_kind is FrameKind.TABLE))
    check_octets(retrieval)

    def plain(row: InstanceRow, value: BulkValue) -> Part:
        piece = payloads.bulk_piece(selection, row, value)
        return Part(LABEL, bulk_url(base_url, *row.key, value.path), [piece])

    def parts() -> Iterator[Part]:
        for row, value in all_values(retrieval):
            if is_encapsulated(row, value):
                yield from stored_frames(retrieval, row, offers[row.transfer_syntax])
            else:
                yield plain(row, value)

    def body(boundary: bytes) -> Generator[bytes, None, None]:
        for first in first_frames(retrieval, targets_of(selection.rows(), offers)):
            if first is None:
                yield b""  # nothing is ready
                continue
            for value in bulk_values(retrieval, first.row):
                if not is_encapsulated(first.row, value):
                    yield from part_chunks(selection, plain(first.row, value), boundary)
                elif first.made is not None and first.made.native:
                    url = bulk_url(base_url, *first.row.key, value.path)
                    part = Part(LABEL, url, datasets.native_value(datasets.transcoded(first)))
                    yield from part_chunks(selection, part, boundary)
                else:
                    yield from frame_texts(retrieval, first, offers, boundary)
        yield closing(boundary)

    first = next(all_values(retrieval), None)
    if first is None:
        raise NotFound("these instances have no bulk data")
    media_type = offers[first[0].transfer_syntax].media_type if is_encapsulated(*first) else OCTETS
    representation = (media_type, "bulkdata", described(offers))
    if makes(offers):
        return retrieval.made_multipart((*representation, MAKER), body)
    return retrieval.multipart(representation, parts, MANY)


def check_octets(retrieval: Retrieval) -> None:
    """Raises NotAcceptable if there are values that are no compressed frames, and only these are
    acceptable."""
    try:
        accept.choose_bulk(retrieval.ranges(), single=False)
    except NotAcceptable:
        if not all(is_encapsulated(*each) for each in all_values(retrieval)):
            raise


def all_values(retrieval: Retrieval) -> Iterator[tuple[InstanceRow, BulkValue]]:
    for row in retrieval.selection.rows():
        for value in bulk_values(retrieval, row):
            yield row, value


def bulk_values(retrieval: Retrieval, row: InstanceRow) -> Iterator[BulkValue]:
    """The bulk values of one instance, in the order of their paths."""
    after: str | None = None
    while page := retrieval.store.index.bulk_values(row, after=after, limit=VALUES_AT_ONCE):
        yield from page
        if len(page) < VALUES_AT_ONCE:
            return
        after = page[-1].path


# All frames


def all_pixel_data(retrieval: Retrieval) -> Answer:
    offers = offers_of(retrieval, with_frames(retrieval))
    if not offers:
        raise NotFound("these instances have no pixel data")

    def parts() -> Iterator[Part]:
        for row in with_frames(retrieval):
            yield from stored_frames(retrieval, row, offers[transcoding.stored_syntax(row)])

    def body(boundary: bytes) -> Generator[bytes, None, None]:
        for first in first_frames(retrieval, targets_of(with_frames(retrieval), offers)):
            yield from (b"",) if first is None else frame_texts(retrieval, first, offers, boundary)
        yield closing(boundary)

    representation = (next(iter(offers.values())).media_type, "pixeldata", described(offers))
    if makes(offers):
        return retrieval.made_multipart((*representation, MAKER), body)
    return retrieval.multipart(representation, parts, MANY)


def with_frames(retrieval: Retrieval) -> Iterator[InstanceRow]:
    return filter(has_frames, retrieval.selection.rows())


# Offers


def offers_of(retrieval: Retrieval, rows: Iterable[InstanceRow]) -> Offers:
    """Raises NotAcceptable."""
    offers: Offers = {}
    for row in rows:
        stored = transcoding.stored_syntax(row)
        if stored not in offers:
            offers[stored] = offer_of(retrieval, stored, transcodes=True)
    return offers


def makes(offers: Offers) -> bool:
    return any(offer.syntax != stored for stored, offer in offers.items())


def described(offers: Offers) -> str:
    return ",".join(sorted(f"{stored}>{offer.syntax}" for stored, offer in offers.items()))


def offer_of(retrieval: Retrieval, stored: str, *, transcodes: bool) -> Offer:
    """How frames of a stored syntax are sent. Raises NotAcceptable."""
    return accept.choose_frames(
        retrieval.ranges(),
        stored,
        lookup(stored).media_type,
        transcodable=transcoding.targets(stored) if transcodes else (),
        single=False,
    )


def targets_of(rows: Iterable[InstanceRow], offers: Offers) -> Iterator[tuple[InstanceRow, str | None]]:
    for row in rows:
        stored = transcoding.stored_syntax(row)
        target = offers[stored].syntax if stored in offers else stored
        yield row, None if target == stored else target


def offer_instead(retrieval: Retrieval, stored: str, error: NotAcceptable) -> Offer:
    """The offer of stored frames, if frames cannot be transcoded. Raises the error if it is refused."""
    try:
        return offer_of(retrieval, stored, transcodes=False)
    except NotAcceptable as refusal:
        raise NotAcceptable(error.detail, refusal.acceptable) from error


# The frames of one instance


def stored_frames(retrieval: Retrieval, row: InstanceRow, offer: Offer) -> Iterator[Part]:
    source = payloads.frame_pieces(retrieval.store, retrieval.selection, row, range(row.number_of_frames))
    for number, pieces in enumerate(source, 1):
        yield Part(offer.content_type, frame_url(retrieval.request.base_url, *row.key, number), pieces)


def frame_texts(retrieval: Retrieval, first: FirstFrames, offers: Offers, boundary: bytes) -> Iterator[bytes]:
    """The parts of all frames as bytes, transcoded ones in batches."""
    row, made, stored = first.row, first.made, transcoding.stored_syntax(first.row)
    if made is not None:
        number = row.number_of_frames
        batches = made.batches(range(number), made.made(first.results))
        yield from part_texts(retrieval, row, range(1, number + 1), offers[stored], batches, boundary)
        return
    offer = offers[stored] if first.error is None else offer_instead(retrieval, stored, first.error)
    for part in stored_frames(retrieval, row, offer):
        yield from part_chunks(retrieval.selection, part, boundary)
