"""A pool of decoding processes: a codestream that crashes, hangs or grows costs one answer and nobody else's.

    submit -> queue of the kernel -> an idle process -> pipe of the order -> Submitted, which is an Outcome

- Several pools may share processes, by an Entrance (processes.py). Without one, a pool has its own.
- An order waits in the kernel, with its frames in a memory file or where they are stored, and any process
  takes it. So whoever submits it wakes the process, and no process is ever idle while there is an order.
- A process that died of its work, or was ended at its deadline, closes the pipe of that order, and that is
  the answer. When a pool dies, its orders are dropped as soon as a process comes upon them.
- `submit` never waits. One thread waits for all answers; those of orders that are submitted `here` come when
  whoever has a loop, and watches `arrivals`, calls `receive`: no thread has to wake up in between.
- One order holds several frames: hand-over costs the same for one frame as for eight small ones.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from framecodecs.errors import PoolError, QueueFull, Unavailable, WorkCancelled, WorkerCrashed
from framecodecs.memoryfiles import MemoryFiles
from framecodecs.orders import Submitted
from framecodecs.outcomes import Outcome
from framecodecs.processes import ABSENT, BUSY, END, FIRST, IDLE, LATE, MORE, STARTING, Entrance, Processes
from framecodecs.processes import PoolLimits as PoolLimits
from framecodecs.wireform import Frame, Order, Result, Work, put_frames, read_answer

Answer = Outcome[list[Result]]
Frames = Sequence[Frame]
TICK = 0.25  # seconds between looks at what does not tell by itself, as long as there is something to look at
GRACE = 2.0  # seconds after its deadline that a process has to end by its own timer


class FramePool:
    """`workers` processes of its own at most, `first` of them (all, if it is not said) started at once; or
    those of `entrance`, `most` in all. `idle` is called after each answer, when a process may have nothing to
    do, by the thread that others wait for: it returns at once. Thread-safe; use it as a context manager or
    close it."""

    def __init__(
        self,
        workers: int | None = None,
        limits: PoolLimits | None = None,
        *,
        first: int | None = None,
        idle: Callable[[], None] = lambda: None,
        entrance: Entrance | None = None,
    ) -> None:
        self.limits = limits or PoolLimits()
        self._own: threading.Thread | None = None
        if entrance is None:
            entrance = self._own_processes(workers or 1, first)
        self._board = mmap.mmap(entrance.board, 0)
        self.most = len(self._board)
        self._most_open = self.limits.waiting + self.most
        self._queue = socket.socket(fileno=os.dup(entrance.orders))
        self._asking = os.dup(entrance.asking)
        self._tell_idle = idle
        self._open: dict[int, Submitted] = {}  # by the descriptor of its pipe
        self._files = MemoryFiles()
        self._lock = threading.Lock()
        self._closed = False
        self._cores = len(os.sched_getaffinity(0))
        self._looking = self._asleep = False
        self._last_there = time.monotonic()
        self._wake = os.eventfd(0)
        self._answers, self.arrivals = select.epoll(), select.epoll()
        self._answers.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._serve, name="frames", daemon=True)
        self._thread.start()

    def _own_processes(self, workers: int, first: int | None) -> Entrance:
        processes = Processes(workers, self.limits)
        processes.start(workers if first is None else first)
        self._own = threading.Thread(target=processes.serve, name="frames-processes", daemon=True)
        self._own.start()
        return processes.entrance

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
        return self.is_idle_but(0)

    def is_idle_but(self, kept: int) -> bool:
        """Whether more than `kept` processes have nothing to do. While other pools have orders under way, one
        more is theirs: whoever sends the next one should not wait for what is done in advance."""
        board = self._board[:]
        if (idle := board.count(IDLE)) <= kept:
            return False  # mostly, and no order has to be looked at
        waiting = self._waiting()
        have_others = board.count(BUSY) > len(self._open) - waiting
        return idle - waiting > kept + have_others

    def _waiting(self) -> int:
        return sum(order.begun() is None for order in list(self._open.values()))

    def _ask(self, how_many: bytes) -> None:
        with contextlib.suppress(OSError):  # whoever is there does it
            os.write(self._asking, how_many)

    def warm(self) -> None:
        """Orders will come soon: one process is started, if there is none."""
        self._ask(FIRST)

    def look(self) -> None:
        """Calls `idle` if a process has nothing to do, or soon after one has. If there is none, another one
        is started as long as there may be more."""
        if self.is_idle:
            self._tell_idle()
            return
        self._looking = True
        self._grow(1)
        if self._asleep:
            self._rouse()

    def _grow(self, more: int = 0) -> None:
        board = self._board[:]
        if ABSENT in board and self._waiting() + more > board.count(IDLE) + board.count(STARTING):
            self._ask(MORE)

    def _rouse(self) -> None:
        os.eventfd_write(self._wake, 1)

    # Orders

    def submit(
        self, work: Work, frames: Frames, *arguments: Any, deadline: float | None = None, here: bool = False
    ) -> Answer:
        """Has `work(frames, *arguments)` done by a process; raises QueueFull if `waiting` orders of this pool
        wait already, Unavailable if nobody could take it. `here`: who watches `arrivals` will receive it."""
        if self._closed:
            raise Unavailable("the pool is closed")
        if len(self._open) >= self._most_open:
            self._check_place()
        return self._submitted(work, frames, arguments, deadline, self.arrivals if here else self._answers)

    def submit_if_idle(
        self, work: Work, frames: Frames, *arguments: Any, deadline: float | None = None, kept: int = 0
    ) -> Answer | None:
        """As `submit`, by a process that has nothing to do; None if there are no more than `kept`."""
        if self._closed or not self.is_idle_but(kept):
            return None
        return self._submitted(work, frames, arguments, deadline, self._answers, in_advance=True)

    def _check_place(self) -> None:
        """Those that were sent in advance take nobody's place."""
        if sum(not order.in_advance for order in list(self._open.values())) >= self._most_open:
            raise QueueFull(f"{self.limits.waiting} orders are waiting already")

    def _submitted(
        self,
        work: Work,
        frames: Frames,
        arguments: tuple[Any, ...],
        deadline: float | None,
        told: select.epoll,
        in_advance: bool = False,
    ) -> Submitted:
        file = self._files.take()
        try:
            seconds = self.limits.deadline if deadline is None else deadline
            places, stored = put_frames(file, frames)
            # For the libraries that can use several: all while nobody else waits for one.
            cores = 1 if self._open or BUSY in self._board[:] else self._cores
            what = Order(work, arguments, places, seconds, cores)
            # A process that comes upon one that was taken back drops it.
            order = Submitted(file, what, told, self._end, in_advance, stored)
        except BaseException:
            os.close(file)
            raise
        self._send(order)
        return order

    def _send(self, order: Submitted) -> None:
        try:
            with self._lock:
                if self._closed:
                    os.close(order.close())
                    raise Unavailable("the pool is closed")
                self._open[order.descriptor] = order
                order.told.register(order.descriptor, select.EPOLLIN)
            order.send(self._queue)
        except BlockingIOError:
            self._end(order)
            raise QueueFull("orders of others are waiting already") from None
        except OSError as error:
            self._end(order)
            raise Unavailable(f"no process can take it: {error.strerror}") from error
        if ABSENT in self._board[:]:
            self._grow()
        if self._asleep:
            self._rouse()

    def _claim(self, order: Submitted) -> bool:
        """Whether it is the caller's to end."""
        with self._lock:
            if self._open.get(order.descriptor) is not order:
                return False
            del self._open[order.descriptor]
            return True  # closing it takes it out of the epoll as well

    def _end(self, order: Submitted) -> bool:
        """Without an answer; whether it was still under way. A process may yet write into its file."""
        if not self._claim(order):
            return False
        os.close(order.close())
        return True

    def cancel(self, order: Answer) -> None:
        """Nobody wants this answer: takes it from the queue, or kills the process that is busy with it."""
        if order.cancel() or order.done() or not isinstance(order, Submitted):
            return
        order.kill()
        self._fail(order, WorkCancelled("nobody waits for this any more"))

    def _fail(self, order: Submitted, error: PoolError) -> None:
        if self._end(order):
            order.set_exception(error)

    # Answers

    def receive(self) -> None:
        """Whatever has come to `arrivals`; returns at once."""
        for descriptor, _ in self.arrivals.poll(0):
            self._receive(descriptor)

    def _receive(self, descriptor: int) -> None:
        order = self._open.get(descriptor)
        message = None if order is None else order.received()
        if order is None or message is None or not self._claim(order):
            return
        if not message and order.may_be_sent_anew():
            self._send_anew(order)
            return
        # A process that has answered has the file no more, if it can be believed.
        done_with: Callable[[int], None] = os.close
        try:
            if not message:
                raise order.why_not()
            results = read_answer(message, order.file)
        except Exception as error:
            if message and not isinstance(error, WorkerCrashed):
                done_with = self._files.give_back
            order.set_exception(error)
        else:
            done_with = self._files.give_back
            order.set_result(results)  # unless it was cancelled just now
        done_with(order.close())  # those who waited have gone on
        self._tell_idle()

    def _send_anew(self, order: Submitted) -> None:
        """A process that was about to end had taken it."""
        try:
            order.connect_anew()
            self._send(order)
        except PoolError as error:
            order.set_exception(error)

    def _serve(self) -> None:
        """The thread. It sleeps when nothing has happened for a while and nobody waits."""
        looked = time.monotonic()
        while not self._closed:
            came = self._answers.poll(None if self._asleep else TICK)
            for descriptor, _ in came:
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                    self._asleep = False
                else:
                    self._receive(descriptor)
            if time.monotonic() - looked >= TICK:
                looked = time.monotonic()
                self._look_around()
            if not came:
                self._asleep = True
                self._asleep = not (self._open or self._looking)  # whoever came meanwhile has roused us

    def _look_around(self) -> None:
        if self._looking and self.is_idle:
            self._looking = False
            self._tell_idle()
        now, board = time.monotonic(), self._board[:]
        if IDLE in board or BUSY in board:
            self._last_there = now
        elif self._waiting():
            self._ask(LATE)
        for order in list(self._open.values()):
            begun = order.begun()
            if begun is not None and now > begun.at + order.deadline + GRACE:
                order.kill()
                self._fail(order, order.too_late())
            elif begun is None and now > max(order.sent, self._last_there) + self.limits.starting:
                self._fail(order, Unavailable("no process could be started"))
        self._grow()

    def wait_until_ready(self, seconds: float = 60.0) -> bool:
        """Whether all processes, also those that nobody needed so far, have started within that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self._board[:].strip(IDLE + BUSY):
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
            self._ask(END)
            self._own.join()
        for order in list(self._open.values()):
            if not order.cancel():
                self._fail(order, WorkCancelled("the pool is closed"))
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._files.close()
        self._queue.close()
        self._answers.close()
        self.arrivals.close()
        self._board.close()
        os.close(self._asking)
        os.close(self._wake)
