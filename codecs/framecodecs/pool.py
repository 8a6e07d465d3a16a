"""A pool of decoding processes: a codestream that crashes, hangs or grows costs one answer and nobody else's.

    submit -> bounded queue -> a thread -> an idle worker process (process.py, wireform) -> Future
    perform -> an idle worker process -> results

- Processes are started by executing Python anew, never forked, so they inherit no locks, no index, no
  sockets.
- Whoever has taken an idle slot has its worker alone and waits for it. Past the deadline, or when the work is
  cancelled, the process is killed and another one started; the answer is an error. A worker that died of its
  work is replaced the same way.
- `perform` is for a caller who would wait anyway: with a slot free for it, it does without the queue, another
  thread and two turns of the scheduler, which on an idle machine take as long as a small frame.
- Futures are `concurrent.futures.Future`, so an event loop can wait for them without this module knowing any.
- One order holds several frames: hand-over costs the same for one frame as for eight small ones.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from framecodecs.errors import DeadlineExceeded, PoolError, QueueFull, WorkCancelled, WorkerCrashed
from framecodecs.process import PoolLimits as PoolLimits
from framecodecs.process import WorkerProcess
from framecodecs.wireform import Result, Work

Answer = Future[list[Result]]
UNWANTED = "nobody waits for this any more"


@dataclass
class _Job:
    work: Work
    frames: Sequence[bytes | memoryview]
    arguments: tuple[Any, ...]
    deadline: float
    future: Answer = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)


class _Slot:
    """A place for one worker; used by one thread at a time, but for `stop`."""

    def __init__(self, limits: PoolLimits) -> None:
        self.limits = limits
        self.worker: WorkerProcess | None = None
        self.job: _Job | None = None
        self.lock = threading.Lock()

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

    def perform(self, job: _Job, cores: int) -> list[Result]:
        try:
            worker = self.ready_worker()
            with self.lock:
                self.job = job
            if job.cancelled.is_set():
                raise WorkCancelled(UNWANTED)
            return worker.perform(job.work, job.frames, job.arguments, job.deadline, cores)
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
    """`workers` processes, started at once in the background. Thread-safe; use it as a context manager or
    close it."""

    def __init__(self, workers: int, limits: PoolLimits | None = None) -> None:
        self.limits = limits or PoolLimits()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._slots = [_Slot(self.limits) for _ in range(workers)]
        # The one used last comes first: its memory is in a cache.
        self._idle: queue.LifoQueue[_Slot] = queue.LifoQueue()
        self._open: dict[Answer, _Job] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._cores = len(os.sched_getaffinity(0))
        self._threads = [
            threading.Thread(target=self._serve, args=(slot,), name=f"frames-{number}", daemon=True)
            for number, slot in enumerate(self._slots)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> FramePool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def unfinished(self) -> int:
        """Orders that are waiting or being worked on."""
        return len(self._open)

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
        self._admit(job)
        self._jobs.put(job)
        return job.future

    def perform(
        self,
        work: Work,
        frames: Sequence[bytes | memoryview],
        *arguments: Any,
        deadline: float | None = None,
    ) -> list[Result]:
        """As `submit`, and waits: by the caller's own thread if a slot is free for it."""
        job = _Job(work, frames, arguments, deadline or self.limits.deadline)
        if self._admit(job) <= len(self._slots):
            self._do(job)
        else:
            self._jobs.put(job)
        return job.future.result()

    def _admit(self, job: _Job) -> int:
        """How many orders there are with this one. Up to the number of slots, one is free or about to be."""
        with self._lock:
            if self._closed:
                raise PoolError("the pool is closed")
            if len(self._open) >= self.limits.waiting + len(self._slots):
                raise QueueFull(f"{len(self._open)} orders are waiting already")
            self._open[job.future] = job
            count = len(self._open)
        job.future.add_done_callback(self._finished)
        return count

    def _finished(self, future: Answer) -> None:
        with self._lock:
            self._open.pop(future, None)

    def _serve(self, slot: _Slot) -> None:
        """A thread of the pool. The first order should not wait for imports."""
        with contextlib.suppress(PoolError, OSError):
            slot.ready_worker()
        self._idle.put(slot)
        while (job := self._jobs.get()) is not None:
            self._do(job)

    def _do(self, job: _Job) -> None:
        slot = self._idle.get()
        try:
            if job.future.set_running_or_notify_cancel():
                self._answer(job, slot)
        finally:
            with contextlib.suppress(OSError):
                if not self._closed:
                    slot.start()  # imports while nobody waits for it
            self._idle.put(slot)

    def _answer(self, job: _Job, slot: _Slot) -> None:
        try:
            results = slot.perform(job, self._cores if len(self._open) == 1 else 1)
        except BaseException as error:
            job.future.set_exception(error)
        else:
            job.future.set_result(results)

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
        """Whether all processes have started within that time."""
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
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for _ in self._slots:  # callers of `perform` give theirs back
            self._idle.get().stop_worker()
