"""Tasks for the pixel processes: their deadlines and errors, and those that are under way.

Single flight: a frame that several clients request at the same time is made once. Each frame in the making
has a future, in a dict by key. The clients that wait for it are counted. The one that leaves last cancels the
work, unless that is short and has begun: then its result is kept for the next request.

Rule: an error of a codec means that the client cannot have the pixels (NotAcceptable). It is not an internal
error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from framecodecs import errors as codec_errors
from framecodecs.pool.messages import Result
from framecodecs.pool.pipes import Frame
from streamsrv.errors import (
    BadRequest,
    NotAcceptable,
    Overloaded,
    StoreCorrupt,
    StoreError,
    StreamsrvError,
)
from streamsrv.wire.answers import Requester

# Bytes of pixels per second of the slowest codec. Lossy JPEG 2000 of colour reaches 10 MB on an idle core.
SLOWEST = 2 << 20
# Seconds of processor time for a task without pixels.
SHORTEST_DEADLINE = 3.0
# Bytes of pixels that take the slowest codec a third of a second. Longer work has processes of its own.
QUICK = 4 << 20
# Bytes of pixels that take about a second, which is as long as the start of a process. Only work of this
# length is stopped after it has begun.
WORTH_A_PROCESS = 16 << 20
# Seconds until a client tries again: long enough for some tasks of a full queue.
RETRY_AFTER = 1
PREFETCH = Requester()  # no client waits; shared, so nothing may call its `leave`


@dataclass(slots=True, eq=False)
class PixelTask:
    """A call `work(frames, *arguments)` for a pixel process. `work` is a function of
    framecodecs.pool.messages; `pixels` is the number of decoded bytes."""

    work: Callable[..., Any]
    frames: Sequence[Frame]
    arguments: tuple[Any, ...]
    pixels: int
    requester: Requester = PREFETCH


@dataclass(slots=True, eq=False)
class FrameJob:
    """How one frame or picture is made: `task` reads the stored frame, `finish` makes bytes of the results.
    `task` returns None if it would wait for the disk, and must not."""

    key: Hashable
    task: Callable[[], PixelTask | None]
    finish: Callable[[list[Result]], bytes]
    requester: Requester = PREFETCH


def deadline_of(task: PixelTask, most: float) -> float:
    """Seconds of processor time, at most `most`. Quick work has a deadline that grows with its size. Long
    work delays no small picture, so its deadline is `most`."""
    return most if task.pixels > QUICK else min(SHORTEST_DEADLINE + task.pixels / SLOWEST, most)


def translated(error: codec_errors.FrameCodecError) -> StreamsrvError:
    """The same error with an HTTP status."""
    match error:
        case codec_errors.QueueFull():
            return Overloaded("too many frames are waiting to be decoded", RETRY_AFTER)
        case codec_errors.Unavailable():
            return Overloaded("the pixel processes are not there at the moment", RETRY_AFTER)
        case codec_errors.RenderingError():
            return BadRequest(f"this cannot be drawn: {error.detail}")
        case codec_errors.WorkCancelled():
            return StoreError("the work was cancelled")
        case codec_errors.FrameUnread():
            return StoreCorrupt(error.detail)
        case _:
            return NotAcceptable(f"the pixels cannot be sent in this form: {error.detail}", ())


class InFlight(Future[bytes]):
    """The future of a frame. `task` is the future of the work, of `pixels` bytes, once it is submitted."""

    waiters = pixels = 0
    task: Future[Any] | None = None


class SingleFlight:
    """Thread-safe. `stop` ends a task, if it can."""

    def __init__(self, stop: Callable[[Future[Any], int], object]) -> None:
        self._stop = stop
        self._lock = threading.Lock()
        self._flights: dict[Hashable, InFlight] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    def join(self, key: Hashable) -> InFlight | None:
        """One more client waits for the frame, if it is in the making."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                flight.waiters += 1
            return flight

    def start(self, key: Hashable, waiters: int = 1) -> tuple[InFlight, bool]:
        """The future, and whether the caller has to submit the task: another one may have come first."""
        with self._lock:
            flight = self._flights.get(key)
            if is_new := flight is None:
                flight = self._flights[key] = InFlight()
            flight.waiters += waiters
            return flight, is_new

    def leave(self, key: Hashable, flight: InFlight) -> None:
        """A client waits no longer."""
        with self._lock:
            flight.waiters -= 1
            task = flight.task
            if flight.waiters or self._flights.get(key) is not flight or task is None or task.done():
                return
            if task.running() and flight.pixels <= WORTH_A_PROCESS:
                return
            del self._flights[key]  # the next request has the frame made again
        flight.cancel()
        self._stop(task, flight.pixels)

    def abandon(self, key: Hashable, flight: InFlight) -> bool:
        """Gives up a task that is not submitted. Returns False if a client waits for it."""
        with self._lock:
            if flight.waiters:
                return False
            del self._flights[key]
        flight.cancel()
        return True

    def end(self, key: Hashable, flight: InFlight) -> None:
        """The result of the future is about to be set."""
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
