"""Frames in another transfer syntax: tasks for the pixel pool, in bounded memory.

Strategy: a task holds a batch of frames, because a task of eight small frames costs as much as a task of one.
While one batch is sent the next ones are made: all cores work for one client, and only a few batches are
held. The first batch is made before the answer begins, so that undecodable pixels are a 406 and not a broken
connection.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo
from framecodecs.pool import messages
from framecodecs.pool.messages import Result
from framecodecs.pool.pipes import Frame, StoredFrame
from streamsrv.dicom.instance import FrameKind
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from streamsrv.errors import NotAcceptable, StoreCorrupt, StoreError
from streamsrv.pixels.pool import PixelPool
from streamsrv.pixels.tasks import PREFETCH, FrameJob, PixelTask
from streamsrv.plans.fetching import held
from streamsrv.plans.payloads import frame_pieces
from streamsrv.plans.selection import Selection
from streamsrv.store import InstanceRow, Store
from streamsrv.wire.answers import ByteStream, Literal, Piece, Requester, Span

# A batch: long enough to spread the cost of a task, short enough to begin sending soon.
BATCH_FRAMES = 32
BATCH_BYTES = 2 << 20
# Bytes of frames that are made before their answer begins.
AT_ONCE = 4 << 20
# The longest codestream: so many times the pixels, and a preview or a profile.
LONGEST_STORED, MARGIN = 4, 16 << 20
READ = 1 << 20  # bytes of a segment at a time
QUICK = 1 << 20  # bytes that the loop copies in 0.1 ms
PLACED = 32 << 10  # bytes from which a frame in memory is not copied: the pixel process reads it
LONGEST_PREFETCHED = 16 << 20  # bytes of a stored frame
PROBE_STEP = 128 << 10  # bytes that readahead brings at least
# Transcoding targets: the uncompressed syntax, and the encapsulated ones.
TARGETS = (
    EXPLICIT_VR_LITTLE_ENDIAN,
    *(uid for uid, row in registry.SYNTAXES.items() if row.encapsulated),
)


def stored_syntax(row: InstanceRow) -> str:
    """The syntax of the frames that `frame_pieces` yields: uncompressed ones are little endian."""
    return row.transfer_syntax if row.frame_kind is FrameKind.TABLE else EXPLICIT_VR_LITTLE_ENDIAN


@lru_cache(maxsize=512)
def targets(syntax: str, info: FrameInfo | None = None) -> tuple[str, ...]:
    """The transfer syntaxes into which frames of `syntax` can be transcoded; with `info` those that can hold
    such pixels. Floating-point pixels are never encapsulated (PS3.5 A.4)."""
    if info is not None and info.floating:
        return ()
    return tuple(uid for uid in TARGETS if uid != syntax and registry.transcodable(syntax, uid, info))


def instance_targets(stored: str, info: FrameInfo | None = None) -> tuple[str, ...]:
    """The transfer syntaxes into which instances of `stored` can be transcoded. A native one is sent as
    Explicit VR Little Endian at no cost."""
    native = not lookup(stored).encapsulated
    made = targets(EXPLICIT_VR_LITTLE_ENDIAN if native else stored, info)
    return (EXPLICIT_VR_LITTLE_ENDIAN, *made) if native else made


def has_frames(row: InstanceRow) -> bool:
    return row.frame_kind not in (FrameKind.NONE, FrameKind.EMPTY) and row.number_of_frames > 0


def decoded_length(info: FrameInfo) -> int:
    """Bytes of one decoded frame: interleaved, every pixel with all its samples."""
    if info.bits_allocated == 1:
        return info.frame_length
    return info.rows * info.columns * info.samples_per_pixel * info.bits_allocated // 8


def batches(info: FrameInfo, indices: Sequence[int], least: int = 0) -> Iterator[Sequence[int]]:
    """`least` is the size of a frame in bytes, if that is more than its decoded pixels."""
    size = max(1, min(BATCH_FRAMES, BATCH_BYTES // max(decoded_length(info), least, 1)))
    for at in range(0, len(indices), size):
        yield indices[at : at + size]


@dataclass(slots=True)
class Transcoder:
    """The frames of one instance in one target syntax."""

    store: Store
    selection: Selection
    row: InstanceRow
    pool: PixelPool
    info: FrameInfo
    target: str
    requester: Requester = PREFETCH

    @property
    def decoded_length(self) -> int:
        return decoded_length(self.info)

    @property
    def native(self) -> bool:
        return self.target == EXPLICIT_VR_LITTLE_ENDIAN

    def check_fits(self) -> None:
        """Raises NotAcceptable if the target cannot hold such pixels."""
        if self.target not in targets(stored_syntax(self.row), self.info):
            raise NotAcceptable(f"these pixels cannot be sent as {lookup(self.target).name}", ())

    def task(self, indices: Sequence[int]) -> PixelTask:
        """Blocking. Raises NotAcceptable."""
        return self._task(stored_frames(self.store, self.selection, self.row, indices, self.decoded_length))

    def _task(self, frames: Sequence[Frame]) -> PixelTask:
        syntax, pixels = stored_syntax(self.row), len(frames) * self.decoded_length
        if self.native:
            return PixelTask(messages.decode_frames, frames, (syntax, self.info), pixels, self.requester)
        arguments = (syntax, self.target, self.info)
        return PixelTask(messages.transcode_frames, frames, arguments, pixels, self.requester)

    def first_task(self) -> PixelTask:
        """The first batch of all frames."""
        return self.task(next(batches(self.info, range(self.row.number_of_frames))))

    def job(self, index: int, longest: int | None = None) -> FrameJob:
        """One frame. With `longest` its task does not wait for the disk: it takes a stored frame of at most
        so many bytes, and only from memory."""

        def task() -> PixelTask | None:
            if longest is None:
                return self.task([index])
            frame = frame_at_hand(self.store, self.selection, self.row, index, self.decoded_length, longest)
            return None if frame is None else self._task([frame])

        key = frame_key(self.row, index, self.target)
        return FrameJob(key, task, lambda results: self.made(results)[0], self.requester)

    def prefetch(self, index: int) -> None:
        """A client requests the frame `index`: others may follow."""
        if self.pool.may_prefetch(self.decoded_length):
            make_job = partial(_prefetch_job, self.store, self.pool, self.target)
            self.pool.prefetch.requested(self.store, self.row, index, self.target, make_job)

    def made(self, results: Sequence[Result]) -> list[bytes]:
        """The frames of results. Raises StoreError if one has not its length."""
        frames = [frame for frame, _ in results]
        if self.native and any(len(frame) != self.decoded_length for frame in frames):
            raise StoreError("a decoded frame has not the length that its attributes give it")
        return frames

    def batches(self, indices: Sequence[int], done: Sequence[bytes] = ()) -> Iterator[list[bytes]]:
        """The frames in order, batch by batch, the first of them `done` already. An empty batch says that
        none is ready yet. Blocking; closing the iterator cancels the work."""
        if done:
            yield list(done)
        rest = batches(self.info, indices[len(done) :])
        for turn in self.pool.in_turn((None, self.task(batch)) for batch in rest):
            if turn is None:
                yield []
            elif turn[1] is not None:
                yield self.made(self.pool.results(turn[1]))


def _prefetch_job(
    store: Store, pool: PixelPool, target: str, selection: Selection, row: InstanceRow, index: int
) -> FrameJob:
    """Raises NotAcceptable."""
    other = Transcoder(store, selection, row, pool, pool.descriptions.info(store, row), target)
    other.check_fits()
    return other.job(index, LONGEST_PREFETCHED)


def frame_key(row: InstanceRow, index: int, target: str) -> tuple[bytes, int, str]:
    """The key of a transcoded frame in the cache of the pool."""
    return row.record_id, index, target


# Stored bytes


def stored_frames(
    store: Store, selection: Selection, row: InstanceRow, indices: Sequence[int], decoded: int
) -> list[Frame]:
    """Stored frames for a task. `decoded` is the length of one frame when it is decoded. Blocking."""
    found = list(_checked(frame_pieces(store, selection, row, indices), decoded))
    release = held(selection.lease, found)
    try:
        return [
            _frame(selection, pieces, are_at_hand(selection, pieces, LONGEST_PREFETCHED)) for pieces in found
        ]
    finally:
        release()


def frame_at_hand(
    store: Store, selection: Selection, row: InstanceRow, index: int, decoded: int, longest: int
) -> Frame | None:
    """A stored frame for a task. None if it is longer than `longest`, or would be read from the disk. Blocks
    if the segment is on another machine."""
    pieces = next(_checked(frame_pieces(store, selection, row, [index]), decoded))
    if selection.lease.fetcher is not None:
        is_short = sum(piece.length or longest + 1 for piece in pieces) <= longest
        return _frame(selection, pieces, False) if is_short else None
    return _frame(selection, pieces, True) if are_at_hand(selection, pieces, longest) else None


def _checked(frames: Iterator[list[Piece]], decoded: int) -> Iterator[list[Piece]]:
    for pieces in frames:
        if sum(piece.length or 0 for piece in pieces) > LONGEST_STORED * decoded + MARGIN:
            raise NotAcceptable("a compressed frame is longer than any encoder makes it", ())
        yield pieces


def _frame(selection: Selection, pieces: Sequence[Piece], is_at_hand: bool) -> Frame:
    placed = placed_frame(selection, pieces) if is_at_hand else None
    return placed or b"".join(chunk for piece in pieces for chunk in piece_chunks(selection, piece))


def placed_frame(selection: Selection, pieces: Sequence[Piece]) -> StoredFrame | None:
    """A frame that the pixel process reads itself: in one piece, and not so short that a copy is faster."""
    if len(pieces) != 1 or not isinstance(piece := pieces[0], Span) or piece.length < PLACED:
        return None
    return StoredFrame(*selection.lease.file_at(piece.segment, piece.offset), piece.length)


def are_at_hand(selection: Selection, pieces: Sequence[Piece], most: int) -> bool:
    """Whether the pieces are in memory, and stay readable, and have at most `most` bytes. Probes one page in
    each PROBE_STEP."""
    if selection.lease.fetcher is not None or sum(piece.length or most + 1 for piece in pieces) > most:
        return False
    return all(isinstance(piece, Literal) or _is_warm(selection, piece) for piece in pieces)


def _is_warm(selection: Selection, piece: Piece) -> bool:
    if not isinstance(piece, Span):
        return False
    descriptor, offset = selection.lease.file_at(piece.segment, piece.offset)
    page = [bytearray(1)]
    try:
        for at in range(0, piece.length, PROBE_STEP):
            os.preadv(descriptor, page, offset + at, os.RWF_NOWAIT)
    except OSError:  # not in memory, or the file system cannot tell
        return False
    return True


def piece_chunks(selection: Selection, piece: Piece) -> Iterator[bytes]:
    """The bytes of a piece that the kernel does not send."""
    if isinstance(piece, Literal):
        yield piece.payload
    elif isinstance(piece, ByteStream):
        yield from piece.chunks(0, piece.length)
    else:
        for fd, offset, length in selection.lease.windows(piece.segment, piece.offset, piece.length):
            for at in range(offset, offset + length, READ):
                size = min(READ, offset + length - at)
                chunk = os.pread(fd, size, at)
                if len(chunk) != size:
                    raise StoreCorrupt(f"segment {piece.segment} ends before a value that the index knows")
                yield chunk
