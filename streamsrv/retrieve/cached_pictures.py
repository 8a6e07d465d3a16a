"""Single frames that go out as stored because they are the picture: tiles of a slide for `<img>`.

Strategy: as cached_frames. What `pictures` found out of one frame of an instance is remembered for the
client's
words (`learn`); of each other frame its place is looked up, and its head is judged, before it counts.

Rules
- Only what is a stored frame in one piece and nothing else: no profile put in, no query.
- Nothing waits for the disk: a head that is not in memory is left to `pictures`.
- What is remembered is bounded: cached_frames.SHAPES entries of about 1 kB.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from framecodecs.frameinfo import FrameInfo
from streamsrv.pixels.description import Description
from streamsrv.pixels.stored_pictures import JPEG, head_at_hand
from streamsrv.retrieve import cached_frames
from streamsrv.retrieve.answering import CACHING, Retrieval
from streamsrv.retrieve.cached_frames import HotInstance, Placed, place_of
from streamsrv.store import InstanceRow, Store
from streamsrv.wire.answers import Answer, Piece, Request, Span
from streamsrv.wire.conditional import dated, etag_of, evaluate
from streamsrv.wire.resources import Kind, Target


class PictureShape(NamedTuple):
    """How the frames of an instance go out as pictures. `drawn_as` is what their ETag knows."""

    row: InstanceRow
    digest: bytes
    info: FrameInfo
    drawn_as: str


_shapes: dict[cached_frames.Key, PictureShape] = {}


def learn(
    retrieval: Retrieval,
    row: InstanceRow,
    description: Description,
    pieces: Sequence[Piece],
    drawn_as: str,
) -> None:
    """The pieces of one frame, as stored, that are its picture in a single part."""
    target, request = retrieval.target, retrieval.request
    is_one = target.kind is Kind.RENDERED and len(target.frames) == 1 and not request.query
    if not is_one or len(pieces) > 1 or not retrieval.accepted().is_short:
        return
    if description.frames and description.info.samples_per_pixel == 1:
        return  # each may have a window of its own
    shape = PictureShape(row, retrieval.selection.digest, description.info, drawn_as)
    cached_frames.remember(_shapes, request, row.key, shape)


def hot_answers(store: Store, request: Request, target: Target) -> HotInstance | None:
    """Of single frames, or of single frames as pictures; None of anything else."""
    if target.kind is not Kind.RENDERED:
        return cached_frames.hot_frames(store, request, target)
    shape = cached_frames.remembered(_shapes, request, target)
    if shape is None or not cached_frames.is_settled(shape.row):
        return None
    return HotPictures(store, request, shape)


class HotPictures(HotInstance):
    """The pictures of single frames of one instance for one client's words."""

    def __init__(self, store: Store, request: Request, shape: PictureShape) -> None:
        super().__init__(store, shape.row)
        self._request = request
        self._shape = shape
        self._above = request.path.rpartition("/frames/")[0]

    def at(self, number: int) -> Placed | None:
        """Where frame `number` lies; None if it is not there in one piece, or no picture as it stands."""
        piece = place_of(self._store, self._shape.row, number)
        lease = None if piece is None else self.lease(piece.segment)
        if piece is None or lease is None:
            return None
        try:
            head = head_at_hand(lease.fd(piece.segment), piece, self._shape.info)
        finally:
            lease.release()
        if head is None or head.has_profile:
            return None
        path = f"{self._above}/frames/{number}/rendered"
        etag = etag_of([self._shape.digest], path, JPEG, self._shape.drawn_as)
        return Placed(etag.encode("ascii"), b"", piece)

    def answer(self, number: str, etag: str, boundary: bytes) -> Answer:
        """What is said of a picture that has no bytes."""
        built = Answer(200, [("Content-Type", JPEG), *CACHING], [Span(0, 0, 0)])
        built = evaluate(self._request, built, etag)
        return dated(self._request, built, self._shape.row.stored_at / 1e6, time.time())
