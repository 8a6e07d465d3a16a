"""Cached frames of a store on other machines: threads bring the version of the index, and the frames.

Strategy: frames that are requested while a thread asks the index wait for its next question. So one round
trip serves all connections, and it begins after the arrival of each request that it answers. Frames that are
not in the cache of the node are fetched by other threads, so that they keep no other frame waiting.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from streamsrv.retrieve.cached_frames import AskedFrame, CachedInstance, read_frames

log = logging.getLogger("streamsrv.web")

Then = Callable[[], None]

# Frames that are read by one question, and are in memory at the same time.
TOGETHER = 64


class FrameAsker:
    """Called in the loop, which calls back."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[AskedFrame] = []
        self._then: dict[AskedFrame, Then] = {}
        self._reading = False

    def ask(self, asked: AskedFrame, then: Then) -> None:
        """Calls `then` when the frame has been read, or cannot be read so."""
        self._then[asked] = then
        with self._lock:
            self._waiting.append(asked)
            begins, self._reading = not self._reading, True
        if begins:
            self._pool.submit(self._run)

    def _run(self) -> None:
        while True:
            with self._lock:
                group, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
                self._reading = bool(group)
            if not group:
                return
            try:
                read_frames(group, self._done)
            except Exception:
                log.exception("frames cannot be read")
                self._done(group)

    def _done(self, read: Sequence[AskedFrame]) -> None:
        self._loop.call_soon_threadsafe(self._call, read)

    def _call(self, read: Sequence[AskedFrame]) -> None:
        for each in read:
            then = self._then.pop(each, None)
            if then is not None:
                then()

    def find(
        self, find: Callable[[], CachedInstance | None], then: Callable[[CachedInstance | None], None]
    ) -> None:
        """Calls `then` in the loop with the result."""
        found = self._loop.run_in_executor(self._pool, find)
        found.add_done_callback(lambda done: then(None if done.exception() else done.result()))
