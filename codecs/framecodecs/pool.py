"""A pool of decoding processes: a codestream that crashes, hangs or grows costs one answer and nobody else's.

    submit -> bounded queue -> one thread a slot -> one worker process a slot (wireform) -> Future

- Processes are started by executing Python anew, never forked, so they inherit no locks, no index, no
  sockets.
- Each slot's thread waits for its own worker. Past the deadline, or when the work is cancelled, it kills the
  process and starts another; the answer is an error. A worker that died of its work is replaced the same way.
- Futures are `concurrent.futures.Future`, so an event loop can wait for them without this module knowing any.
- One order holds several frames: hand-over costs the same for one frame as for eight small ones.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from framecodecs.errors import DeadlineExceeded, PoolError, QueueFull, WorkCancelled, WorkerCrashed
from framecodecs.wireform import Order, Result, Work, put_frames, read_answer

Answer = Future[list[Result]]
HALF_A_MESSAGE = 10  # seconds; a worker that stops in the middle of a message is as good as dead
LONGEST_ANSWER = 2**24  # bytes of JSON; some thousand frames an order
WORKER_SETTINGS = {
    # One thread a worker: numpy would start its own.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc gives freed frames back to the kernel and faults them in again: half the time of a small frame.
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
}


@dataclass(frozen=True)
class PoolLimits:
    """`waiting` orders may queue; `deadline` is seconds of work an order, unless it brings its own; `memory`
    is bytes a worker may take beyond what its libraries need (a 2 GB frame is not decoded in a worker of 1
    GiB); `starting` is seconds for a new process to import them; `lifetime` is orders before a worker is
    replaced, so that leaks end."""

    waiting: int = 64
    deadline: float = 20.0
    memory: int = 2 * 2**30
    starting: float = 60.0
    lifetime: int = 20_000


@dataclass
class _Job:
    work: Work
    frames: Sequence[bytes | memoryview]
    arguments: tuple[Any, ...]
    deadline: float
    future: Answer = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)


class _Worker:
    """One process with its socket and memory file."""

    def __init__(self, limits: PoolLimits) -> None:
        ours, theirs = socket.socketpair()
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", HALF_A_MESSAGE, 0))
        self.file = os.memfd_create("frames")
        keep = (theirs.fileno(), self.file)
        arguments = [*map(str, keep), str(limits.memory)]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "framecodecs.worker", *arguments],
                pass_fds=keep,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        self.connection = Connection(ours.detach())
        self.ready = False
        self.orders = 0

    def wait_until_ready(self, seconds: float) -> None:
        if not self.ready:
            self._receive(seconds, "start")
            self.ready = True

    def _receive(self, seconds: float, what: str) -> bytes:
        try:
            if not self.connection.poll(seconds):
                raise DeadlineExceeded(f"the worker took more than {seconds:g} s to {what}")
            return self.connection.recv_bytes(LONGEST_ANSWER)
        except (EOFError, OSError) as error:
            raise self._died() from error

    def _died(self) -> WorkerCrashed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        code = self.process.poll()
        return WorkerCrashed(f"the worker ended with {code}", code)

    def perform(self, job: _Job) -> list[Result]:
        """Sends the order and waits for its answer."""
        self.orders += 1
        order = Order(job.work, job.arguments, put_frames(self.file, job.frames), job.deadline)
        try:
            self.connection.send_bytes(pickle.dumps(order, pickle.HIGHEST_PROTOCOL))
        except OSError as error:
            raise self._died() from error
        return read_answer(self._receive(job.deadline, "answer"), self.file)

    def is_spent(self, lifetime: int) -> bool:
        """It has done enough, or died while it had nothing to do."""
        return self.orders >= lifetime or self.process.poll() is not None

    def kill(self) -> None:
        """Ends the process from any thread; whoever waits for it sees the end of its socket."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def close(self) -> None:
        self.kill()
        self.process.wait()
        self.connection.close()
        os.close(self.file)


def _environment() -> dict[str, str]:
    """Modules are found where the pool's are found."""
    package = str(Path(__file__).parent.parent)
    path = os.pathsep.join([package, *(entry for entry in sys.path if entry)])
    return os.environ | WORKER_SETTINGS | {"PYTHONPATH": path}


class _Slot(threading.Thread):
    """Takes jobs from the queue and has its worker do them, one after another."""

    def __init__(self, number: int, pool: FramePool) -> None:
        super().__init__(name=f"frames-{number}", daemon=True)
        self.pool = pool
        self.worker: _Worker | None = None
        self.job: _Job | None = None
        self.lock = threading.Lock()

    def run(self) -> None:
        while (job := self._next()) is not None:
            if job.future.set_running_or_notify_cancel():
                self._answer(job)
        self._replace()

    def _next(self) -> _Job | None:
        """The next job; meanwhile a process is there, so that the first order does not wait for imports."""
        with contextlib.suppress(PoolError, OSError):
            self._ready_worker()
        return self.pool.jobs.get()

    def _ready_worker(self) -> _Worker:
        if self.worker is not None and self.worker.is_spent(self.pool.limits.lifetime):
            self._replace()
        if self.worker is None:
            self.worker = _Worker(self.pool.limits)
        try:
            self.worker.wait_until_ready(self.pool.limits.starting)
        except PoolError:
            self._replace()
            raise
        return self.worker

    def _answer(self, job: _Job) -> None:
        try:
            results = self._perform(job)
        except BaseException as error:
            job.future.set_exception(error)
        else:
            job.future.set_result(results)

    def _perform(self, job: _Job) -> list[Result]:
        try:
            worker = self._ready_worker()
            with self.lock:
                self.job = job
            if job.cancelled.is_set():
                raise WorkCancelled("nobody waits for this any more")
            return worker.perform(job)
        except (WorkerCrashed, DeadlineExceeded, OSError) as error:
            self._replace()
            if job.cancelled.is_set():
                raise WorkCancelled("nobody waits for this any more") from error
            raise error if isinstance(error, PoolError) else WorkerCrashed(str(error)) from error
        finally:
            with self.lock:
                self.job = None
            if job.cancelled.is_set():
                self._replace()  # it may have been killed just after it had answered

    def _replace(self) -> None:
        with self.lock:
            worker, self.worker = self.worker, None
        if worker is not None:
            worker.close()

    def stop(self, job: _Job) -> None:
        """Kills the worker if it is busy with this job."""
        with self.lock:
            if self.job is job and self.worker is not None:
                self.worker.kill()


class FramePool:
    """`workers` processes, started at once in the background. Thread-safe; use it as a context manager or
    close it."""

    def __init__(self, workers: int, limits: PoolLimits | None = None) -> None:
        self.limits = limits or PoolLimits()
        self.jobs: queue.Queue[_Job | None] = queue.Queue()
        self._open: dict[Answer, _Job] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._slots = [_Slot(number, self) for number in range(workers)]
        for slot in self._slots:
            slot.start()

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
        with self._lock:
            if self._closed:
                raise PoolError("the pool is closed")
            if len(self._open) >= self.limits.waiting + len(self._slots):
                raise QueueFull(f"{len(self._open)} orders are waiting already")
            self._open[job.future] = job
        job.future.add_done_callback(self._finished)
        self.jobs.put(job)
        return job.future

    def _finished(self, future: Answer) -> None:
        with self._lock:
            self._open.pop(future, None)

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
        for _ in self._slots:
            self.jobs.put(None)
        for slot in self._slots:
            slot.join()
