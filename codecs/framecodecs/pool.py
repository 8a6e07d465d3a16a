"""A pool of decoding processes: a codestream that crashes, hangs or grows costs one answer and nobody else's.

    submit -> an idle worker process, else a bounded queue -> the thread of a slot -> Future

- Processes are started by executing Python anew, never forked, so they inherit no locks, no index, no
  sockets. `first` of them at once; each of the others when an order has to wait for the ones before it.
- Whoever has taken an idle slot has its worker alone and waits for it. Past the deadline, or when the work is
  cancelled, the process is killed and another one started; the answer is an error. A worker that died of its
  work is replaced the same way.
- `submit` never waits: an order for a worker that is ready is sent by its caller, so that the process works
  before any other thread has woken up; the slot's thread waits for the answer.
- Futures are `concurrent.futures.Future`, so an event loop can wait for them without this module knowing any.
- One order holds several frames: hand-over costs the same for one frame as for eight small ones.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from framecodecs.errors import DeadlineExceeded, PoolError, QueueFull, WorkCancelled, WorkerCrashed
from framecodecs.process import PoolLimits as PoolLimits
from framecodecs.process import WorkerProcess
from framecodecs.wireform import Result, Work

Answer = Future[list[Result]]
UNWANTED = "nobody waits for this any more"


@dataclass(eq=False)
class _Job:
    """`begun` says that its order was sent, or that sending it failed, for which there is `error` then."""

    work: Work
    frames: Sequence[bytes | memoryview]
    arguments: tuple[Any, ...]
    deadline: float
    future: Answer = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)
    begun: bool = False
    error: Exception | None = None


class _Slot:
    """A place for one worker; used by one thread at a time, but for `stop`."""

    def __init__(self, limits: PoolLimits) -> None:
        self.limits = limits
        self.worker: WorkerProcess | None = None
        self.job: _Job | None = None
        self.lock = threading.Lock()
        # For the slot's thread; None is the end.
        self.inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()

    def start(self) -> WorkerProcess:
        """A worker that may still be importing."""
        if self.worker is not None and self.worker.is_spent(self.limits.lifetime):
            self.stop_worker()
        if self.worker is None:
            self.worker = WorkerProcess(self.limits)
        return self.worker

    def ready_worker(self) -> WorkerProcess:
        worker = self.start()
        try:
            worker.wait_until_ready(self.limits.starting)
        except PoolError:
            self.stop_worker()
            raise
        return worker

    def begin(self, job: _Job, cores: int) -> None:
        """By whoever submits it: sends the order to a worker that is ready. Otherwise the thread does."""
        worker = self.worker
        if worker is None or not worker.ready or worker.is_spent(self.limits.lifetime):
            return
        if not job.future.set_running_or_notify_cancel():
            return
        job.begun = True
        try:
            self._send(worker, job, cores)
        except Exception as error:
            job.error = error

    def _send(self, worker: WorkerProcess, job: _Job, cores: int) -> None:
        with self.lock:
            self.job = job
        if job.cancelled.is_set():
            raise WorkCancelled(UNWANTED)
        worker.send(job.work, job.frames, job.arguments, job.deadline, cores)
        job.frames = ()  # they are in the worker's memory file

    def perform(self, job: _Job, cores: int) -> list[Result]:
        """Blocking: the whole of it, or what is left when it has begun."""
        try:
            if not job.begun:
                self._send(self.ready_worker(), job, cores)
            elif job.error is not None:
                raise job.error
            if self.worker is None:
                raise WorkCancelled(UNWANTED)
            return self.worker.receive(job.deadline)
        except (WorkerCrashed, DeadlineExceeded, OSError) as error:
            self.stop_worker()
            if job.cancelled.is_set():
                raise WorkCancelled(UNWANTED) from error
            raise error if isinstance(error, PoolError) else WorkerCrashed(str(error)) from error
        finally:
            with self.lock:
                self.job = None
            if job.cancelled.is_set():
                self.stop_worker()  # it may have been killed just after it had answered

    def stop_worker(self) -> None:
        with self.lock:
            worker, self.worker = self.worker, None
        if worker is not None:
            worker.close()

    def stop(self, job: _Job) -> None:
        """From any thread: kills the worker if it is busy with this job."""
        with self.lock:
            if self.job is job and self.worker is not None:
                self.worker.kill()


class FramePool:
    """`workers` processes at most, `first` of them (all, if it is not said) started at once in the
    background. `idle` is called when a process has nothing to do, by its thread: an order that came meanwhile
    would wait, so it returns at once. Thread-safe; use it as a context manager or close it."""

    def __init__(
        self,
        workers: int,
        limits: PoolLimits | None = None,
        *,
        first: int | None = None,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits or PoolLimits()
        self._slots = [_Slot(self.limits) for _ in range(workers)]
        self._unstarted = deque(self._slots)
        # The one used last is taken first: its memory is in a cache. One whose process has just been replaced
        # is taken last, because an order waits for its start.
        self._idle: list[_Slot] = []
        self._waiting: deque[_Job] = deque()
        self._open: dict[Answer, _Job] = {}
        self._lock = threading.Lock()
        self._given_back = threading.Condition(self._lock)
        self._closed = False
        self._tell_idle = idle
        self._cores = len(os.sched_getaffinity(0))
        self._threads: list[threading.Thread] = []
        for _ in range(workers if first is None else first):
            self._start_next()

    def _start_next(self) -> None:
        """Raises RuntimeError if no thread can be started, and nothing has changed then."""
        slot, number = self._unstarted[0], len(self._threads)
        thread = threading.Thread(target=self._serve, args=(slot,), name=f"frames-{number}", daemon=True)
        thread.start()
        self._threads.append(thread)
        self._unstarted.popleft()

    def __enter__(self) -> FramePool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def unfinished(self) -> int:
        """Orders that are waiting or being worked on."""
        return len(self._open)

    @property
    def is_idle(self) -> bool:
        """Whether a process has nothing to do, and so nobody waits."""
        return bool(self._idle)

    def look(self) -> None:
        """Calls `idle` if a process has nothing to do. If there is none, another one is started as long as
        there may be more."""
        with self._lock:
            is_idle = self.is_idle
            if not is_idle and not self._closed:
                self._grow(len(self._open) + 1)
        if is_idle:
            self._tell_idle()

    def _grow(self, wanted: int) -> None:
        """Processes that are still starting count."""
        if self._unstarted and wanted > len(self._threads):
            with contextlib.suppress(RuntimeError):  # those that are there do it
                self._start_next()

    def submit(
        self,
        work: Work,
        frames: Sequence[bytes | memoryview],
        *arguments: Any,
        deadline: float | None = None,
    ) -> Answer:
        """Has `work(frames, *arguments)` done by a worker; QueueFull instead of waiting longer than `waiting`
        orders."""
        job = _Job(work, frames, arguments, deadline or self.limits.deadline)
        slot = self._admit(job)
        if slot is not None:
            self._begin(slot, job)
        return job.future

    def submit_if_idle(
        self,
        work: Work,
        frames: Sequence[bytes | memoryview],
        *arguments: Any,
        deadline: float | None = None,
    ) -> Answer | None:
        """As `submit`, by a process that has nothing to do; None if there is none."""
        job = _Job(work, frames, arguments, deadline or self.limits.deadline)
        slot = self._admit(job, waits=False)
        if slot is None:
            return None
        self._begin(slot, job)
        return job.future

    def _begin(self, slot: _Slot, job: _Job) -> None:
        slot.begin(job, self._cores_for_one())
        slot.inbox.put(job)

    def _admit(self, job: _Job, *, waits: bool = True) -> _Slot | None:
        """A slot for it, else if it waits a place in the queue."""
        with self._lock:
            if self._closed:
                raise PoolError("the pool is closed")
            if len(self._open) >= self.limits.waiting + len(self._slots):
                raise QueueFull(f"{len(self._open)} orders are waiting already")
            slot = self._idle.pop() if self._idle else None
            if slot is None and not waits:
                return None
            self._open[job.future] = job
            if slot is None:
                self._waiting.append(job)
                self._grow(len(self._open))
        job.future.add_done_callback(self._finished)
        return slot

    def _finished(self, future: Answer) -> None:
        with self._lock:
            job = self._open.pop(future, None)
            if job is not None and future.cancelled() and job in self._waiting:
                self._waiting.remove(job)

    def _serve(self, slot: _Slot) -> None:
        """The thread of a slot. The first order should not wait for imports."""
        with contextlib.suppress(PoolError, OSError):
            slot.ready_worker()
        self._give_back(slot)
        while (job := slot.inbox.get()) is not None:
            self._answer(slot, job)

    def _answer(self, slot: _Slot, job: _Job) -> None:
        """Blocking; the slot is free afterwards."""
        try:
            if job.begun or (not job.future.cancelled() and job.future.set_running_or_notify_cancel()):
                self._fulfil(job, slot)
        finally:
            with contextlib.suppress(OSError):
                if not self._closed:
                    slot.start()  # imports while nobody waits for it
            self._give_back(slot)

    def _fulfil(self, job: _Job, slot: _Slot) -> None:
        try:
            results = slot.perform(job, self._cores_for_one())
        except BaseException as error:
            job.future.set_exception(error)
        else:
            job.future.set_result(results)

    def _cores_for_one(self) -> int:
        """For the libraries that can use several: all while nobody else waits for one."""
        return self._cores if len(self._open) == 1 else 1

    def _give_back(self, slot: _Slot) -> None:
        """To whoever has waited longest."""
        with self._lock:
            if self._waiting and not self._closed:
                slot.inbox.put(self._waiting.popleft())
                return
            is_ready = slot.worker is not None and slot.worker.ready
            self._idle.insert(len(self._idle) if is_ready else 0, slot)
            self._given_back.notify_all()
        self._tell_idle()

    def cancel(self, future: Answer) -> None:
        """Nobody wants this answer: takes it from the queue, or kills the worker that is busy with it."""
        with self._lock:
            job = self._open.get(future)
        if job is None or future.cancel():
            return
        job.cancelled.set()
        for slot in self._slots:
            slot.stop(job)

    def wait_until_ready(self, seconds: float = 60.0) -> bool:
        """Whether all processes, also those that nobody needed so far, have started within that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if all(slot.worker is not None and slot.worker.ready for slot in self._slots):
                return True
            time.sleep(0.01)
        return False

    def close(self) -> None:
        """Cancels everything and ends all processes."""
        with self._lock:
            self._closed = True
            jobs = list(self._open)
        for future in jobs:
            self.cancel(future)
        with self._lock:
            self._given_back.wait_for(lambda: len(self._idle) == len(self._threads))
        for slot in self._slots:
            slot.inbox.put(None)
        for thread in self._threads:
            thread.join()
        for slot in self._slots:
            slot.stop_worker()
