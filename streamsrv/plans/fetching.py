"""Answers whose spans may be on another machine: their bytes are fetched before they are sent.

Strategy: a plan is cut into windows. The first one is there before the answer begins, so a bucket that does
not answer is a status, and no answer that breaks off. While a window is sent, threads fetch the next ones:
the spans of a window at the same time, neighbours together. A short answer is one window, and keeps its plan.
A thread costs more than to look for bytes that are at hand, so a window of these needs none.

Rules of this file
- An answer holds at most 1 + AHEAD windows, however long it is and however slowly its client reads. While
  many answers hold half of the cache, further windows are short, and one is fetched ahead.
- Nothing here blocks the event loop: `following` returns a future, and `close` waits for no thread.
- The lease is released after the last thread that uses it.
- A span of a window is in one file, so a window ends where a part of the object does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from streamsrv.store import Fetcher, Location, SegmentLease
from streamsrv.wire.answers import Answer, ByteStream, Piece, Span, StoredParts, Windows

AHEAD = 3
SHORT_WINDOW = 1 << 20  # bytes
PIECES = 1_024  # of one window


class FetchedWindow(NamedTuple):
    """Pieces that can be sent. `release` ends that."""

    pieces: list[Piece]
    release: Callable[[], None]


class PlanWindows:
    """The windows of one plan, cut one after the other, and fetched at the same time."""

    def __init__(self, plan: Iterable[Piece], fetcher: Fetcher) -> None:
        self._in_memory = isinstance(plan, (tuple, list, StoredParts))  # any thread may cut it
        self._plan = iter(plan)
        self._fetcher = fetcher
        self._rest: Span | None = None  # of a span that is longer than its window
        self._cutting = threading.Lock()
        self._ended = False
        self._release: Callable[[], None] | None = None  # of the window that is being sent
        self._ahead: deque[Future[FetchedWindow]] = deque()  # in the order of the plan
        self._uncut: deque[Future[FetchedWindow]] = deque()  # of them, those without pieces yet

    def begin(self) -> list[Piece] | None:
        """Fetch the first window. Returns its pieces if it is the only one. Blocks; raises the errors of the
        plan and of the lease."""
        pieces = self._cut()
        if not self._ended:
            self._ahead.append(Future())
            self._begin_more(beside=1)
        try:
            first = self._held(pieces)
        except BaseException:
            if self._ahead:
                self._ahead.popleft()
            raise
        if not self._ahead:
            self._release = first.release
            return pieces
        self._ahead[0].set_result(first)
        return None

    def _begin_more(self, beside: int = 0) -> None:
        """`beside` windows are not ahead, because they are sent next."""
        most = 1 if self._fetcher.is_crowded else beside + AHEAD
        while len(self._ahead) < most and not self._ended:
            if not self._in_memory:
                made = Future[FetchedWindow]()
                self._ahead.append(made)
                self._uncut.append(made)
                self._fetcher.ahead(self._make)
                continue
            pieces = self._cut()
            window = self._at_hand(pieces)
            self._ahead.append(window or self._fetcher.ahead(partial(self._held, pieces)))
            if window is not None:
                break  # the next one is looked for when this one is sent

    def _make(self) -> None:
        with self._cutting:
            made = self._uncut.popleft()
            try:
                pieces = self._cut()
            except BaseException as error:
                self._ended = True
                made.set_exception(error)
                return
        try:
            made.set_result(self._held(pieces))
        except BaseException as error:
            made.set_exception(error)

    def _held(self, pieces: list[Piece]) -> FetchedWindow:
        """Blocks."""
        return FetchedWindow(pieces, self._fetcher.hold(places_of(pieces)))

    def _at_hand(self, pieces: list[Piece]) -> Future[FetchedWindow] | None:
        """Hold the bytes of a window if they are at hand, with those between them. Does not block."""
        bounds: dict[int, tuple[int, int]] = {}
        for segment, offset, length in places_of(pieces):
            start, end = bounds.get(segment, (offset, 0))
            bounds[segment] = min(start, offset), max(end, offset + length)
        with ExitStack() as held:
            for segment, (start, end) in bounds.items():
                release = self._fetcher.at_hand(Location(segment, start, end - start))
                if release is None:
                    return None
                held.callback(release)
            made = Future[FetchedWindow]()
            made.set_result(FetchedWindow(pieces, held.pop_all().close))
            return made

    def _cut(self) -> list[Piece]:
        """The pieces of the next window; none at the end."""
        pieces: list[Piece] = []
        part = self._fetcher.part
        room, number = SHORT_WINDOW if self._fetcher.is_crowded else part, -1
        while room > 0 and len(pieces) < PIECES and not self._ended:
            piece, self._rest = self._rest or next(self._plan, None), None
            if piece is None:
                self._ended = True
                break
            if isinstance(piece, Span):
                if not piece.length:
                    continue  # it is in no file
                at = piece.offset // part
                if number < 0:
                    segment, number = piece.segment, at
                if piece.segment == segment and at == number + 1:
                    self._rest = piece
                    break
                if piece.length > (room := min(room, part - piece.offset % part)):
                    self._rest = Span(piece.segment, piece.offset + room, piece.length - room)
                    piece = Span(piece.segment, piece.offset, room)
            pieces.append(piece)
            if isinstance(piece, ByteStream):
                break  # it may be long, and reads its bytes itself
            room -= piece.length if isinstance(piece, Span) else 0
        return pieces

    def following(self) -> Future[list[Piece]]:
        """As `Windows.following`."""
        self._end_window()
        made = Future[list[Piece]]()
        if self._ahead:
            self._ahead[0].add_done_callback(lambda done: self._begun(done, made))
        else:
            made.set_result([])
        return made

    def _begun(self, ahead: Future[FetchedWindow], made: Future[list[Piece]]) -> None:
        """Hand over a window, and begin another one."""
        self._ahead.popleft()
        error = ahead.exception()
        if error is not None:
            made.set_exception(error)
            return
        pieces, self._release = ahead.result()
        try:
            self._begin_more()
        except BaseException as failure:  # of the cache's disk: no other one waits for it
            made.set_exception(failure)
            return
        made.set_result(pieces)

    def _end_window(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()

    def close(self, then: Callable[[], None]) -> None:
        """Calls `then` when no thread fetches bytes any more. Not while `following` is waited for."""
        self._ended = True
        self._end_window()
        if self._ahead:
            self._ahead.popleft().add_done_callback(lambda done: self._dropped(done, then))
        else:
            then()

    def _dropped(self, ahead: Future[FetchedWindow], then: Callable[[], None]) -> None:
        try:
            if ahead.exception() is None:
                ahead.result().release()
        finally:
            self.close(then)


def fetched(answer: Answer, lease: SegmentLease) -> Answer:
    """The same answer, whose spans can be read when they are sent. Blocks if bytes have to be fetched;
    raises SegmentGone, StoreError. The answer is released then too."""
    fetcher, plan = lease.fetcher, answer.plan
    if fetcher is None or _is_here(plan):
        return answer
    windows, release = PlanWindows(plan, fetcher), answer.release or _nothing
    try:
        pieces = windows.begin()
    except BaseException:
        windows.close(release)
        raise
    answer.release = lambda: windows.close(release)
    answer.plan = Windows(windows.following) if pieces is None else pieces
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
