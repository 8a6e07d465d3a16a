"""The event loop of a worker, and the threads for all calls that block.

Strategy: the loop is asyncio's, with one step before its callbacks for new requests. A stream that waits for
a request is in `waiting`. If the kernel reports such streams as readable, the bytes of all of them are
received first. Then each is shown to the fast path. A request that is answered there costs asyncio no
callback; another one goes on through the loop.

The thread that became idle last works next. Its memory is still in the processor's caches, and it alone is
woken. (ThreadPoolExecutor wakes the thread that has slept longest. That one wakes another, which finds
nothing to do and takes the interpreter from the first.) A call in a thread takes the loop 110 us, not 160.

Rules of this file
- All bytes are received before the first request is shown. So one date and one index version are recent
  enough for all requests of a batch.
- A stream is read only if it waits for a request, and once in a turn of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import selectors
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from selectors import EVENT_READ, SelectorKey
from typing import ParamSpec, TypeAlias, TypeVar

from streamsrv.web.connection.stream import RequestBatch, Stream

log = logging.getLogger("streamsrv.web")
Given = ParamSpec("Given")
Result = TypeVar("Result")
_Job: TypeAlias = Callable[[], None]


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


class _Thread:
    def __init__(self, job: _Job) -> None:
        self.job: _Job | None = job
        self.turn = threading.Lock()
        self.turn.acquire()


class Threads(Executor):
    """At most so many; each is started when no other one is idle."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._guard = threading.Lock()
        self._started: list[threading.Thread] = []
        self._idle: list[_Thread] = []
        self._waiting: deque[_Job] = deque()
        self._closed = False

    def submit(
        self, call: Callable[Given, Result], /, *given: Given.args, **named: Given.kwargs
    ) -> Future[Result]:
        future: Future[Result] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = call(*given, **named)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._begin(job)
        return future

    def _begin(self, job: _Job) -> None:
        with self._guard:
            if self._closed:
                raise RuntimeError("the threads have ended")
            if self._idle:
                thread = self._idle.pop()
                thread.job = job
                thread.turn.release()
            elif len(self._started) >= self._most or not self._start(_Thread(job)):
                self._waiting.append(job)

    def _start(self, thread: _Thread) -> bool:
        """False if no more can be started now; RuntimeError if there is none that could do it later."""
        name = f"{self._name}-{len(self._started)}"
        started = threading.Thread(target=self._run, args=(thread,), name=name, daemon=True)
        try:
            started.start()
        except RuntimeError:
            if not self._started:
                raise
            return False
        self._started.append(started)
        return True

    def _run(self, thread: _Thread) -> None:
        while thread.job is not None:
            thread.job()
            with self._guard:
                thread.job = self._waiting.popleft() if self._waiting else None
                if thread.job is not None:
                    continue
                if self._closed:
                    return
                self._idle.append(thread)
            thread.turn.acquire()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """All submitted calls end first: `cancel_futures` has no effect. Safe to call twice."""
        with self._guard:
            self._closed = True
            while self._idle:
                self._idle.pop().turn.release()
        for started in self._started if wait else ():
            started.join()


def from_thread(threads: Executor, work: Callable[[], Result], then: Callable[[Result], None]) -> None:
    """Calls `work`, which must not raise, in a thread, then `then` with its result in this loop. If the loop
    has ended meanwhile, `then` is not called."""
    loop = asyncio.get_running_loop()

    def run() -> None:
        result = work()
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(then, result)

    threads.submit(run)
