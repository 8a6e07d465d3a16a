"""What every retrieve answer is made of: one request as a value, single-part and multipart answers with their
validators.

Rules of this file
- A client that has the representation already is told so before anything is read or made.
- What is made while it is sent begins before the answer does: until then what goes wrong is a status.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from streamsrv import __version__
from streamsrv.errors import WouldBlock
from streamsrv.pixels.pool import PixelPool
from streamsrv.plans.parts import PartSource, multipart_plan, total_length
from streamsrv.plans.selection import Selection
from streamsrv.store import Store
from streamsrv.wire import accept
from streamsrv.wire.accept import LONGEST_REMEMBERED
from streamsrv.wire.answers import Answer, Literal, Piece, Request, Stream
from streamsrv.wire.conditional import etag_of, evaluate, is_conditional, not_modified
from streamsrv.wire.multipart import boundary_from, multipart_type
from streamsrv.wire.resources import Target

# Viewers revalidate with If-None-Match; a shared cache keeps nothing of a patient.
CACHING = (("Vary", "Accept"), ("Cache-Control", "private, no-cache"))

# What is made may come out otherwise in another version, and ranges of the two must not be glued together.
MAKER = f"streamsrv {__version__}"

Planner = Callable[[bytes], tuple[Iterable[Piece], int | None]]  # of a boundary: plan and length
Body = Callable[[bytes], Generator[bytes, None, None]]  # of a boundary; the same bytes at each call


class Accepted(NamedTuple):
    """What the client accepts, in its own words."""

    header: str | None
    queries: tuple[str, ...]

    def ranges(self) -> Sequence[accept.AcceptableRange]:
        return accept.parse_accept(self.header, self.queries)

    @property
    def is_short(self) -> bool:
        """Such choices are worth remembering, and bounded when there are many of them."""
        return not self.queries and len(self.header or "") <= LONGEST_REMEMBERED


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One retrieve transaction: what is asked for, of which instances, and with what it can be made.
    `end` is called when its answer is not needed any more: it calls `endings`, the last one first."""

    store: Store
    pool: PixelPool
    request: Request
    target: Target
    selection: Selection
    endings: list[Callable[[], None]] = field(default_factory=list)

    def end(self) -> None:
        if self.endings:
            try:
                self.endings.pop()()
            finally:
                self.end()

    def accepted(self) -> Accepted:
        queries = tuple(value for name, value in self.request.query if name == "accept")
        return Accepted(self.request.headers.get("accept"), queries)

    def ranges(self) -> Sequence[accept.AcceptableRange]:
        return self.accepted().ranges()

    def single_part(self, media_type: str, pieces: Iterable[Piece], *representation: str) -> Answer:
        """`representation` is whatever the bytes depend on beyond the path and the media type. A generator of
        pieces is run only if they are wanted."""
        etag = etag_of([self.selection.digest], self.request.path, media_type, *representation)
        plan = [] if not_modified(self.request, etag) else list(pieces)
        built = Answer(200, [("Content-Type", media_type), *CACHING], plan, total_length(plan))
        return evaluate(self.request, built, etag)

    def multipart(self, representation: tuple[str, ...], parts: PartSource, count: int) -> Answer:
        """`representation` begins with the media type of the parts and tells it from every other of the
        same instances."""
        return self.planned(representation, lambda boundary: multipart_plan(parts, count, boundary))

    def planned(self, representation: tuple[str, ...], planner: Planner) -> Answer:
        """The same of whatever plans the parts."""
        etag, boundary, built = self._multipart(representation)
        if not not_modified(self.request, etag):
            built.plan, built.length = planner(boundary)
        return evaluate(self.request, built, etag)

    def made_multipart(self, representation: tuple[str, ...], body: Body) -> Answer:
        """Multipart, its body made while it is sent, of a length that only its end tells."""
        etag, boundary, built = self._multipart(representation)
        return self._made(etag, boundary, built, body)

    def made_single(self, representation: tuple[str, ...], body: Body) -> Answer:
        """A single part, made in the same way. `representation` begins with its media type."""
        etag = etag_of([self.selection.digest], self.request.path, *representation)
        built = Answer(200, [("Content-Type", representation[0]), *CACHING])
        return self._made(etag, b"", built, body)

    def _made(self, etag: str, boundary: bytes, built: Answer, body: Body) -> Answer:
        if not not_modified(self.request, etag):
            opened = Opened(body, boundary)
            self.endings.append(opened.close)
            built.plan, built.length = [Stream(opened.chunks, None)], None
        return evaluate(self.request, built, etag)

    def _multipart(self, representation: tuple[str, ...]) -> tuple[str, bytes, Answer]:
        etag = etag_of([self.selection.digest], self.request.base_url, *representation)
        boundary = boundary_from(self.store.secret, etag)
        content_type = multipart_type(boundary, representation[0])
        return etag, boundary, Answer(200, [("Content-Type", content_type), *CACHING])


def finished(
    request: Request, answer: Callable[[Iterable[Piece]], Answer], pieces: Iterable[Piece]
) -> Answer:
    """The answer of one piece that may have to be waited for. Whoever has waited finishes it with what was
    made, and nothing is looked up a second time. Whatever else an answer needs comes after it, unless its
    conditions may show that nothing has to be made."""
    try:
        return answer(pieces if is_conditional(request.headers) else tuple(pieces))
    except WouldBlock as blocked:
        blocked.finish = lambda made: answer((Literal(made),))
        raise


class Opened:
    """A body whose first chunk is there."""

    def __init__(self, body: Body, boundary: bytes) -> None:
        self._body = body
        self._boundary = boundary
        self._chunks = body(boundary)
        # An empty chunk says that nothing is ready yet: what cannot be made has to be a status.
        self._first: bytes | None = next(filter(None, self._chunks), b"")

    def chunks(self, start: int, stop: int | None) -> Iterator[bytes]:
        first, self._first = self._first, None
        if first is None:  # walked before: anew
            self._chunks = self._body(self._boundary)
        else:
            yield first
        yield from self._chunks

    def close(self) -> None:
        """Cancels what is under way. Only when no thread is in it."""
        self._chunks.close()
