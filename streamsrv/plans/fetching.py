"""Answers whose spans may be on another machine: their bytes are fetched before they are sent.

Strategy: a plan is cut into windows. The first one is there before the answer begins, so a bucket that does
not answer is a status, and no answer that breaks off. While a window is sent, a thread fetches the next one:
its spans at the same time, neighbours together. A short answer is one window, and keeps its plan.

Rules of this file
- An answer has at most two windows of bytes pinned, however long it is and however slowly its client reads.
- Nothing here blocks the event loop: `following` returns a future, and `close` waits for no thread.
- The lease is released after the last thread that uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from streamsrv.store import Fetcher, Location, SegmentLease
from streamsrv.wire.answers import Answer, ByteStream, Piece, Span, Windows

# Bytes of the first window, and the most of the next ones: each has twice as many as the one before it.
FIRST, MOST = 4 << 20, 16 << 20
PIECES = 4_096  # of one window


class FetchedWindow(NamedTuple):
    """Pieces that can be sent. `release` unpins their bytes."""

    pieces: list[Piece]
    release: Callable[[], None]


class PlanWindows:
    """The windows of one plan, made one after the other."""

    def __init__(self, plan: Iterable[Piece], fetcher: Fetcher) -> None:
        self._plan = iter(plan)
        self._fetcher = fetcher
        self._rest: Span | None = None  # of a span that is longer than its window
        self._size = FIRST
        self._ended = False
        self._release: Callable[[], None] | None = None  # of the window that is being sent
        self._ahead: Future[FetchedWindow] | None = None

    def begin(self) -> list[Piece] | None:
        """Make the first window. Returns the pieces if it is the only one. Blocks; raises the errors of the
        plan and of the lease."""
        first = self._make()
        if self._ended:
            self._release = first.release
            return first.pieces
        self._ahead = Future()
        self._ahead.set_result(first)
        return None

    def _make(self) -> FetchedWindow:
        pieces: list[Piece] = []
        room, self._size = self._size, min(2 * self._size, MOST)
        while room > 0 and len(pieces) < PIECES:
            piece, self._rest = self._rest or next(self._plan, None), None
            if piece is None:
                self._ended = True
                break
            if isinstance(piece, Span) and piece.length > room:
                self._rest = Span(piece.segment, piece.offset + room, piece.length - room)
                piece = Span(piece.segment, piece.offset, room)
            pieces.append(piece)
            if isinstance(piece, ByteStream):
                break  # it may be long, and reads its bytes itself
            room -= piece.length
        return FetchedWindow(pieces, self._fetcher.hold(places_of(pieces)))

    def following(self) -> Future[list[Piece]]:
        """As `Windows.following`."""
        self._end_window()
        made = Future[list[Piece]]()
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            made.set_result([])
        else:
            ahead.add_done_callback(lambda done: self._begun(done, made))
        return made

    def _begun(self, ahead: Future[FetchedWindow], made: Future[list[Piece]]) -> None:
        """Hand over a window, and begin the next one."""
        try:
            pieces, self._release = ahead.result()
            if not self._ended:
                self._ahead = self._fetcher.ahead(self._make)
        except BaseException as error:
            made.set_exception(error)
        else:
            made.set_result(pieces)

    def _end_window(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()

    def close(self, then: Callable[[], None]) -> None:
        """Calls `then` when no thread fetches bytes any more. Not while `following` is waited for."""
        self._end_window()
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            then()
        else:
            ahead.cancel()
            ahead.add_done_callback(lambda done: _dropped(done, then))


def _dropped(ahead: Future[FetchedWindow], then: Callable[[], None]) -> None:
    try:
        if not ahead.cancelled() and ahead.exception() is None:
            ahead.result().release()
    finally:
        then()


def fetched(answer: Answer, lease: SegmentLease) -> Answer:
    """The same answer, whose spans can be read when they are sent. Blocks if bytes have to be fetched;
    raises SegmentGone, StoreError."""
    fetcher, plan = lease.fetcher, answer.plan
    if fetcher is None or _is_here(plan):
        return answer
    windows = PlanWindows(plan, fetcher)
    pieces = windows.begin()
    release = answer.release or _nothing
    answer.plan = Windows(windows.following) if pieces is None else pieces
    answer.release = lambda: windows.close(release)
    return answer


def _is_here(plan: Iterable[Piece]) -> bool:
    return isinstance(plan, (list, tuple)) and not any(isinstance(piece, Span) for piece in plan)


def places_of(pieces: Iterable[Piece]) -> Iterator[Location]:
    for piece in pieces:
        if isinstance(piece, Span):
            yield Location(piece.segment, piece.offset, piece.length)


def held(lease: SegmentLease, frames: Sequence[Sequence[Piece]]) -> Callable[[], None]:
    """The spans of these frames can be read until the function that is returned is called. Blocks and raises
    as `fetched`."""
    fetcher = lease.fetcher
    return _nothing if fetcher is None else fetcher.hold(places_of(piece for one in frames for piece in one))


def _nothing() -> None:
    pass
