"""The processes that decode, encode and render pixels, as floor 3 uses them: orders, our errors, two caches.

Strategy: frames are foreign bytes and their decoders C code, so nothing of it runs in a server process
(framecodecs.pool.pool says how a crash costs one answer). All workers of a server share the processes. The
first
of them starts with the first frame that needs it, or a little earlier, when a client asks for what comes
before frames (`warm`): a server that only takes and sends what it has stored never pays for it. What was made
last is kept up to a limit in bytes, because viewers ask for the same frame again: a thumbnail each time a
list is shown, a progressive frame once a range.

Rules of this file
- One frame is made once, however many ask for it meanwhile (`made`). The thread of the loop never waits: it
  is told what to wait for (WouldBlock.until) and asks again (pixels/single_flight.py). Short work that it
  has ordered comes straight to it (`watch`): no other thread has to wake up in between.
- Nobody waits for ever: the queue is bounded (Overloaded, 503), every order has a deadline that grows with
  its pixels. An answer that has begun waits for a place in the queue instead of being cut off.
- An answer that has begun never holds a thread for longer than a TURN: `in_turn` yields None where nothing is
  ready, its answer sends nothing then, and its thread is free for others. However many downloads wait for the
  pixel processes, commits and searches go on.
- Whoever walks away from `in_turn` cancels what is under way.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import CancelledError, wait
from dataclasses import replace
from functools import partial
from threading import get_ident
from typing import Any, TypeAlias

from framecodecs import errors as codec_errors
from framecodecs.pool.messages import Result
from framecodecs.pool.pool import Answer, FramePool, PoolLimits
from framecodecs.pool.processes import PoolEndpoints
from streamsrv.bounded_cache import SizedCache as SizedCache
from streamsrv.errors import Overloaded, StoreError, WouldBlock
from streamsrv.pixels.orders import QUICK, WORTH_A_PROCESS, deadline_of
from streamsrv.pixels.orders import Making as Making
from streamsrv.pixels.orders import Order as Order
from streamsrv.pixels.prefetch import Company, Lookout, Wishes
from streamsrv.pixels.processes import RETRY_AFTER, slow_limits, translated
from streamsrv.pixels.queue import CLIENTS, FairQueue, Queued
from streamsrv.pixels.single_flight import Makings, UnderWay
from streamsrv.pixels.turns import TURN, Tag, Turn, in_turn, left_early

# Pixels of an order whose answer the loop takes in itself: a copy of 0.2 ms.
TAKEN_IN_LOOP = 2 << 20
DESCRIPTIONS = 16 << 20  # bytes of parsed descriptions; a CT's takes about 10 kB


class _NobodyIdle(Overloaded):
    """What was to be made ahead has not begun."""


Watch: TypeAlias = Callable[[int, Callable[[], None]], object]


class PixelPool:
    """Thread-safe. `workers` processes at most, those of `endpoints` if there is one: the first of them with
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
        endpoints: PoolEndpoints | None = None,
        slow_endpoints: PoolEndpoints | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._loop = loop
        self._watch = watch
        self._watched = False
        self._workers = workers
        self._entrance = endpoints
        self._limits = limits or PoolLimits()
        self._slow_endpoints = slow_endpoints
        self._pool: FramePool | None = None
        self._slow_pool: FramePool | None = None
        # One more than there are processes, so that none of them waits for this one.
        waiting = max(self._limits.waiting - 1, 0)
        self._queue, self._slow_queue = (FairQueue(workers + 1, waiting) for _ in range(2))
        self._closed = False
        self._lock = threading.Lock()
        self.cache: SizedCache[Hashable, bytes] = SizedCache(cached, len)
        self.makings = Makings(self.stop)
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
                self._pool = self._opened(self._limits, self._entrance, self._became_idle)
                self._pool.warm()
            return self._pool

    def _running_slow(self) -> FramePool:
        with self._lock:
            if self._slow_pool is None:
                limits = slow_limits(self._limits)
                self._slow_pool = self._opened(limits, self._slow_endpoints, lambda: None)
            return self._slow_pool

    def _opened(
        self, limits: PoolLimits, endpoints: PoolEndpoints | None, idle: Callable[[], None]
    ) -> FramePool:
        if self._closed:
            raise StoreError("the server is ending")
        # The fair queue limits the waiting orders of a client.
        limits = replace(limits, waiting=limits.waiting * CLIENTS)
        return FramePool(self._workers, limits, first=1, idle=idle, endpoints=endpoints)

    def _deadline(self, order: Order) -> float:
        return deadline_of(order, self._limits.deadline)

    def submit(self, order: Order) -> Answer:
        """Wait for it with `results`. Long work goes to processes of its own."""
        is_slow = order.pixels > QUICK
        queue = self._slow_queue if is_slow else self._queue
        send = self._send_slow if is_slow else self._send_here if self._is_taken_here(order) else self._send
        try:
            return queue.submit(order.requester.address, order, send)
        except codec_errors.FrameCodecError as error:
            raise translated(error) from error

    def _is_taken_here(self, order: Order) -> bool:
        if self._watch is None or order.pixels > TAKEN_IN_LOOP or get_ident() != self._loop:
            return False
        if not self._watched:
            pool = self._pool or self._running()
            self._watch(pool.arrivals.fileno(), pool.receive)
            self._watched = True
        return True

    def _send(self, order: Order) -> Answer:
        pool, deadline = self._pool or self._running(), self._deadline(order)
        return pool.submit(order.work, order.frames, *order.arguments, deadline=deadline)

    def _send_here(self, order: Order) -> Answer:
        """Its answer comes to the loop."""
        pool, deadline = self._pool or self._running(), self._deadline(order)
        return pool.submit(order.work, order.frames, *order.arguments, deadline=deadline, here=True)

    def _send_slow(self, order: Order) -> Answer:
        pool, deadline = self._slow_pool or self._running_slow(), self._deadline(order)
        return pool.submit(order.work, order.frames, *order.arguments, deadline=deadline)

    def results(self, order: Answer) -> list[Result]:
        """Wait for an order."""
        try:
            return order.result()
        except codec_errors.FrameCodecError as error:
            raise translated(error) from error
        except CancelledError as error:
            raise StoreError("the work was cancelled") from error

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
                while not wait((under_way,), TURN).done and not making.requester.left:
                    pass
            if making.requester.left and self.makings.give_up(making.key, under_way):
                raise left_early()
            return under_way.result()
        except _NobodyIdle:
            return self.made(making)

    def _begun(self, making: Making, submit: Callable[[Order], Answer]) -> UnderWay:
        order = making.order()
        begun, is_ours = self.makings.begin(making.key)
        if not is_ours:
            return begun
        begun.pixels = order.pixels
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
        """The tasks in their order, as many ahead as keep all processes busy (pixels/turns.py)."""
        self.must_not_block()
        yield from in_turn(self, self._workers, tasks)

    def stop(self, answer: Answer, pixels: int) -> bool:
        """No request waits for it. Returns whether it is stopped: an order that waits leaves the queue, long
        work that has begun costs its process, and other work is made to its end."""
        if answer.cancel():
            return True
        pool = self._slow_pool
        if pixels <= WORTH_A_PROCESS or pool is None:
            return False
        pool.cancel(answer.sent or answer if isinstance(answer, Queued) else answer)
        return answer.done()

    def close(self) -> None:
        with self._lock:
            pools, self._pool, self._slow_pool = (self._pool, self._slow_pool), None, None
            self._closed = True
        self.wishes.close()
        self._lookout.close()
        for queue in (self._queue, self._slow_queue):
            queue.close()
        for pool in pools:
            if pool is not None:
                pool.close()
