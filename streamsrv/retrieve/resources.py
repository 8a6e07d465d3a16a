"""One function for each kind of target resource: select the instances, choose the representation, plan the
answer.

Rules of this file
- What can be refused is refused before a plan is made: 404 before 406 before anything is read.
- Whatever has a lease hands it to the answer, or gives it back.
- The representation is chosen by `wire.accept`; what the bytes are is known to `payloads`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from streamsrv.errors import NotFound
from streamsrv.retrieve import payloads
from streamsrv.retrieve.metadata import metadata_piece
from streamsrv.retrieve.parts import Part, PartSource, multipart_plan, total_length
from streamsrv.retrieve.selection import Selection, select
from streamsrv.store.rows import InstanceRow
from streamsrv.store.store import Store
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer, Piece, Request
from streamsrv.wire.conditional import etag_of, evaluate
from streamsrv.wire.mediatypes import DICOM, OCTETS
from streamsrv.wire.multipart import boundary_from, multipart_type
from streamsrv.wire.resources import Kind, Level, Target, bulk_url, frame_url, instance_url

# Frames of these kinds are samples without compression.
UNCOMPRESSED = (FrameKind.NATIVE, FrameKind.BITS)
# Viewers revalidate with If-None-Match; a shared cache keeps nothing of a patient.
CACHING = (("Vary", "Accept"), ("Cache-Control", "private, no-cache"))
PIXEL_DATA = frozenset(("7FE00010", "7FE00008", "7FE00009"))


def answer(store: Store, request: Request, target: Target) -> Answer:
    """The answer to a GET of instances, metadata, frames or bulk data. Blocking. Raises RequestError."""
    selection = select(store, target)
    try:
        built = KINDS[target.kind](store, selection, request, target)
    except BaseException:
        selection.release()
        raise
    built.descriptor, built.release = selection.lease.fd, selection.release
    return built


def ranges_of(request: Request) -> Sequence[accept.AcceptableRange]:
    queries = [value for name, value in request.query if name == "accept"]
    return accept.parse_accept(request.headers.get("accept"), queries)


# Part 10 instances


def instances(store: Store, selection: Selection, request: Request, target: Target) -> Answer:
    transcodable = {uid: (EXPLICIT_VR_LITTLE_ENDIAN,) for uid in selection.syntaxes if lookup(uid).deflated}
    choice = accept.choose_instances(
        ranges_of(request),
        selection.syntaxes,
        transcodable=transcodable,
        single=target.level is Level.INSTANCE,
        keep=True,
    )
    if not choice.multipart:
        row = next(selection.rows())
        syntax = choice.syntaxes[row.transfer_syntax]
        pieces = payloads.instance_pieces(selection, row, syntax)
        return single_part(selection, request, f"{DICOM}; transfer-syntax={syntax}", pieces)

    def parts() -> Iterator[Part]:
        for row in selection.rows():
            syntax = choice.syntaxes[row.transfer_syntax]
            yield Part(
                f"{DICOM}; transfer-syntax={syntax}",
                instance_url(request.base_url, *row.key),
                payloads.instance_pieces(selection, row, syntax),
            )

    representation = ",".join(sorted(f"{stored}>{sent}" for stored, sent in choice.syntaxes.items()))
    return multipart(store, selection, request, (DICOM, representation), parts, selection.count)


# Metadata


def metadata(store: Store, selection: Selection, request: Request, target: Target) -> Answer:
    offer = accept.choose_json(ranges_of(request))
    piece = metadata_piece(store, selection, request.base_url)
    etag = etag_of([selection.digest], offer.media_type, request.base_url)
    built = Answer(200, [("Content-Type", offer.media_type), *CACHING], (piece,), piece.length)
    return evaluate(request, built, etag)


# Frames


def frames(store: Store, selection: Selection, request: Request, target: Target) -> Answer:
    row = next(selection.rows())
    if row.frame_kind is FrameKind.NONE:
        raise NotFound("this SOP instance has no pixel data")
    beyond = [number for number in target.frames if number > row.number_of_frames]
    if beyond:
        raise NotFound(f"frame {beyond[0]} is not there: the instance has {row.number_of_frames} frames")
    return frames_answer(store, selection, request, row, target.frames or range(1, row.number_of_frames + 1))


def frames_answer(
    store: Store, selection: Selection, request: Request, row: InstanceRow, numbers: Sequence[int]
) -> Answer:
    stored = EXPLICIT_VR_LITTLE_ENDIAN if row.frame_kind in UNCOMPRESSED else row.transfer_syntax
    offer = accept.choose_frames(
        ranges_of(request), stored, lookup(stored).media_type, single=len(numbers) == 1, keep=True
    )
    label = f"{offer.media_type}; transfer-syntax={offer.syntax}"
    all_pieces = partial(payloads.frame_pieces, store, selection, row, [number - 1 for number in numbers])
    if not offer.multipart:
        return single_part(selection, request, label, next(all_pieces()))

    def parts() -> Iterator[Part]:
        for number, pieces in zip(numbers, all_pieces(), strict=True):
            yield Part(label, frame_url(request.base_url, *row.key, number), pieces)

    representation = (offer.media_type, offer.syntax, ",".join(map(str, numbers)))
    return multipart(store, selection, request, representation, parts, len(numbers))


# Bulk data


def bulk_data(store: Store, selection: Selection, request: Request, target: Target) -> Answer:
    if target.bulk is None:
        raise NotFound("name one bulk value: /bulkdata/{path}, as the metadata's BulkDataURI does")
    row = next(selection.rows())
    value = store.bulk_value(row.key, target.bulk)
    if value is None:
        raise NotFound(f"the instance has no bulk value {target.bulk}")
    if target.bulk in PIXEL_DATA and row.frame_kind is FrameKind.TABLE:
        # Encapsulated: the value as such is no pixel data, its frames are (PS3.18 8.7.3.3).
        return frames_answer(store, selection, request, row, range(1, row.number_of_frames + 1))
    return bulk_answer(store, selection, request, row, value)


def bulk_answer(
    store: Store, selection: Selection, request: Request, row: InstanceRow, value: BulkValue
) -> Answer:
    offer = accept.choose_bulk(ranges_of(request))
    label = f"{OCTETS}; transfer-syntax={EXPLICIT_VR_LITTLE_ENDIAN}"
    pieces = [payloads.bulk_piece(selection, row, value)]
    if not offer.multipart:
        return single_part(selection, request, label, pieces)
    url = bulk_url(request.base_url, *row.key, value.path)
    return multipart(store, selection, request, (OCTETS, value.path), lambda: [Part(label, url, pieces)], 1)


# Answers


def single_part(selection: Selection, request: Request, media_type: str, pieces: Iterable[Piece]) -> Answer:
    etag = etag_of([selection.digest], request.path, media_type)
    plan = list(pieces)
    built = Answer(200, [("Content-Type", media_type), *CACHING], plan, total_length(plan))
    return evaluate(request, built, etag)


def multipart(
    store: Store,
    selection: Selection,
    request: Request,
    representation: tuple[str, ...],
    parts: PartSource,
    count: int,
) -> Answer:
    """`representation` begins with the media type of the parts and tells it from every other of the same
    instances."""
    etag = etag_of([selection.digest], request.base_url, *representation)
    boundary = boundary_from(store.secret, etag)
    plan, length = multipart_plan(parts, count, boundary)
    content_type = multipart_type(boundary, representation[0])
    built = Answer(200, [("Content-Type", content_type), *CACHING], plan, length)
    return evaluate(request, built, etag)


KINDS: dict[Kind, Callable[[Store, Selection, Request, Target], Answer]] = {
    Kind.INSTANCES: instances,
    Kind.METADATA: metadata,
    Kind.FRAMES: frames,
    Kind.BULKDATA: bulk_data,
}
