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
from dataclasses import dataclass

from streamsrv.dicom.syntaxes import lookup
from streamsrv.errors import NotAcceptable, NotFound
from streamsrv.pixels import transcoding
from streamsrv.pixels.tasks import PixelTask
from streamsrv.pixels.transcoding import Transcoder, has_frames, piece_chunks
from streamsrv.plans import payloads
from streamsrv.plans.parts import PARTS_KEPT, Part
from streamsrv.retrieve.answering import MAKER, Retrieval
from streamsrv.retrieve.frames import part_texts, transcoder
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.accept import Offer
from streamsrv.wire.answers import Answer
from streamsrv.wire.multipart import closing, part_head
from streamsrv.wire.resources import frame_url

# The number of parts is unknown until they are made: the plan is lazy.
MANY = PARTS_KEPT + 1


@dataclass(frozen=True, slots=True)
class OutgoingFrames:
    """The frames of an instance: stored, or transcoded by `made`."""

    row: InstanceRow
    offer: Offer
    made: Transcoder | None = None


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
    for turn in retrieval.pool.in_turn(tasks(retrieval, offers)):
        if turn is None:
            yield b""  # nothing is ready
            continue
        task, future = turn
        made, row, number = task.made, task.row, task.row.number_of_frames
        try:
            done = made.made(retrieval.pool.results(future)) if made and future else []
        except NotAcceptable as error:
            task, made = as_stored(retrieval, row, error), None
        if made is not None:
            batches = made.batches(range(number), done)
            yield from part_texts(retrieval, row, range(1, number + 1), task.offer, batches, boundary)
            continue
        for part in frame_parts(retrieval, row, task.offer):
            yield part_head(boundary, {"Content-Type": part.media_type, "Content-Location": part.location})
            for piece in part.pieces:
                yield from piece_chunks(retrieval.selection, piece)
    yield closing(boundary)


def tasks(
    retrieval: Retrieval, offers: dict[str, Offer]
) -> Iterator[tuple[OutgoingFrames, PixelTask | None]]:
    for row in with_frames(retrieval):
        stored = transcoding.stored_syntax(row)
        offer = offers[stored]
        if offer.syntax == stored:
            yield OutgoingFrames(row, offer), None
            continue
        try:
            info = retrieval.pool.descriptions.info(retrieval.store, row)
            made = transcoder(retrieval, row, info, offer.syntax)
            made.check_fits()
            yield OutgoingFrames(row, offer, made), made.first_task()
        except NotAcceptable as error:
            yield as_stored(retrieval, row, error), None


def as_stored(retrieval: Retrieval, row: InstanceRow, error: NotAcceptable) -> OutgoingFrames:
    try:
        return OutgoingFrames(row, offer_of(retrieval, transcoding.stored_syntax(row), makes=False))
    except NotAcceptable as refusal:
        raise NotAcceptable(error.detail, refusal.acceptable) from error
