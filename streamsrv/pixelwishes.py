"""What will be asked for next, if those who walk go on: made ahead by processes that would be idle.

Strategy: a wish is an iterator that yields one thing after another, and may look things up before each.
Whoever watches over something idle calls `look`, and takes a step of the latest wish as long as there is
something idle: so no thread is kept for it, and nothing is ever ahead of what is really asked for.

Rules of this file
- A wish is a walk's own: its next one takes its place, and whoever goes elsewhere drops it. At most WALKS are
  remembered.
- What fails is forgotten. Whoever asks for it will be told.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from streamsrv.errors import StreamsrvError

log = logging.getLogger("streamsrv.pixels")

WALKS = 8

Wished = TypeVar("Wished")


class Wishes(Generic[Wished]):
    """Thread-safe. `call` has `look` called by a thread that watches; `may` says whether something is idle
    now; `fulfil` begins the work and does not wait for it."""

    def __init__(
        self, call: Callable[[], None], may: Callable[[], bool], fulfil: Callable[[Wished], None]
    ) -> None:
        self._call = call
        self._may = may
        self._fulfil = fulfil
        self._wishes: OrderedDict[Hashable, Iterator[Wished]] = OrderedDict()
        self._lock = threading.Lock()
        self._stepping = threading.Lock()
        self._closed = False

    def put(self, walk: Hashable, wish: Iterator[Wished]) -> None:
        with self._lock:
            if self._closed:
                return
            self._wishes[walk] = wish
            self._wishes.move_to_end(walk)
            while len(self._wishes) > WALKS:
                self._wishes.popitem(last=False)
        self._call()

    def drop(self, walk: Hashable) -> None:
        with self._lock:
            self._wishes.pop(walk, None)

    def look(self) -> None:
        """Something may be idle. One thread at a time takes steps; it looks again after each."""
        while self._wishes and self._may() and self._stepping.acquire(blocking=False):
            try:
                self._step_of_latest()
            finally:
                self._stepping.release()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._wishes.clear()

    def _step_of_latest(self) -> None:
        with self._lock:
            latest = next(reversed(self._wishes.items()), None)
        if latest is None or self._step(latest[1]):
            return
        with self._lock:
            if self._wishes.get(latest[0]) is latest[1]:
                del self._wishes[latest[0]]

    def _step(self, wish: Iterator[Wished]) -> bool:
        """Whether there may be another one."""
        try:
            for wished in wish:
                self._fulfil(wished)
                return True
        except StreamsrvError:
            pass
        except Exception:
            log.exception("something that nobody has asked for yet could not be made")
        return False
