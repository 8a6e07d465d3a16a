"""Answers to requests for rendered resources and thumbnails (PS3.18 10.4.1.1.3, 10.4.1.1.4).

Rules of this file
- A picture a frame. One frame asked for, or one that stands for all: a single part, made before its answer
  begins, or sent as it is stored where that is the very picture.
- Several frames: parts, made while they are sent, those of the next frames under way.
- A document and a video are shown as they are stored: a browser knows what to do with them.
- What has no pixels is not acceptable in any rendered form: 406, never 500.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial

from framecodecs.rendering.pictures import ICC_FORMATS
from streamsrv.dicom.syntaxes import lookup
from streamsrv.errors import BadRequest, NotAcceptable, NotFound
from streamsrv.pixels.rendering import (
    IMAGE_TYPES,
    PDF_STORAGE,
    THUMBNAIL_TYPES,
    Renderer,
    can_be_drawn,
    check_drawable,
    check_size,
    encapsulated_pdf,
    representative,
    thumbnail_wishes,
)
from streamsrv.pixels.transcoding import has_frames
from streamsrv.pixels.viewing import Wishes, wishes_of
from streamsrv.plans.parts import Part
from streamsrv.plans.payloads import frame_pieces
from streamsrv.retrieve.animation import animated_frames, animation
from streamsrv.retrieve.answering import MAKER, Retrieval, finished
from streamsrv.retrieve.cached_pictures import learn
from streamsrv.retrieve.frames import check_frames
from streamsrv.retrieve.picture_parts import picture_url, pictures_body
from streamsrv.store import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer, Literal, Piece
from streamsrv.wire.resources import ResourceLevel, instance_url

PDF = "application/pdf"
GIF = "image/gif"


def thumbnail(retrieval: Retrieval) -> Answer:
    asked = wishes_of(retrieval.request.query)
    if asked.viewport is not None and asked.viewport.region is not None:
        raise BadRequest("the parameter viewport of a thumbnail is width,height")
    wishes = thumbnail_wishes(asked)
    offer = accept.choose_image(retrieval.ranges(), THUMBNAIL_TYPES)
    numbers = retrieval.target.frames
    if numbers:
        row, index = next(retrieval.selection.rows()), numbers[0] - 1
        check_there(row, numbers)
    else:
        row, index = representative(retrieval.store, retrieval.pool, retrieval.selection)
    return one_picture(retrieval, row, index, wishes, offer)


def check_there(row: InstanceRow, numbers: Sequence[int]) -> None:
    if not has_frames(row):
        raise NotFound("this SOP instance has no frames")
    check_frames(row, numbers)


def rendered(retrieval: Retrieval) -> Answer:
    wishes = wishes_of(retrieval.request.query)
    if retrieval.target.level is not ResourceLevel.INSTANCE:
        # In parts only: pictures of several instances need not have one size, so they are no animation.
        offer = accept.choose_bulk(retrieval.ranges(), IMAGE_TYPES, single=False)
        check_profile(wishes, offer.media_type)
        return many_pictures(retrieval, wishes, offer.media_type)
    row, numbers = next(retrieval.selection.rows()), retrieval.target.frames
    if numbers:
        check_there(row, numbers)
    elif row.sop_class_uid == PDF_STORAGE:
        return as_it_is(retrieval, row, PDF)
    if is_video(row):
        return as_it_is(retrieval, row, lookup(row.transfer_syntax).media_type)
    check_drawable(row)
    return pictures(retrieval, row, wishes, numbers or range(1, row.number_of_frames + 1))


def pictures(retrieval: Retrieval, row: InstanceRow, wishes: Wishes, numbers: Sequence[int]) -> Answer:
    offer = image_offer(retrieval, single=len(numbers) == 1)
    check_profile(wishes, offer.media_type)
    if len(numbers) > 1 and offer.multipart:
        return many_pictures(retrieval, wishes, offer.media_type, numbers)
    if len(numbers) > 1 and offer.media_type in accept.ANIMATED:
        return animated(retrieval, renderer(retrieval, row, wishes, GIF), numbers)
    return one_picture(retrieval, row, numbers[0] - 1, wishes, offer)


def check_profile(wishes: Wishes, media_type: str) -> None:
    """PS3.18 8.3.5.1.5: who asks for a profile is told where there is no place for one."""
    if wishes.icc_profile in ("yes", "srgb") and media_type not in ICC_FORMATS:
        raise BadRequest(f"the parameter iccprofile is no for {media_type}: it holds no profile here")


def image_offer(retrieval: Retrieval, *, single: bool) -> accept.Offer:
    """Several frames go out as parts, or animated. A client that takes nothing but one picture of a whole
    multi-frame instance gets its first frame: it draws a list, and 406 would leave a hole in it."""
    try:
        return accept.choose_image(retrieval.ranges(), IMAGE_TYPES, single=single)
    except NotAcceptable:
        if single or retrieval.target.frames:
            raise
        return accept.choose_image(retrieval.ranges(), IMAGE_TYPES, single=True)


def renderer(retrieval: Retrieval, row: InstanceRow, wishes: Wishes, media_type: str) -> Renderer:
    requester = retrieval.request.requester
    return Renderer(
        retrieval.store, retrieval.selection, row, retrieval.pool, wishes, media_type, requester=requester
    )


def one_picture(
    retrieval: Retrieval, row: InstanceRow, index: int, wishes: Wishes, offer: accept.Offer
) -> Answer:
    check_drawable(row)
    check_size(row, wishes, retrieval.pool.max_rendered_pixels)
    one, said = renderer(retrieval, row, wishes, offer.media_type), drawn_as(wishes)

    def learnt(stored: Sequence[Piece]) -> None:
        if not offer.multipart:
            learn(retrieval, row, one.description, stored, said)

    pieces = picture_pieces(one, index, learnt)
    return finished(retrieval.request, partial(drawn, retrieval, row, index, offer, said), pieces)


def drawn(
    retrieval: Retrieval,
    row: InstanceRow,
    index: int,
    offer: accept.Offer,
    said: str,
    pieces: Iterable[Piece],
) -> Answer:
    """Needs nothing of the store."""
    if not offer.multipart:
        return retrieval.single_part(offer.media_type, pieces, said)
    url = picture_url(retrieval, row, index + 1)
    part = Part(offer.media_type, url, pieces)
    return retrieval.multipart((offer.media_type, url, said), lambda: (part,), 1)


def drawn_as(wishes: Wishes) -> str:
    """What an ETag has to know of a picture besides its frame and type."""
    return f"{wishes!r} {MAKER}"


def picture_pieces(one: Renderer, index: int, learnt: Callable[[Sequence[Piece]], None]) -> Iterator[Piece]:
    """`learnt` is told of a picture that goes out as it is stored."""
    stored = one.stored(index)
    if stored is None:
        yield Literal(one.picture(index))
    else:
        learnt(stored)
        yield from stored


def animated(retrieval: Retrieval, one: Renderer, numbers: Sequence[int]) -> Answer:
    retrieval.pool.must_not_block()
    indices = animated_frames(one, numbers)
    said = (GIF, drawn_as(one.wishes))
    return retrieval.made_single(said, lambda _: animation(one, indices, len(numbers)))


# Many


def many_pictures(
    retrieval: Retrieval, wishes: Wishes, media_type: str, numbers: Sequence[int] = ()
) -> Answer:
    """A part for each frame of each instance that can be drawn."""
    drawable = filter(can_be_drawn, retrieval.selection.rows())
    first, most = next(drawable, None), retrieval.pool.max_rendered_pixels
    if first is None:
        raise NotAcceptable("nothing here has pixels that could be rendered", ())
    if wishes.viewport is not None and wishes.viewport.width * wishes.viewport.height > most:
        for row in (first, *drawable):
            check_size(row, wishes, most)
    retrieval.pool.must_not_block()
    representation = (media_type, "rendered", ",".join(map(str, numbers)), drawn_as(wishes))

    def body(boundary: bytes) -> Generator[bytes, None, None]:
        drawn = renderers(retrieval, wishes, media_type, numbers)
        return pictures_body(retrieval, media_type, drawn, boundary)

    return retrieval.made_multipart(representation, body)


def renderers(
    retrieval: Retrieval, wishes: Wishes, media_type: str, numbers: Sequence[int]
) -> Iterator[tuple[Renderer, Sequence[int]]]:
    """One for each instance that can be drawn, with the indices of its frames."""
    for row in filter(can_be_drawn, retrieval.selection.rows()):
        indices = [number - 1 for number in numbers] or range(row.number_of_frames)
        yield renderer(retrieval, row, wishes, media_type), indices


# What is shown as it is stored


def is_video(row: InstanceRow) -> bool:
    return has_frames(row) and lookup(row.transfer_syntax).media_type.startswith("video/")


def as_it_is(retrieval: Retrieval, row: InstanceRow, media_type: str) -> Answer:
    offer = accept.choose_image(retrieval.ranges(), (media_type,))
    pieces = stored_pieces(retrieval, row)
    if not offer.multipart:
        return retrieval.single_part(media_type, pieces)
    url = f"{instance_url(retrieval.request.base_url, *row.key)}/rendered"
    parts = [Part(media_type, url, pieces)]
    return retrieval.multipart((media_type, "rendered"), lambda: parts, 1)


def stored_pieces(retrieval: Retrieval, row: InstanceRow) -> Sequence[Piece]:
    if row.sop_class_uid == PDF_STORAGE:
        return encapsulated_pdf(retrieval.store, retrieval.selection, row, retrieval.pool)
    return next(frame_pieces(retrieval.store, retrieval.selection, row, [0]))
