"""The pixel pool: submits tasks to the pixel processes, and keeps results.

Strategy: frames are foreign bytes, and their decoders are C code. None of it runs in a server process
(framecodecs.pool.pool says how a crash costs one answer). All workers of a server share the processes. The
first one starts with the first frame, or earlier, when a client requests metadata (`warm`): a server that
only sends stored bytes never pays for it. The latest results are kept, because viewers request the same
frame again: a thumbnail each time a list is shown, a progressive frame once a range.

Rules of this file
- One frame is made once, however many clients request it meanwhile (`SingleFlight`). A client waits
  for a future, and no thread waits. The loop itself receives the result of short work that it has submitted
  (`watch`): no other thread wakes up in between.
- Each wait ends: the queue is bounded (Overloaded, 503), and each task has a deadline.
- An answer of many tasks never holds a thread for longer than TURN seconds: `in_turn` then yields None, its
  answer sends nothing, and the thread is free. So commits and searches go on beside any number of downloads.
- The garbage collector may end an answer that was never released, in any thread, with any lock held.
  So the end of `in_turn` takes no lock, and another thread cancels its tasks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import CancelledError, InvalidStateError, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeAlias, TypeVar

from framecodecs import errors as codec_errors
from framecodecs.pool.messages import Result
from framecodecs.pool.pool import FramePool, PoolLimits, TaskFuture
from framecodecs.pool.processes import PoolEndpoints
from streamsrv.bounded_cache import SizedCache
from streamsrv.errors import Overloaded, StoreError, StreamsrvError, TooManyRequests
from streamsrv.pixels.description import Descriptions
from streamsrv.pixels.fair_queue import CLIENTS, FairQueue, QueuedTask
from streamsrv.pixels.limits import slow_limits
from streamsrv.pixels.prefetch import Prefetch, PrefetchThread
from streamsrv.pixels.tasks import (
    QUICK,
    RETRY_AFTER,
    WORTH_A_PROCESS,
    FrameJob,
    InFlight,
    PixelTask,
    SingleFlight,
    deadline_of,
    translated,
)
from streamsrv.query.rates import ClientRates

# Pixels of a task whose result the loop receives: a copy of 0.2 ms.
RECEIVED_IN_LOOP = 2 << 20
# Seconds that an answer which has begun waits for a place in the queue.
PATIENCE = 30.0
# Seconds that it holds a thread meanwhile. Each return costs 0.1 ms; 200 answers make 64 threads wait 0.3 s.
TURN = 0.1
# Pixels of the tasks that one answer has submitted ahead: three large mammograms.
AHEAD = 128 << 20
# Seconds whose pixels a client may have at once: a large slice is more than a second of a low rate.
PIXEL_BURST = 10

Watch: TypeAlias = Callable[[int, Callable[[], None]], object]
Tag = TypeVar("Tag")
Turn: TypeAlias = tuple[Tag, TaskFuture | None] | None
Ahead: TypeAlias = tuple[Tag, TaskFuture | None, PixelTask | None]


def left_early() -> Overloaded:
    """The error of a request whose client closes the connection before the answer begins. A client that only
    shuts its side of the connection reads it."""
    return Overloaded("the connection was shut before the turn of this request came", RETRY_AFTER)


class PixelPool:
    """Thread-safe. At most `workers` processes, or those of `endpoints`; `cached` bytes of results are kept;
    `read_ahead` frames at most are prefetched. A client may have `rate` decoded bytes a second made, 0: any
    number. `watch`, called in the loop, has the loop call a function
    whenever a descriptor is readable."""

    def __init__(
        self,
        workers: int,
        limits: PoolLimits | None = None,
        cached: int = 64 << 20,
        read_ahead: int = 0,
        *,
        max_rendered_pixels: int = 16 << 20,
        endpoints: PoolEndpoints | None = None,
        slow_endpoints: PoolEndpoints | None = None,
        watch: Watch | None = None,
        rate: int = 0,
    ) -> None:
        self._rates = ClientRates(rate, rate * PIXEL_BURST)
        self._watch = watch
        self._watched = False
        self._workers = workers
        self._endpoints = endpoints
        self._limits = limits or PoolLimits()
        self._slow_endpoints = slow_endpoints
        self._pool: FramePool | None = None
        self._slow_pool: FramePool | None = None
        # One task more than there are processes, so that no process waits for this worker.
        waiting = max(self._limits.waiting - 1, 0)
        self._queue, self._slow_queue = (FairQueue(workers + 1, waiting) for _ in range(2))
        self._closed = False
        self._lock = threading.Lock()
        self.cache: SizedCache[Hashable, bytes] = SizedCache(cached, len)
        self.flights = SingleFlight(self.stop)
        self.descriptions = Descriptions()
        self.fonts = self._limits.fonts
        self.max_rendered_pixels = max_rendered_pixels
        self._prefetch_thread = PrefetchThread(self._may_prefetch, self._begin_prefetch)
        self.prefetch = Prefetch(read_ahead, self._prefetch_thread, self._look)

    def warm(self) -> None:
        """Starts the processes in the background, because a client will request pixels soon."""
        if self._pool is None:
            threading.Thread(target=self._start, name="pixels-start", daemon=True).start()

    def _start(self) -> None:
        with suppress(StoreError, OSError):  # the first task has the error
            self._running()

    def _running(self) -> FramePool:
        if (pool := self._pool) is not None:
            return pool
        with self._lock:
            if self._pool is None:
                self._pool = self._opened(self._limits, self._endpoints, self._became_idle)
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
        # The fair queue limits the waiting tasks of a client.
        limits = replace(limits, waiting=limits.waiting * CLIENTS)
        return FramePool(self._workers, limits, first=1, idle=idle, endpoints=endpoints)

    @property
    def load(self) -> tuple[int, int]:
        """Tasks of this worker that wait for their turn, and tasks that the processes have, or will take."""
        (queued, sent), (slow_queued, slow_sent) = self._queue.load, self._slow_queue.load
        return queued + slow_queued, sent + slow_sent

    # Tasks

    def submit(self, task: PixelTask, *, in_loop: bool = False) -> TaskFuture:
        """Long work goes to processes of its own. `in_loop` says that the thread of the loop calls this."""
        is_long = task.pixels > QUICK
        here = in_loop and task.pixels <= RECEIVED_IN_LOOP and self._watch is not None
        if here and not self._watched and self._watch is not None:
            pool = self._running()
            self._watch(pool.arrivals.fileno(), pool.receive)
            self._watched = True
        queue, client = self._slow_queue if is_long else self._queue, task.requester.address
        self._rates.check(client, "this client has requested too many pixels: pixel_rate is its share")
        try:
            submitted = queue.submit(client, task, partial(self._send, is_long, here))
        except codec_errors.FrameCodecError as error:
            raise translated(error) from error
        self._rates.spend(client, task.pixels)
        return submitted

    def _send(self, is_long: bool, here: bool, task: PixelTask) -> TaskFuture:
        """The loop receives the result if it is `here`. A task that waited is sent by another thread."""
        pool = self._running_slow() if is_long else self._running()
        deadline = deadline_of(task, self._limits.deadline)
        return pool.submit(task.work, task.frames, *task.arguments, deadline=deadline, here=here)

    def results(self, answer: TaskFuture) -> list[Result]:
        """Waits for a task."""
        try:
            return answer.result()
        except codec_errors.FrameCodecError as error:
            raise translated(error) from error
        except CancelledError as error:
            raise StoreError("the work was cancelled") from error

    def stop(self, answer: TaskFuture, pixels: int) -> bool:
        """Stops a task for which no request waits, and returns whether it has. A task that waits leaves the
        queue. Long work that has begun costs its process, and other work is made to its end."""
        if answer.cancel():
            return True
        pool = self._slow_pool
        if pixels <= WORTH_A_PROCESS or pool is None:
            return False
        pool.cancel(answer.sent or answer if isinstance(answer, QueuedTask) else answer)
        return answer.done()

    # Frames

    def frame(self, job: FrameJob, *, in_loop: bool = False) -> bytes | InFlight | None:
        """The frame, if it is kept, or its future: the caller calls `leave` once if its client leaves
        earlier. None if the stored frame has to be read from the disk, and the job must not."""
        kept = self.cache.get(job.key)
        if kept is not None:
            return kept
        flight = self.flights.join(job.key)
        if flight is None:
            task = job.task()
            if task is None:
                return None
            flight = self._begin(job, task, partial(self.submit, in_loop=in_loop))
        return flight

    def leave(self, job: FrameJob, flight: InFlight) -> None:
        """The client of this job waits no longer."""
        self.flights.leave(job.key, flight)

    def _begin(
        self,
        job: FrameJob,
        task: PixelTask,
        submit: Callable[[PixelTask], TaskFuture | None],
        waiters: int = 1,
    ) -> InFlight:
        """`submit` returns None if no process is idle: then the task is submitted only if a client waits."""
        flight, is_new = self.flights.start(job.key, waiters)
        if not is_new:
            return flight
        if (kept := self.cache.get(job.key)) is not None:  # another flight has landed meanwhile
            self.flights.end(job.key, flight)
            flight.set_result(kept)
            return flight
        flight.pixels = task.pixels
        try:
            submitted = submit(task)
            if submitted is None:
                if self.flights.abandon(job.key, flight):
                    return flight
                submitted = self.submit(task)
        except Exception as error:
            self.flights.end(job.key, flight)
            flight.set_exception(error)  # for clients that have joined meanwhile
            del flight  # breaks the reference cycle error -> traceback -> this frame -> flight
            raise
        flight.task = submitted
        submitted.add_done_callback(partial(self._finish, job, flight))
        return flight

    def _finish(self, job: FrameJob, flight: InFlight, done: TaskFuture) -> None:
        flight.task = None  # breaks the reference cycle task -> callback -> flight
        try:
            made = job.finish(self.results(done))
        except Exception as error:
            self.flights.end(job.key, flight)
            with suppress(InvalidStateError):  # it was cancelled
                flight.set_exception(error)
        else:
            self.cache.put(job.key, made)
            self.flights.end(job.key, flight)
            with suppress(InvalidStateError):  # it was cancelled
                flight.set_result(made)

    # Prefetch

    def may_prefetch(self, pixels: int) -> bool:
        """Whether a frame of so many decoded bytes is short work, and would be kept."""
        return bool(self.prefetch.most) and pixels <= min(WORTH_A_PROCESS, self.cache.largest)

    def _look(self) -> None:
        if (pool := self._pool) is not None:
            pool.look()

    def _became_idle(self) -> None:
        if self._prefetch_thread and self._may_prefetch():
            self._prefetch_thread.wake()

    def _may_prefetch(self) -> bool:
        """If other sequences are read too, one process stays idle for their next request."""
        return (pool := self._pool) is not None and pool.is_idle_but(0 if self.prefetch.is_alone else 1)

    def _begin_prefetch(self, job: FrameJob) -> None:
        if self.cache.get(job.key) is not None or job.key in self.flights:
            return
        task = job.task()
        if task is not None:
            self._begin(job, task, self._submit_if_idle, waiters=0)

    def _submit_if_idle(self, task: PixelTask) -> TaskFuture | None:
        keeps = 0 if self.prefetch.is_alone else 1
        deadline = deadline_of(task, self._limits.deadline)
        try:
            return self._running().submit_if_idle(
                task.work, task.frames, *task.arguments, deadline=deadline, kept=keeps
            )
        except codec_errors.FrameCodecError as error:
            raise translated(error) from error

    # Many tasks for one answer

    def in_turn(self, tasks: Iterable[tuple[Tag, PixelTask | None]]) -> Iterator[Turn[Tag]]:
        """The tasks in order, each when its result is there; None if there is no result within TURN seconds.
        As many are submitted ahead as there are processes, of at most AHEAD bytes of pixels. A tag without a
        task only takes its turn. Closing the iterator soon cancels the tasks; so does a client that leaves
        before the first turn. Blocking; raises Overloaded or TooManyRequests if there stays no place."""
        ahead: deque[Ahead[Tag]] = deque()
        begun = False
        try:
            for tag, task in tasks:
                turns = 0
                while _is_full(ahead, task, self._workers) or isinstance(
                    answer := self._placed(task), StreamsrvError
                ):
                    if ahead:
                        yield from self._waited(*ahead[0][1:], begun)
                        yield ahead.popleft()[:2]
                    elif not begun or turns * TURN > PATIENCE:
                        assert isinstance(answer, StreamsrvError)
                        raise answer
                    else:
                        turns += 1
                        time.sleep(TURN)
                        yield None
                    begun = True
                ahead.append((tag, answer[0], task))
            while ahead:
                yield from self._waited(*ahead[0][1:], begun)
                yield ahead.popleft()[:2]
                begun = True
        finally:
            pool = self._pool or self._slow_pool
            if ahead and pool is not None:
                pool.call_soon(partial(self._stop_all, ahead))

    def _stop_all(self, ahead: Iterable[Ahead[Tag]]) -> None:
        for _, waiting, task in ahead:
            if waiting is not None and task is not None:
                self.stop(waiting, task.pixels)

    def _placed(self, task: PixelTask | None) -> tuple[TaskFuture | None] | StreamsrvError:
        """The error if there is no place in the queue."""
        if task is None:
            return (None,)
        try:
            return (self.submit(task),)
        except (Overloaded, TooManyRequests) as error:
            return error

    def _waited(self, answer: TaskFuture | None, task: PixelTask | None, begun: bool) -> Iterator[None]:
        """None for each TURN until the result is there."""
        while answer is not None and not wait((answer,), TURN).done:
            if task is not None and task.requester.left and not begun and self.stop(answer, task.pixels):
                raise left_early()
            yield None

    def close(self) -> None:
        with self._lock:
            pools, self._pool, self._slow_pool = (self._pool, self._slow_pool), None, None
            self._closed = True
        self.prefetch.close()
        for queue in (self._queue, self._slow_queue):
            queue.close()
        for pool in pools:
            if pool is not None:
                pool.close()


def _is_full(ahead: deque[Ahead[Tag]], task: PixelTask | None, most: int) -> bool:
    if len(ahead) > most:
        return True
    pixels = sum(one.pixels for *_, one in ahead if one is not None)
    return bool(ahead) and pixels + (0 if task is None else task.pixels) > AHEAD
