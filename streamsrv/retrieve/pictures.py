"""Answers to requests for rendered resources and thumbnails (PS3.18 10.4.1.1.3, 10.4.1.1.4).

Rules of this file
- One frame is a single part. It is drawn before its answer begins, or sent as it is stored if it is a
  picture.
- Several frames are parts of a multipart answer, or an animated GIF. They are drawn while they are sent.
- Documents are pages or stored bytes (documents.py). Videos are sent as they are stored.
- Any other instance without pixels is not acceptable in any rendered form: 406.
- In a study or series, pictures and documents each have the best type that the client accepts. If it accepts
  none of them, these instances are left out. Videos are left out, too.
- In a multipart answer, a frame that cannot be drawn costs its own part. That part is a problem (RFC 9457)
  with the Content-Location of the picture. An answer without any picture is an error with a status, so
  problems wait for the first picture.
- A temporary error (503) ends the connection: answers with one ETag have the same parts each time.
- All frames of an animation together have at most PICTURES times `max_rendered_pixels`. Of a longer loop,
  or one of over ANIMATED_FRAMES frames, evenly spaced frames are shown in the same time.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from framecodecs.pool import messages
from framecodecs.rendering.pictures import GIF_CLOSING, ICC_FORMATS, gif_opening, picture_size
from streamsrv.dicom.syntaxes import lookup
from streamsrv.errors import BadRequest, NotAcceptable, NotFound, StoreCorrupt, StreamsrvError
from streamsrv.pixels.description import Description
from streamsrv.pixels.rendering import (
    PictureBatch,
    Renderer,
    can_be_drawn,
    check_drawable,
    check_size,
    representative,
    thumbnail_parameters,
)
from streamsrv.pixels.tasks import PixelTask
from streamsrv.pixels.transcoding import QUICK, READ, batches, has_frames, piece_chunks
from streamsrv.pixels.viewing import RenderingParameters, rendering_parameters
from streamsrv.plans.payloads import Part, frame_pieces
from streamsrv.retrieve.answering import MAKER, Planned, Retrieval
from streamsrv.retrieve.documents import Document, document, document_types
from streamsrv.retrieve.frames import check_frames
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.accept import IMAGE_TYPES, THUMBNAIL_TYPES
from streamsrv.wire.answers import Answer, Literal, Piece
from streamsrv.wire.codings import check_charset
from streamsrv.wire.multipart import PAYLOAD_END, closing, part_head
from streamsrv.wire.problems import PROBLEM, problem_text
from streamsrv.wire.resources import ResourceLevel, frame_url, instance_url

log = logging.getLogger("streamsrv.pixels")

GIF = "image/gif"
ANIMATED_FRAMES = 200
PICTURES = 4
# Errors that a part reports: they occur each time.
REPORTED = (NotAcceptable, BadRequest, StoreCorrupt)
# Problems that wait for the first picture; some hundred bytes each.
HELD = 200

Picture = Sequence[Piece] | StreamsrvError


def thumbnail(retrieval: Retrieval) -> Planned:
    given = rendering_parameters(retrieval.request.query)
    if given.viewport is not None and given.viewport.region is not None:
        raise BadRequest("the parameter viewport of a thumbnail is width,height")
    offer = accept.choose_image(retrieval.ranges(), THUMBNAIL_TYPES)
    numbers = retrieval.target.frames
    if numbers:
        row, index = next(retrieval.selection.rows()), numbers[0] - 1
        check_there(row, numbers)
    else:
        row, index = representative(retrieval.store, retrieval.pool, retrieval.selection)
    return one_picture(retrieval, row, index, thumbnail_parameters(given), offer)


def check_there(row: InstanceRow, numbers: Sequence[int]) -> None:
    if not has_frames(row):
        raise NotFound("this SOP instance has no frames")
    check_frames(row, numbers)


def rendered(retrieval: Retrieval) -> Planned:
    parameters = rendering_parameters(retrieval.request.query)
    if retrieval.target.level is not ResourceLevel.INSTANCE:
        return None if retrieval.brief else of_several(retrieval, parameters)
    row, numbers = next(retrieval.selection.rows()), retrieval.target.frames
    if numbers:
        check_there(row, numbers)
    elif document_types(row):
        return document(retrieval, row)
    if is_video(row):
        return video(retrieval, row, lookup(row.transfer_syntax).media_type)
    check_drawable(row)
    return pictures(retrieval, row, parameters, numbers or range(1, row.number_of_frames + 1))


def pictures(
    retrieval: Retrieval, row: InstanceRow, parameters: RenderingParameters, numbers: Sequence[int]
) -> Planned:
    offer = image_offer(retrieval, single=len(numbers) == 1)
    check_profile(parameters, offer.media_type)
    if len(numbers) > 1 and offer.multipart:
        if retrieval.brief:
            return None
        return in_parts(retrieval, parameters, PartTypes(offer.media_type), numbers)
    if len(numbers) > 1 and offer.media_type in accept.ANIMATED:
        return animated(retrieval, row, parameters, numbers)
    return one_picture(retrieval, row, numbers[0] - 1, parameters, offer)


def check_profile(parameters: RenderingParameters, media_type: str) -> None:
    """Raises BadRequest for a profile in a format that holds none (PS3.18 8.3.5.1.5)."""
    if parameters.icc_profile in ("yes", "srgb") and media_type not in ICC_FORMATS:
        raise BadRequest(f"the parameter iccprofile is no for {media_type}: it holds no profile here")


def image_offer(retrieval: Retrieval, *, single: bool) -> accept.Offer:
    """Several frames are sent as parts, or animated. A client that accepts only one picture of a multi-frame
    instance gets its first frame: it draws a list, and 406 would leave a hole in it."""
    try:
        return accept.choose_image(retrieval.ranges(), IMAGE_TYPES, single=single)
    except NotAcceptable:
        if single or retrieval.target.frames:
            raise
        return accept.choose_image(retrieval.ranges(), IMAGE_TYPES, single=True)


def renderer(
    retrieval: Retrieval,
    row: InstanceRow,
    description: Description,
    parameters: RenderingParameters,
    media_type: str,
) -> Renderer:
    return Renderer(
        retrieval.store,
        retrieval.selection,
        row,
        retrieval.pool,
        description,
        parameters,
        media_type,
        retrieval.request.requester,
    )


def one_picture(
    retrieval: Retrieval, row: InstanceRow, index: int, parameters: RenderingParameters, offer: accept.Offer
) -> Planned:
    check_drawable(row)
    check_size(row, parameters, retrieval.pool.max_rendered_pixels)
    description = retrieval.description(row)
    if description is None:
        return None
    one = renderer(retrieval, row, description, parameters, offer.media_type)
    stored = one.stored(index, brief=retrieval.brief)
    if stored is None:
        return None
    drawn = drawn_as(parameters, retrieval.pool.fonts)
    answer = partial(picture_answer, row=row, index=index, offer=offer, drawn=drawn)
    if stored:
        return answer(retrieval, stored)
    planned = retrieval.pooled(one.job(index, QUICK if retrieval.brief else None), answer, failed)
    one.prefetch(index)
    return planned


def failed(retrieval: Retrieval, error: Exception) -> Answer:
    raise error


def picture_answer(
    retrieval: Retrieval,
    pieces: Sequence[Piece],
    row: InstanceRow,
    index: int,
    offer: accept.Offer,
    drawn: str,
) -> Answer:
    if not offer.multipart:
        return retrieval.single_part(Part(offer.media_type, "", pieces), drawn)
    url = picture_url(retrieval, row, index + 1)
    part = Part(offer.media_type, url, pieces)
    return retrieval.multipart((offer.media_type, url, drawn), lambda: (part,), 1)


def picture_url(retrieval: Retrieval, row: InstanceRow, number: int) -> str:
    return f"{frame_url(retrieval.request.base_url, *row.key, number)}/rendered"


def drawn_as(parameters: RenderingParameters, fonts: tuple[str, ...] = ()) -> str:
    """The part of an ETag that says how a frame is drawn."""
    return f"{parameters!r} {MAKER} {','.join(fonts) if parameters.annotations else ''}"


# Several pictures and documents, in parts


@dataclass(frozen=True, slots=True)
class PartTypes:
    """The media types of parts; none for those that the client does not accept. `documents` has those of
    each kind of documents by its default type."""

    pictures: str | None
    documents: Mapping[str, str] = field(default_factory=dict)

    def of(self, row: InstanceRow) -> str | None:
        if self.pictures is not None and can_be_drawn(row):
            return self.pictures
        return self.documents.get(next(iter(document_types(row)), ""))


def of_several(retrieval: Retrieval, parameters: RenderingParameters) -> Answer:
    """The pictures and documents of a study or series. In parts only: pictures of several instances need not
    have one size, so they are no animation. Raises NotAcceptable."""
    kinds = {types[:1]: types for row in retrieval.selection.rows() if (types := rendered_types(row))}
    if not kinds:
        raise NotAcceptable("nothing here has pixels that could be rendered, or is a document", ())
    chosen, refusals = dict[str, str](), list[NotAcceptable]()
    for (default,), types in kinds.items():
        try:
            chosen[default] = accept.choose_bulk(retrieval.ranges(), types, single=False).media_type
        except NotAcceptable as refusal:
            refusals.append(refusal)
    if not chosen:
        offers = [offer for refusal in refusals for offer in refusal.acceptable]
        raise NotAcceptable(refusals[0].detail, offers)
    if not set(chosen.values()).isdisjoint(accept.PAGE_TYPES):
        check_charset(retrieval.request)
    pictures = chosen.pop(IMAGE_TYPES[0], None)
    if pictures is not None:
        check_profile(parameters, pictures)
    return in_parts(retrieval, parameters, PartTypes(pictures, chosen))


def rendered_types(row: InstanceRow) -> tuple[str, ...]:
    return IMAGE_TYPES if can_be_drawn(row) else document_types(row)


def in_parts(
    retrieval: Retrieval, parameters: RenderingParameters, types: PartTypes, numbers: Sequence[int] = ()
) -> Answer:
    """A part for each frame, and for each document."""
    rows = (row for row in retrieval.selection.rows() if types.of(row))
    first, most = next(rows), retrieval.pool.max_rendered_pixels
    if parameters.viewport is not None and parameters.viewport.width * parameters.viewport.height > most:
        for row in filter(can_be_drawn, (first, *rows)):
            check_size(row, parameters, most)
    documents = ",".join(sorted(types.documents.values()))
    outer = types.of(first) or ""
    drawn = drawn_as(parameters, retrieval.pool.fonts)
    asked = (types.pictures or "", documents, "rendered", ",".join(map(str, numbers)), drawn)

    def body(boundary: bytes) -> Generator[bytes, None, None]:
        return parts_body(retrieval, in_order(retrieval, parameters, types, numbers), boundary)

    return retrieval.made_multipart((outer, *asked), body)


def in_order(
    retrieval: Retrieval, parameters: RenderingParameters, types: PartTypes, numbers: Sequence[int]
) -> Iterator[tuple[Renderer | Document, Sequence[int]]]:
    """The maker of the parts of each instance, with the indices of its frames; a document has one."""
    for row in retrieval.selection.rows():
        media_type = types.of(row)
        if media_type is None:
            continue
        if not can_be_drawn(row):
            yield Document(retrieval, row, media_type), (0,)
            continue
        indices = [number - 1 for number in numbers] or range(row.number_of_frames)
        description = retrieval.pool.descriptions.of(retrieval.store, row)
        yield renderer(retrieval, row, description, parameters, media_type), indices


@dataclass(slots=True)
class RenderedParts:
    """The parts of one answer. `first` is the first error, until there is a picture or document."""

    retrieval: Retrieval
    boundary: bytes
    first: StreamsrvError | None = None
    begun: bool = False
    held: list[bytes] = field(default_factory=list)

    def chunks(self, one: Renderer | Document, index: int, picture: Picture) -> Iterator[bytes]:
        """The bytes of one part, with the problems that wait for it."""
        if isinstance(one, Document):
            label, url = one.label, one.url
        else:
            label, url = one.media_type, picture_url(self.retrieval, one.row, index + 1)
        if isinstance(picture, StreamsrvError):
            yield from self._problem(url, picture)
            return
        yield from self._held()
        yield part_head(self.boundary, {"Content-Type": label, "Content-Location": url})
        for piece in picture:
            yield from piece_chunks(self.retrieval.selection, piece)
        yield PAYLOAD_END

    def _problem(self, url: str, error: StreamsrvError) -> Iterator[bytes]:
        if error.status >= 500:
            log.warning("[%s] a part cannot be made: %s", self.retrieval.request.request_id, error.detail)
        self.first = self.first or error
        self.held.append(part_head(self.boundary, {"Content-Type": PROBLEM, "Content-Location": url}))
        self.held.append(problem_text(error) + PAYLOAD_END)
        if self.begun or len(self.held) > 2 * HELD:
            yield from self._held()

    def _held(self) -> Iterator[bytes]:
        self.begun = True
        held, self.held = self.held, []
        yield from held

    def closing(self) -> bytes:
        """Raises the first error if there is no picture."""
        if not self.begun and self.first is not None:
            raise self.first
        return closing(self.boundary)


def parts_body(
    retrieval: Retrieval, makers: Iterable[tuple[Renderer | Document, Sequence[int]]], boundary: bytes
) -> Generator[bytes, None, None]:
    """The chunks of the answer. An empty chunk says that nothing is ready yet. `makers` come with the
    frame indices of their instances."""
    pool, parts = retrieval.pool, RenderedParts(retrieval, boundary)
    for turn in pool.in_turn(_tasks(makers)):
        if turn is None:
            yield b""
            continue
        (one, (indices, stored, error)), future = turn
        made: Sequence[Picture] = stored if error is None else [error]
        if future is not None:
            try:
                made = [[Literal(picture)] for picture, _ in pool.results(future)]
            except REPORTED as failure:
                if len(indices) > 1 and isinstance(one, Renderer):
                    yield from _one_by_one(one, indices, parts)
                    continue
                made = [failure]
        found = zip(indices, made, strict=True)
        yield from gathered(chunk for each in found for chunk in parts.chunks(one, *each))
    yield parts.closing()


def _one_by_one(one: Renderer, indices: Sequence[int], parts: RenderedParts) -> Iterator[bytes]:
    """The frames of a task that failed, each in a task of its own."""
    tasks = ((index, one.task([index], one.request(index))) for index in indices)
    for turn in one.pool.in_turn(tasks):
        if turn is None or (future := turn[1]) is None:
            yield b""
            continue
        index = turn[0]
        try:
            picture: Picture = [Literal(one.pool.results(future)[0][0])]
        except REPORTED as error:
            picture = error
        yield b"".join(parts.chunks(one, index, picture))


def _tasks(
    makers: Iterable[tuple[Renderer | Document, Sequence[int]]],
) -> Iterator[tuple[tuple[Renderer | Document, PictureBatch], PixelTask | None]]:
    for one, indices in makers:
        found = [_whole(one)] if isinstance(one, Document) else _batches(one, indices)
        for batch, task in found:
            yield (one, batch), task


def _whole(one: Document) -> tuple[PictureBatch, None]:
    try:
        return PictureBatch((0,), [one.pieces()]), None
    except NotFound as error:
        return PictureBatch((0,), error=error), None


def _batches(one: Renderer, indices: Sequence[int]) -> Iterator[tuple[PictureBatch, PixelTask | None]]:
    """The batches of a renderer. If a batch cannot be read, each of its frames is a batch of its own."""
    done = 0
    while done < len(indices):
        try:
            for batch, task in one.batches(indices[done:]):
                done += len(batch.indices)
                yield batch, task
        except REPORTED:
            yield _alone(one, indices[done])
            done += 1


def _alone(one: Renderer, index: int) -> tuple[PictureBatch, PixelTask | None]:
    try:
        return next(one.batches([index]))
    except REPORTED as error:
        return PictureBatch([index], error=error), None


def gathered(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in chunks of about READ bytes: each costs a turn through a thread."""
    waiting, length = [], 0
    for chunk in chunks:
        waiting.append(chunk)
        length += len(chunk)
        if length >= READ:
            yield b"".join(waiting)
            waiting, length = [], 0
    yield b"".join(waiting)


# An animation


def animated(
    retrieval: Retrieval, row: InstanceRow, parameters: RenderingParameters, numbers: Sequence[int]
) -> Answer | None:
    """An animated GIF. A few frames are drawn ahead, so it costs their memory, however long it is."""
    if retrieval.brief:
        return None
    description = retrieval.pool.descriptions.of(retrieval.store, row)
    one = renderer(retrieval, row, description, parameters, GIF)
    indices = animated_frames(one, numbers)
    representation = (GIF, drawn_as(parameters, retrieval.pool.fonts))
    return retrieval.made_single(representation, lambda _: animation(one, indices, len(numbers)))


def animated_frames(one: Renderer, numbers: Sequence[int]) -> Sequence[int]:
    """The frame indices that are shown. Raises BadRequest if the viewport asks for too many pixels."""
    row, most = one.row, one.pool.max_rendered_pixels * PICTURES
    columns, rows = picture_size(one.parameters.viewport, row.rows, row.columns)
    pixels = columns * rows
    count = min(len(numbers), ANIMATED_FRAMES)
    if pixels * count > most and pixels > row.rows * row.columns:
        raise BadRequest(
            f"the parameter viewport asks for an animation of {count} frames of {columns} x {rows} pixels; "
            f"this server makes at most {most} pixels in all"
        )
    return [number - 1 for number in spaced(numbers, max(1, min(count, most // max(pixels, 1))))]


def spaced(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` of them, evenly."""
    count = min(len(numbers), most)
    return [numbers[place * len(numbers) // count] for place in range(count)]


def animation(one: Renderer, indices: Sequence[int], of: int) -> Generator[bytes, None, None]:
    """The chunks of a GIF of these frames, in the time of a loop of `of` frames. An empty chunk says that
    nothing is ready yet."""
    columns, rows = picture_size(one.parameters.viewport, one.row.rows, one.row.columns)
    start = gif_opening(columns, rows)
    for turn in one.pool.in_turn(_animation_tasks(one, indices, of / len(indices))):
        if turn is None or turn[1] is None:
            yield b""
            continue
        blocks = [block for block, _ in one.pool.results(turn[1])]
        yield b"".join((start, *blocks))
        start = b""
    yield GIF_CLOSING


def _animation_tasks(
    one: Renderer, indices: Sequence[int], slower: float
) -> Iterator[tuple[None, PixelTask]]:
    for batch in batches(one.info, indices, one.scaled):
        for alike, request in one.alike(batch):
            shown = replace(request, milliseconds=request.milliseconds * slower)
            yield None, one.drawn(messages.animate_frames, alike, shown)


# Videos


def is_video(row: InstanceRow) -> bool:
    return has_frames(row) and lookup(row.transfer_syntax).media_type.startswith("video/")


def video(retrieval: Retrieval, row: InstanceRow, media_type: str) -> Answer:
    offer = accept.choose_image(retrieval.ranges(), (media_type,))
    pieces = next(frame_pieces(retrieval.store, retrieval.selection, row, [0]))
    part = Part(media_type, f"{instance_url(retrieval.request.base_url, *row.key)}/rendered", pieces)
    if not offer.multipart:
        return retrieval.single_part(part)
    return retrieval.multipart((media_type, "rendered"), lambda: [part], 1)
