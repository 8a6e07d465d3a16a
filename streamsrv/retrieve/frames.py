"""Answers to requests for frames (PS3.18 10.4.1.1.2): as stored, or made in another transfer syntax.

The representation is chosen by `wire.accept`; the pixels are looked at only if nothing stored will do. Where
a frame cannot be made after all, and as stored it is acceptable too, it goes out so.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from functools import lru_cache, partial

from streamsrv.dicom.instance import FrameKind
from streamsrv.dicom.syntaxes import lookup
from streamsrv.errors import NotAcceptable, NotFound
from streamsrv.pixels import transcoding
from streamsrv.pixels.pixel_info import pixel_info
from streamsrv.pixels.transcoding import AT_ONCE, Transcoder
from streamsrv.plans import payloads
from streamsrv.plans.parts import Part
from streamsrv.retrieve import cached_frames
from streamsrv.retrieve.answering import MAKER, Accepted, Retrieval, finished
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.accept import Offer
from streamsrv.wire.answers import Answer, Literal, Piece
from streamsrv.wire.multipart import closing, part_head
from streamsrv.wire.resources import frame_url


def frames(retrieval: Retrieval) -> Answer:
    row = next(retrieval.selection.rows())
    if row.frame_kind is FrameKind.NONE:
        raise NotFound("this SOP instance has no pixel data")
    numbers = retrieval.target.frames or range(1, row.number_of_frames + 1)
    check_frames(row, numbers)
    return frames_answer(retrieval, row, numbers)


def check_frames(row: InstanceRow, numbers: Sequence[int]) -> None:
    last = max(numbers, default=0)
    if last > row.number_of_frames:
        raise NotFound(f"frame {last} is not there: the instance has {row.number_of_frames} frames")


def frames_answer(retrieval: Retrieval, row: InstanceRow, numbers: Sequence[int]) -> Answer:
    stored = transcoding.stored_syntax(row)
    offer = chosen(retrieval, row, numbers)
    if offer.syntax == stored:
        if len(numbers) == 1:
            cached_frames.learn(retrieval, row, offer)
        return stored_answer(retrieval, row, numbers, offer)
    try:
        return made_answer(retrieval, row, numbers, offer)
    except NotAcceptable as error:
        try:
            kept = fit(retrieval.accepted(), transcoding.stored_syntax(row), len(numbers) == 1, ())
        except NotAcceptable as refusal:
            raise NotAcceptable(error.detail, refusal.acceptable) from error
        return stored_answer(retrieval, row, numbers, kept)


def chosen(retrieval: Retrieval, row: InstanceRow, numbers: Sequence[int]) -> Offer:
    stored, accepted, single = transcoding.stored_syntax(row), retrieval.accepted(), len(numbers) == 1
    choose = remembered if accepted.is_short else fit
    try:
        offer = choose(accepted, stored, single, transcoding.targets(stored))  # if these pixels are like most
        if offer.syntax == stored:
            return offer
    except NotAcceptable:
        pass  # told again below, with what these pixels fit
    try:
        possible = transcoding.targets(stored, pixel_info(retrieval.store, row, retrieval.pool))
    except NotAcceptable:
        possible = ()
    return choose(accepted, stored, single, possible)


def fit(accepted: Accepted, stored: str, single: bool, possible: Collection[str]) -> Offer:
    """The choice, if frames can be had as stored and in `possible` syntaxes."""
    media_type = lookup(stored).media_type
    return accept.choose_frames(
        accepted.ranges(), stored, media_type, transcodable=possible, single=single, keep=True
    )


remembered = lru_cache(maxsize=256)(fit)


def stored_answer(retrieval: Retrieval, row: InstanceRow, numbers: Sequence[int], offer: Offer) -> Answer:
    indices = [number - 1 for number in numbers]

    def pieces() -> Iterator[list[Piece]]:
        return payloads.frame_pieces(retrieval.store, retrieval.selection, row, indices)

    if not offer.multipart:
        return retrieval.single_part(offer.content_type, next(pieces()))

    def parts() -> Iterator[Part]:
        for number, made in zip(numbers, pieces(), strict=True):
            yield frame_part(retrieval, row, number, offer, made)

    return retrieval.multipart(representation(offer, numbers), parts, len(numbers))


def frame_part(
    retrieval: Retrieval, row: InstanceRow, number: int, offer: Offer, pieces: Iterable[Piece]
) -> Part:
    location = frame_url(retrieval.request.base_url, *row.key, number)
    return Part(offer.content_type, location, pieces)


def representation(offer: Offer, numbers: Sequence[int]) -> tuple[str, ...]:
    return offer.media_type, offer.syntax, ",".join(map(str, numbers))


# Made frames


def made_answer(retrieval: Retrieval, row: InstanceRow, numbers: Sequence[int], offer: Offer) -> Answer:
    requester = retrieval.request.requester
    made = transcoding.transcoder(
        retrieval.store, retrieval.selection, row, retrieval.pool, offer.syntax, requester
    )
    if len(numbers) == 1:
        answer = partial(one_made, retrieval, row, numbers[0], offer)
        return finished(retrieval.request, answer, one_piece(made, numbers[0]))
    said = (*representation(offer, numbers), MAKER)
    if len(numbers) * made.decoded_length > AT_ONCE:
        retrieval.pool.must_not_block()
        return retrieval.made_multipart(
            said,
            lambda boundary: made_body(retrieval, made, numbers, offer, boundary),
        )

    def parts() -> Iterator[Part]:
        for number, frame in zip(numbers, at_once(made, numbers), strict=True):
            yield frame_part(retrieval, row, number, offer, [Literal(frame)])

    # They are few and short, so that their plan is kept and made once.
    return retrieval.multipart(said, parts, 1)


def one_made(
    retrieval: Retrieval, row: InstanceRow, number: int, offer: Offer, pieces: Iterable[Piece]
) -> Answer:
    """Needs nothing of the store."""
    if not offer.multipart:
        return retrieval.single_part(offer.content_type, pieces, MAKER)
    part = frame_part(retrieval, row, number, offer, pieces)
    return retrieval.multipart((*representation(offer, (number,)), MAKER), lambda: (part,), 1)


def one_piece(made: Transcoder, number: int) -> Iterator[Piece]:
    yield Literal(transcoding.one_frame(made, number - 1))


def at_once(made: Transcoder, numbers: Sequence[int]) -> list[bytes]:
    made.pool.must_not_block()
    return [frame for batch in made.batches([number - 1 for number in numbers]) for frame in batch]


def made_body(
    retrieval: Retrieval, made: Transcoder, numbers: Sequence[int], offer: Offer, boundary: bytes
) -> Generator[bytes, None, None]:
    batches = made.batches([number - 1 for number in numbers])
    yield from part_texts(retrieval, made.row, numbers, offer, batches, boundary)
    yield closing(boundary)


def part_texts(
    retrieval: Retrieval,
    row: InstanceRow,
    numbers: Sequence[int],
    offer: Offer,
    batches: Iterator[list[bytes]],
    boundary: bytes,
) -> Iterator[bytes]:
    """A part a frame, a batch a chunk."""
    waiting = iter(numbers)
    for batch in batches:
        text: list[bytes] = []
        for frame, number in zip(batch, waiting, strict=False):
            location = frame_url(retrieval.request.base_url, *row.key, number)
            head = {"Content-Type": offer.content_type, "Content-Location": location}
            text += (part_head(boundary, head), frame)
        yield b"".join(text)
