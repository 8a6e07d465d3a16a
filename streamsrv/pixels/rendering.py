"""Rendered frames, and the frame that represents a study, series or instance (PS3.18 10.4.1.1.3, 10.4.1.1.4).

Rule: the frames of one task are drawn alike. A batch ends where the window of a frame differs. A frame that
is sent as it is stored is in no task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo
from framecodecs.pool import messages
from framecodecs.pool.pipes import Frame
from framecodecs.rendering.pictures import PictureRequest, Viewport, picture_size
from streamsrv.dicom.syntaxes import lookup
from streamsrv.errors import BadRequest, NotAcceptable, StreamsrvError
from streamsrv.pixels.description import Description
from streamsrv.pixels.pool import PixelPool
from streamsrv.pixels.stored_pictures import LARGEST_TABLE, StoredPictures, may_be
from streamsrv.pixels.tasks import PREFETCH, FrameJob, PixelTask
from streamsrv.pixels.transcoding import (
    LONGEST_PREFETCHED,
    batches,
    decoded_length,
    frame_at_hand,
    has_frames,
    piece_chunks,
    stored_frames,
    stored_syntax,
)
from streamsrv.pixels.viewing import RenderingParameters, picture_request
from streamsrv.plans.payloads import bulk_piece
from streamsrv.plans.selection import Selection
from streamsrv.store import InstanceRow, Store
from streamsrv.wire.answers import Piece, Requester

THUMBNAIL_SIDE = 200  # pixels, without a viewport
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
# Slides whose kind is looked up for a thumbnail.
SLIDES = 16


class PictureBatch(NamedTuple):
    """Frames whose pictures are made together. `stored` has the pieces of frames that are sent as they are
    stored. `error` says why the only frame cannot be drawn."""

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
    description: Description
    parameters: RenderingParameters
    media_type: str
    requester: Requester = PREFETCH

    @property
    def info(self) -> FrameInfo:
        return self.description.info

    @property
    def scaled(self) -> int:
        """Bytes of the picture, if a viewport is requested: a frame that is enlarged takes as long as a large
        one."""
        if self.parameters.viewport is None:
            return 0
        columns, rows = picture_size(self.parameters.viewport, self.info.rows, self.info.columns)
        return columns * rows * self.info.samples_per_pixel

    def stored(self, index: int, *, brief: bool = False) -> Sequence[Piece] | None:
        """The picture of a frame that is sent as it is stored; empty if it has to be drawn. None if it is
        brief and the disk has to be read to decide."""
        if not may_be(self.row, self.parameters, self.media_type):
            return ()
        pictures = StoredPictures(
            self.store, self.selection, self.row, self.description, self.parameters, brief
        )
        return pictures.at(index)

    def job(self, index: int, longest: int | None = None) -> FrameJob:
        """One picture. With `longest` its task does not wait for the disk: it takes a stored frame of at most
        so many bytes, and only from memory."""

        def task() -> PixelTask | None:
            if longest is None:
                return self.task([index], self.request(index))
            if self.description.has_bulk_values:
                return None
            length = decoded_length(self.info)
            frame = frame_at_hand(self.store, self.selection, self.row, index, length, longest)
            return None if frame is None else self._task(messages.render_frames, [frame], self.request(index))

        key = self.row.record_id, index, self.media_type, self.parameters
        return FrameJob(key, task, lambda results: results[0][0], self.requester)

    def prefetch(self, index: int) -> None:
        """A client requests the picture of the frame `index`: others may follow."""
        if self.pool.may_prefetch(max(decoded_length(self.info), self.scaled)):
            representation = self.media_type, self.parameters
            make_job = partial(_prefetch_job, self.store, self.pool, self.parameters, self.media_type)
            self.pool.prefetch.requested(self.store, self.row, index, representation, make_job)

    def request(self, index: int) -> PictureRequest:
        fonts = self.pool.fonts
        return picture_request(self.description, index, self.parameters, self.media_type, self._bulk, fonts)

    def task(self, indices: Sequence[int], request: PictureRequest) -> PixelTask:
        return self.drawn(messages.render_frames, indices, request)

    def batches(self, indices: Sequence[int]) -> Iterator[tuple[PictureBatch, PixelTask | None]]:
        """Frames that are drawn alike, with their task, and frames that are sent as they are stored."""
        for batch in batches(self.info, indices, self.scaled):
            found = [(index, self.stored(index) or ()) for index in batch]
            for is_stored, run in groupby(found, lambda one: bool(one[1])):
                frames = list(run)
                alike = [index for index, _ in frames]
                if is_stored:
                    yield PictureBatch(alike, [pieces for _, pieces in frames]), None
                else:
                    yield from self._drawn_batches(alike)

    def _drawn_batches(self, batch: Sequence[int]) -> Iterator[tuple[PictureBatch, PixelTask]]:
        for indices, request in self.alike(batch):
            yield PictureBatch(indices), self.task(indices, request)

    def alike(self, indices: Sequence[int]) -> Iterator[tuple[Sequence[int], PictureRequest]]:
        """Runs of frames that have one request."""
        requests = [self.request(index) for index in indices]
        start = 0
        for place in range(1, len(indices) + 1):
            if place == len(indices) or requests[place] != requests[start]:
                yield indices[start:place], requests[start]
                start = place

    def drawn(self, draw: Callable[..., Any], indices: Sequence[int], how: object) -> PixelTask:
        """`draw` is a function of framecodecs.pool.messages; `how` says how these frames are shown."""
        length = decoded_length(self.info)
        return self._task(draw, stored_frames(self.store, self.selection, self.row, indices, length), how)

    def _task(self, draw: Callable[..., Any], frames: Sequence[Frame], how: object) -> PixelTask:
        pixels = len(frames) * max(decoded_length(self.info), self.scaled)
        return PixelTask(draw, frames, (stored_syntax(self.row), self.info, how), pixels, self.requester)

    def _bulk(self, path: str) -> bytes:
        value = self.store.bulk_value(self.row.key, path)
        if value is None or value.length > LARGEST_TABLE:
            return b""
        return b"".join(piece_chunks(self.selection, bulk_piece(self.selection, self.row, value)))


def _prefetch_job(
    store: Store,
    pool: PixelPool,
    parameters: RenderingParameters,
    media_type: str,
    selection: Selection,
    row: InstanceRow,
    index: int,
) -> FrameJob:
    """Raises NotAcceptable."""
    check_drawable(row)
    description = pool.descriptions.of(store, row)
    other = Renderer(store, selection, row, pool, description, parameters, media_type)
    return other.job(index, LONGEST_PREFETCHED)


def can_be_drawn(row: InstanceRow) -> bool:
    return has_frames(row) and registry.decodable(stored_syntax(row))


def check_drawable(row: InstanceRow) -> None:
    """Raises NotAcceptable."""
    if not has_frames(row):
        raise NotAcceptable("this SOP instance has no pixels that could be rendered", ())
    if not can_be_drawn(row):
        raise NotAcceptable(f"{lookup(stored_syntax(row)).name} cannot be decoded here", ())


def check_size(row: InstanceRow, parameters: RenderingParameters, most: int) -> None:
    """Raises BadRequest if the viewport asks for a picture of more than `most` pixels, and of more than the
    frame has."""
    columns, rows = picture_size(parameters.viewport, row.rows, row.columns)
    if columns * rows > max(most, row.rows * row.columns):
        raise BadRequest(
            f"the parameter viewport asks for a picture of {columns} x {rows} pixels; "
            f"this server makes at most {most}"
        )


# Representatives


def representative(store: Store, pool: PixelPool, selection: Selection) -> tuple[InstanceRow, int]:
    """The instance and frame index that stand for all: the middle one of those that can be drawn. Blocking.
    Raises NotAcceptable."""
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
    """For a slide in several resolutions and with a photograph of its label: the picture that was made to be
    its thumbnail, else the smallest whole (PS3.3 C.8.12.4.1.1)."""
    slides = [row for row in selection.rows() if can_be_drawn(row) and row.sop_class_uid == WHOLE_SLIDE]
    slides.sort(key=lambda row: row.number_of_frames)
    kinds = [(slide_kind(pool.descriptions.of(store, row)), row) for row in slides[:SLIDES]]
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


def thumbnail_parameters(given: RenderingParameters) -> RenderingParameters:
    """A thumbnail is small; a viewport says how small (PS3.18 8.3.5.1.3), and no other parameter applies."""
    viewport = given.viewport or Viewport(THUMBNAIL_SIDE, THUMBNAIL_SIDE, enlarge=False)
    return RenderingParameters(viewport=viewport)
