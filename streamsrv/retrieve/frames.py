"""Answers to requests for frames (PS3.18 10.4.1.1.2): stored frames, or transcoded ones.

`wire.accept` chooses the representation; the pixels are looked at only if no stored one is acceptable. If a
frame cannot be transcoded, it is sent as it is stored where that is acceptable too.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from framecodecs.frameinfo import FrameInfo
from framecodecs.pool.messages import Result
from streamsrv.dicom.instance import FrameKind
from streamsrv.dicom.syntaxes import lookup
from streamsrv.errors import NotAcceptable, NotFound
from streamsrv.pixels.tasks import PixelTask
from streamsrv.pixels.transcoding import AT_ONCE, QUICK, Transcoder, stored_syntax, targets
from streamsrv.plans import payloads
from streamsrv.plans.payloads import Part
from streamsrv.retrieve.answering import MAKER, Accepted, Planned, Retrieval
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.accept import Offer
from streamsrv.wire.answers import Answer, Literal, Piece
from streamsrv.wire.multipart import PAYLOAD_END, closing, part_head
from streamsrv.wire.resources import frame_url


def frames(retrieval: Retrieval) -> Planned:
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


def frames_answer(retrieval: Retrieval, row: InstanceRow, numbers: Sequence[int]) -> Planned:
    offer = chosen(retrieval, row, single=len(numbers) == 1)
    if offer is None:
        return None
    if offer.syntax == stored_syntax(row):
        return stored_answer(retrieval, row, numbers, offer)
    try:
        return transcoded_answer(retrieval, row, numbers, offer)
    except NotAcceptable as error:
        return stored_instead(numbers, retrieval, error)


def stored_instead(numbers: Sequence[int], retrieval: Retrieval, error: Exception) -> Answer:
    """Stored frames, if they cannot be transcoded. Raises the error unless they are acceptable."""
    if not isinstance(error, NotAcceptable):
        raise error
    row = next(retrieval.selection.rows())
    try:
        offer = fit(retrieval.accepted(), stored_syntax(row), len(numbers) == 1, ())
    except NotAcceptable as refusal:
        raise NotAcceptable(error.detail, refusal.acceptable) from error
    return stored_answer(retrieval, row, numbers, offer)


def chosen(retrieval: Retrieval, row: InstanceRow, *, single: bool) -> Offer | None:
    """None if the retrieval is brief and the metadata have to be read."""
    stored, accepted = stored_syntax(row), retrieval.accepted()
    choose = cached_fit if accepted.is_short else fit
    try:
        offer = choose(accepted, stored, single, targets(stored))  # if any pixels fit
        if offer.syntax == stored:
            return offer
    except NotAcceptable:
        pass  # raised again below, with the targets that these pixels fit
    try:
        info = retrieval.frame_info(row)
        if info is None:
            return None
        possible = targets(stored, info)
    except NotAcceptable:
        possible = ()
    return choose(accepted, stored, single, possible)


def fit(accepted: Accepted, stored: str, single: bool, possible: Collection[str]) -> Offer:
    """The choice between stored frames and frames transcoded to a `possible` syntax."""
    media_type = lookup(stored).media_type
    return accept.choose_frames(accepted.ranges(), stored, media_type, transcodable=possible, single=single)


cached_fit = lru_cache(maxsize=256)(fit)


def stored_answer(retrieval: Retrieval, row: InstanceRow, numbers: Sequence[int], offer: Offer) -> Answer:
    indices = [number - 1 for number in numbers]

    def pieces() -> Iterator[list[Piece]]:
        return payloads.frame_pieces(retrieval.store, retrieval.selection, row, indices)

    if not offer.multipart:
        return retrieval.single_part(frame_part(retrieval, row, numbers[0], offer, next(pieces())))

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


# Transcoded frames


def transcoded_answer(
    retrieval: Retrieval, row: InstanceRow, numbers: Sequence[int], offer: Offer
) -> Planned:
    info = retrieval.frame_info(row)
    if info is None:
        return None
    made = transcoder(retrieval, row, info, offer.syntax)
    if len(numbers) == 1:
        index = numbers[0] - 1
        answer = partial(transcoded_frame, row=row, number=numbers[0], offer=offer)
        planned = retrieval.pooled(
            made.job(index, QUICK if retrieval.brief else None), answer, partial(stored_instead, numbers)
        )
        made.prefetch(index)
        return planned
    if retrieval.brief:
        return None
    representation_made = (*representation(offer, numbers), MAKER)
    if len(numbers) * made.decoded_length > AT_ONCE:
        return retrieval.made_multipart(
            representation_made,
            lambda boundary: transcoded_body(retrieval, made, numbers, offer, boundary),
        )

    def parts() -> Iterator[Part]:
        batches = made.batches([number - 1 for number in numbers])
        frames = (frame for batch in batches for frame in batch)
        for number, frame in zip(numbers, frames, strict=True):
            yield frame_part(retrieval, row, number, offer, [Literal(frame)])

    # They are few and short, so that their plan is kept and made once.
    return retrieval.multipart(representation_made, parts, 1)


def transcoder(retrieval: Retrieval, row: InstanceRow, info: FrameInfo, target: str) -> Transcoder:
    requester = retrieval.request.requester
    return Transcoder(retrieval.store, retrieval.selection, row, retrieval.pool, info, target, requester)


def transcoded_frame(
    retrieval: Retrieval, pieces: Sequence[Piece], row: InstanceRow, number: int, offer: Offer
) -> Answer:
    part = frame_part(retrieval, row, number, offer, pieces)
    if not offer.multipart:
        return retrieval.single_part(part, MAKER)
    return retrieval.multipart((*representation(offer, (number,)), MAKER), lambda: (part,), 1)


def transcoded_body(
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
            text += (part_head(boundary, head), frame, PAYLOAD_END)
        yield b"".join(text)


# The first frames of many instances


class FirstFrames(NamedTuple):
    """The first batch of an instance that is transcoded by `made`. Without `made` it is sent as it is stored;
    `error` says why if it had to be transcoded."""

    row: InstanceRow
    made: Transcoder | None = None
    results: Sequence[Result] = ()
    error: NotAcceptable | None = None


def first_frames(
    retrieval: Retrieval, targets: Iterable[tuple[InstanceRow, str | None]]
) -> Iterator[FirstFrames | None]:
    """The first frames of each instance, in its target syntax (None: stored). The next ones are made ahead.
    Yields None if nothing is ready."""

    def tasks() -> Iterator[tuple[FirstFrames, PixelTask | None]]:
        for row, target in targets:
            if target is None:
                yield FirstFrames(row), None
                continue
            try:
                info = retrieval.pool.descriptions.info(retrieval.store, row)
                made = transcoder(retrieval, row, info, target)
                made.check_fits()
                yield FirstFrames(row, made), made.first_task()
            except NotAcceptable as error:
                yield FirstFrames(row, error=error), None

    for turn in retrieval.pool.in_turn(tasks()):
        first, future = turn or (None, None)
        if first is None or future is None:
            yield first
            continue
        try:
            yield first._replace(results=retrieval.pool.results(future))
        except NotAcceptable as error:
            yield FirstFrames(first.row, error=error)
