"""The plan of one answer on its way into a socket, in the order of its pieces.

Strategy: a state machine that the loop's writer callback drives on a dup of the socket, so that the stream of
HTTP keeps its own registration. Spans go from the page cache to the socket by sendfile, a slice at a
time. Long answers send one slice in each turn of the loop, so that others wait for one slice. The loop never
waits for a page that is not in memory: a one-byte read with RWF_NOWAIT shows it, and a thread sends the
slice. A thread also makes lazy plans and streams. It sends the bytes that it makes, as long as the socket
takes them: that is the back-pressure. A plan of windows (`Windows`) is asked for the next one when all bytes
of the last one are sent.

Rules of this file
- All runs in the loop, except the functions that are given to the pool. At most one of those runs for a
  transfer at any time.
- A plan that ends early or late is an error, and an error ends the connection: never a silent gap, never a
  false end (RFC 9112 8).
- Nothing is freed while a thread may use it: `done` comes after the thread has returned.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

from streamsrv.errors import StoreCorrupt
from streamsrv.web.connection.clients import Meter, TurnQueue
from streamsrv.web.sending.sources import (
    SLICE,
    StreamReader,
    close_iterator,
    send_cold,
    send_file,
    to_page,
    turn_bytes,
    warm_bytes,
)
from streamsrv.wire.answers import Answer, Literal, Piece, Place, Span, StoredParts, Taking, Windows

# Answers up to this length, a frame or two, do not wait for a turn.
SHORT = 1 << 20
# The cost of a piece beside its bytes, in bytes: a turn sends at most turn_bytes / PIECE_COST pieces.
PIECE_COST = 16 << 10
# Pieces of a lazy plan that are made at a time, in a thread; their literals are small next to the spans
# between them.
PIECES_AT_ONCE = 64
# Literals up to this size are sent together with the next ones.
JOIN = 64 << 10

Result = TypeVar("Result")


class Transfer:
    """Sends `prefix`, the head, and the plan of `answer` on `sock`. `done` raises the error that ended it.

    The socket is duplicated only when the loop has to wait for it: most answers of a frame fit at once.
    """

    def __init__(
        self,
        sock: socket.socket,
        answer: Answer,
        pool: Executor,
        meter: Meter,
        bodies: TurnQueue,
        *,
        prefix: bytes = b"",
        chunked: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._ours = False  # the socket is our duplicate
        self._slice = turn_bytes(sock)
        self._answer = answer
        self._pool = pool
        self._meter = meter
        self._chunked = chunked
        self._bodies = bodies
        self._queued = False  # its turn will come
        self._short = answer.length is not None and answer.length <= SHORT
        self.done: asyncio.Future[None] = self._loop.create_future()
        self.sent = 0
        self._watching = False
        self._stopped: BaseException | None = None
        self._busy = False  # a thread works for us, or fetches a window
        self._windows = answer.plan if isinstance(answer.plan, Windows) else None
        self._plan = iter(() if self._windows else answer.plan)
        self._parts = answer.plan.parts() if isinstance(answer.plan, StoredParts) else None
        self._lazy = not isinstance(answer.plan, (tuple, list, StoredParts, Windows))
        self._batch: Iterator[Piece] = iter(()) if self._lazy else self._plan
        self._ahead: Piece | None = None  # taken from the plan, not begun
        self._ended = False
        self._text = memoryview(prefix if self._parts is None else b"")
        self._prefix = b"" if self._parts is None else prefix  # sent with the first part's head
        self._more = True  # bytes follow: the kernel may wait
        self._suffix = b""  # closes the chunk
        self._source, self._offset, self._left = -1, 0, 0  # of the span that is being sent
        self._in_memory = False  # whether all of the span was, so far
        self._stream: StreamReader | None = None
        self._live = answer.live
        self._taking: Taking | None = None

    def start(self) -> None:
        """Sends the bytes that the socket takes at once. The loop does the rest."""
        self._move()

    def abort(self, error: BaseException) -> None:
        """Stops as soon as no thread is at work."""
        if self._stopped is None:
            self._stopped = error
        self._unwatch()
        if not self._busy:
            self._end()

    # The turn

    def _ready(self) -> None:
        """Moves now if the answer is short or this turn of the loop is free, else in a later turn."""
        if self._queued:
            return
        if self._short or self._bodies.take():
            self._move()
        else:
            self._queued = True
            self._unwatch()
            self._bodies.queue(self._called)

    def _called(self) -> None:
        self._queued = False
        if not self.done.done() and self._stopped is None:
            self._move()

    def _move(self) -> None:
        """One slice: until the socket is full, the budget is spent, or a thread has to fetch something."""
        budget = self._slice
        try:
            while budget > 0:
                if self._text:
                    moved = self._send_text()
                elif self._left:
                    moved = self._send_span(budget)
                else:
                    moved = 0 if self._advance() else -1
                if moved < 0:  # nothing to do before a thread or the end reports
                    self._unwatch()
                    return
                budget -= max(moved, PIECE_COST)
        except BlockingIOError:
            pass
        except Exception as error:
            self.abort(error)
            return
        self._watch()

    def _send_text(self) -> int:
        moved = self._sock.send(self._text, socket.MSG_MORE if self._more else 0)
        self._text = self._text[moved:]
        self._count(moved)
        return moved

    def _send_span(self, budget: int) -> int:
        length = min(self._left, budget)
        warm = warm_bytes(self._source, self._offset, length, self._in_memory)
        self._in_memory = warm == length
        if not warm:
            self._own()
            target, source = self._sock, self._source
            offset, length = self._offset, min(self._left, SLICE)
            self._in_thread(lambda: send_cold(target, source, offset, length), self._span_moved)
            return -1
        moved = send_file(self._sock, self._source, self._offset, warm)
        self._move_span(moved)
        return moved

    def _span_moved(self, moved: int | None) -> None:
        if moved is None:  # the socket was full
            self._watch()
            return
        self._move_span(moved)
        self._ready()

    def _move_span(self, moved: int) -> None:
        if moved == 0:
            raise StoreCorrupt(
                f"a segment ends at byte {self._offset}, {self._left} bytes before the end of a record"
            )
        self._offset += moved
        self._left -= moved
        self._count(moved)

    def _count(self, moved: int) -> None:
        self.sent += moved
        self._meter.moved += moved

    # The next piece

    def _advance(self) -> bool:
        """Begins the next piece. False if that has to wait."""
        if self._suffix:
            self._set_text(self._suffix)
            self._suffix = b""
            return True
        if self._parts is not None:
            return self._begin_part(self._parts)
        if self._stream is not None:
            return self._advance_stream(self._stream)
        if self._taking is not None:
            return self._advance_live(self._taking)
        piece = self._take()
        if piece is None:
            return self._conclude()
        if isinstance(piece, Literal):
            self._begin_literals(piece)
        elif isinstance(piece, Span):
            self._begin_span(piece.segment, piece.offset, piece.length)
        else:
            self._stream = StreamReader(piece, chunked=self._chunked)
        return True

    def _take(self) -> Piece | None:
        if self._ahead is not None:
            piece, self._ahead = self._ahead, None
            return piece
        return next(self._batch, None)

    def _begin_part(self, parts: Iterator[tuple[bytes, Place]]) -> bool:
        """Head and span of a part at once. After the last part it ends."""
        for head, place in parts:
            self._begin_led(self._prefix + head, *place)
            self._prefix = b""
            return True
        self._end()
        return False

    def _begin_literals(self, piece: Literal) -> None:
        """Joins it with the literals behind it that are already made."""
        texts, length = [piece.payload], piece.length
        while length < JOIN:
            self._ahead = next(self._batch, None)
            if not isinstance(self._ahead, Literal):
                break
            texts.append(self._ahead.payload)
            length += self._ahead.length
            self._ahead = None
        text = b"".join(texts) if len(texts) > 1 else piece.payload
        if isinstance(self._ahead, Span) and not self._chunked:
            span, self._ahead = self._ahead, None
            self._begin_led(text, span.segment, span.offset, span.length)
        elif text:
            self._set_text(self._framed(text), more=isinstance(self._ahead, Span))

    def _begin_led(self, text: bytes, segment: int, offset: int, length: int) -> None:
        """A span behind a text, with which its bytes up to the first whole page are sent, if they are in
        memory."""
        self._begin_span(segment, offset, length)
        lead = to_page(self._source, self._offset, self._left)
        self._offset += len(lead)
        self._left -= len(lead)
        self._set_text(text + lead, more=self._left > 0)

    def _file_at(self, segment: int, offset: int) -> tuple[int, int]:
        if self._answer.file_at is None:
            raise StoreCorrupt("an answer with spans has no function that opens segments")
        return self._answer.file_at(segment, offset)

    def _begin_span(self, segment: int, offset: int, length: int) -> None:
        if not length:
            return
        (self._source, self._offset), self._left = self._file_at(segment, offset), length
        if self._chunked:
            self._suffix = b"\r\n"
            self._set_text(b"%x\r\n" % length)

    def _framed(self, text: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(text), text) if self._chunked else text

    def _set_text(self, text: bytes, *, more: bool = True) -> None:
        self._text, self._more = memoryview(text), more

    def _advance_stream(self, stream: StreamReader) -> bool:
        if stream.ended:
            stream.close()
            self._stream = None
            return True
        self._own()
        sock = self._sock
        self._in_thread(lambda: stream.forward(sock), self._forwarded)
        return False

    def _advance_live(self, taking: Taking) -> bool:
        """False if no bytes wait: `_wake` goes on."""
        text = taking.take()
        if text is None:
            self._taking = None
            taking.left()
        elif text:
            self._set_text(self._framed(text), more=False)
        return text != b""

    def _wake(self) -> None:
        """Live bytes have come."""
        if not (self._watching or self._text or self.done.done() or self._stopped):
            self._ready()

    def _forwarded(self, found: tuple[int, bytes]) -> None:
        sent, rest = found
        self._count(sent)
        self._set_text(rest, more=False)
        self._ready()

    def _conclude(self) -> bool:
        """The batch is used up: fetch the next one of a lazy plan, or end."""
        if self._lazy:
            self._in_thread(lambda: list(itertools.islice(self._plan, PIECES_AT_ONCE)), self._batch_made)
            return False
        if self._windows is not None:
            return self._next_window(self._windows)
        if self._live is not None:
            self._taking, self._live = self._live.begin(self._wake), None
            return True
        if self._chunked and not self._ended:
            self._ended = True
            self._set_text(b"0\r\n\r\n", more=False)
            return True
        self._end()
        return False

    def _batch_made(self, pieces: list[Piece]) -> None:
        self._lazy = len(pieces) == PIECES_AT_ONCE
        self._batch = iter(pieces)
        self._ready()

    def _next_window(self, windows: Windows) -> bool:
        """False if its bytes are still being fetched."""
        future = windows.following()
        if future.done():
            self._take_window(future.result())
            return True
        self._await(asyncio.wrap_future(future), self._window_there)
        return False

    def _take_window(self, pieces: list[Piece]) -> None:
        self._batch = iter(pieces)
        if not pieces:
            self._windows = None

    def _window_there(self, pieces: list[Piece]) -> None:
        self._take_window(pieces)
        self._ready()

    # Threads and the end

    def _in_thread(self, work: Callable[[], Result], then: Callable[[Result], None]) -> None:
        """Run `work` in the pool, then `then` in the loop."""
        self._await(self._loop.run_in_executor(self._pool, work), then)

    def _await(self, future: asyncio.Future[Result], then: Callable[[Result], None]) -> None:
        self._own()  # the stream may be closed meanwhile
        self._busy = True
        future.add_done_callback(lambda done: self._returned(done, then))

    def _returned(self, future: asyncio.Future[Result], then: Callable[[Result], None]) -> None:
        self._busy = False
        if future.cancelled():
            self.abort(asyncio.CancelledError())
        elif error := future.exception():
            self.abort(error)
        elif self._stopped is not None:
            self._end()
        else:
            try:
                then(future.result())
            except Exception as failure:
                self.abort(failure)

    def _watch(self) -> None:
        self._meter.resume()
        if not self._watching:
            try:
                self._loop.add_writer(self._own(), self._ready)
            except OSError as error:  # no descriptor is left
                self.abort(error)
            else:
                self._watching = True

    def _unwatch(self) -> None:
        """The time until `_watch` is not the client's."""
        self._meter.pause()
        if self._watching:
            self._watching = False
            self._loop.remove_writer(self._own())

    def _own(self) -> int:
        """The descriptor of a duplicate, which no other object registers, closes or reuses."""
        if not self._ours:
            self._sock, self._ours = self._sock.dup(), True
        return self._sock.fileno()

    def _end(self) -> None:
        if self.done.done():
            return
        self._unwatch()
        if self._stream is not None:
            self._stream.close()
        if self._taking is not None:
            self._taking.left()
        close_iterator(self._plan)
        if self._ours:
            self._sock.close()
        if self._stopped is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(self._stopped)
