"""The processes that decode, encode and render pixels, as floor 3 uses them: blocking calls, our errors, one
cache.

Strategy: frames are foreign bytes and their decoders C code, so nothing of it runs in a server process
(framecodecs.pool says how a crash costs one answer). The pool starts with the first frame that needs it: a
server that only sends what it has stored never pays for it. What was made last is kept up to a limit in
bytes, because viewers ask for the same frame again: a thumbnail each time a list is shown, a progressive
frame once a range.

Rules of this file
- Nobody waits for ever: the queue is bounded (Overloaded, 503), every order has a deadline.
- What cannot be decoded is the client's to know (NotAcceptable names what can be had), not an error of ours.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any

from framecodecs import errors as codec_errors
from framecodecs.pool import FramePool, PoolLimits
from framecodecs.wireform import Result
from streamsrv.errors import BadRequest, NotAcceptable, Overloaded, StoreError, StreamsrvError, WouldBlock

# With a full queue of short orders one second is enough for some to be done.
RETRY_AFTER = 1


class PixelPool:
    """Thread-safe. `workers` processes at most, `cached` bytes of results kept. `loop` is the thread that must
    never wait: there an order is WouldBlock."""

    def __init__(
        self, workers: int, limits: PoolLimits | None = None, cached: int = 64 << 20, loop: int = 0
    ) -> None:
        self._loop = loop
        self._workers = workers
        self._limits = limits
        self._pool: FramePool | None = None
        self._lock = threading.Lock()
        self.cache = ByteCache(cached)

    def submit(
        self, work: Callable[..., Any], frames: Sequence[bytes], *arguments: Any
    ) -> Future[list[Result]]:
        """An order; wait for it with `results`."""
        if threading.get_ident() == self._loop:
            raise WouldBlock("pixels are made in other processes")
        with self._lock:
            if self._pool is None:
                self._pool = FramePool(self._workers, self._limits)
        try:
            return self._pool.submit(work, frames, *arguments)
        except codec_errors.FrameCodecError as error:
            raise translated(error, ()) from error

    def results(self, order: Future[list[Result]], instead: Sequence[str] = ()) -> list[Result]:
        """Wait for an order. `instead` names the representations that can be had if this one cannot."""
        try:
            return order.result()
        except codec_errors.FrameCodecError as error:
            raise translated(error, instead) from error

    def run(
        self, work: Callable[..., Any], frames: Sequence[bytes], *arguments: Any, instead: Sequence[str] = ()
    ) -> list[Result]:
        return self.results(self.submit(work, frames, *arguments), instead)

    def cancel(self, order: Future[list[Result]]) -> None:
        """Nobody waits for it any more."""
        if self._pool is not None:
            self._pool.cancel(order)

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


def translated(error: codec_errors.FrameCodecError, instead: Sequence[str]) -> StreamsrvError:
    """Their error as one of ours, with its HTTP status."""
    match error:
        case codec_errors.QueueFull():
            return Overloaded("too many frames are waiting to be decoded", RETRY_AFTER)
        case codec_errors.RenderingError():
            return BadRequest(f"this cannot be drawn: {error.detail}")
        case codec_errors.WorkCancelled():
            return StoreError("the work was cancelled")
        case _:
            return NotAcceptable(f"the pixels cannot be sent in this form: {error.detail}", instead)


class ByteCache:
    """The results asked for last, up to `limit` bytes. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._entries: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> bytes | None:
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: Hashable, value: bytes) -> None:
        if len(value) > self._limit // 4:  # one large result would push out everything else
            return
        with self._lock:
            old = self._entries.pop(key, b"")
            self._entries[key] = value
            self._held += len(value) - len(old)
            while self._held > self._limit:
                _, gone = self._entries.popitem(last=False)
                self._held -= len(gone)
