"""One function for each kind of target resource: select the instances, choose the representation, plan the
answer.

Rules of this file
- What can be refused is refused before a plan is made: 404 before 406 before anything is read.
- Whatever has a lease hands it to the answer, or gives it back.
- The representation is chosen by `wire.accept`; what the bytes are is known to `payloads` and `transcoding`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from streamsrv.errors import NotFound, WouldBlock
from streamsrv.pixels.pool import PixelPool
from streamsrv.plans import payloads
from streamsrv.plans.parts import Part
from streamsrv.plans.selection import Selection, select
from streamsrv.retrieve import repr_digest
from streamsrv.retrieve.all_bulk import PIXEL_DATA, all_bulk_data
from streamsrv.retrieve.all_pixels import all_pixel_data
from streamsrv.retrieve.answering import Retrieval
from streamsrv.retrieve.cached_frames import hot_frame
from streamsrv.retrieve.frames import frames, frames_answer
from streamsrv.retrieve.instances import instances
from streamsrv.retrieve.metadata_answers import metadata
from streamsrv.retrieve.pictures import rendered, thumbnail
from streamsrv.store import InstanceRow, Store
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer, Request
from streamsrv.wire.conditional import dated
from streamsrv.wire.mediatypes import OCTETS
from streamsrv.wire.resources import Kind, Target, bulk_url


def answer(store: Store, request: Request, target: Target, pool: PixelPool) -> Answer:
    """The answer to a GET of instances, metadata, frames, bulk data or pictures. Blocking. Raises
    RequestError."""
    algorithm = repr_digest.wanted(request)
    hot = None if algorithm else hot_frame(store, request, target)
    if hot is not None:
        return hot
    selection = select(store, target, brief=pool.in_loop)
    if target.kind is Kind.METADATA:
        pool.warm()  # a viewer asks for frames next
    retrieval = Retrieval(store, pool, request, target, selection, [selection.release])
    try:
        if target.kind is not Kind.METADATA:
            selection.require_undamaged()
        built = KINDS[target.kind](retrieval)
        if algorithm and built.status in (200, 206):
            digest = repr_digest.field_of(retrieval, algorithm, KINDS[target.kind])
            built.headers = [*built.headers, ("Repr-Digest", digest)] if digest else built.headers
    except BaseException as error:
        retrieval.end()
        if isinstance(error, WouldBlock):
            error.then(lambda built: _dated(request, built, selection))
        raise
    built.descriptor, built.release = selection.lease.fd, retrieval.end
    return _dated(request, built, selection)


def _dated(request: Request, built: Answer, selection: Selection) -> Answer:
    """One instance changes only by being replaced. What a study or series holds may also change by a
    deletion, which leaves no date."""
    row = selection.one
    if row is None:
        return built
    return dated(request, built, row.stored_at / 1e6, time.time())


# Bulk data


def bulk_data(retrieval: Retrieval) -> Answer:
    path = retrieval.target.bulk
    if path is None:
        return all_bulk_data(retrieval)
    row = next(retrieval.selection.rows())
    value = retrieval.store.bulk_value(row.key, path)
    if value is None:
        raise NotFound(f"the instance has no bulk value {path}")
    if path in PIXEL_DATA and row.frame_kind is FrameKind.TABLE:
        # Encapsulated: the value as such is no pixel data, its frames are (PS3.18 8.7.3.3).
        return frames_answer(retrieval, row, range(1, row.number_of_frames + 1))
    return bulk_answer(retrieval, row, value)


def bulk_answer(retrieval: Retrieval, row: InstanceRow, value: BulkValue) -> Answer:
    offer = accept.choose_bulk(retrieval.ranges())
    label = f"{OCTETS}; transfer-syntax={EXPLICIT_VR_LITTLE_ENDIAN}"
    pieces = [payloads.bulk_piece(retrieval.selection, row, value)]
    if not offer.multipart:
        return retrieval.single_part(label, pieces)
    url = bulk_url(retrieval.request.base_url, *row.key, value.path)
    return retrieval.multipart((OCTETS, value.path), lambda: [Part(label, url, pieces)], 1)


KINDS: dict[Kind, Callable[[Retrieval], Answer]] = {
    Kind.INSTANCES: instances,
    Kind.METADATA: metadata,
    Kind.FRAMES: frames,
    Kind.BULKDATA: bulk_data,
    Kind.PIXELDATA: all_pixel_data,
    Kind.RENDERED: rendered,
    Kind.THUMBNAIL: thumbnail,
}
