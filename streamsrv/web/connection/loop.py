"""The event loop of a worker: asyncio's, with one step before its callbacks for new requests.

Strategy: a stream that waits for a request is in `waiting`. If the kernel reports such streams as readable,
the bytes of all of them are received first. Then each is shown to the fast path. A request that is answered
there costs asyncio no callback; another one goes on through the loop.

Rules of this file
- All bytes are received before the first request is shown. So one date and one index version are recent
  enough for all requests of a batch.
- A stream is read only if it waits for a request, and once in a turn of the loop.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
from selectors import EVENT_READ, SelectorKey

from streamsrv.web.connection.stream import RequestBatch, Stream

log = logging.getLogger("streamsrv.web")


class BatchSelector(selectors.EpollSelector):
    """`waiting`: streams that wait for a request, by descriptor. They add and remove themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[int, Stream] = {}

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        found = super().select(timeout)
        waiting = self.waiting
        ready = [
            stream
            for key, events in found
            if events == EVENT_READ and (stream := waiting.get(key.fd)) is not None
        ]
        return self._without(found, _show_all(ready)) if ready else found

    def _without(
        self, found: list[tuple[SelectorKey, int]], answered: set[int]
    ) -> list[tuple[SelectorKey, int]]:
        """The events that are left to the loop. Registrations may have changed meanwhile."""
        if len(answered) == len(found):
            return []
        known = self.get_map()
        now = ((known.get(key.fileobj), events) for key, events in found if key.fd not in answered)
        return [(key, events & key.events) for key, events in now if key is not None]


def _show_all(ready: list[Stream]) -> set[int]:
    """Descriptors of the streams that have nothing left for the loop."""
    arrived = [(stream, stream.socket.fileno(), stream.arrived()) for stream in ready]
    batch = RequestBatch()
    return {
        descriptor
        for stream, descriptor, request in arrived
        if request is None or (request and _is_answered(stream, request, batch))
    }


def _is_answered(stream: Stream, request: bytes, batch: RequestBatch) -> bool:
    """An error ends this connection, and not the loop."""
    try:
        return stream.show(request, batch)
    except Exception:
        log.exception("a request failed before it was parsed")
        stream.close()
        return True


class BatchLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = BatchSelector()
        super().__init__(self.selector)


def waiting_here() -> dict[int, Stream] | None:
    """The waiting streams of the running loop. None for another kind of loop, in which each stream shows its
    own bytes when it reads them."""
    loop = asyncio.get_running_loop()
    return loop.selector.waiting if isinstance(loop, BatchLoop) else None
