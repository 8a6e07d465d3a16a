"""A fair queue of orders: each client has a few orders with the pixel processes, and the others wait here.

Strategy: the kernel hands orders out in the order in which they were sent. A client may have `room` orders
sent and unfinished, so a newcomer finds only a few orders of each other client before its own. The next order
of a client is sent when one of its orders has ended.

Rules of this file
- A client may have `waiting` orders here; one more raises QueueFull. All clients together may have CLIENTS
  times as many.
- An order that waits keeps the files open that its frames are stored in.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from framecodecs.errors import QueueFull
from framecodecs.pool.messages import Result
from framecodecs.pool.pipes import Frame, StoredFrame
from framecodecs.pool.pool import Answer
from streamsrv.pixels.orders import Order

CLIENTS = 8

Send: TypeAlias = Callable[[Order], Answer]


class Queued(Future[list[Result]]):
    """An order that waits, and then follows `sent`, the same order with the processes."""

    sent: Answer | None = None

    def __init__(self, order: Order, send: Send) -> None:
        super().__init__()
        self._order, self._files = _kept(order)
        self._send = send

    def begin(self) -> Answer | None:
        """Sends it. Returns None if it was cancelled, or cannot be sent: that is its outcome then."""
        try:
            if self.done():
                return None
            self.sent = sent = self._send(self._order)
        except Exception as error:
            with suppress(InvalidStateError):  # cancelled meanwhile
                self.set_exception(error)
            return None
        finally:
            self.close()
        sent.add_done_callback(self._follow)
        if self.done():
            sent.cancel()
        return sent

    def close(self) -> None:
        """Closes its files. Only before it is sent, or by `begin`."""
        while self._files:
            os.close(self._files.pop())

    def _follow(self, sent: Answer) -> None:
        self.sent = None
        with suppress(InvalidStateError):  # cancelled meanwhile
            if sent.cancelled():
                super().cancel()
            elif (error := sent.exception()) is not None:
                self.set_exception(error)
            else:
                self.set_result(sent.result())

    def running(self) -> bool:
        sent = self.sent
        return sent is not None and sent.running()

    def cancel(self) -> bool:
        sent = self.sent
        return super().cancel() if sent is None else sent.cancel()


def _kept(order: Order) -> tuple[Order, list[int]]:
    """The order with duplicates of the descriptors that its frames are read from."""
    files: dict[int, int] = {}
    try:
        frames = [_duplicated(frame, files) for frame in order.frames]
    except OSError:
        for file in files.values():
            os.close(file)
        raise
    return replace(order, frames=frames), list(files.values())


def _duplicated(frame: Frame, files: dict[int, int]) -> Frame:
    if not isinstance(frame, StoredFrame):
        return frame
    if frame.descriptor not in files:
        files[frame.descriptor] = os.dup(frame.descriptor)
    return frame._replace(descriptor=files[frame.descriptor])


@dataclass(slots=True, eq=False)
class _Line:
    """One client's orders."""

    sent: int = 0
    waiting: deque[Queued] = field(default_factory=deque)


class FairQueue:
    """Thread-safe. Clients are told apart by name."""

    def __init__(self, room: int, waiting: int) -> None:
        self._room = max(room, 1)
        self._most_waiting = waiting
        self._lines: dict[str, _Line] = {}
        self._lock = threading.Lock()

    def submit(self, client: str, order: Order, send: Send) -> Answer:
        """Sends the order, or lets it wait. Raises QueueFull, and the errors of `send`."""
        with self._lock:
            line = self._lines.get(client)
            if line is None:
                line = self._lines[client] = _Line()
            if line.sent < self._room:
                line.sent += 1
            else:
                return self._wait(line, order, send)
        try:
            answer = send(order)
        except BaseException:
            self._ended(client, None)
            raise
        answer.add_done_callback(partial(self._ended, client))
        return answer

    def _wait(self, line: _Line, order: Order, send: Send) -> Answer:
        if len(line.waiting) >= self._most_waiting:
            _drop_cancelled(line.waiting)
        if len(line.waiting) >= self._most_waiting:
            raise QueueFull(f"{len(line.waiting)} orders of this client are waiting")
        if sum(len(other.waiting) for other in self._lines.values()) >= CLIENTS * self._most_waiting:
            raise QueueFull("too many orders of all clients are waiting")
        queued = Queued(order, send)
        line.waiting.append(queued)
        return queued

    def _ended(self, client: str, _: Answer | None) -> None:
        """One of its orders has: the next one takes its place."""
        while (queued := self._next(client)) is not None:
            answer = queued.begin()
            if answer is not None:
                answer.add_done_callback(partial(self._ended, client))
                return

    def _next(self, client: str) -> Queued | None:
        with self._lock:
            line = self._lines[client]
            if line.waiting:
                return line.waiting.popleft()
            line.sent -= 1
            if not line.sent:
                del self._lines[client]
            return None

    @property
    def clients(self) -> Sequence[str]:
        """Those that have orders."""
        return list(self._lines)

    def close(self) -> None:
        """Ends the waiting orders."""
        with self._lock:
            waiting = [queued for line in self._lines.values() for queued in line.waiting]
        for queued in waiting:
            queued.cancel()


def _drop_cancelled(waiting: deque[Queued]) -> None:
    for queued in [queued for queued in waiting if queued.done()]:
        queued.close()
        waiting.remove(queued)
