"""A fair queue of tasks: each client has a few tasks with the pixel processes, and its others wait here.

Strategy: the kernel hands tasks out in the order in which they were sent. A client may have `room` tasks that
are sent and unfinished. So a new client finds only a few tasks of each other client before its own. When a
task of a client ends, its next one is sent.

Rules of this file
- A client may have `waiting` tasks here; one more raises TooManyRequests. All clients together may have
  CLIENTS times as many; one more raises QueueFull.
- A task that waits keeps the files open in which its frames are stored.
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
from framecodecs.pool.pool import TaskFuture
from streamsrv.errors import TooManyRequests
from streamsrv.pixels.tasks import RETRY_AFTER, PixelTask

CLIENTS = 8

Send: TypeAlias = Callable[[PixelTask], TaskFuture]


class QueuedTask(Future[list[Result]]):
    """The future of a task that waits. Later it follows `sent`, the future that the pool has."""

    sent: TaskFuture | None = None

    def __init__(self, task: PixelTask, send: Send) -> None:
        super().__init__()
        self._task, self._files = _kept(task)
        self._send = send

    def begin(self) -> TaskFuture | None:
        """Sends the task. Returns None if it was cancelled or cannot be sent."""
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
        """Closes the files of the task. Called before the task is sent, or by `begin`."""
        while self._files:
            os.close(self._files.pop())

    def _follow(self, sent: TaskFuture) -> None:
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
    """The task with duplicates of the descriptors of its frames."""
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
class _ClientTasks:
    """The tasks of one client."""

    sent: int = 0
    waiting: deque[QueuedTask] = field(default_factory=deque)


class FairQueue:
    """Thread-safe. A client is a name."""

    def __init__(self, room: int, waiting: int) -> None:
        self._room = max(room, 1)
        self._most_waiting = waiting
        self._clients: dict[str, _ClientTasks] = {}
        self._lock = threading.Lock()

    def submit(self, client: str, task: PixelTask, send: Send) -> TaskFuture:
        """Sends the task, or lets it wait. Raises QueueFull, TooManyRequests, and the errors of `send`."""
        with self._lock:
            tasks = self._clients.get(client)
            if tasks is None:
                tasks = self._clients[client] = _ClientTasks()
            if tasks.sent < self._room:
                tasks.sent += 1
            else:
                return self._wait(tasks, task, send)
        try:
            answer = send(task)
        except BaseException:
            self._ended(client, None)
            raise
        answer.add_done_callback(partial(self._ended, client))
        return answer

    def _wait(self, tasks: _ClientTasks, task: PixelTask, send: Send) -> TaskFuture:
        if len(tasks.waiting) >= self._most_waiting:
            _drop_cancelled(tasks.waiting)
        if len(tasks.waiting) >= self._most_waiting:
            raise TooManyRequests("too many frames of this client are waiting to be decoded", RETRY_AFTER)
        if sum(len(other.waiting) for other in self._clients.values()) >= CLIENTS * self._most_waiting:
            raise QueueFull("too many tasks of all clients are waiting")
        queued = QueuedTask(task, send)
        tasks.waiting.append(queued)
        return queued

    def _ended(self, client: str, _: TaskFuture | None) -> None:
        """A task of the client ended: its next one is sent."""
        while (queued := self._next(client)) is not None:
            answer = queued.begin()
            if answer is not None:
                answer.add_done_callback(partial(self._ended, client))
                return

    def _next(self, client: str) -> QueuedTask | None:
        with self._lock:
            tasks = self._clients[client]
            if tasks.waiting:
                return tasks.waiting.popleft()
            tasks.sent -= 1
            if not tasks.sent:
                del self._clients[client]
            return None

    @property
    def clients(self) -> Sequence[str]:
        """The clients that have tasks."""
        return list(self._clients)

    @property
    def load(self) -> tuple[int, int]:
        """Tasks that wait here, and tasks that are sent and unfinished."""
        with self._lock:
            tasks = list(self._clients.values())
            return sum(len(each.waiting) for each in tasks), sum(each.sent for each in tasks)

    def close(self) -> None:
        """Cancels the waiting tasks."""
        with self._lock:
            waiting = [queued for tasks in self._clients.values() for queued in tasks.waiting]
        for queued in waiting:
            queued.cancel()


def _drop_cancelled(waiting: deque[QueuedTask]) -> None:
    for queued in [queued for queued in waiting if queued.done()]:
        queued.close()
        waiting.remove(queued)
