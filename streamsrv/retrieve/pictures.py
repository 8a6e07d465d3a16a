"""Answers to requests for rendered resources and thumbnails (PS3.18 10.4.1.1.3, 10.4.1.1.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from streamsrv.errors import NotAcceptable, NotFound
from streamsrv.retrieve.answering import Retrieval
from streamsrv.retrieve.parts import Part
from streamsrv.retrieve.rendered import (
    IMAGE_TYPES,
    PDF_STORAGE,
    THUMBNAIL_TYPES,
    Renderer,
    encapsulated_pdf,
    has_frames,
    renderer,
    representative,
    thumbnail_wishes,
)
from streamsrv.retrieve.showing import Wishes, wishes_of
from streamsrv.store.rows import InstanceRow
from streamsrv.wire import accept
from streamsrv.wire.answers import Answer, Literal, Stream
from streamsrv.wire.resources import Level, frame_url, instance_url

PDF = "application/pdf"


def thumbnail(retrieval: Retrieval) -> Answer:
    offer = accept.choose_image(retrieval.ranges(), THUMBNAIL_TYPES)
    wishes = thumbnail_wishes(wishes_of(retrieval.request.query))
    numbers = retrieval.target.frames
    row, index = representative(retrieval.selection)
    if numbers:
        index = numbers[0] - 1
    return one_picture(retrieval, row, index, wishes, offer)


def rendered(retrieval: Retrieval) -> Answer:
    wishes = wishes_of(retrieval.request.query)
    if retrieval.target.level is not Level.INSTANCE:
        offer = accept.choose_image(retrieval.ranges(), IMAGE_TYPES, single=False)
        return many_pictures(retrieval, wishes, offer.media_type)
    row = next(retrieval.selection.rows())
    if row.sop_class_uid == PDF_STORAGE:
        return pdf(retrieval, row)
    numbers = retrieval.target.frames or range(1, row.number_of_frames + 1)
    if not has_frames(row):
        raise NotAcceptable("this SOP instance has no pixels that could be rendered", ())
    offer = image_offer(retrieval, single=len(numbers) == 1)
    if len(numbers) > 1 and offer.multipart:
        return many_pictures(retrieval, wishes, offer.media_type, numbers)
    if len(numbers) > 1 and offer.media_type in accept.ANIMATED:
        return animation(retrieval, row, wishes, numbers)
    return one_picture(retrieval, row, numbers[0] - 1, wishes, offer)


def image_offer(retrieval: Retrieval, *, single: bool) -> accept.Offer:
    """Several frames go out as parts, or animated. A client that takes nothing but one picture of a whole
    multi-frame instance gets its first frame: it draws a list, and 406 would leave a hole in it."""
    try:
        return accept.choose_image(retrieval.ranges(), IMAGE_TYPES, single=single)
    except NotAcceptable:
        if single or retrieval.target.frames:
            raise
        return accept.choose_image(retrieval.ranges(), IMAGE_TYPES, single=True)


def one_picture(
    retrieval: Retrieval, row: InstanceRow, index: int, wishes: Wishes, offer: accept.Offer
) -> Answer:
    if index >= row.number_of_frames:
        raise NotFound(f"frame {index + 1} is not there: the instance has {row.number_of_frames} frames")
    one = renderer(retrieval.store, retrieval.selection, row, retrieval.pool, wishes, offer.media_type)
    pieces = [Literal(one.picture(index))]
    if not offer.multipart:
        return retrieval.single_part(offer.media_type, pieces, repr(wishes))
    url = f"{frame_url(retrieval.request.base_url, *row.key, index + 1)}/rendered"
    parts = [Part(offer.media_type, url, pieces)]
    return retrieval.multipart((offer.media_type, url, repr(wishes)), lambda: parts, 1)


def animation(retrieval: Retrieval, row: InstanceRow, wishes: Wishes, numbers: Sequence[int]) -> Answer:
    media_type = "image/gif"
    one = renderer(retrieval.store, retrieval.selection, row, retrieval.pool, wishes, media_type)
    picture = one.animation([number - 1 for number in numbers])
    return retrieval.single_part(media_type, [Literal(picture)], repr(wishes))


def many_pictures(
    retrieval: Retrieval, wishes: Wishes, media_type: str, numbers: Sequence[int] = ()
) -> Answer:
    """A part for each frame of each instance that has pixels; each picture is made when its part is sent."""
    base_url = retrieval.request.base_url

    def parts() -> Iterator[Part]:
        for row in filter(has_frames, retrieval.selection.rows()):
            one = renderer(retrieval.store, retrieval.selection, row, retrieval.pool, wishes, media_type)
            for number in numbers or range(1, row.number_of_frames + 1):
                url = f"{frame_url(base_url, *row.key, number)}/rendered"
                yield Part(media_type, url, [later(one, number - 1)])

    count = sum(
        len(numbers) or row.number_of_frames for row in filter(has_frames, retrieval.selection.rows())
    )
    if not count:
        raise NotAcceptable("nothing here has pixels that could be rendered", ())
    representation = (media_type, "rendered", ",".join(map(str, numbers)), repr(wishes))
    return retrieval.multipart(representation, parts, count)


def later(one: Renderer, index: int) -> Stream:
    def chunks(start: int, stop: int | None) -> Iterator[bytes]:
        yield one.picture(index)[start:stop]

    return Stream(chunks, None)


def pdf(retrieval: Retrieval, row: InstanceRow) -> Answer:
    offer = accept.choose_image(retrieval.ranges(), (PDF,))
    pieces = encapsulated_pdf(retrieval.store, retrieval.selection, row)
    if not offer.multipart:
        return retrieval.single_part(PDF, pieces)
    url = f"{instance_url(retrieval.request.base_url, *row.key)}/rendered"
    return retrieval.multipart((PDF, "rendered"), lambda: [Part(PDF, url, pieces)], 1)
