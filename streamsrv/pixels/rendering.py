"""Pictures of frames, and what stands for a study, a series or an instance (PS3.18 10.4.1.1.3, 10.4.1.1.4).

Rule: the frames of one order are shown alike; where per-frame windows differ, a batch ends. Frames that are
pictures as they are stored are in no order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo
from framecodecs.pool import work
from framecodecs.rendering.pictures import PictureRequest, Viewport, picture_size
from streamsrv.dicom.syntaxes import lookup
from streamsrv.errors import BadRequest, NotAcceptable, NotFound, StreamsrvError
from streamsrv.pixels.access_pattern import asked
from streamsrv.pixels.description import Description, describe, inline_binary, whole
from streamsrv.pixels.orders import PREFETCH
from streamsrv.pixels.pool import Making, Order, PixelPool
from streamsrv.pixels.stored_pictures import LARGEST_TABLE, StoredPictures, may_be
from streamsrv.pixels.transcoding import (
    at_hand_of,
    batches,
    decoded_length,
    has_frames,
    piece_chunks,
    stored_frames,
    stored_syntax,
)
from streamsrv.pixels.viewing import Wishes, picture_request
from streamsrv.plans.payloads import bulk_piece
from streamsrv.plans.selection import Selection
from streamsrv.store import InstanceRow, Store
from streamsrv.wire.answers import Literal, Piece, Requester

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp", "image/jp2")
THUMBNAIL_TYPES = ("image/jpeg", "image/png")
THUMBNAIL_SIDE = 200  # pixels, where no viewport is asked for
PDF_STORAGE = "1.2.840.10008.5.1.4.1.1.104.1"
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
# Slides whose kind is looked up for the thumbnail of a series.
SLIDES = 16


class Turn(NamedTuple):
    """Frames whose pictures come together; `stored` are those that are sent as they are stored, else none.
    `error` says why the only frame cannot be drawn."""

    indices: Sequence[int]
    stored: Sequence[Sequence[Piece]] = ()
    error: StreamsrvError | None = None


@dataclass(frozen=True, slots=True)
class Renderer:
    """Pictures of the frames of one instance."""

    store: Store
    selection: Selection
    row: InstanceRow
    pool: PixelPool
    wishes: Wishes
    media_type: str
    waits: bool = True  # for the disk, where it may
    requester: Requester = PREFETCH

    @property
    def description(self) -> Description:
        return describe(self.store, self.row, self.pool)

    @property
    def info(self) -> FrameInfo:
        return self.description.info

    @property
    def scaled(self) -> int:
        """Bytes of the picture, if a viewport was asked for: a frame that is enlarged takes as long as a
        large one."""
        if self.wishes.viewport is None:
            return 0
        columns, rows = picture_size(self.wishes.viewport, self.info.rows, self.info.columns)
        return columns * rows * self.info.samples_per_pixel

    def stored(self, index: int) -> Sequence[Piece] | None:
        """The picture of a frame that is one as it is stored, else None. In the loop it raises WouldBlock
        rather than wait."""
        if not may_be(self.row, self.wishes, self.media_type):
            return None
        brief = self.pool.in_loop
        one = StoredPictures(self.store, self.selection, self.row, self.description, self.wishes, brief)
        return one.at(index)

    def picture(self, index: int) -> bytes:
        """Made or remembered. In the loop it raises WouldBlock rather than wait."""
        return self.pool.made(self.making(index), lambda: self._look_ahead(index))

    def _look_ahead(self, index: int) -> None:
        if self.pool.worth_making_ahead(max(decoded_length(self.info), self.scaled)):
            representation = self.media_type, self.wishes
            asked(self.store, self.pool, self.row, index, representation, self._neighbour)

    def making(self, index: int) -> Making:
        return Making(
            (self.row.record_id, index, self.media_type, self.wishes),
            lambda: self.order([index], self.request(index)),
            lambda results: results[0][0],
            self.requester,
        )

    def _neighbour(self, selection: Selection, row: InstanceRow, index: int) -> Making:
        check_drawable(row)
        other = replace(self, selection=selection, row=row, waits=False, requester=PREFETCH)
        return other.making(index)

    def request(self, index: int) -> PictureRequest:
        return picture_request(self.description, index, self.wishes, self.media_type, self._bulk)

    def order(self, indices: Sequence[int], request: PictureRequest) -> Order:
        return self.drawn(work.render_frames, indices, request)

    def turns(self, indices: Sequence[int]) -> Iterator[tuple[Turn, Order | None]]:
        """Batches of frames that are shown alike, each to be made; and frames as they are stored."""
        for batch in batches(self.info, indices, self.scaled):
            found = [(index, self.stored(index)) for index in batch]
            for to_be_made, run in groupby(found, lambda one: one[1] is None):
                frames = list(run)
                alike = [index for index, _ in frames]
                if to_be_made:
                    yield from self._orders(alike)
                else:
                    yield Turn(alike, [pieces for _, pieces in frames if pieces is not None]), None

    def _orders(self, batch: Sequence[int]) -> Iterator[tuple[Turn, Order]]:
        requests = [self.request(index) for index in batch]
        start = 0
        for place in range(1, len(batch) + 1):
            if place == len(batch) or requests[place] != requests[start]:
                yield Turn(batch[start:place]), self.order(batch[start:place], requests[start])
                start = place

    def drawn(self, task: Callable[..., Any], indices: Sequence[int], how: object) -> Order:
        """`task` is a function of framecodecs.pool.work that takes `how` these frames are shown."""
        info, length = self.info, decoded_length(self.info)
        at_hand = at_hand_of(self.pool, self.waits)
        frames = stored_frames(self.store, self.selection, self.row, indices, length, at_hand)
        pixels = len(indices) * max(length, self.scaled)
        return Order(task, frames, (stored_syntax(self.row), info, how), pixels, self.requester)

    def _bulk(self, path: str) -> bytes:
        self.pool.must_not_block()
        value = self.store.bulk_value(self.row.key, path)
        if value is None or value.length > LARGEST_TABLE:
            return b""
        return b"".join(piece_chunks(self.selection, bulk_piece(self.selection, self.row, value)))


def can_be_drawn(row: InstanceRow) -> bool:
    return has_frames(row) and registry.decodable(stored_syntax(row))


def check_drawable(row: InstanceRow) -> None:
    """Raises NotAcceptable."""
    if not has_frames(row):
        raise NotAcceptable("this SOP instance has no pixels that could be rendered", ())
    if not can_be_drawn(row):
        raise NotAcceptable(f"{lookup(stored_syntax(row)).name} cannot be decoded here", ())


def check_size(row: InstanceRow, wishes: Wishes, most: int) -> None:
    """Raises BadRequest if the viewport asks for a picture of more than `most` pixels, and of more than the
    frame has."""
    columns, rows = picture_size(wishes.viewport, row.rows, row.columns)
    if columns * rows > max(most, row.rows * row.columns):
        raise BadRequest(
            f"the parameter viewport asks for a picture of {columns} x {rows} pixels; "
            f"this server makes at most {most}"
        )


# What stands for many


def representative(store: Store, pool: PixelPool, selection: Selection) -> tuple[InstanceRow, int]:
    """The instance and frame index that stand for all: the middle one of those that can be drawn."""
    middle = selection.count // 2
    chosen: InstanceRow | None = None
    for place, row in enumerate(selection.rows()):
        if can_be_drawn(row):
            chosen = row
            if place >= middle:
                break
    if chosen is None:
        raise NotAcceptable("nothing here has pixels that could be rendered", ())
    if chosen.sop_class_uid == WHOLE_SLIDE and selection.count > 1:
        chosen = overview(store, pool, selection, chosen)
    return chosen, chosen.number_of_frames // 2


def overview(store: Store, pool: PixelPool, selection: Selection, otherwise: InstanceRow) -> InstanceRow:
    """Of a slide in several resolutions and with a photograph of its label: the picture that was made to be
    its thumbnail, else the smallest whole (PS3.3 C.8.12.4.1.1)."""
    slides = [row for row in selection.rows() if can_be_drawn(row) and row.sop_class_uid == WHOLE_SLIDE]
    slides.sort(key=lambda row: row.number_of_frames)
    kinds = [(slide_kind(describe(store, row, pool)), row) for row in slides[:SLIDES]]
    for wanted in ("THUMBNAIL", "VOLUME", "OVERVIEW"):
        for kind, row in kinds:
            if kind == wanted:
                return row
    return otherwise


def slide_kind(description: Description) -> str:
    """The third value of Image Type."""
    element = description.dataset.get("00080008", {})
    found = element.get("Value", ()) if isinstance(element, dict) else ()
    return str(found[2]).strip() if isinstance(found, list) and len(found) > 2 else ""


def thumbnail_wishes(wishes: Wishes) -> Wishes:
    """A thumbnail is small; a viewport says how small (8.3.5.1.3), nothing else applies."""
    return Wishes(viewport=wishes.viewport or Viewport(THUMBNAIL_SIDE, THUMBNAIL_SIDE, enlarge=False))


# What is not drawn, but shown


def encapsulated_pdf(store: Store, selection: Selection, row: InstanceRow, pool: PixelPool) -> list[Piece]:
    """The document of an Encapsulated PDF, without its padding byte."""
    value = store.bulk_value(row.key, "00420011")
    if value is None:
        inline = inline_binary(describe(store, row, pool).dataset, "00420011")
        if not inline:
            raise NotFound("the encapsulated document is empty")
        return [Literal(inline)]
    length = whole(describe(store, row, pool).dataset, "00420015", value.length)
    shortened = value if not 0 < length < value.length else replace(value, length=length)
    return [bulk_piece(selection, row, shortened)]
