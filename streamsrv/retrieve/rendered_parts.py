"""Pictures and documents in the parts of one answer (PS3.18 10.4.1.1.3, 8.6.1.2): the frames of an instance,
or all of a study or series.

Rules of this file
- In a study or series, pictures and documents each have the best type that the client accepts. If it accepts
  none of them, these instances are left out. Videos are left out, too.
- The parts are made while they are sent. A frame that cannot be drawn costs its own part. That part is a
  problem (RFC 9457) with the Content-Location of the picture. An answer without any picture is an error with
  a status, so problems wait for the first picture.
- A temporary error (503) ends the connection: answers with one ETag have the same parts each time.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from framecodecs.rendering.pictures import ICC_FORMATS
from streamsrv.errors import BadRequest, NotAcceptable, NotFound, StoreCorrupt, StreamsrvError
from streamsrv.pixels.description import Description
from streamsrv.pixels.rendering import PictureBatch, Renderer, can_be_drawn, check_size
from streamsrv.pixels.tasks import PixelTask
from streamsrv.pixels.transcoding import READ, piece_chunks
from streamsrv.pixels.viewing import RenderingParameters
from streamsrv.retrieve.answering import MAKER, Retrieval
from streamsrv.retrieve.documents import Document, document_types
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.accept import IMAGE_TYPES, PAGE_TYPES
from streamsrv.wire.answers import Answer, Literal, Piece
from streamsrv.wire.codings import check_charset
from streamsrv.wire.multipart import PAYLOAD_END, closing, part_head
from streamsrv.wire.problems import PROBLEM, problem_text
from streamsrv.wire.resources import frame_url

log = logging.getLogger("streamsrv.pixels")

# Errors that a part reports: they occur each time.
REPORTED = (NotAcceptable, BadRequest, StoreCorrupt)
# Problems that wait for the first picture; some hundred bytes each.
HELD = 200
# The media types of each kind of instances, its default first.
KINDS = (IMAGE_TYPES, PAGE_TYPES, *((one,) for one in accept.DOCUMENT_TYPES if one not in PAGE_TYPES))

Picture = Sequence[Piece] | StreamsrvError


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


def picture_url(retrieval: Retrieval, row: InstanceRow, number: int) -> str:
    return f"{frame_url(retrieval.request.base_url, *row.key, number)}/rendered"


def drawn_as(parameters: RenderingParameters, fonts: tuple[str, ...] = ()) -> str:
    """The part of an ETag that says how a frame is drawn."""
    return f"{parameters!r} {MAKER} {','.join(fonts) if parameters.annotations else ''}"


def check_profile(parameters: RenderingParameters, media_type: str) -> None:
    """Raises BadRequest for a profile in a format that holds none (PS3.18 8.3.5.1.5)."""
    if parameters.icc_profile in ("yes", "srgb") and media_type not in ICC_FORMATS:
        raise BadRequest(f"the parameter iccprofile is no for {media_type}: it holds no profile here")


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
    types = part_types(retrieval)
    if not any(map(types.of, retrieval.selection.rows())):
        refuse(retrieval)
    if types.pictures is not None:
        check_profile(parameters, types.pictures)
    return in_parts(retrieval, parameters, types)


def part_types(retrieval: Retrieval) -> PartTypes:
    chosen, ranges = dict[str, str](), retrieval.ranges()
    for types in KINDS:
        with suppress(NotAcceptable):
            if types is PAGE_TYPES:
                check_charset(retrieval.request)
            chosen[types[0]] = accept.choose_bulk(ranges, types, single=False).media_type
    return PartTypes(chosen.pop(IMAGE_TYPES[0], None), chosen)


def refuse(retrieval: Retrieval) -> NoReturn:
    """Raises NotAcceptable, with the types that there are."""
    types = dict.fromkeys(one for row in retrieval.selection.rows() for one in rendered_types(row))
    if types:
        accept.choose_bulk(retrieval.ranges(), tuple(types), single=False)
        check_charset(retrieval.request)
    raise NotAcceptable("nothing here has pixels that could be rendered, or is a document", ())


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
    """The same bytes in chunks of about READ bytes: each costs a turn through a thread. An empty chunk ends
    one, because nothing is ready."""
    waiting, length = [], 0
    for chunk in chunks:
        waiting.append(chunk)
        length += len(chunk)
        if not chunk or length >= READ:
            yield b"".join(waiting)
            waiting, length = [], 0
    yield b"".join(waiting)
