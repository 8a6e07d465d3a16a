"""Short bodies that have arrived, on their way to the one thread of a worker that stores them together.

Strategy: nobody waits for company. While the thread stores what was there, the next ones gather; when it is
done, the loop answers all of them in one turn, and the thread has the next ones already.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

from streamsrv.ingest.together import MOST_TOGETHER, ShortBody

Store: TypeAlias = Callable[[Sequence[ShortBody]], None]
Waiting: TypeAlias = list[tuple[ShortBody, asyncio.Future[None]]]


class Gathering:
    """Must be made inside the running loop. The thread starts with the first body."""

    def __init__(self, store: Store) -> None:
        self._loop = asyncio.get_running_loop()
        self._store = store
        self._waiting: Waiting = []
        self._storing = False
        self._queue: queue.SimpleQueue[Waiting] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, body: ShortBody) -> asyncio.Future[None]:
        """Done when the body has its outcome."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((body, future))
        self._next()
        return future

    def _next(self) -> None:
        if self._storing or not self._waiting:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="storing", daemon=True)
            self._thread.start()
        some, self._waiting = self._waiting[:MOST_TOGETHER], self._waiting[MOST_TOGETHER:]
        self._storing = True
        self._queue.put(some)

    def _run(self) -> None:
        while some := self._queue.get():
            try:
                self._store([body for body, _ in some])
            except Exception as error:
                for body, _ in some:
                    body.error = error
            self._loop.call_soon_threadsafe(self._stored, some)

    def _stored(self, some: Waiting) -> None:
        self._storing = False
        self._next()
        for _, future in some:
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """What is being stored is stored first."""
        if self._thread is not None:
            self._queue.put([])
            self._thread.join()
