"""The parts of every retrieve answer: one request as a value, single-part and multipart answers with their
validators, and the digest of a whole representation on request (RFC 9530).

Strategy of digests: for a request with Want-Repr-Digest the stored bytes of the instance are read twice: to
compare them with the digest of their arrival, and to compute the requested digest. So the digest never
vouches for damaged bytes. Nothing is cached, because bytes may become damaged at any time.

Rules of this file
- If the client has the representation already, nothing is read or made.
- A body that is made while it is sent begins before the answer does: an error until then is a status.
- Only answers of single instances have a digest: Part 10 files, frames and bulk data, stored or transcoded.
- Want-Repr-Digest is ignored if the length of the answer is unknown, or too much would have to be read.
"""

from __future__ import annotations

import hashlib
import time
from base64 import b64encode
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, TypeAlias

from framecodecs.frameinfo import FrameInfo
from streamsrv import __version__
from streamsrv.errors import SegmentGone
from streamsrv.pixels.description import Description
from streamsrv.pixels.pool import PixelPool, left_early
from streamsrv.pixels.tasks import FrameJob
from streamsrv.pixels.transcoding import piece_chunks
from streamsrv.plans.fetching import fetched
from streamsrv.plans.payloads import Part, PartSource, multipart_plan, total_length
from streamsrv.plans.selection import Selection, Selections
from streamsrv.retrieve.turns import Turns
from streamsrv.store import InstanceRow, Store
from streamsrv.wire import accept
from streamsrv.wire.accept import LONGEST_REMEMBERED
from streamsrv.wire.answers import Answer, ByteStream, Deferred, Literal, Pending, Piece, Request, resolved
from streamsrv.wire.conditional import dated, etag_of, evaluate, not_modified
from streamsrv.wire.multipart import PAYLOAD_END, boundary_from, multipart_type, part_head
from streamsrv.wire.resources import Kind, Target

# Viewers revalidate with If-None-Match; a shared cache keeps nothing of a patient.
CACHING = (("Vary", "Accept"), ("Cache-Control", "private, no-cache"))

# Another version may encode pixels differently, and ranges of two versions must not be joined.
MAKER = f"streamsrv {__version__}"
# Active algorithms of the registry "Hash Algorithms for HTTP Digest Fields"; of equal weights the first.
ALGORITHMS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
# Bytes of the longest instance that is read for a digest.
LONGEST = {Kind.INSTANCES: 4 << 30, Kind.FRAMES: 256 << 20, Kind.BULKDATA: 256 << 20}

# None: the plan cannot be made without blocking.
Planned: TypeAlias = Answer | Pending | None
Planner: TypeAlias = Callable[[bytes], tuple[Iterable[Piece], int | None]]  # boundary -> plan and length
Body: TypeAlias = Callable[[bytes], Generator[bytes, None, None]]  # boundary -> the same bytes at each call


class Accepted(NamedTuple):
    """The media types that the client accepts, unparsed."""

    header: str | None
    queries: tuple[str, ...]

    def ranges(self) -> Sequence[accept.AcceptableRange]:
        return accept.parse_accept(self.header, self.queries)

    @property
    def is_short(self) -> bool:
        """Whether a choice is worth a place in a cache."""
        return not self.queries and len(self.header or "") <= LONGEST_REMEMBERED


class Rooms(NamedTuple):
    """The rooms below, and the state that requests share."""

    store: Store
    pool: PixelPool
    selections: Selections
    turns: Turns


@dataclass(slots=True)
class Retrieval:
    """One retrieve transaction. If it is `brief`, the event loop calls, and nothing may block: a plan that
    cannot be made so is None. `end` calls the `endings`, the last one first, when the answer is sent."""

    rooms: Rooms
    request: Request
    target: Target
    selection: Selection
    brief: bool = False
    endings: list[Callable[[], None]] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return self.rooms.store

    @property
    def pool(self) -> PixelPool:
        return self.rooms.pool

    @property
    def turns(self) -> Turns:
        return self.rooms.turns

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

    def description(self, row: InstanceRow) -> Description | None:
        """None if the retrieval is brief and the metadata are long."""
        descriptions = self.pool.descriptions
        return descriptions.at_hand(self.store, row) if self.brief else descriptions.of(self.store, row)

    def frame_info(self, row: InstanceRow) -> FrameInfo | None:
        """None if the retrieval is brief and the metadata are long. Raises NotAcceptable."""
        descriptions = self.pool.descriptions
        return (
            descriptions.info_at_hand(self.store, row) if self.brief else descriptions.info(self.store, row)
        )

    # Answers

    def single_part(self, part: Part, *representation: str) -> Answer:
        """`representation` is everything on which the bytes depend beyond the path and the media type."""
        etag = etag_of([self.selection.digest], self.request.path, part.media_type, *representation)
        plan = [] if not_modified(self.request, etag) else list(part.pieces)
        headers = [("Content-Type", part.media_type), *CACHING]
        if part.location:
            headers.append(("Content-Location", part.location))
        return evaluate(self.request, Answer(200, headers, plan, total_length(plan)), etag)

    def multipart(self, representation: tuple[str, ...], parts: PartSource, count: int) -> Answer:
        """`representation` begins with the media type of the parts, and differs from every other
        representation of the same instances."""
        return self.planned(representation, lambda boundary: multipart_plan(parts, count, boundary))

    def planned(self, representation: tuple[str, ...], planner: Planner) -> Answer:
        """A multipart answer with the plan that `planner` makes."""
        etag, boundary, built = self._multipart(representation)
        if not not_modified(self.request, etag):
            built.plan, built.length = planner(boundary)
        return evaluate(self.request, built, etag)

    def made_multipart(self, representation: tuple[str, ...], body: Body) -> Answer:
        """A multipart answer whose body is made while it is sent, of unknown length."""
        etag, boundary, built = self._multipart(representation)
        return self._made(etag, boundary, built, body)

    def made_single(self, representation: tuple[str, ...], body: Body) -> Answer:
        """A single part that is made while it is sent. `representation` begins with its media type."""
        etag = etag_of([self.selection.digest], self.request.path, *representation)
        built = Answer(200, [("Content-Type", representation[0]), *CACHING])
        return self._made(etag, b"", built, body)

    def _made(self, etag: str, boundary: bytes, built: Answer, body: Body) -> Answer:
        if not not_modified(self.request, etag):
            opened = Opened(body, boundary)
            self.endings.append(opened.close)
            built.plan, built.length = [ByteStream(opened.chunks, None)], None
        return evaluate(self.request, built, etag)

    def _multipart(self, representation: tuple[str, ...]) -> tuple[str, bytes, Answer]:
        etag = etag_of([self.selection.digest], self.request.base_url, *representation)
        boundary = boundary_from(self.store.secret, etag)
        content_type = multipart_type(boundary, representation[0])
        return etag, boundary, Answer(200, [("Content-Type", content_type), *CACHING])

    def pooled(
        self,
        job: FrameJob,
        answer: Callable[[Retrieval, Sequence[Piece]], Answer],
        recover: Callable[[Retrieval, Exception], Answer],
    ) -> Planned:
        """The answer with one frame or picture that the pixel pool makes. `answer` reads nothing from the
        store. `recover` makes another answer if the frame cannot be made, or raises the error."""
        if "if-none-match" in self.request.headers:
            head = replace(self, request=replace(self.request, method="HEAD"))
            if (unmade := answer(head, ())).status == 304:
                return unmade
        found = self.pool.frame(job, in_loop=self.brief)
        if found is None:
            return None
        if isinstance(found, bytes):
            return answer(self, (Literal(found),))
        if self.request.requester.left:
            self.pool.leave(job, found)
            raise left_early()
        return Pending(
            found,
            finish=lambda made: answer(self, (Literal(made),)),
            cancel=partial(self.pool.leave, job, found),
            recover=partial(self._recovered, recover),
        )

    def _recovered(
        self, recover: Callable[[Retrieval, Exception], Answer], error: Exception
    ) -> Answer | Deferred:
        """The segments were released while the frame was made: the instance is looked up again."""

        def answer() -> Answer:
            planned = plan_answer(
                self.rooms, self.request, self.target, lambda again: recover(again, error), brief=False
            )
            if not isinstance(planned, Answer):
                raise error
            return planned

        return Deferred(answer) if self.store.remote else answer()


def plan_answer(
    rooms: Rooms,
    request: Request,
    target: Target,
    plan: Callable[[Retrieval], Planned],
    *,
    brief: bool,
) -> Planned:
    """Selects the instances and makes their answer, which releases the segments when it is sent."""
    selection = rooms.selections.at_hand(target) if brief else rooms.selections.select(target)
    if selection is None:
        return None
    retrieval = Retrieval(rooms, request, target, selection, brief, [selection.release])
    try:
        if target.kind is not Kind.METADATA:
            selection.require_undamaged()
        planned = plan(retrieval)
    except SegmentGone as gone:
        retrieval.end()
        raise selection.loss(gone) from gone
    except BaseException:
        retrieval.end()
        raise
    if isinstance(planned, Answer) and planned.release is None:
        planned.file_at, planned.release = selection.lease.file_at, retrieval.end
        try:
            return fetched(_dated(request, selection, planned), selection.lease)
        except SegmentGone as gone:
            raise selection.loss(gone) from gone
    retrieval.end()
    if isinstance(planned, Pending):
        finish = planned.finish
        planned.finish = lambda made: _dated(request, selection, finish(made))
    return planned


def _dated(request: Request, selection: Selection, built: Answer) -> Answer:
    """An instance changes only if it is replaced. A study or series may also lose instances, and a deletion
    leaves no date."""
    row = selection.one
    if row is None:
        return built
    return dated(request, built, row.stored_at / 1e6, time.time())


def part_chunks(selection: Selection, part: Part, boundary: bytes) -> Iterator[bytes]:
    """The bytes of one part, with the CRLF before the next delimiter."""
    yield part_head(boundary, {"Content-Type": part.media_type, "Content-Location": part.location})
    for piece in part.pieces:
        yield from piece_chunks(selection, piece)
    yield PAYLOAD_END


class Opened:
    """A body whose first chunk is made."""

    def __init__(self, body: Body, boundary: bytes) -> None:
        self._body = body
        self._boundary = boundary
        self._chunks = body(boundary)
        # An empty chunk says that nothing is ready yet: an error has to be a status.
        self._first: bytes | None = next(filter(None, self._chunks), b"")

    def chunks(self, start: int, stop: int | None) -> Iterator[bytes]:
        first, self._first = self._first, None
        if first is None:  # a second pass
            self._chunks = self._body(self._boundary)
        else:
            yield first
        yield from self._chunks

    def close(self) -> None:
        """Cancels the tasks of the body. Only while no thread is in it."""
        self._chunks.close()


def wanted_digest(request: Request) -> str | None:
    """The algorithm that Want-Repr-Digest prefers (RFC 9530 4): a dictionary of weights from 0 to 10, 0 for
    not acceptable. Members that are malformed or not known are ignored."""
    field = request.headers.get("want-repr-digest")
    if field is None:
        return None
    weights: dict[str, int] = {}
    for member in field.split(","):
        name, _, value = member.partition(";")[0].strip().partition("=")
        if name in ALGORITHMS and value.isascii() and value.isdecimal() and len(value) <= 2:
            weights[name] = int(value)
    chosen = max(ALGORITHMS, key=lambda name: weights.get(name, 0))
    return chosen if 1 <= weights.get(chosen, 0) <= 10 else None


def with_digest(algorithm: str, plan: Callable[[Retrieval], Planned], retrieval: Retrieval) -> Answer | None:
    """The planned answer with Repr-Digest, if it has one. Blocking. Raises InstanceDamaged."""
    planned = plan(retrieval)
    if planned is None:
        return None
    built = resolved(planned)
    if built.status in (200, 206) and (digest := digest_of(retrieval, algorithm, plan)):
        built.headers = [*built.headers, ("Repr-Digest", digest)]
    return built


def digest_of(retrieval: Retrieval, algorithm: str, plan: Callable[[Retrieval], Planned]) -> str | None:
    """The value of Repr-Digest. None if too much would have to be read."""
    row, longest = retrieval.selection.one, LONGEST.get(retrieval.target.kind, 0)
    if row is None or row.location.length > longest:
        return None
    headers = {name: value for name, value in retrieval.request.headers.items() if name == "accept"}
    planned = plan(replace(retrieval, request=replace(retrieval.request, method="GET", headers=headers)))
    whole = None if planned is None else resolved(planned)
    if whole is None or whole.length is None or whole.length > longest:
        return None
    retrieval.store.require_whole(row, retrieval.selection.lease)
    running = ALGORITHMS[algorithm]()
    for piece in whole.plan:
        for chunk in piece_chunks(retrieval.selection, piece):
            running.update(chunk)
    if whole.release is not None:
        whole.release()
    return f"{algorithm}=:{b64encode(running.digest()).decode('ascii')}:"
