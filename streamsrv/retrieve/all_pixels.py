"""All pixel data of a study, series or instance (PS3.18 10.4.1.1.6, CP 2040): frames, each with its own
transfer syntax.

Rules
- Instances without frames are left out. If there is no frame, the answer is 404.
- Stored frames make a lazy plan, so that a million of them are never held. If some have to be transcoded, the
  body is made while it is sent, and the first frames of the next instances are made ahead.
- All frames must be acceptable, because a client would not notice a gap. A frame that cannot be transcoded is
  sent as it is stored if that is acceptable.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from streamsrv.dicom.syntaxes import lookup
from streamsrv.errors import NotAcceptable, NotFound
from streamsrv.pixels import transcoding
from streamsrv.pixels.transcoding import has_frames, piece_chunks
from streamsrv.plans import payloads
from streamsrv.plans.parts import PARTS_KEPT, Part
from streamsrv.retrieve.answering import MAKER, Retrieval
from streamsrv.retrieve.frames import first_frames, part_texts
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.accept import Offer
from streamsrv.wire.answers import Answer
from streamsrv.wire.multipart import closing, part_head
from streamsrv.wire.resources import frame_url

# The number of parts is unknown until they are made: the plan is lazy.
MANY = PARTS_KEPT + 1


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
        keep=True,
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
