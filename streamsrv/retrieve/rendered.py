"""Rendered resources and thumbnails as answers (PS3.18 10.4.1.1.3, 10.4.1.1.4): a picture a frame.

Rules of this file
- One frame asked for, or one that stands for all: a single part, made before its answer begins.
- Several frames: parts, made while they are sent, a batch ahead.
- What has no pixels, and is no encapsulated PDF, is not acceptable in any rendered form: 406, never 500.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from framecodecs import work
from framecodecs.pictures import Viewport
from streamsrv.dicom.instance import FrameKind, JsonDataset
from streamsrv.errors import NotAcceptable, NotFound
from streamsrv.pixelpool import PixelPool
from streamsrv.retrieve.payloads import bulk_piece
from streamsrv.retrieve.pixels import first, frame_info, inline_binary, metadata_of
from streamsrv.retrieve.selection import Selection
from streamsrv.retrieve.showing import Wishes, picture_request
from streamsrv.retrieve.transcoding import piece_bytes, stored_frames, stored_syntax
from streamsrv.store.rows import InstanceRow
from streamsrv.store.store import Store
from streamsrv.wire.answers import Literal, Piece

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp", "image/jp2")
THUMBNAIL_TYPES = ("image/jpeg", "image/png")
THUMBNAIL_SIDE = 200  # pixels, where no viewport is asked for
PDF_STORAGE = "1.2.840.10008.5.1.4.1.1.104.1"
# Frames of one animated GIF: all of them are held while it is made.
ANIMATED_FRAMES = 200


@dataclass(frozen=True, slots=True)
class Renderer:
    """Pictures of the frames of one instance."""

    store: Store
    selection: Selection
    row: InstanceRow
    pool: PixelPool
    dataset: JsonDataset
    wishes: Wishes
    media_type: str

    def picture(self, frame_index: int) -> bytes:
        key = (self.row.record_id, frame_index, self.media_type, self.wishes)
        kept = self.pool.cache.get(key)
        if kept is None:
            (kept,) = self._made(work.render_frames, [frame_index])
            self.pool.cache.put(key, kept)
        return kept

    def animation(self, indices: Sequence[int]) -> bytes:
        (picture,) = self._made(work.animate_frames, indices[:ANIMATED_FRAMES])
        return picture

    def _made(self, task: Callable[..., object], indices: Sequence[int]) -> list[bytes]:
        frames = list(stored_frames(self.store, self.selection, self.row, indices))
        request = picture_request(self.dataset, indices[0], self.wishes, self.media_type, self._bulk)
        info = frame_info(self.dataset)
        made = self.pool.run(task, frames, stored_syntax(self.row), info, request)
        return [picture for picture, _ in made]

    def _bulk(self, path: str) -> bytes:
        value = self.store.bulk_value(self.row.key, path)
        if value is None:
            return b""
        return piece_bytes(self.selection, bulk_piece(self.selection, self.row, value))


def renderer(
    store: Store, selection: Selection, row: InstanceRow, pool: PixelPool, wishes: Wishes, media_type: str
) -> Renderer:
    if not has_frames(row):
        raise NotAcceptable("this SOP instance has no pixels that could be rendered", ())
    return Renderer(store, selection, row, pool, metadata_of(store, row), wishes, media_type)


def has_frames(row: InstanceRow) -> bool:
    return row.frame_kind not in (FrameKind.NONE, FrameKind.EMPTY) and row.number_of_frames > 0


def representative(selection: Selection) -> tuple[InstanceRow, int]:
    """The instance and frame index that stand for all: the middle one of those that have pixels."""
    middle = selection.count // 2
    chosen: InstanceRow | None = None
    for number, row in enumerate(selection.rows()):
        if has_frames(row):
            chosen = row
            if number >= middle:
                break
    if chosen is None:
        raise NotAcceptable("nothing here has pixels that could be rendered", ())
    return chosen, chosen.number_of_frames // 2


def thumbnail_wishes(wishes: Wishes) -> Wishes:
    """A thumbnail is small; a viewport says how small (8.3.5.1.3), nothing else applies."""
    return Wishes(viewport=wishes.viewport or Viewport(THUMBNAIL_SIDE, THUMBNAIL_SIDE, enlarge=False))


def encapsulated_pdf(store: Store, selection: Selection, row: InstanceRow) -> list[Piece]:
    """The document of an Encapsulated PDF, without its padding byte."""
    dataset = metadata_of(store, row)
    value = store.bulk_value(row.key, "00420011")
    if value is None:
        inline = inline_binary(dataset, "00420011")
        if not inline:
            raise NotFound("the encapsulated document is empty")
        return [Literal(inline)]
    length = int(first(dataset, "00420015", value.length))
    shortened = value if length >= value.length else type(value)(value.path, value.vr, value.offset, length)
    return [bulk_piece(selection, row, shortened)]
