"""Frames of one instance that are sent as they are stored, for a client that requests them one by one:
tiles of a slide, frames as pictures for `<img>`.

Strategy: after a request of this kind has succeeded, web/fastpath keeps the headers of its answer. For the
next frame it needs only the place of the frame, the entity tag and the boundary, which are found here.

If index or segments are on other machines, a frame needs no thread if it is at hand: the version of the
index, the place and the bytes. Else threads look frames up and read them (`read_frames`): all that wait at a
time together, after one question for the version of the index.

Rules
- The answer is the same as that of retrieve/frames.py or retrieve/pictures.py, byte for byte.
- Nothing waits for the disk: `at` returns None for a picture whose head is not in memory. If the store is
  `remote`, the calls that look something up block: `version`, `current`, `lease`, and `at` unless `brief`.
- After each commit the record id of the instance is compared: it may be deleted or replaced.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from framecodecs.frameinfo import FrameInfo
from streamsrv.dicom.instance import FRAGMENTED, FrameKind
from streamsrv.dicom.syntaxes import lookup
from streamsrv.errors import SegmentGone, StreamsrvError
from streamsrv.pixels.stored_pictures import JPEG, head_at_hand
from streamsrv.pixels.transcoding import stored_syntax
from streamsrv.pixels.viewing import RenderingParameters
from streamsrv.plans.payloads import Part, pieces_of, span, total_length
from streamsrv.retrieve import frames, pictures, rendered_parts
from streamsrv.retrieve.answering import CACHING, Retrieval, Rooms
from streamsrv.store import InstanceRow, Location, SegmentLease, Store
from streamsrv.wire.accept import Offer
from streamsrv.wire.answers import Answer, Request, Span
from streamsrv.wire.conditional import SETTLED, dated, etag_of, evaluate
from streamsrv.wire.multipart import boundary_from, multipart_type
from streamsrv.wire.resources import Kind, Target, instance_url

# Entries of a frame table that are read from a database at a time, and that are kept.
ENTRIES, ENTRIES_KEPT = 64, 16_384
# Bytes of the longest frame that a thread reads into memory.
LARGEST_READ = 64 << 10


Found: TypeAlias = "CachedInstance | Callable[[], CachedInstance | None] | None"


class PlacedFrame(NamedTuple):
    """One stored frame, and the validators of its answer."""

    etag: bytes
    boundary: bytes
    span: Span


class CachedInstance(ABC):
    """One instance, as long as it is neither deleted nor replaced."""

    def __init__(self, retrieval: Retrieval, row: InstanceRow) -> None:
        self._store: Store = retrieval.store
        self._request: Request = retrieval.request
        self._digest = retrieval.selection.digest
        self._row = row
        self._version = -1
        self._entries: dict[int, tuple[int, int]] = {}

    @property
    def remote(self) -> bool:
        """Whether all calls block."""
        return self._store.remote

    def version(self) -> int:
        """The version of the index."""
        return self._store.version()

    def version_at_hand(self) -> int | None:
        """As `Store.version_at_hand`."""
        return self._store.version_at_hand()

    def is_current(self, version: int) -> bool | None:
        """As `current`, without waiting. None if a thread has to find out."""
        if version == self._version:
            return True
        return None if self.remote else self.current(version)

    def current(self, version: int) -> bool:
        """Whether the instance is unchanged. It is looked up again after each commit; `version` is that of
        the index now."""
        if version != self._version:
            found = self._store.instance(self._row.key)
            if found is None or found[0].record_id != self._row.record_id or found[0].damaged:
                return False
            self._row, self._version = found[0], version
        return True

    def lease(self, segment: int) -> SegmentLease | None:
        """None if the segment is gone."""
        try:
            return self._store.open_segments((segment,))
        except SegmentGone:
            return None

    def _place(self, number: int, *, brief: bool) -> Span | None:
        """None if the frame does not exist, or is fragmented; also if it is not at hand, with `brief`."""
        row = self._row
        if not 0 < number <= row.number_of_frames:
            return None
        if row.frame_kind is FrameKind.NATIVE:
            return span(row, row.frame_base + (number - 1) * row.frame_stride, row.frame_stride)
        try:
            entry = self._entry(number - 1, brief=brief)
        except SegmentGone:
            return None
        return None if entry is None or entry[1] & FRAGMENTED else span(row, *entry)

    def _entry(self, index: int, *, brief: bool) -> tuple[int, int] | None:
        if not self.remote:
            (entry,) = self._store.frame_entries(self._row, (index,))
            return entry
        found = self._entries.get(index)
        if found is None and not brief:
            first = index - index % ENTRIES
            indices = range(first, min(first + ENTRIES, self._row.number_of_frames))
            entries = self._store.frame_entries(self._row, indices)
            if len(self._entries) >= ENTRIES_KEPT:
                self._entries = {}
            self._entries.update(zip(indices, entries, strict=True))
            found = entries[index - first]
        return found

    def _answer(self, built: Answer, etag: str) -> Answer:
        return dated(
            self._request, evaluate(self._request, built, etag), self._row.stored_at / 1e6, time.time()
        )

    @abstractmethod
    def at(self, number: int, *, brief: bool = False) -> PlacedFrame | None:
        """The place of frame `number`; None if it does not exist, or is not sent in one piece. With `brief`
        also if only a thread can find it."""

    @abstractmethod
    def answer(self, number: str, etag: str, boundary: bytes) -> Answer:
        """The answer with a frame of no bytes."""


class CachedFrames(CachedInstance):
    def __init__(self, retrieval: Retrieval, row: InstanceRow, offer: Offer) -> None:
        super().__init__(retrieval, row)
        self._offer = offer
        self._url = instance_url(self._request.base_url, *row.key)

    def at(self, number: int, *, brief: bool = False) -> PlacedFrame | None:
        piece = self._place(number, brief=brief)
        if piece is None:
            return None
        representation = frames.representation(self._offer, (number,))
        etag = etag_of([self._digest], self._request.base_url, *representation)
        return PlacedFrame(etag.encode("ascii"), boundary_from(self._store.secret, etag), piece)

    def answer(self, number: str, etag: str, boundary: bytes) -> Answer:
        part = Part(self._offer.content_type, f"{self._url}/frames/{number}", (Span(0, 0, 0),))
        plan = list(pieces_of((part,), boundary))
        content_type = multipart_type(boundary, self._offer.media_type)
        built = Answer(200, [("Content-Type", content_type), *CACHING], plan, total_length(plan))
        return self._answer(built, etag)


class CachedPictures(CachedInstance):
    def __init__(self, retrieval: Retrieval, row: InstanceRow, info: FrameInfo) -> None:
        super().__init__(retrieval, row)
        self._info = info
        self._drawn_as = rendered_parts.drawn_as(RenderingParameters())
        self._path = self._request.path.rpartition("/frames/")[0]

    def at(self, number: int, *, brief: bool = False) -> PlacedFrame | None:
        """None also if the frame is no picture as it is stored."""
        piece = self._place(number, brief=brief)
        lease = None if piece is None else self.lease(piece.segment)
        if piece is None or lease is None:
            return None
        try:
            head = head_at_hand(*lease.file_at(piece.segment, piece.offset), piece.length, self._info)
        finally:
            lease.release()
        if head is None or head.has_profile:
            return None
        path = f"{self._path}/frames/{number}/rendered"
        etag = etag_of([self._digest], path, JPEG, self._drawn_as)
        return PlacedFrame(etag.encode("ascii"), b"", piece)

    def answer(self, number: str, etag: str, boundary: bytes) -> Answer:
        built = Answer(200, [("Content-Type", JPEG), *CACHING], [Span(0, 0, 0)])
        return self._answer(built, etag)


@dataclass(slots=True, eq=False)
class AskedFrame:
    """A frame that a client of a remote store waits for. `placed` stays None if it cannot be sent so, and
    `content` if it is long. The caller releases the lease."""

    instance: CachedInstance
    number: int
    placed: PlacedFrame | None = None
    content: bytes | None = None
    lease: SegmentLease | None = None
    version: int = 0  # of the index, before the lease


def read_frames(asked: Sequence[AskedFrame], done: Callable[[Sequence[AskedFrame]], None]) -> None:
    """Looks frames up after at most one question for the version, and reads them. `done` is called with each
    of them once: at the end of this call, or by another thread when a frame has been fetched. Blocking."""
    read = list(asked)
    try:
        version = asked[0].instance.version_at_hand()
        if version is None:
            version = asked[0].instance.version()
        for each in asked:
            if _place_and_read(each, version, done):
                read.remove(each)
    except (StreamsrvError, OSError):
        pass  # another way answers, with the reason
    finally:
        done(read)


def _place_and_read(each: AskedFrame, version: int, done: Callable[[Sequence[AskedFrame]], None]) -> bool:
    """Whether another thread fetches the frame, and calls `done`."""
    placed = None
    if each.instance.current(version):
        placed = each.placed or each.instance.at(each.number)
    each.placed, each.version = None, version
    if placed is None:
        return False
    place = Location(placed.span.segment, placed.span.offset, placed.span.length)
    each.lease = lease = each.instance.lease(place.segment)
    if lease is None:
        return False
    each.placed = placed
    if place.length > LARGEST_READ:
        return False
    if lease.fetcher is None:
        each.content = lease.pread(*place)
        return False
    each.content = lease.fetcher.read_here(place)
    if each.content is not None:
        return False

    def fetched(ahead: Future[bytes]) -> None:
        if ahead.exception() is None:
            each.content = ahead.result()
        else:
            each.placed = None
        done([each])

    lease.fetcher.ahead(lambda: lease.pread(*place)).add_done_callback(fetched)
    return True


def cached_frames(rooms: Rooms, request: Request, target: Target) -> CachedInstance | None:
    """The frames of an instance for one client. None unless the request is for one frame that is sent as it
    is stored, in one piece, with an answer that stays the same. None also for pictures of a remote store.
    Blocks if the store is remote."""
    if target.kind not in (Kind.FRAMES, Kind.RENDERED) or len(target.frames) != 1 or request.query:
        return None
    if rooms.store.remote and target.kind is Kind.RENDERED:
        return None
    try:
        selection = rooms.selections.at_hand(target)
    except StreamsrvError:
        return None
    if selection is None:
        return None
    try:
        retrieval = Retrieval(rooms, request, target, selection, brief=True)
        return _frames(retrieval) if target.kind is Kind.FRAMES else _pictures(retrieval)
    except StreamsrvError:
        return None
    finally:
        selection.release()


def _frames(retrieval: Retrieval) -> CachedFrames | None:
    row = next(retrieval.selection.rows())
    frames.check_frames(row, retrieval.target.frames)
    if not _is_plain(row) or not retrieval.accepted().is_short:
        return None
    offer = frames.chosen(retrieval, row, single=True)
    if offer is None or not offer.multipart or offer.syntax != stored_syntax(row):
        return None
    return CachedFrames(retrieval, row, offer)


def _pictures(retrieval: Retrieval) -> CachedPictures | None:
    row = next(retrieval.selection.rows())
    frames.check_frames(row, retrieval.target.frames)
    description = retrieval.description(row)
    if description is None or not _is_plain(row) or not retrieval.accepted().is_short:
        return None
    if description.frames and description.info.samples_per_pixel == 1:
        return None  # each frame may have a window of its own
    offer = pictures.image_offer(retrieval, single=True)
    parameters = RenderingParameters()
    renderer = rendered_parts.renderer(retrieval, row, description, parameters, offer.media_type)
    pieces = None if offer.multipart else renderer.stored(retrieval.target.frames[0] - 1, brief=True)
    return CachedPictures(retrieval, row, description.info) if pieces and len(pieces) == 1 else None


def _is_plain(row: InstanceRow) -> bool:
    """Whether frames lie in the segment as they are sent, and their answer stays the same."""
    if row.damaged or row.deflated or time.time() - row.stored_at / 1e6 < SETTLED:
        return False
    if row.frame_kind is FrameKind.TABLE:
        return True
    return row.frame_kind is FrameKind.NATIVE and lookup(row.transfer_syntax).little_endian
