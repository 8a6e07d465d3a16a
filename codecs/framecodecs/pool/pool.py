"""A pool of pixel processes: a codestream that crashes, hangs or grows costs one answer.

    submit -> queue of the kernel -> an idle process -> pipe of the task -> SubmittedTask, a Future

- Several pools may share processes by PoolEndpoints (processes.py). Without them a pool has its own.
- A task waits in the kernel, with its frames in a pipe, and any process takes it. So `submit` wakes a
  process, and no process is idle while a task waits. Frames that do not fit into the pipe follow when the
  process has read from it.
- A codestream may take over a process. So each task has pipes of its own. The pool asks the kernel about the
  process (tasks.py), and checks every value that the process sends (messages.py).
- A process that crashes, or ends at its deadline, closes the pipe of the task. That is the answer. When a
  pool dies, a process drops its tasks as soon as it takes them.
- `submit` never waits. One thread waits for all answers but those of tasks that are submitted `here`. For
  these the caller has a loop that watches `arrivals` and calls `receive`, so no thread has to wake up.
- One task holds several frames: to send one frame costs the same as to send eight small ones.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from itertools import count
from queue import SimpleQueue
from typing import Any

from framecodecs.errors import (
    FrameCodecError,
    FrameUnread,
    PoolError,
    QueueFull,
    Unavailable,
    WorkCancelled,
)
from framecodecs.pool.messages import Result, TaskMessage, Work
from framecodecs.pool.pipes import Frame, length_of
from framecodecs.pool.processes import (
    ABSENT,
    BUSY,
    END,
    FIRST,
    IDLE,
    LATE,
    MORE,
    RENEW,
    STARTING,
    PixelProcesses,
    PoolEndpoints,
    StatusPages,
)
from framecodecs.pool.processes import PoolLimits as PoolLimits
from framecodecs.pool.tasks import NONE, SubmittedTask

TaskFuture = Future[list[Result]]
Frames = Sequence[Frame]
TICK = 0.25  # seconds between checks of deadlines, while there is a task


class FramePool:
    """`workers` is the number of processes of its own, of which `first` start at once (default: all). With
    `endpoints` it uses those processes instead. `most` is the number of processes. After each answer, when a
    process may be idle, a thread that others wait for calls `idle`, which has to return at once. Thread-safe;
    use it as a context manager or close it."""

    def __init__(
        self,
        workers: int | None = None,
        limits: PoolLimits | None = None,
        *,
        first: int | None = None,
        idle: Callable[[], None] = lambda: None,
        endpoints: PoolEndpoints | None = None,
    ) -> None:
        self.limits = limits or PoolLimits()
        self._own: threading.Thread | None = None
        if endpoints is None:
            endpoints = self._own_processes(workers or 1, first)
        self._status = StatusPages(endpoints.status_pages)
        self.most = len(self._status)
        self._most_open = self.limits.waiting + self.most
        self._queue = socket.socket(fileno=os.dup(endpoints.tasks))
        self._requests = os.dup(endpoints.requests)
        self._on_idle = idle
        self._open: dict[int, SubmittedTask] = {}  # by the descriptor of OUT
        self._unfilled: dict[int, SubmittedTask] = {}  # by the descriptor of IN
        self._numbers = count(1)
        self._latest_begun = 0
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._closed = False
        self._cores = len(os.sched_getaffinity(0))
        self._looking = self._asleep = False
        self._last_alive = time.monotonic()
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._wake = os.eventfd(0)
        self._answers, self.arrivals = select.epoll(), select.epoll()
        self._answers.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._serve, name="frames", daemon=True)
        self._thread.start()

    def _own_processes(self, workers: int, first: int | None) -> PoolEndpoints:
        processes = PixelProcesses(workers, self.limits)
        processes.start(workers if first is None else first)
        self._own = threading.Thread(target=processes.serve, name="frames-processes", daemon=True)
        self._own.start()
        return processes.endpoints

    def __enter__(self) -> FramePool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def unfinished(self) -> int:
        """The number of tasks that wait or run."""
        return len(self._open)

    @property
    def is_idle(self) -> bool:
        """Whether a process is idle, and so no task waits."""
        return self.is_idle_but(0)

    def is_idle_but(self, kept: int) -> bool:
        """Returns whether more than `kept` processes are idle. While other pools have tasks under way, one
        more stays free for them, so that prefetching does not delay their next task."""
        states = self._status.states()
        if (idle := states.count(IDLE)) <= kept:
            return False  # in most calls, so no task has to be examined
        waiting = self._waiting()
        have_others = states.count(BUSY) > len(self._open) - waiting
        return idle - waiting > kept + have_others

    def _waiting(self) -> int:
        return sum(task.begun() is None for task in list(self._open.values()))

    def _request(self, processes: bytes) -> None:
        with contextlib.suppress(OSError):  # the processes that run do the work
            os.write(self._requests, processes)

    def warm(self) -> None:
        """Tasks will come soon: requests one process, if there is none."""
        self._request(FIRST)

    def look(self) -> None:
        """Calls `idle` if a process is idle, or soon after one has become so. If none is, requests another
        one while there may be more."""
        if self.is_idle:
            self._on_idle()
            return
        self._looking = True
        self._grow(1)
        if self._asleep:
            self._rouse()

    def _grow(self, more: int = 0) -> None:
        states = self._status.states()
        if ABSENT in states and self._waiting() + more > states.count(IDLE) + states.count(STARTING):
            self._request(MORE)

    def _rouse(self) -> None:
        os.eventfd_write(self._wake, 1)

    def call_soon(self, function: Callable[[], object]) -> None:
        """The thread of the pool calls it, unless the pool is closed first. This takes no lock, so the
        garbage collector may call it in a thread that holds one."""
        self._calls.put(function)
        if not self._closed:
            self._rouse()

    # Tasks

    def submit(
        self, work: Work, frames: Frames, *arguments: Any, deadline: float | None = None, here: bool = False
    ) -> TaskFuture:
        """A process calls `work(frames, *arguments)`. Raises QueueFull if `waiting` tasks of this pool wait,
        Unavailable if no process can take it. `here`: the caller watches `arrivals`, and calls `receive`."""
        if self._closed:
            raise Unavailable("the pool is closed")
        if len(self._open) >= self._most_open:
            self._check_room()
        return self._submitted(work, frames, arguments, deadline, self.arrivals if here else self._answers)

    def submit_if_idle(
        self, work: Work, frames: Frames, *arguments: Any, deadline: float | None = None, kept: int = 0
    ) -> TaskFuture | None:
        """As `submit`, to an idle process. Returns None if no more than `kept` are idle."""
        if self._closed or not self.is_idle_but(kept):
            return None
        return self._submitted(work, frames, arguments, deadline, self._answers, ahead=True)

    def _check_room(self) -> None:
        """Tasks that were sent ahead do not count."""
        if sum(not task.ahead for task in list(self._open.values())) >= self._most_open:
            raise QueueFull(f"{self.limits.waiting} tasks are waiting already")

    def _submitted(
        self,
        work: Work,
        frames: Frames,
        arguments: tuple[Any, ...],
        deadline: float | None,
        epoll: select.epoll,
        ahead: bool = False,
    ) -> SubmittedTask:
        seconds, patience = self.limits.times(deadline)
        # A library that can use several cores gets all of them while no other task needs one.
        states = self._status.states()
        cores = 1 if self._open or BUSY in states else self._cores
        message = TaskMessage(work, arguments, tuple(map(length_of, frames)), seconds, patience, cores)
        task = SubmittedTask(message, frames, epoll, self._end, ahead, self.limits.memory)
        self._send(task)
        if ABSENT in states and states.count(IDLE) < len(self._open):
            self._grow()
        return task

    def _send(self, task: SubmittedTask) -> None:
        try:
            with self._lock:
                if self._closed:
                    task.close()
                    raise Unavailable("the pool is closed")
                self._open[task.descriptor] = task
                task.epoll.register(task.descriptor, select.EPOLLIN)
            if task.filling != NONE:
                self._unfilled[task.filling] = task
                self._answers.register(task.filling, select.EPOLLOUT)
            with self._sending:
                task.number = next(self._numbers)
                task.send(self._queue)
        except BlockingIOError:
            self._end(task)
            raise QueueFull("tasks of others are waiting already") from None
        except OSError as error:
            self._end(task)
            raise Unavailable(f"no process can take it: {error.strerror}") from error
        if self._asleep:
            self._rouse()

    def _claim(self, task: SubmittedTask) -> bool:
        """Returns whether the caller has to end the task: one thread does."""
        with self._lock:
            if self._open.get(task.descriptor) is not task:
                return False
            del self._open[task.descriptor]
            return True  # closing it takes it out of the epoll as well

    def _end(self, task: SubmittedTask) -> bool:
        """Ends it without an answer. Returns whether it was under way."""
        if not self._claim(task):
            return False
        self._close(task)
        return True

    def _close(self, task: SubmittedTask) -> None:
        self._unfilled.pop(task.filling, None)
        task.close()

    def cancel(self, answer: TaskFuture) -> None:
        """Withdraws the task from the queue, or kills the process that works on it."""
        if answer.cancel() or answer.done() or not isinstance(answer, SubmittedTask):
            return
        self._stop(answer, WorkCancelled("no request waits for this"))

    def _stop(self, task: SubmittedTask, error: FrameCodecError) -> None:
        """Claims the task first: the death of its process is then no answer to it."""
        if self._claim(task):
            if not task.kill():
                self._request(RENEW)  # a process hides from the lock, and it is not known which one
            self._close(task)
            _complete(task, error)

    def _abort(self, task: SubmittedTask, error: FrameCodecError) -> None:
        if self._end(task):
            _complete(task, error)

    def _fill(self, task: SubmittedTask) -> None:
        """Writes more of a message that is longer than its pipe."""
        filling = task.filling
        try:
            if task.fill():
                self._unfilled.pop(filling, None)
        except FrameUnread as error:
            self._abort(task, error)
        except OSError as error:
            self._abort(task, Unavailable(f"the task cannot be sent: {error.strerror}"))

    # Answers

    def receive(self) -> None:
        """Completes the tasks of `arrivals` whose answers are there; returns at once."""
        for descriptor, _ in self.arrivals.poll(0):
            self._receive(descriptor)

    def _receive(self, descriptor: int) -> None:
        task = self._open.get(descriptor)
        if task is None:
            return
        results: list[Result] | FrameCodecError | None
        try:
            if (results := task.received()) is None:
                return
        except EOFError:
            if self._claim(task):
                self._resend(task)
            return
        except FrameCodecError as error:
            results = error
        if not self._claim(task):
            return
        self._latest_begun = max(self._latest_begun, task.number)
        _complete(task, results)
        self._close(task)  # after the callbacks, which requests wait for
        self._on_idle()

    def _resend(self, task: SubmittedTask) -> None:
        """The process that took it was about to end."""
        try:
            task.reconnect()
            self._send(task)
        except PoolError as error:
            _complete(task, error)

    def _serve(self) -> None:
        """Runs in a thread. It sleeps when nothing has happened for a while and no task is under way."""
        checked = time.monotonic()
        while not self._closed:
            events = self._answers.poll(None if self._asleep else TICK)
            for descriptor, _ in events:
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                    self._asleep = False
                    while not self._calls.empty():
                        self._calls.get()()
                elif (task := self._unfilled.get(descriptor)) is not None:
                    self._fill(task)
                else:
                    self._receive(descriptor)
            if time.monotonic() - checked >= TICK:
                checked = time.monotonic()
                self._check_all()
            if not events:
                self._asleep = True
                self._asleep = not (self._open or self._looking)  # a task that came meanwhile has roused it

    def _check_all(self) -> None:
        if self._looking and self.is_idle:
            self._looking = False
            self._on_idle()
        now, states = time.monotonic(), self._status.states()
        if IDLE in states or BUSY in states:
            self._last_alive = now
        elif self._waiting():
            self._request(LATE)
        for task in list(self._open.values()):
            if task.begun() is not None:
                self._latest_begun = max(self._latest_begun, task.number)
            if (error := task.overdue(now, self._latest_begun, self._last_alive, self.limits)) is not None:
                self._stop(task, error)
        self._grow()

    def wait_until_ready(self, seconds: float = 60.0) -> bool:
        """Returns whether all processes have started within that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self._status.states().strip(IDLE + BUSY):
                return True
            time.sleep(0.01)
        return False

    def close(self) -> None:
        """Cancels everything, and ends the processes if they are its own."""
        with self._lock:
            already, self._closed = self._closed, True
        if already:
            return
        if self._own is not None:
            self._request(END)
            self._own.join()
        for task in list(self._open.values()):
            if not task.cancel():
                self._abort(task, WorkCancelled("the pool is closed"))
        self._rouse()
        self._thread.join()
        self._queue.close()
        self._answers.close()
        self.arrivals.close()
        self._status.close()
        os.close(self._requests)
        os.close(self._wake)


def _complete(task: SubmittedTask, results: list[Result] | FrameCodecError) -> None:
    try:
        if isinstance(results, FrameCodecError):
            task.set_exception(results)
        else:
            task.set_result(results)
    except InvalidStateError:
        pass  # it was cancelled after it was claimed
