"""The thread of a worker that stores short bodies in batches.

Strategy: no body waits for a batch to fill. While the thread stores one batch, the next one collects; when it
has ended, the loop answers all of its requests in one turn, and the thread has the next batch already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeAlias

from streamsrv.ingest.batching import LARGEST_BATCH, StoreOutcome
from streamsrv.ingest.response import StoreResult
from streamsrv.ingest.transaction import Ingest
from streamsrv.web.connection.threads import Threads, from_thread

StoreBatch: TypeAlias = Callable[[Sequence[Ingest]], list[StoreOutcome]]


class Batches:
    """Used in the loop. The thread starts with the first body."""

    def __init__(self, store: StoreBatch) -> None:
        self._store = store
        self._thread = Threads(1, "storing")
        self._waiting: list[tuple[Ingest, asyncio.Future[StoreResult]]] = []
        self._is_storing = False

    def add(self, ingest: Ingest) -> asyncio.Future[StoreResult]:
        future: asyncio.Future[StoreResult] = asyncio.get_running_loop().create_future()
        self._waiting.append((ingest, future))
        self._next()
        return future

    def _next(self) -> None:
        if self._is_storing or not self._waiting:
            return
        batch, self._waiting = self._waiting[:LARGEST_BATCH], self._waiting[LARGEST_BATCH:]
        ingests, futures = [ingest for ingest, _ in batch], [future for _, future in batch]
        self._is_storing = True
        from_thread(
            self._thread, lambda: self._stored(ingests), lambda outcomes: self._end(futures, outcomes)
        )

    def _stored(self, ingests: Sequence[Ingest]) -> list[StoreOutcome]:
        try:
            return self._store(ingests)
        except Exception as error:
            return [error] * len(ingests)

    def _end(self, futures: Sequence[asyncio.Future[StoreResult]], outcomes: Sequence[StoreOutcome]) -> None:
        self._is_storing = False
        self._next()
        for future, outcome in zip(futures, outcomes, strict=True):
            if future.done():  # its client has left
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def close(self) -> None:
        """Waits for the batch that is being stored."""
        self._thread.shutdown(wait=True)
