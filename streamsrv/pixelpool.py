"""The processes that decode, encode and render pixels, as floor 3 uses them: orders, our errors, two caches.

Strategy: frames are foreign bytes and their decoders C code, so nothing of it runs in a server process
(framecodecs.pool says how a crash costs one answer). The pool starts with the first frame that needs it, or a
little earlier, when a client asks for what comes before frames (`warm`): a server that only takes and sends
what it has stored never pays for it. What was made last is kept up to a limit in bytes, because viewers ask
for the same frame again: a thumbnail each time a list is shown, a progressive frame once a range.

Rules of this file
- Nobody waits for ever: the queue is bounded (Overloaded, 503), every order has a deadline that grows with
  its pixels. An answer that has begun waits for a place in the queue instead of being cut off.
- An answer that has begun never holds a thread for longer than a TURN: `in_turn` yields None where nothing is
  ready, its answer sends nothing then, and its thread is free for others. However many downloads wait for the
  pixel processes, commits and searches go on.
- What cannot be decoded is the client's to know (NotAcceptable), not an error of ours.
- Whoever walks away from `in_turn` cancels what is under way.
"""

from __future__ import annotations

import contextlib
import enum
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from framecodecs import errors as codec_errors
from framecodecs.pool import FramePool, PoolLimits
from framecodecs.wireform import Result
from streamsrv.errors import BadRequest, NotAcceptable, Overloaded, StoreError, StreamsrvError, WouldBlock

# With a full queue of short orders one second is enough for some to be done.
RETRY_AFTER = 1
# The slowest codec (lossy JPEG 2000 of colour) makes over 10 MB of pixels a second on an idle core.
SLOWEST = 2 << 20
# How long an answer that has begun waits for a place in the queue.
PATIENCE = 30.0
# How long it holds a thread meanwhile. Coming back costs 0.1 ms; 200 of them make 64 threads wait 0.3 s.
TURN = 0.1
# Pixels of an order that take a second or so: as long as starting another process.
WORTH_A_PROCESS = 16 << 20
DESCRIPTIONS = 16 << 20  # bytes of parsed descriptions; a CT's takes about 10 kB

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Tag = TypeVar("Tag")


@dataclass(frozen=True, slots=True)
class Order:
    """`work` is a function of framecodecs.work; `pixels` are the decoded bytes that it will handle."""

    work: Callable[..., Any]
    frames: Sequence[bytes]
    arguments: tuple[Any, ...]
    pixels: int


class Full(enum.Enum):
    """No place in the queue."""

    FULL = 0


FULL = Full.FULL
Turn: TypeAlias = tuple[Tag, Future[list[Result]] | None] | None


def _waited(order: Future[list[Result]] | None) -> Iterator[None]:
    """None for each turn until it is done."""
    while order is not None and not wait((order,), TURN).done:
        yield None


class PixelPool:
    """Thread-safe. `workers` processes at most, `cached` bytes of results kept. `loop` is the thread that
    must never wait: there an order is WouldBlock."""

    def __init__(
        self, workers: int, limits: PoolLimits | None = None, cached: int = 64 << 20, loop: int = 0
    ) -> None:
        self._loop = loop
        self._workers = workers
        self._limits = limits or PoolLimits()
        self._pool: FramePool | None = None
        self._closed = False
        self._lock = threading.Lock()
        self.cache: SizedCache[Hashable, bytes] = SizedCache(cached, len)
        self._under_way: WeakKeyDictionary[Future[list[Result]], int] = WeakKeyDictionary()
        self.descriptions: SizedCache[bytes, Any] = SizedCache(DESCRIPTIONS, lambda one: int(one.size))

    def must_not_block(self) -> None:
        """Raises WouldBlock in the thread of the loop: what follows takes more than some microseconds."""
        if threading.get_ident() == self._loop:
            raise WouldBlock("pixels are made in other processes")

    def warm(self) -> None:
        """Pixels will be asked for soon: starts the processes in the background."""
        if self._pool is None:
            threading.Thread(target=self._start, name="pixels-start", daemon=True).start()

    def _start(self) -> None:
        with contextlib.suppress(StoreError, OSError):  # whoever needs it will be told
            self._running()

    def _running(self) -> FramePool:
        with self._lock:
            if self._pool is None:
                if self._closed:
                    raise StoreError("the server is ending")
                self._pool = FramePool(self._workers, self._limits)
            return self._pool

    def _deadline(self, order: Order) -> float:
        return self._limits.deadline + order.pixels / SLOWEST

    def submit(self, order: Order) -> Future[list[Result]]:
        """Wait for it with `results`."""
        self.must_not_block()
        pool, deadline = self._running(), self._deadline(order)
        try:
            future = pool.submit(order.work, order.frames, *order.arguments, deadline=deadline)
        except codec_errors.FrameCodecError as error:
            raise translated(error) from error
        self._under_way[future] = order.pixels
        return future

    def results(self, order: Future[list[Result]]) -> list[Result]:
        """Wait for an order."""
        try:
            return order.result()
        except codec_errors.FrameCodecError as error:
            raise translated(error) from error
        except CancelledError as error:
            raise StoreError("the work was cancelled") from error

    def run(self, order: Order) -> list[Result]:
        """One order, by the shortest way."""
        self.must_not_block()
        pool, deadline = self._running(), self._deadline(order)
        try:
            return pool.perform(order.work, order.frames, *order.arguments, deadline=deadline)
        except codec_errors.FrameCodecError as error:
            raise translated(error) from error
        except CancelledError as error:
            raise StoreError("the work was cancelled") from error

    def in_turn(self, tasks: Iterable[tuple[Tag, Order | None]]) -> Iterator[Turn[Tag]]:
        """The tasks in their order, each when its order is done: as many ahead as keep all processes busy. A
        task without an order only takes its turn. None: nothing yet; come back."""
        ahead: deque[tuple[Tag, Future[list[Result]] | None]] = deque()
        begun = False
        try:
            for tag, order in tasks:
                turns = 0
                while len(ahead) > self._workers or (future := self._placed(order)) is FULL:
                    if ahead:
                        yield from _waited(ahead[0][1])
                        yield ahead.popleft()
                    elif not begun or turns * TURN > PATIENCE:
                        raise Overloaded("too many frames are waiting to be decoded", RETRY_AFTER)
                    else:
                        turns += 1
                        time.sleep(TURN)
                        yield None
                    begun = True
                ahead.append((tag, future))
            while ahead:
                yield from _waited(ahead[0][1])
                yield ahead.popleft()
        finally:
            for _, waiting in ahead:
                if waiting is not None:
                    self.cancel(waiting)

    def _placed(self, order: Order | None) -> Future[list[Result]] | Full | None:
        if order is None:
            return None
        try:
            return self.submit(order)
        except Overloaded:
            return FULL

    def cancel(self, order: Future[list[Result]]) -> None:
        """Nobody waits for it any more. One that is being worked on costs its process, and another has to be
        started: only long work is worth that."""
        pixels = self._under_way.get(order, 0)
        with self._lock:
            pool = self._pool
        if pool is not None and not order.cancel() and pixels > WORTH_A_PROCESS:
            pool.cancel(order)

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
            self._closed = True
        if pool is not None:
            pool.close()


def translated(error: codec_errors.FrameCodecError) -> StreamsrvError:
    """Their error as one of ours, with its HTTP status."""
    match error:
        case codec_errors.QueueFull():
            return Overloaded("too many frames are waiting to be decoded", RETRY_AFTER)
        case codec_errors.RenderingError():
            return BadRequest(f"this cannot be drawn: {error.detail}")
        case codec_errors.WorkCancelled():
            return StoreError("the work was cancelled")
        case _:
            return NotAcceptable(f"the pixels cannot be sent in this form: {error.detail}", ())


class SizedCache(Generic[Key, Value]):
    """What was asked for last, up to `limit` bytes. Thread-safe."""

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self._limit = limit
        self._size = size
        self._held = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: Key, value: Value) -> None:
        size = self._size(value)
        if size > self._limit // 4:  # one large result would push out everything else
            return
        with self._lock:
            _, before = self._entries.pop(key, (value, 0))
            self._entries[key] = value, size
            self._held += size - before
            while self._held > self._limit:
                _, (_, gone) = self._entries.popitem(last=False)
                self._held -= gone
