"""Answers to requests for rendered resources and thumbnails (PS3.18 10.4.1.1.3, 10.4.1.1.4).

Rules of this file
- One frame is a single part. It is drawn before its answer begins, or sent as it is stored if it is a
  picture.
- Several frames are parts of a multipart answer (rendered_parts.py), or an animated GIF. They are drawn while
  they are sent.
- Documents are pages or stored bytes (documents.py). Videos are sent as they are stored.
- Any other instance without pixels is not acceptable in any rendered form: 406.
- All frames of an animation together have at most PICTURES times `max_rendered_pixels`. Of a longer loop,
  or one of over ANIMATED_FRAMES frames, evenly spaced frames are shown in the same time.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial

from framecodecs.pool import messages
from framecodecs.rendering.pictures import GIF_CLOSING, gif_opening, picture_size
from streamsrv.dicom.syntaxes import lookup
from streamsrv.errors import BadRequest, NotAcceptable, NotFound
from streamsrv.pixels.rendering import (
    Renderer,
    check_drawable,
    check_size,
    representative,
    thumbnail_parameters,
)
from streamsrv.pixels.tasks import PixelTask
from streamsrv.pixels.transcoding import QUICK, batches, has_frames
from streamsrv.pixels.viewing import RenderingParameters, rendering_parameters
from streamsrv.plans.payloads import Part, frame_pieces
from streamsrv.retrieve.answering import Planned, Retrieval
from streamsrv.retrieve.documents import document, document_types
from streamsrv.retrieve.frames import check_frames
from streamsrv.retrieve.rendered_parts import (
    PartTypes,
    check_profile,
    drawn_as,
    in_parts,
    of_several,
    picture_url,
    renderer,
)
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.accept import IMAGE_TYPES, THUMBNAIL_TYPES
from streamsrv.wire.answers import Answer, Piece
from streamsrv.wire.resources import ResourceLevel, instance_url

GIF = "image/gif"
ANIMATED_FRAMES = 200
PICTURES = 4


def thumbnail(retrieval: Retrieval) -> Planned:
    given = rendering_parameters(retrieval.request.query)
    if given.viewport is not None and given.viewport.region is not None:
        raise BadRequest("the parameter viewport of a thumbnail is width,height")
    offer = accept.choose_image(retrieval.ranges(), THUMBNAIL_TYPES)
    numbers = retrieval.target.frames
    if numbers:
        row, index = next(retrieval.selection.rows()), numbers[0] - 1
        check_there(row, numbers)
    else:
        row, index = representative(retrieval.store, retrieval.pool, retrieval.selection)
    return one_picture(retrieval, row, index, thumbnail_parameters(given), offer)


def check_there(row: InstanceRow, numbers: Sequence[int]) -> None:
    if not has_frames(row):
        raise NotFound("this SOP instance has no frames")
    check_frames(row, numbers)


def rendered(retrieval: Retrieval) -> Planned:
    parameters = rendering_parameters(retrieval.request.query)
    if retrieval.target.level is not ResourceLevel.INSTANCE:
        return None if retrieval.brief else of_several(retrieval, parameters)
    row, numbers = next(retrieval.selection.rows()), retrieval.target.frames
    if numbers:
        check_there(row, numbers)
    elif document_types(row):
        return document(retrieval, row)
    if is_video(row):
        return video(retrieval, row, lookup(row.transfer_syntax).media_type)
    check_drawable(row)
    return pictures(retrieval, row, parameters, numbers or range(1, row.number_of_frames + 1))


def pictures(
    retrieval: Retrieval, row: InstanceRow, parameters: RenderingParameters, numbers: Sequence[int]
) -> Planned:
    offer = image_offer(retrieval, single=len(numbers) == 1)
    check_profile(parameters, offer.media_type)
    if len(numbers) > 1 and offer.multipart:
        if retrieval.brief:
            return None
        return in_parts(retrieval, parameters, PartTypes(offer.media_type), numbers)
    if len(numbers) > 1 and offer.media_type in accept.ANIMATED:
        return animated(retrieval, row, parameters, numbers)
    return one_picture(retrieval, row, numbers[0] - 1, parameters, offer)


def image_offer(retrieval: Retrieval, *, single: bool) -> accept.Offer:
    """Several frames are sent as parts, or animated. A client that accepts only one picture of a multi-frame
    instance gets its first frame: it draws a list, and 406 would leave a hole in it."""
    try:
        return accept.choose_image(retrieval.ranges(), IMAGE_TYPES, single=single)
    except NotAcceptable:
        if single or retrieval.target.frames:
            raise
        return accept.choose_image(retrieval.ranges(), IMAGE_TYPES, single=True)


def one_picture(
    retrieval: Retrieval, row: InstanceRow, index: int, parameters: RenderingParameters, offer: accept.Offer
) -> Planned:
    check_drawable(row)
    check_size(row, parameters, retrieval.pool.max_rendered_pixels)
    description = retrieval.description(row)
    if description is None:
        return None
    one = renderer(retrieval, row, description, parameters, offer.media_type)
    stored = one.stored(index, brief=retrieval.brief)
    if stored is None:
        return None
    drawn = drawn_as(parameters, retrieval.pool.fonts)
    answer = partial(picture_answer, row=row, index=index, offer=offer, drawn=drawn)
    if stored:
        return answer(retrieval, stored)
    planned = retrieval.pooled(one.job(index, QUICK if retrieval.brief else None), answer, failed)
    one.prefetch(index)
    return planned


def failed(retrieval: Retrieval, error: Exception) -> Answer:
    raise error


def picture_answer(
    retrieval: Retrieval,
    pieces: Sequence[Piece],
    row: InstanceRow,
    index: int,
    offer: accept.Offer,
    drawn: str,
) -> Answer:
    if not offer.multipart:
        return retrieval.single_part(Part(offer.media_type, "", pieces), drawn)
    url = picture_url(retrieval, row, index + 1)
    part = Part(offer.media_type, url, pieces)
    return retrieval.multipart((offer.media_type, url, drawn), lambda: (part,), 1)


# An animation


def animated(
    retrieval: Retrieval, row: InstanceRow, parameters: RenderingParameters, numbers: Sequence[int]
) -> Answer | None:
    """An animated GIF. A few frames are drawn ahead, so it costs their memory, however long it is."""
    if retrieval.brief:
        return None
    description = retrieval.pool.descriptions.of(retrieval.store, row)
    one = renderer(retrieval, row, description, parameters, GIF)
    indices = animated_frames(one, numbers)
    representation = (GIF, drawn_as(parameters, retrieval.pool.fonts))
    return retrieval.made_single(representation, lambda _: animation(one, indices, len(numbers)))


def animated_frames(one: Renderer, numbers: Sequence[int]) -> Sequence[int]:
    """The frame indices that are shown. Raises BadRequest if the viewport asks for too many pixels."""
    row, most = one.row, one.pool.max_rendered_pixels * PICTURES
    columns, rows = picture_size(one.parameters.viewport, row.rows, row.columns)
    pixels = columns * rows
    count = min(len(numbers), ANIMATED_FRAMES)
    if pixels * count > most and pixels > row.rows * row.columns:
        raise BadRequest(
            f"the parameter viewport asks for an animation of {count} frames of {columns} x {rows} pixels; "
            f"this server makes at most {most} pixels in all"
        )
    return [number - 1 for number in spaced(numbers, max(1, min(count, most // max(pixels, 1))))]


def spaced(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` of them, evenly."""
    count = min(len(numbers), most)
    return [numbers[place * len(numbers) // count] for place in range(count)]


def animation(one: Renderer, indices: Sequence[int], of: int) -> Generator[bytes, None, None]:
    """The chunks of a GIF of these frames, in the time of a loop of `of` frames. An empty chunk says that
    nothing is ready yet."""
    columns, rows = picture_size(one.parameters.viewport, one.row.rows, one.row.columns)
    start = gif_opening(columns, rows)
    for turn in one.pool.in_turn(_animation_tasks(one, indices, of / len(indices))):
        if turn is None or turn[1] is None:
            yield b""
            continue
        blocks = [block for block, _ in one.pool.results(turn[1])]
        yield b"".join((start, *blocks))
        start = b""
    yield GIF_CLOSING


def _animation_tasks(
    one: Renderer, indices: Sequence[int], slower: float
) -> Iterator[tuple[None, PixelTask]]:
    for batch in batches(one.info, indices, one.scaled):
        for alike, request in one.alike(batch):
            shown = replace(request, milliseconds=request.milliseconds * slower)
            yield None, one.drawn(messages.animate_frames, alike, shown)


# Videos


def is_video(row: InstanceRow) -> bool:
    return has_frames(row) and lookup(row.transfer_syntax).media_type.startswith("video/")


def video(retrieval: Retrieval, row: InstanceRow, media_type: str) -> Answer:
    offer = accept.choose_image(retrieval.ranges(), (media_type,))
    pieces = next(frame_pieces(retrieval.store, retrieval.selection, row, [0]))
    part = Part(media_type, f"{instance_url(retrieval.request.base_url, *row.key)}/rendered", pieces)
    if not offer.multipart:
        return retrieval.single_part(part)
    return retrieval.multipart((media_type, "rendered"), lambda: [part], 1)
