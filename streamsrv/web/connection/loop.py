"""The event loop of a worker: asyncio's, in which requests that have come are looked at all together.

Strategy: a stream that waits for a request stands in `waiting`. Of what the kernel says is readable those
streams are looked at first, before asyncio makes a callback of each: the bytes of all of them are taken from
their sockets, and then each is shown to the express lane. What that takes, asyncio never hears of; all else
goes its usual way through the loop.

Rules of this file
- All bytes are there before the first of them is looked at. So what is looked up once for all of them (the
  number of the index's last commit, the date) is as new as each request.
- Nothing is read of a stream that does not wait for a request, or twice in one turn of the loop.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
from selectors import EVENT_READ, SelectorKey

from streamsrv.web.connection.stream import Look, Stream

log = logging.getLogger("streamsrv.web")


class FirstLook(selectors.EpollSelector):
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
        return self._left(found, _look(ready)) if ready else found

    def _left(self, found: list[tuple[SelectorKey, int]], taken: set[int]) -> list[tuple[SelectorKey, int]]:
        """What the loop has to look at; as it is registered now, if that changed meanwhile."""
        if len(taken) == len(found):
            return []
        known = self.get_map()
        now = ((known.get(key.fileobj), events) for key, events in found if key.fd not in taken)
        return [(key, events & key.events) for key, events in now if key is not None]


def _look(ready: list[Stream]) -> set[int]:
    """Descriptors of those of which nothing is left."""
    arrived, look = [(stream, stream.socket.fileno(), stream.arrived()) for stream in ready], Look()
    return {
        descriptor
        for stream, descriptor, asked in arrived
        if asked is None or (asked and _is_taken(stream, asked, look))
    }


def _is_taken(stream: Stream, asked: bytes, look: Look) -> bool:
    """What goes wrong with one stream ends its connection, and not the loop of all."""
    try:
        return stream.show(asked, look)
    except Exception:
        log.exception("a request that had come could not be looked at")
        stream.close()
        return True


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.first_look = FirstLook()
        super().__init__(self.first_look)


def waiting_here() -> dict[int, Stream] | None:
    """Where streams of the running loop stand while they wait for a request; None if it is another loop than
    ours, which shows each stream its bytes only when it reads them."""
    loop = asyncio.get_running_loop()
    return loop.first_look.waiting if isinstance(loop, Loop) else None
