"""Single frames of a series that have to be made, in one part: what a viewer asks for that wants another
transfer syntax than the stored one.

Strategy: as retrieve/cached_frames.py, but for all instances of a series, because each of them is asked for
once. What
`frames` has found out for one of them (the offer that was chosen, the pixels that there are) holds for every
other one whose row says the same of its pixels. So its row is looked up, the frame is made or remembered, and
an ETag, a boundary and a date are all that is left to find.

Rules
- The answer is the one that `frames` would give, byte for byte; whatever is not plain is left to it.
- What is remembered says nothing of bytes, and is bounded as in retrieve/cached_frames.py.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from framecodecs.frameinfo import FrameInfo
from streamsrv.errors import NotFound, WouldBlock
from streamsrv.pixels.pool import PixelPool
from streamsrv.pixels.transcoding import Transcoder, one_frame
from streamsrv.plans.parts import Part, pieces_of, total_length
from streamsrv.plans.selection import Selection
from streamsrv.retrieve.answering import CACHING, MAKER, Retrieval
from streamsrv.retrieve.cached_frames import is_settled, keep
from streamsrv.store import InstanceRow, Store
from streamsrv.wire.accept import Offer
from streamsrv.wire.answers import Answer, Literal, Request, Requester
from streamsrv.wire.conditional import etag_of, evaluate, http_date
from streamsrv.wire.multipart import boundary_from, multipart_type
from streamsrv.wire.resources import Kind, Target, instance_url

Key: TypeAlias = tuple[str | None, str | None, str, str | None]
# All that the choice of a representation, and the frames in it, depend on.
_pixels_of = attrgetter(
    "transfer_syntax",
    "frame_kind",
    "deflated",
    "rows",
    "columns",
    "samples_per_pixel",
    "bits_allocated",
    "pixel_facts",
)


class Shape(NamedTuple):
    """How frames of such pixels go out."""

    pixels: tuple[Any, ...]
    info: FrameInfo
    media_type: str
    syntax: str
    label: str


class Made(NamedTuple):
    """One frame, and what its answer says of it. `modified` is an HTTP date, empty where none is told."""

    etag: str
    boundary: bytes
    modified: str
    payload: bytes


_shapes: dict[Key, Shape] = {}


def learn(retrieval: Retrieval, row: InstanceRow, info: FrameInfo, offer: Offer) -> None:
    """The offer that was chosen for one frame, which is made."""
    request = retrieval.request
    if not offer.multipart or not row.pixel_facts or request.query or not retrieval.accepted().is_short:
        return
    key, pixels = _key(request, retrieval.target), _pixels_of(row)
    known = _shapes.get(key)
    if known is None or known.pixels != pixels:
        keep(_shapes, key, Shape(pixels, info, offer.media_type, offer.syntax, offer.content_type))


def _key(request: Request, target: Target) -> Key:
    return target.study, target.series, request.base_url, request.headers.get("accept")


def hot_series(store: Store, request: Request, target: Target, pool: PixelPool) -> HotSeries | None:
    """If a frame of it was made for the same words."""
    if target.kind is not Kind.FRAMES or len(target.frames) != 1 or request.query:
        return None
    shape = _shapes.get(_key(request, target))
    return None if shape is None else HotSeries(store, request, target, pool, shape)


class HotSeries:
    """Single frames of the instances of one series, for one client's words."""

    def __init__(self, store: Store, request: Request, target: Target, pool: PixelPool, shape: Shape) -> None:
        self._store = store
        self._request = request
        self._study, self._series = target.study or "", target.series or ""
        self._pool = pool
        self._shape = shape

    def frame(self, instance: str, number: int) -> Made | None:
        """None if it is not there, or has other pixels. Raises what making it raises; in the loop WouldBlock,
        which is finished by a Made."""
        try:
            selection = Selection(
                self._store, self._study, self._series, instance, (number - 1,), brief=self._pool.in_loop
            )
        except NotFound:
            return None
        try:
            row, shape = selection.one, self._shape
            if row is None or row.damaged or number > row.number_of_frames:
                return None
            if _pixels_of(row) != shape.pixels:
                return None
            requester = Requester(self._request.requester.address)
            made = Transcoder(
                self._store, selection, row, self._pool, shape.info, shape.syntax, requester=requester
            )
            finish = partial(self._made, row, selection.digest, number)
            try:
                return finish(one_frame(made, number - 1))
            except WouldBlock as blocked:
                blocked.finish = finish
                raise
        finally:
            selection.release()

    def _made(self, row: InstanceRow, digest: bytes, number: int, payload: bytes) -> Made:
        shape = self._shape
        etag = etag_of([digest], self._request.base_url, shape.media_type, shape.syntax, str(number), MAKER)
        modified = http_date(row.stored_at // 1_000_000) if is_settled(row) else ""
        return Made(etag, boundary_from(self._store.secret, etag), modified, payload)

    def answer(self, instance: str, number: str, etag: str, boundary: bytes, modified: str) -> Answer:
        """What is said of a frame that has no bytes."""
        shape, request = self._shape, self._request
        built = Answer(200, [("Content-Type", multipart_type(boundary, shape.media_type)), *CACHING])
        location = f"{instance_url(request.base_url, self._study, self._series, instance)}/frames/{number}"
        built.plan = plan = list(pieces_of((Part(shape.label, location, (Literal(b""),)),), boundary))
        built.length = total_length(plan)
        built = evaluate(request, built, etag)
        built.headers = [*built.headers, ("Last-Modified", modified)]
        return built
