"""A multipart answer with a picture for each frame of each instance that can be drawn, made while it is sent.

Rules of this file
- A frame that cannot be drawn costs its own part: that part is a problem (RFC 9457), with the
  Content-Location of the picture. Its neighbours in an order are made again, each in an order of its own.
- An answer without any picture is an error with a status. So problems wait for the first picture.
- An error that may not occur again (503) ends the connection instead: the parts of an answer with one ETag
  are the same each time.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from streamsrv.errors import BadRequest, NotAcceptable, StoreCorrupt, StreamsrvError
from streamsrv.pixels.pool import Order
from streamsrv.pixels.rendering import Renderer, Turn
from streamsrv.pixels.transcoding import READ, piece_chunks
from streamsrv.retrieve.answering import Retrieval
from streamsrv.store import InstanceRow
from streamsrv.wire.answers import Literal, Piece
from streamsrv.wire.multipart import closing, part_head
from streamsrv.wire.problems import PROBLEM, problem_text
from streamsrv.wire.resources import frame_url

log = logging.getLogger("streamsrv.pixels")

# Errors that a part can tell: they are there each time.
TOLD = (NotAcceptable, BadRequest, StoreCorrupt)
# Problems that wait for the first picture; some hundred bytes each.
HELD = 200

Picture = Sequence[Piece] | StreamsrvError
Task = tuple[Renderer, Turn]


def picture_url(retrieval: Retrieval, row: InstanceRow, number: int) -> str:
    return f"{frame_url(retrieval.request.base_url, *row.key, number)}/rendered"


@dataclass(slots=True)
class Parts:
    """The parts of one answer. `first` is the first error, until there is a picture."""

    retrieval: Retrieval
    media_type: str
    boundary: bytes
    first: StreamsrvError | None = None
    begun: bool = False
    held: list[bytes] = field(default_factory=list)

    def chunks(self, row: InstanceRow, index: int, picture: Picture) -> Iterator[bytes]:
        """The bytes of one part, with the problems that wait for it."""
        url = picture_url(self.retrieval, row, index + 1)
        if isinstance(picture, StreamsrvError):
            yield from self._problem(url, picture)
            return
        yield from self._held()
        yield part_head(self.boundary, {"Content-Type": self.media_type, "Content-Location": url})
        for piece in picture:
            yield from piece_chunks(self.retrieval.selection, piece)

    def _problem(self, url: str, error: StreamsrvError) -> Iterator[bytes]:
        if error.status >= 500:
            log.warning("[%s] a part cannot be made: %s", self.retrieval.request.request_id, error.detail)
        self.first = self.first or error
        self.held.append(part_head(self.boundary, {"Content-Type": PROBLEM, "Content-Location": url}))
        self.held.append(problem_text(error))
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


def pictures_body(
    retrieval: Retrieval,
    media_type: str,
    renderers: Iterable[tuple[Renderer, Sequence[int]]],
    boundary: bytes,
) -> Generator[bytes, None, None]:
    """The chunks of the answer. An empty chunk says that nothing is ready yet. `renderers` come with the
    frame indices of their instances."""
    pool, parts = retrieval.pool, Parts(retrieval, media_type, boundary)
    for turn in pool.in_turn(_tasks(renderers)):
        if turn is None:
            yield b""
            continue
        (one, (indices, stored, error)), future = turn
        made: Sequence[Picture] = stored if error is None else [error]
        if future is not None:
            try:
                made = [[Literal(picture)] for picture, _ in pool.results(future)]
            except TOLD as failure:
                if len(indices) > 1:
                    yield from _one_by_one(one, indices, parts)
                    continue
                made = [failure]
        found = zip(indices, made, strict=True)
        yield from gathered(chunk for each in found for chunk in parts.chunks(one.row, *each))
    yield parts.closing()


def _one_by_one(one: Renderer, indices: Sequence[int], parts: Parts) -> Iterator[bytes]:
    """The frames of an order that failed."""
    orders = ((index, one.order([index], one.request(index))) for index in indices)
    for turn in one.pool.in_turn(orders):
        if turn is None or (future := turn[1]) is None:
            yield b""
            continue
        index = turn[0]
        try:
            picture: Picture = [Literal(one.pool.results(future)[0][0])]
        except TOLD as error:
            picture = error
        yield b"".join(parts.chunks(one.row, index, picture))


def _tasks(
    renderers: Iterable[tuple[Renderer, Sequence[int]]],
) -> Iterator[tuple[Task, Order | None]]:
    for one, indices in renderers:
        for turn, order in _turns(one, indices):
            yield (one, turn), order


def _turns(one: Renderer, indices: Sequence[int]) -> Iterator[tuple[Turn, Order | None]]:
    """Those of a renderer. Where a batch of frames cannot be read, each frame is a turn of its own."""
    done = 0
    while done < len(indices):
        try:
            for turn, order in one.turns(indices[done:]):
                done += len(turn.indices)
                yield turn, order
        except TOLD:
            yield _alone(one, indices[done])
            done += 1


def _alone(one: Renderer, index: int) -> tuple[Turn, Order | None]:
    try:
        return next(one.turns([index]))
    except TOLD as error:
        return Turn([index], error=error), None


def gathered(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in chunks of some size: each takes a turn through a thread."""
    waiting, length = [], 0
    for chunk in chunks:
        waiting.append(chunk)
        length += len(chunk)
        if length >= READ:
            yield b"".join(waiting)
            waiting, length = [], 0
    yield b"".join(waiting)
