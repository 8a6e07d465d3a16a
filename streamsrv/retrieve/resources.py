"""One function for each kind of target resource: select the instances, choose the representation, plan the
answer.

Rules of this file
- What can be refused is refused before a plan is made: 404 before 406 before anything is read.
- Whatever has a lease hands it to the answer, or gives it back.
- The representation is chosen by `wire.accept`; what the bytes are is known to `payloads` and `transcoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from streamsrv.errors import NotFound
from streamsrv.pixelpool import PixelPool
from streamsrv.retrieve import payloads, transcoding
from streamsrv.retrieve.all_bulk import PIXEL_DATA, all_bulk_data, all_pixel_data
from streamsrv.retrieve.answering import Retrieval
from streamsrv.retrieve.datasets import transcoded_instance
from streamsrv.retrieve.metadata_answers import metadata
from streamsrv.retrieve.parts import Part
from streamsrv.retrieve.pictures import rendered, thumbnail
from streamsrv.retrieve.selection import select
from streamsrv.store.rows import InstanceRow
from streamsrv.store.store import Store
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer, Piece, Request
from streamsrv.wire.mediatypes import DICOM, OCTETS
from streamsrv.wire.resources import Kind, Level, Target, bulk_url, frame_url, instance_url


def answer(store: Store, request: Request, target: Target, pool: PixelPool) -> Answer:
    """The answer to a GET of instances, metadata, frames, bulk data or pictures. Blocking. Raises
    RequestError."""
    selection = select(store, target)
    try:
        built = KINDS[target.kind](Retrieval(store, pool, request, target, selection))
    except BaseException:
        selection.release()
        raise
    built.descriptor, built.release = selection.lease.fd, selection.release
    return built


# Part 10 instances


def instances(retrieval: Retrieval) -> Answer:
    selection, base_url = retrieval.selection, retrieval.request.base_url
    choice = accept.choose_instances(
        retrieval.ranges(),
        selection.syntaxes,
        transcodable={uid: transcoding.instance_targets(uid) for uid in selection.syntaxes},
        single=retrieval.target.level is Level.INSTANCE,
        keep=True,
    )

    def label(row: InstanceRow) -> str:
        return f"{DICOM}; transfer-syntax={choice.syntaxes[row.transfer_syntax]}"

    if not choice.multipart:
        row = next(selection.rows())
        pieces = instance_pieces(retrieval, row, choice.syntaxes[row.transfer_syntax])
        return retrieval.single_part(label(row), pieces)

    def parts() -> Iterator[Part]:
        for row in selection.rows():
            pieces = instance_pieces(retrieval, row, choice.syntaxes[row.transfer_syntax])
            yield Part(label(row), instance_url(base_url, *row.key), pieces)

    representation = ",".join(sorted(f"{stored}>{sent}" for stored, sent in choice.syntaxes.items()))
    return retrieval.multipart((DICOM, representation), parts, selection.count)


def instance_pieces(retrieval: Retrieval, row: InstanceRow, syntax: str) -> Sequence[Piece]:
    stored = row.transfer_syntax
    native = not lookup(stored).encapsulated
    if syntax == stored or (native and syntax == EXPLICIT_VR_LITTLE_ENDIAN):
        return payloads.instance_pieces(retrieval.selection, row, syntax)
    return transcoded_instance(retrieval, row, syntax)


# Frames


def frames(retrieval: Retrieval) -> Answer:
    row = next(retrieval.selection.rows())
    if row.frame_kind is FrameKind.NONE:
        raise NotFound("this SOP instance has no pixel data")
    numbers = retrieval.target.frames or range(1, row.number_of_frames + 1)
    check_frames(row, numbers)
    return frames_answer(retrieval, row, numbers)


def check_frames(row: InstanceRow, numbers: Sequence[int]) -> None:
    last = max(numbers, default=0)
    if last > row.number_of_frames:
        raise NotFound(f"frame {last} is not there: the instance has {row.number_of_frames} frames")


def frames_answer(retrieval: Retrieval, row: InstanceRow, numbers: Sequence[int]) -> Answer:
    store, selection, base_url = retrieval.store, retrieval.selection, retrieval.request.base_url
    stored = transcoding.stored_syntax(row)
    offer = accept.choose_frames(
        retrieval.ranges(),
        stored,
        lookup(stored).media_type,
        transcodable=transcoding.targets(stored),
        single=len(numbers) == 1,
        keep=True,
    )
    label = f"{offer.media_type}; transfer-syntax={offer.syntax}"
    indices = [number - 1 for number in numbers]
    source: transcoding.PiecesSource = partial(payloads.frame_pieces, store, selection, row, indices)
    if offer.syntax != stored:
        one = transcoding.transcoder(store, selection, row, retrieval.pool, offer.syntax)
        source = transcoding.made_frames(one, indices)
    if not offer.multipart:
        return retrieval.single_part(label, next(source()))

    def parts() -> Iterator[Part]:
        for number, pieces in zip(numbers, source(), strict=True):
            yield Part(label, frame_url(base_url, *row.key, number), pieces)

    representation = (offer.media_type, offer.syntax, ",".join(map(str, numbers)))
    return retrieval.multipart(representation, parts, len(numbers))


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
