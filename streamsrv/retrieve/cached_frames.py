"""Single frames that go out as stored, in one part: tiles of a slide, pictures of a series.

Strategy: `frames` finds out how the frames of an instance go out to whoever accepts what, and hands that over
(`learn`). The next frame of the same instance for the same words is answered from it: its row is looked up
as ever, and counts only if it is still the very same; then an entry of the frame table, an ETag and a
boundary are all that is left to find.

Rules
- The answer is the one that `frames` would give, byte for byte; whatever is not plain is left to it.
- What is remembered says nothing of bytes, and is bounded: SHAPES entries of about 1 kB.
- `hot_frames` hands what is remembered to whoever answers the same words again, with what to ask before each
  answer.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from typing import NamedTuple, TypeAlias, TypeVar

from streamsrv.dicom.instance import FRAGMENTED, FrameKind
from streamsrv.dicom.syntaxes import lookup
from streamsrv.errors import SegmentGone
from streamsrv.plans.parts import Part, pieces_of, total_length
from streamsrv.plans.payloads import span
from streamsrv.retrieve.answering import CACHING, Retrieval
from streamsrv.store import InstanceKey, InstanceRow, SegmentLease, Store
from streamsrv.wire.accept import Offer
from streamsrv.wire.answers import Answer, Request, Span
from streamsrv.wire.conditional import SETTLED, dated, etag_of, evaluate, not_modified
from streamsrv.wire.multipart import boundary_from, multipart_type
from streamsrv.wire.resources import Kind, Target, instance_url

SHAPES = 1024

Key: TypeAlias = tuple[InstanceKey, str, str | None]
K = TypeVar("K")
S = TypeVar("S")
_lock = threading.Lock()


class Shape(NamedTuple):
    """How the frames of an instance go out."""

    row: InstanceRow
    digest: bytes
    media_type: str
    syntax: str
    label: str
    url: str


_shapes: dict[Key, Shape] = {}


def learn(retrieval: Retrieval, row: InstanceRow, offer: Offer) -> None:
    """The offer that was chosen for one frame, as stored."""
    if not offer.multipart or not is_plain(row) or not retrieval.accepted().is_short:
        return
    url = instance_url(retrieval.request.base_url, *row.key)
    shape = Shape(row, retrieval.selection.digest, offer.media_type, offer.syntax, offer.content_type, url)
    remember(_shapes, retrieval.request, row.key, shape)


def remember(shapes: dict[Key, S], request: Request, key: InstanceKey, shape: S) -> None:
    """How the frames of an instance go out for these words."""
    keep(shapes, _key(request, key), shape)


def keep(shapes: dict[K, S], key: K, shape: S) -> None:
    """What was kept first is forgotten. Thread-safe."""
    with _lock:
        while len(shapes) >= SHAPES and key not in shapes:
            del shapes[next(iter(shapes))]
        shapes[key] = shape


def remembered(shapes: dict[Key, S], request: Request, target: Target) -> S | None:
    """What is remembered of the instance, if the target resource is one frame of it."""
    if len(target.frames) != 1 or request.query:
        return None
    key = InstanceKey(target.study or "", target.series or "", target.instance or "")
    return shapes.get(_key(request, key))


def is_settled(row: InstanceRow) -> bool:
    """Whether an answer says the same a moment later."""
    return time.time() - row.stored_at / 1e6 >= SETTLED


def is_plain(row: InstanceRow) -> bool:
    """Its frames lie in the segment as they go out."""
    if row.frame_kind is FrameKind.TABLE:
        return not row.deflated
    return (
        row.frame_kind is FrameKind.NATIVE and not row.deflated and lookup(row.transfer_syntax).little_endian
    )


def _key(request: Request, key: InstanceKey) -> Key:
    return key, request.base_url, request.headers.get("accept")


def _shape_of(request: Request, target: Target) -> Shape | None:
    return remembered(_shapes, request, target) if target.kind is Kind.FRAMES else None


def hot_frame(store: Store, request: Request, target: Target) -> Answer | None:
    """The answer, or None if it takes more than is remembered."""
    shape = _shape_of(request, target)
    if shape is None:
        return None
    number = target.frames[0]
    found = store.instance(shape.row.key, (number - 1,))
    if found is None or found[0] != shape.row or number > shape.row.number_of_frames:
        return None
    piece = _span(shape.row, number, found[1])
    if piece is None:
        return None
    try:
        lease = store.open_segments((piece.segment,))
    except SegmentGone:
        return None
    try:
        return _answer(store, request, shape, number, piece, lease)
    except BaseException:
        lease.release()
        raise


def hot_frames(store: Store, request: Request, target: Target) -> HotFrames | None:
    """For as long as they are asked for in the very same words; None unless `hot_frame` would answer with the
    whole frame, or if it would say something else a moment later."""
    shape = _shape_of(request, target)
    if shape is None or not is_settled(shape.row):
        return None
    return HotFrames(store, request, shape)


class Placed(NamedTuple):
    """One frame as stored, and what its answer says of it."""

    etag: bytes
    boundary: bytes
    span: Span


class HotInstance(ABC):
    """One instance, as long as it is the one that was learnt."""

    def __init__(self, store: Store, row: InstanceRow) -> None:
        self._store = store
        self._row = row
        self._moment = -1

    def moment(self) -> int:
        """The number of the index's last commit."""
        return self._store.version()

    def current(self, moment: int) -> bool:
        """Whether the instance is still the one that was learnt: looked up again after each commit, of which
        `moment` is the last."""
        if moment != self._moment:
            found = self._store.instance(self._row.key)
            if found is None or found[0] != self._row:
                return False
            self._moment = moment
        return True

    def lease(self, segment: int) -> SegmentLease | None:
        """None if it is gone."""
        try:
            return self._store.open_segments((segment,))
        except SegmentGone:
            return None

    @abstractmethod
    def at(self, number: int) -> Placed | None:
        """Where frame `number` lies; None if it is not there, or not in one piece."""

    @abstractmethod
    def answer(self, number: str, etag: str, boundary: bytes) -> Answer:
        """What is said of a frame that has no bytes."""


class HotFrames(HotInstance):
    """The single frames of one instance for one client's words."""

    def __init__(self, store: Store, request: Request, shape: Shape) -> None:
        super().__init__(store, shape.row)
        self._request = request
        self._shape = shape

    def at(self, number: int) -> Placed | None:
        piece = place_of(self._store, self._shape.row, number)
        if piece is None:
            return None
        etag = _etag(self._request, self._shape, number)
        return Placed(etag.encode("ascii"), boundary_from(self._store.secret, etag), piece)

    def answer(self, number: str, etag: str, boundary: bytes) -> Answer:
        return _built(self._request, self._shape, number, etag, boundary, Span(0, 0, 0))


def place_of(store: Store, row: InstanceRow, number: int) -> Span | None:
    """Of one frame, if it is there, in one piece."""
    if not 0 < number <= row.number_of_frames:
        return None
    try:
        table = row.frame_kind is FrameKind.TABLE
        return _span(row, number, store.frame_entries(row, (number - 1,)) if table else [])
    except SegmentGone:
        return None


def _span(row: InstanceRow, number: int, entries: list[tuple[int, int]]) -> Span | None:
    if row.frame_kind is FrameKind.NATIVE:
        return span(row, row.frame_base + (number - 1) * row.frame_stride, row.frame_stride)
    ((offset, length),) = entries
    return None if length & FRAGMENTED else span(row, offset, length)


def _answer(
    store: Store, request: Request, shape: Shape, number: int, piece: Span, lease: SegmentLease
) -> Answer:
    etag = _etag(request, shape, number)
    built = _built(request, shape, str(number), etag, boundary_from(store.secret, etag), piece)
    built.descriptor, built.release = lease.fd, lease.release
    return built


def _etag(request: Request, shape: Shape, number: int) -> str:
    return etag_of([shape.digest], request.base_url, shape.media_type, shape.syntax, str(number))


def _built(request: Request, shape: Shape, number: str, etag: str, boundary: bytes, piece: Span) -> Answer:
    built = Answer(200, [("Content-Type", multipart_type(boundary, shape.media_type)), *CACHING])
    if not not_modified(request, etag):
        part = Part(shape.label, f"{shape.url}/frames/{number}", (piece,))
        built.plan = plan = list(pieces_of((part,), boundary))
        built.length = total_length(plan)
    return dated(request, evaluate(request, built, etag), shape.row.stored_at / 1e6, time.time())
