"""Single flight: a frame that several clients request at the same time is made once.

Strategy: each frame in the making has a future, in a dict by key. The clients that wait for it are counted.
The one that leaves last cancels the work, unless that is short and has begun: then its result is kept for
the next request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

from streamsrv.pixels.tasks import WORTH_A_PROCESS


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
