"""Stored frames into frames of another transfer syntax, in bounded memory, by the pixel pool.

Strategy: frames are handed over in batches, because a hand-over costs as much for eight small frames as for
one. While one batch is being sent the next is being made, so all cores work for one client and no more than
two batches of it are ever held. A single frame is made before its answer begins, so that what cannot be
decoded is a 406 and not a broken connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial

from framecodecs import registry, work
from framecodecs.frameinfo import FrameInfo
from framecodecs.options import EncodeOptions
from framecodecs.wireform import Result
from streamsrv.dicom.instance import FrameKind
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from streamsrv.errors import StoreCorrupt
from streamsrv.pixelpool import PixelPool
from streamsrv.retrieve.payloads import frame_pieces
from streamsrv.retrieve.pixels import frame_info, metadata_of
from streamsrv.retrieve.selection import Selection
from streamsrv.store.rows import InstanceRow
from streamsrv.store.store import Store
from streamsrv.wire.answers import Literal, Piece, Stream

PiecesSource = Callable[[], Iterator[list[Piece]]]

# A batch: enough to spread the cost of a hand-over, little enough to begin sending soon.
BATCH_FRAMES = 8
BATCH_BYTES = 4 << 20
# Frames up to this size together are made before their answer begins.
AT_ONCE = 4 << 20
# The syntaxes that can be made: the encapsulated ones for which there is an encoder, and the uncompressed
# one.
TARGETS = (
    EXPLICIT_VR_LITTLE_ENDIAN,
    *(uid for uid, row in registry.SYNTAXES.items() if row.encapsulated and row.encode_libraries),
)


def stored_syntax(row: InstanceRow) -> str:
    """The syntax of frames as `frame_pieces` gives them: uncompressed ones are little endian by then."""
    return row.transfer_syntax if row.frame_kind is FrameKind.TABLE else EXPLICIT_VR_LITTLE_ENDIAN


@lru_cache(maxsize=1024)  # which libraries are installed does not change while we run
def targets(syntax: str, info: FrameInfo | None = None) -> tuple[str, ...]:
    """The transfer syntaxes into which frames of `syntax` can be made here; with `info` those that such
    pixels fit."""
    return tuple(uid for uid in TARGETS if uid != syntax and registry.transcodable(syntax, uid, info))


def instance_targets(stored: str) -> tuple[str, ...]:
    """The transfer syntaxes into which instances of `stored` can be made. A native one goes out as Explicit
    VR Little Endian at no cost."""
    native = not lookup(stored).encapsulated
    return targets(EXPLICIT_VR_LITTLE_ENDIAN if native else stored) + (EXPLICIT_VR_LITTLE_ENDIAN,) * native


@dataclass(frozen=True, slots=True)
class Transcoder:
    """The frames of one instance in one target syntax."""

    store: Store
    selection: Selection
    row: InstanceRow
    pool: PixelPool
    info: FrameInfo
    target: str
    options: EncodeOptions | None = None

    @property
    def decoded_length(self) -> int:
        """Of each frame when it is decoded: interleaved, every pixel with all its samples."""
        info = self.info
        if info.bits_allocated == 1:
            return info.frame_length
        return info.rows * info.columns * info.samples_per_pixel * info.bits_allocated // 8

    @property
    def length(self) -> int | None:
        """Of each made frame, where that is known beforehand."""
        return self.decoded_length if self.target == EXPLICIT_VR_LITTLE_ENDIAN else None

    def one(self, index: int) -> Result:
        """A single frame and what it is now. Blocking."""
        key = (self.row.record_id, index, self.target, self.options)
        kept = self.pool.cache.get(key)
        if kept is not None:
            return kept, None
        (result,) = self.pool.results(self._order([index]))
        self.pool.cache.put(key, result[0])
        return result

    def first(self) -> tuple[bytes, FrameInfo]:
        """The first frame, and what all frames now are. Blocking."""
        (result,) = self.pool.results(self._order([0]))
        frame, info = result
        return frame, info or self.info

    def _order(self, indices: Sequence[int]) -> Future[list[Result]]:
        frames = list(stored_frames(self.store, self.selection, self.row, indices))
        syntax = stored_syntax(self.row)
        if self.target == EXPLICIT_VR_LITTLE_ENDIAN:
            return self.pool.submit(work.decode_frames, frames, syntax, self.info)
        return self.pool.submit(work.transcode_frames, frames, syntax, self.target, self.info, self.options)

    def batches(self, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        size = max(1, min(BATCH_FRAMES, BATCH_BYTES // max(self.decoded_length, 1)))
        for at in range(0, len(indices), size):
            yield indices[at : at + size]

    def all(self, indices: Sequence[int]) -> Iterator[bytes]:
        """The frames in order, a batch ahead. Blocking; closing the iterator cancels what is under way."""
        ahead: Future[list[Result]] | None = None
        try:
            for batch in self.batches(indices):
                order, ahead = ahead, self._order(batch)
                if order is not None:
                    yield from (frame for frame, _ in self.pool.results(order))
            if ahead is not None:
                yield from (frame for frame, _ in self.pool.results(ahead))
        finally:
            if ahead is not None and not ahead.done():
                self.pool.cancel(ahead)


def transcoder(
    store: Store, selection: Selection, row: InstanceRow, pool: PixelPool, target: str
) -> Transcoder:
    info = frame_info(metadata_of(store, row))
    return Transcoder(store, selection, row, pool, info, target)


def stored_frames(
    store: Store, selection: Selection, row: InstanceRow, indices: Sequence[int]
) -> Iterator[bytes]:
    for pieces in frame_pieces(store, selection, row, indices):
        yield b"".join(piece_bytes(selection, piece) for piece in pieces)


def piece_bytes(selection: Selection, piece: Piece) -> bytes:
    """The bytes of a piece of one frame."""
    if isinstance(piece, Literal):
        return piece.payload
    if isinstance(piece, Stream):
        return b"".join(piece.chunks(0, piece.length))
    payload = selection.lease.pread(piece.segment, piece.offset, piece.length)
    if len(payload) != piece.length:
        raise StoreCorrupt(f"segment {piece.segment} ends before a frame that the index knows")
    return payload


class Made:
    """The made frames, pulled one after another by the pieces of one walk over a plan. A piece may be
    skipped."""

    def __init__(self, transcoder: Transcoder, indices: Sequence[int]) -> None:
        self._transcoder = transcoder
        self._indices = indices
        self._next = -1
        self._frames: Iterator[bytes] = iter(())

    def pieces(self) -> Iterator[list[Piece]]:
        """For each frame its piece."""
        for position in range(len(self._indices)):
            yield [Stream(partial(self._chunks, position), self._transcoder.length)]

    def _chunks(self, position: int, start: int, stop: int | None) -> Iterator[bytes]:
        if position != self._next:
            self._next, self._frames = position, self._transcoder.all(self._indices[position:])
        self._next += 1
        yield next(self._frames)[start:stop]


def made_frames(transcoder: Transcoder, indices: Sequence[int]) -> PiecesSource:
    """The frames as pieces, anew at each call. A few are made at once: their length is known then, and what
    cannot be decoded is told before the answer begins."""
    if len(indices) == 1:
        frame, _ = transcoder.one(indices[0])
        return lambda: iter([[Literal(frame)]])
    if len(indices) * transcoder.decoded_length <= AT_ONCE:
        kept: list[list[Piece]] = [[Literal(frame)] for frame in transcoder.all(indices)]
        return lambda: iter(kept)
    return lambda: Made(transcoder, indices).pieces()
