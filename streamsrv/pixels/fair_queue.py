"""A fair queue of tasks: each client has a few tasks with the pixel processes, and the others wait here.

Strategy: the kernel hands tasks out in the task in which they were sent. A client may have `room` tasks
sent and unfinished, so a newcomer finds only a few tasks of each other client before its own. The next task
of a client is sent when one of its tasks has ended.

Rules of this file
- A client may have `waiting` tasks here; one more raises QueueFull. All clients together may have CLIENTS
  times as many.
- An task that waits keeps the files open that its frames are stored in.
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
from streamsrv.pixels.tasks import PixelTask

CLIENTS = 8

Send: TypeAlias = Callable[[PixelTask], Answer]


class Queued(Future[list[Result]]):
    """An task that waits, and then follows `sent`, the same task with the processes."""

    sent: Answer | None = None

    def __init__(self, task: PixelTask, send: Send) -> None:
        super().__init__()
        self._task, self._files = _kept(task)
        self._send = send

    def begin(self) -> Answer | None:
        """Sends it. Returns None if it was cancelled, or cannot be sent: that is its outcome then."""
        try:
            if self.done():
                return None
            self.sent = sent = self._send(self._task)
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


def _kept(task: PixelTask) -> tuple[PixelTask, list[int]]:
    """The task with duplicates of the descriptors that its frames are read from."""
    files: dict[int, int] = {}
    try:
        frames = [_duplicated(frame, files) for frame in task.frames]
    except OSError:
        for file in files.values():
            os.close(file)
        raise
    return replace(task, frames=frames), list(files.values())


def _duplicated(frame: Frame, files: dict[int, int]) -> Frame:
    if not isinstance(frame, StoredFrame):
        return frame
    if frame.descriptor not in files:
        files[frame.descriptor] = os.dup(frame.descriptor)
    return frame._replace(descriptor=files[frame.descriptor])


@dataclass(slots=True, eq=False)
class _Line:
    """One client's tasks."""

    sent: int = 0
    waiting: deque[Queued] = field(default_factory=deque)


class FairQueue:
    """Thread-safe. Clients are told apart by name."""

    def __init__(self, room: int, waiting: int) -> None:
        self._room = max(room, 1)
        self._most_waiting = waiting
        self._lines: dict[str, _Line] = {}
        self._lock = threading.Lock()

    def submit(self, client: str, task: PixelTask, send: Send) -> Answer:
        """Sends the task, or lets it wait. Raises QueueFull, and the errors of `send`."""
        with self._lock:
            line = self._lines.get(client)
            if line is None:
                line = self._lines[client] = _Line()
            if line.sent < self._room:
                line.sent += 1
            else:
                return self._wait(line, task, send)
        try:
            answer = send(task)
        except BaseException:
            self._ended(client, None)
            raise
        answer.add_done_callback(partial(self._ended, client))
        return answer

    def _wait(self, line: _Line, task: PixelTask, send: Send) -> Answer:
        if len(line.waiting) >= self._most_waiting:
            _drop_cancelled(line.waiting)
        if len(line.waiting) >= self._most_waiting:
            raise QueueFull(f"{len(line.waiting)} tasks of this client are waiting")
        if sum(len(other.waiting) for other in self._lines.values()) >= CLIENTS * self._most_waiting:
            raise QueueFull("too many tasks of all clients are waiting")
        queued = Queued(task, send)
        line.waiting.append(queued)
        return queued

    def _ended(self, client: str, _: Answer | None) -> None:
        """One of its tasks has: the next one takes its place."""
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
        """Those that have tasks."""
        return list(self._lines)

    def close(self) -> None:
        """Ends the waiting tasks."""
        with self._lock:
            waiting = [queued for line in self._lines.values() for queued in line.waiting]
        for queued in waiting:
            queued.cancel()


def _drop_cancelled(waiting: deque[Queued]) -> None:
    for queued in [queued for queued in waiting if queued.done()]:
        queued.close()
        waiting.remove(queued)
