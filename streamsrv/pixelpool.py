"""The processes that decode, encode and render pixels, as floor 3 uses them: orders, our errors, two caches.

Strategy: frames are foreign bytes and their decoders C code, so nothing of it runs in a server process
(framecodecs.pool says how a crash costs one answer). All workers of a server share the processes. The first
of them starts with the first frame that needs it, or a little earlier, when a client asks for what comes
before frames (`warm`): a server that only takes and sends what it has stored never pays for it. What was made
last is kept up to a limit in bytes, because viewers ask for the same frame again: a thumbnail each time a
list is shown, a progressive frame once a range.

Rules of this file
- One frame is made once, however many ask for it meanwhile (`made`). The thread of the loop never waits: it
  is told what to wait for (WouldBlock.until) and asks again (pixelmakings.py). Short work that it has ordered
  comes straight to it (`watch`): no other thread has to wake up in between.
- Nobody waits for ever: the queue is bounded (Overloaded, 503), every order has a deadline that grows with
  its pixels. An answer that has begun waits for a place in the queue instead of being cut off.
- An answer that has begun never holds a thread for longer than a TURN: `in_turn` yields None where nothing is
  ready, its answer sends nothing then, and its thread is free for others. However many downloads wait for the
  pixel processes, commits and searches go on.
- Whoever walks away from `in_turn` cancels what is under way.
"""

from __future__ import annotations

import contextlib
import enum
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from threading import get_ident
from typing import Any, TypeAlias, TypeVar

from framecodecs import errors as codec_errors
from framecodecs.pool import Answer, FramePool, PoolLimits
from framecodecs.processes import Entrance
from framecodecs.wireform import Result
from streamsrv.errors import Overloaded, StoreError, WouldBlock
from streamsrv.pixelmakings import Makings, UnderWay
from streamsrv.pixelorders import Making as Making
from streamsrv.pixelorders import Order as Order
from streamsrv.pixelorders import deadline_of
from streamsrv.pixelprocesses import RETRY_AFTER, translated
from streamsrv.pixelwishes import Company, Lookout, Wishes
from streamsrv.sizedcache import SizedCache as SizedCache

# How long an answer that has begun waits for a place in the queue.
PATIENCE = 30.0
# How long it holds a thread meanwhile. Coming back costs 0.1 ms; 200 of them make 64 threads wait 0.3 s.
TURN = 0.1
# Pixels of an order that take a second or so: as long as starting another process.
WORTH_A_PROCESS = 16 << 20
# Pixels of an order whose answer the loop takes in itself: a copy of 0.2 ms.
TAKEN_IN_LOOP = 2 << 20
# Pixels of the orders that one answer has ahead, however many processes there are: three large mammograms.
AHEAD = 128 << 20
DESCRIPTIONS = 16 << 20  # bytes of parsed descriptions; a CT's takes about 10 kB

Tag = TypeVar("Tag")


class _NobodyIdle(Overloaded):
    """What was to be made ahead has not begun."""


class Full(enum.Enum):
    """No place in the queue."""

    FULL = 0


FULL = Full.FULL
Turn: TypeAlias = tuple[Tag, Answer | None] | None


def _waited(order: Answer | None) -> Iterator[None]:
    """None for each turn until it is done."""
    while order is not None and not order.wait(TURN):
        yield None


Watch: TypeAlias = Callable[[int, Callable[[], None]], object]


class PixelPool:
    """Thread-safe. `workers` processes at most, those of `entrance` if there is one: the first of them with
    the first order and each other one when there is something for it to do; `cached` bytes of results kept;
    `read_ahead` frames made before they are asked for. `loop` is the thread that must never wait; `watch`,
    called there, has it call a function whenever a descriptor can be read."""

    def __init__(
        self,
        workers: int,
        limits: PoolLimits | None = None,
        cached: int = 64 << 20,
        loop: int = 0,
        read_ahead: int = 0,
        *,
        max_rendered_pixels: int = 16 << 20,
        entrance: Entrance | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._loop = loop
        self._watch = watch
        self._watched = False
        self._workers = workers
        self._entrance = entrance
        self._limits = limits or PoolLimits()
        self._pool: FramePool | None = None
        self._closed = False
        self._lock = threading.Lock()
        self.cache: SizedCache[Hashable, bytes] = SizedCache(cached, len)
        self.makings = Makings()
        self.descriptions: SizedCache[bytes, Any] = SizedCache(DESCRIPTIONS, lambda one: int(one.size))
        self.kept: dict[type, Any] = {}  # what others remember as long as there is this pool
        self.read_ahead = read_ahead
        self.max_rendered_pixels = max_rendered_pixels
        self.wishes: Wishes[Making] = Wishes(self._look, self._is_idle, self._make_ahead)
        self._company = Company(self.wishes)
        self._lookout = Lookout(self.wishes.look)

    def must_not_block(self) -> None:
        """Raises WouldBlock in the thread of the loop: what follows takes more than some microseconds."""
        if self.in_loop:
            raise WouldBlock("pixels are made in other processes")

    @property
    def in_loop(self) -> bool:
        return get_ident() == self._loop

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
                idle = self._became_idle
                self._pool = FramePool(
                    self._workers, self._limits, first=1, idle=idle, entrance=self._entrance
                )
                self._pool.warm()
            return self._pool

    def _deadline(self, order: Order) -> float:
        return deadline_of(order, self._limits.deadline)

    def submit(self, order: Order) -> Answer:
        """Wait for it with `results`."""
        pool, deadline = self._pool or self._running(), self._deadline(order)
        try:
            if self._watch is None or order.pixels > TAKEN_IN_LOOP or get_ident() != self._loop:
                return pool.submit(order.work, order.frames, *order.arguments, deadline=deadline)
            if not self._watched:
                self._watch(pool.arrivals.fileno(), pool.receive)
                self._watched = True
            return pool.submit(order.work, order.frames, *order.arguments, deadline=deadline, here=True)
        except codec_errors.FrameCodecError as error:
            raise translated(error) from error

    def results(self, order: Answer) -> list[Result]:
        """Wait for an order."""
        try:
            return order.result()
        except codec_errors.FrameCodecError as error:
            raise translated(error) from error
        except CancelledError as error:
            raise StoreError("the work was cancelled") from error

    def run(self, order: Order) -> list[Result]:
        """One order, and wait for it."""
        self.must_not_block()
        return self.results(self.submit(order))

    # One frame, for all who want it

    def made(self, making: Making, then: Callable[[], None] = lambda: None) -> bytes:
        """Remembered or made; `then` is called as soon as it is there or under way. In the loop WouldBlock,
        `until` it is there: asked again, the loop gets it, or the error, whatever the cache has room for."""
        found = self.cache.get(making.key)
        if found is not None:
            then()
            return found
        under_way = self.makings.find(making.key) or self._begun(making, self.submit)
        then()
        if get_ident() == self._loop and self.makings.await_again(making.key, under_way):
            leave = partial(self.makings.leave, making.key, under_way)
            raise WouldBlock("a frame is being made", under_way, leave)
        try:
            with self.makings.wanted(under_way):
                return under_way.result()
        except _NobodyIdle:
            return self.made(making)

    def _begun(self, making: Making, submit: Callable[[Order], Answer]) -> UnderWay:
        order = making.order()
        begun, is_ours = self.makings.begin(making.key)
        if not is_ours:
            return begun
        try:
            begun.order = submitted = submit(order)
            submitted.add_done_callback(partial(self._finish, making, begun))
        except Exception as error:
            self.makings.end(making.key, begun)
            begun.set_exception(error)  # for those who have found it meanwhile
            del begun  # the error's traceback holds this frame, and all that waits above it
            raise
        return begun

    def _finish(self, making: Making, begun: UnderWay, done: Answer) -> None:
        """In a thread of the pool."""
        begun.order = None  # it holds this call, and so all that was made, until the collector comes
        try:
            made = making.finish(self.results(done))
        except Exception as error:
            self.makings.end(making.key, begun, keep=True)
            begun.set_exception(error)
        else:
            self.cache.put(making.key, made)
            begun.size = len(made)
            self.makings.end(making.key, begun, keep=begun.size > self.cache.largest)
            begun.set_result(made)

    # Ahead

    def worth_making_ahead(self, pixels: int) -> bool:
        """Whether a frame of so many decoded bytes is short work, and would be kept."""
        return bool(self.read_ahead) and pixels <= min(WORTH_A_PROCESS, self.cache.largest)

    def see(self, walk: Hashable) -> bool:
        """Something of it was asked for; whether others of it, in any order, may be worth making."""
        return self._company.see(walk, self._pool)

    def _look(self) -> None:
        if (pool := self._pool) is not None:
            pool.look()

    def _became_idle(self) -> None:
        """A process may have nothing to do; the thread of it has to be free for what comes next."""
        if self.wishes and self._is_idle():
            self._lookout.call()

    def _is_idle(self) -> bool:
        return (pool := self._pool) is not None and pool.is_idle_but(self._company.kept(pool))

    def _make_ahead(self, making: Making) -> None:
        """By a process that would be idle."""
        if self.cache.get(making.key) is None and making.key not in self.makings:
            self._begun(making, self._submit_if_idle)

    def _submit_if_idle(self, order: Order) -> Answer:
        pool = self._running()
        kept, deadline = self._company.kept(pool), self._deadline(order)
        try:
            answer = pool.submit_if_idle(
                order.work, order.frames, *order.arguments, deadline=deadline, kept=kept
            )
        except codec_errors.FrameCodecError as error:
            raise translated(error) from error
        if answer is None:
            raise _NobodyIdle("no process is idle", RETRY_AFTER)
        self._company.make_ahead(answer)
        return answer

    def in_turn(self, tasks: Iterable[tuple[Tag, Order | None]]) -> Iterator[Turn[Tag]]:
        """The tasks in their order, each when its order is done: as many ahead as keep all processes busy, if
        they are no more than AHEAD bytes. A task without an order only takes its turn. None: nothing yet;
        come back."""
        self.must_not_block()
        ahead: deque[tuple[Tag, Answer | None, int]] = deque()  # with their pixels
        begun = False
        try:
            for tag, order in tasks:
                turns, pixels = 0, order.pixels if order is not None else 0
                while (
                    len(ahead) > self._workers
                    or (ahead and sum(held for _, _, held in ahead) + pixels > AHEAD)
                    or (future := self._placed(order)) is FULL
                ):
                    if ahead:
                        yield from _waited(ahead[0][1])
                        yield ahead.popleft()[:2]
                    elif not begun or turns * TURN > PATIENCE:
                        raise Overloaded("too many frames are waiting to be decoded", RETRY_AFTER)
                    else:
                        turns += 1
                        time.sleep(TURN)
                        yield None
                    begun = True
                ahead.append((tag, future, pixels))
            while ahead:
                yield from _waited(ahead[0][1])
                yield ahead.popleft()[:2]
        finally:
            for _, waiting, pixels in ahead:
                if waiting is not None:
                    self.cancel(waiting, pixels)

    def _placed(self, order: Order | None) -> Answer | Full | None:
        if order is None:
            return None
        try:
            return self.submit(order)
        except Overloaded:
            return FULL

    def cancel(self, order: Answer, pixels: int) -> None:
        """Nobody waits for it any more. One that is being worked on costs its process, and another has to be
        started: only long work is worth that."""
        with self._lock:
            pool = self._pool
        if pool is not None and not order.cancel() and pixels > WORTH_A_PROCESS:
            pool.cancel(order)

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
            self._closed = True
        self.wishes.close()
        self._lookout.close()
        if pool is not None:
            pool.close()
