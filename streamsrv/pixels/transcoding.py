"""Stored frames into frames of another transfer syntax, in bounded memory, by the pixel pool.

Strategy: frames are handed over in batches, because a hand-over costs as much for eight small frames as for
one. While one batch is being sent the next ones are being made, so all cores work for one client and no more
than a few batches of it are ever held. What comes first is made before its answer begins, so that what cannot
be decoded is a 406 and not a broken connection.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo
from framecodecs.pool import work
from framecodecs.pool.messages import Result
from framecodecs.pool.pipes import Frame, StoredFrame
from streamsrv.dicom.instance import FrameKind
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from streamsrv.errors import NotAcceptable, StoreCorrupt, StoreError, WouldBlock
from streamsrv.pixels.access_pattern import asked
from streamsrv.pixels.orders import PREFETCH
from streamsrv.pixels.pixel_info import pixel_info
from streamsrv.pixels.pool import Making, Order, PixelPool
from streamsrv.plans.payloads import frame_pieces
from streamsrv.plans.selection import Selection
from streamsrv.store import InstanceRow, Store
from streamsrv.wire.answers import Literal, Piece, Requester, Span, Stream

# A batch: enough to spread the cost of a hand-over, little enough to begin sending soon.
BATCH_FRAMES = 32
BATCH_BYTES = 2 << 20
# Frames up to this size together are made before their answer begins.
AT_ONCE = 4 << 20
# No honest codestream is so much longer than the pixels in it; a few hold a preview or a profile besides.
LONGEST_STORED, BESIDES = 4, 16 << 20
READ = 1 << 20  # of a segment at a time
QUICK = 1 << 20  # what the loop copies: 0.1 ms
PLACED = 32 << 10  # bytes from which on a frame in memory is not copied, but read by who works on it
LONGEST_AHEAD = 16 << 20  # stored bytes of a frame that nobody has asked for
PROBE_STEP = 128 << 10  # readahead brings at least so much at once
# What might be made: the uncompressed syntax, and the encapsulated ones.
TARGETS = (
    EXPLICIT_VR_LITTLE_ENDIAN,
    *(uid for uid, row in registry.SYNTAXES.items() if row.encapsulated),
)


def stored_syntax(row: InstanceRow) -> str:
    """The syntax of frames as `frame_pieces` gives them: uncompressed ones are little endian by then."""
    return row.transfer_syntax if row.frame_kind is FrameKind.TABLE else EXPLICIT_VR_LITTLE_ENDIAN


@lru_cache(maxsize=512)
def targets(syntax: str, info: FrameInfo | None = None) -> tuple[str, ...]:
    """The transfer syntaxes into which frames of `syntax` can be made here; with `info` those that such
    pixels fit. Floating-point pixels are never encapsulated (PS3.5 A.4)."""
    if info is not None and info.floating:
        return ()
    return tuple(uid for uid in TARGETS if uid != syntax and registry.transcodable(syntax, uid, info))


def instance_targets(stored: str, info: FrameInfo | None = None) -> tuple[str, ...]:
    """The transfer syntaxes into which instances of `stored` can be made. A native one goes out as Explicit
    VR Little Endian at no cost."""
    native = not lookup(stored).encapsulated
    made = targets(EXPLICIT_VR_LITTLE_ENDIAN if native else stored, info)
    return (EXPLICIT_VR_LITTLE_ENDIAN, *made) if native else made


def has_frames(row: InstanceRow) -> bool:
    return row.frame_kind not in (FrameKind.NONE, FrameKind.EMPTY) and row.number_of_frames > 0


def decoded_length(info: FrameInfo) -> int:
    """Of each frame when it is decoded: interleaved, every pixel with all its samples."""
    if info.bits_allocated == 1:
        return info.frame_length
    return info.rows * info.columns * info.samples_per_pixel * info.bits_allocated // 8


def batches(info: FrameInfo, indices: Sequence[int], least: int = 0) -> Iterator[Sequence[int]]:
    """`least` is what each frame takes if it takes more than its decoded pixels."""
    size = max(1, min(BATCH_FRAMES, BATCH_BYTES // max(decoded_length(info), least, 1)))
    for at in range(0, len(indices), size):
        yield indices[at : at + size]


@dataclass(frozen=True, slots=True)
class Transcoder:
    """The frames of one instance in one target syntax."""

    store: Store
    selection: Selection
    row: InstanceRow
    pool: PixelPool
    info: FrameInfo
    target: str
    waits: bool = True  # for the disk, where it may
    requester: Requester = PREFETCH

    @property
    def decoded_length(self) -> int:
        return decoded_length(self.info)

    @property
    def native(self) -> bool:
        return self.target == EXPLICIT_VR_LITTLE_ENDIAN

    def order(self, indices: Sequence[int]) -> Order:
        length = self.decoded_length
        frames = stored_frames(
            self.store, self.selection, self.row, indices, length, at_hand_of(self.pool, self.waits)
        )
        syntax, pixels = stored_syntax(self.row), len(indices) * length
        if self.native:
            return Order(work.decode_frames, frames, (syntax, self.info), pixels, self.requester)
        arguments = (syntax, self.target, self.info)
        return Order(work.transcode_frames, frames, arguments, pixels, self.requester)

    def first_order(self) -> Order:
        """The first batch of all frames."""
        return self.order(next(batches(self.info, range(self.row.number_of_frames))))

    def made(self, results: Sequence[Result]) -> list[bytes]:
        """The frames among results, held to their length."""
        frames = [frame for frame, _ in results]
        if self.native and any(len(frame) != self.decoded_length for frame in frames):
            raise StoreError("a decoded frame has not the length that its attributes give it")
        return frames

    def batches(self, indices: Sequence[int], done: Sequence[bytes] = ()) -> Iterator[list[bytes]]:
        """The frames in order, batch by batch, the first of them `done` already; an empty batch where none is
        ready yet. Blocking; closing the iterator cancels what is under way."""
        if done:
            yield list(done)
        rest = batches(self.info, indices[len(done) :])
        orders = ((None, self.order(batch)) for batch in rest)
        for turn in self.pool.in_turn(orders):
            if turn is None:
                yield []
            elif turn[1] is not None:
                yield self.made(self.pool.results(turn[1]))


def transcoder(
    store: Store,
    selection: Selection,
    row: InstanceRow,
    pool: PixelPool,
    target: str,
    requester: Requester = PREFETCH,
) -> Transcoder:
    info = pixel_info(store, row, pool)
    return Transcoder(store, selection, row, pool, info, target, requester=requester)


def check_fits(made: Transcoder) -> None:
    """Raises NotAcceptable if such pixels have no place in the target."""
    if made.target not in targets(stored_syntax(made.row), made.info):
        raise NotAcceptable(f"these pixels cannot be sent as {lookup(made.target).name}", ())


def frame_key(row: InstanceRow, index: int, target: str) -> tuple[bytes, int, str]:
    """Of a made frame in the pool's cache."""
    return row.record_id, index, target


def one_frame(made: Transcoder, index: int) -> bytes:
    """A single frame, made or remembered. In the loop it raises WouldBlock rather than wait."""
    store, pool, target = made.store, made.pool, made.target

    def neighbour(selection: Selection, row: InstanceRow, index: int) -> Making:
        other = replace(transcoder(store, selection, row, pool, target), waits=False)
        check_fits(other)
        return making_of(other, index)

    def look_ahead() -> None:
        if pool.worth_making_ahead(made.decoded_length):
            asked(store, pool, made.row, index, target, neighbour)

    return pool.made(making_of(made, index), look_ahead)


def making_of(made: Transcoder, index: int) -> Making:
    return Making(
        frame_key(made.row, index, made.target),
        lambda: made.order([index]),
        lambda results: made.made(results)[0],
        made.requester,
    )


# Stored bytes


def stored_frames(
    store: Store,
    selection: Selection,
    row: InstanceRow,
    indices: Sequence[int],
    decoded: int,
    at_hand: int | None = None,
) -> list[Frame]:
    """`decoded` is the length of each frame when it is decoded. With `at_hand`, a frame that is longer or not
    in memory is WouldBlock. None of them waits for the disk any more."""
    frames = list[Frame]()
    for pieces in frame_pieces(store, selection, row, indices):
        if sum(piece.length or 0 for piece in pieces) > LONGEST_STORED * decoded + BESIDES:
            raise NotAcceptable("a compressed frame is longer than any encoder makes it", ())
        is_at_hand = are_at_hand(selection, pieces, LONGEST_AHEAD if at_hand is None else at_hand)
        if at_hand is not None and not is_at_hand:
            raise WouldBlock("stored frames have to be read")
        placed = placed_frame(selection, pieces) if is_at_hand else None
        frames.append(
            placed or b"".join(chunk for piece in pieces for chunk in piece_chunks(selection, piece))
        )
    return frames


def placed_frame(selection: Selection, pieces: Sequence[Piece]) -> StoredFrame | None:
    """A frame that lies in one piece, and is not so short that it is copied sooner."""
    if len(pieces) != 1 or not isinstance(piece := pieces[0], Span) or piece.length < PLACED:
        return None
    return StoredFrame(selection.lease.fd(piece.segment), piece.offset, piece.length)


def at_hand_of(pool: PixelPool, waits: bool) -> int | None:
    """How long a frame may be that is read from memory alone; None where the disk may be waited for."""
    if pool.in_loop:
        return QUICK
    return None if waits else LONGEST_AHEAD


def are_at_hand(selection: Selection, pieces: Sequence[Piece], most: int) -> bool:
    """Whether reading them is but a copy from memory, judging by a page in each PROBE_STEP."""
    if sum(piece.length or most + 1 for piece in pieces) > most:
        return False
    return all(isinstance(piece, Literal) or _is_warm(selection, piece) for piece in pieces)


def _is_warm(selection: Selection, piece: Piece) -> bool:
    if not isinstance(piece, Span):
        return False  # made of what has to be read first
    descriptor, page = selection.lease.fd(piece.segment), [bytearray(1)]
    try:
        for at in range(0, piece.length, PROBE_STEP):
            os.preadv(descriptor, page, piece.offset + at, os.RWF_NOWAIT)
    except OSError:  # it is not in memory, or the file system cannot tell
        return False
    return True


def piece_chunks(selection: Selection, piece: Piece) -> Iterator[bytes]:
    """The bytes of a piece, for what is not sent by the kernel."""
    if isinstance(piece, Literal):
        yield piece.payload
    elif isinstance(piece, Stream):
        yield from piece.chunks(0, piece.length)
    else:
        for at in range(0, piece.length, READ):
            size = min(READ, piece.length - at)
            chunk = selection.lease.pread(piece.segment, piece.offset + at, size)
            if len(chunk) != size:
                raise StoreCorrupt(f"segment {piece.segment} ends before a value that the index knows")
            yield chunk
