"""A pool of decoding processes: a codestream that crashes, hangs or grows costs one answer and nobody else's.

    submit -> queue of the kernel -> an idle process -> pipe of the order -> Submitted, which is a Future

- Several pools may share processes, by an Entrance (processes.py). Without one, a pool has its own.
- An order waits in the kernel, with its frames in a pipe, and any process takes it. So `submit` wakes the
  process, and no process is ever idle while there is an order. Frames that do not fit into the pipe follow
  when the process has read from it.
- A process may have been taken over by a codestream. So each order has pipes of its own, the pool believes
  the kernel about a process (orders.py), and it checks each word of the process itself (wireform.py).
- A process that died of its work, or was ended at its deadline, closes the pipe of that order, and that is
  the answer. When a pool dies, its orders are dropped as soon as a process comes upon them.
- `submit` never waits. One thread waits for all answers; those of orders that are submitted `here` come when
  whoever has a loop, and watches `arrivals`, calls `receive`: no thread has to wake up in between.
- One order holds several frames: hand-over costs the same for one frame as for eight small ones.
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
from functools import partial
from itertools import count
from typing import Any

from framecodecs.errors import FrameCodecError, PoolError, QueueFull, Unavailable, WorkCancelled
from framecodecs.pool.board import ABSENT, BUSY, IDLE, STARTING, Board
from framecodecs.pool.feeding import Feeder
from framecodecs.pool.orders import Submitted
from framecodecs.pool.pipes import Frame, length_of
from framecodecs.pool.processes import END, FIRST, LATE, MORE, RENEW, Entrance, Processes
from framecodecs.pool.processes import PoolLimits as PoolLimits
from framecodecs.pool.wireform import Order, Result, Work

Answer = Future[list[Result]]
Frames = Sequence[Frame]
TICK = 0.25  # seconds between looks at what does not tell by itself, as long as there is something to look at


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
        self._board = Board(entrance.boards)
        self.most = len(self._board)
        self._most_open = self.limits.waiting + self.most
        self._queue = socket.socket(fileno=os.dup(entrance.orders))
        self._asking = os.dup(entrance.asking)
        self._tell_idle = idle
        self._open: dict[int, Submitted] = {}  # by the descriptor of its pipe
        self._numbers = count(1)
        self._latest_begun = 0
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._closed = False
        self._cores = len(os.sched_getaffinity(0))
        self._looking = self._asleep = False
        self._last_there = time.monotonic()
        self._wake = os.eventfd(0)
        self._answers, self.arrivals = select.epoll(), select.epoll()
        self._answers.register(self._wake, select.EPOLLIN)
        self._feeder = Feeder(self._answers)
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
        board = self._board.states()
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
        board = self._board.states()
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
        seconds, patience = self.limits.times(deadline)
        # For the libraries that can use several: all while no other order waits for one.
        cores = 1 if self._open or BUSY in self._board.states() else self._cores
        what = Order(work, arguments, tuple(map(length_of, frames)), seconds, patience, cores)
        order = Submitted(what, frames, told, self._end, in_advance, self.limits.memory)
        self._send(order)
        return order

    def _send(self, order: Submitted) -> None:
        try:
            with self._lock:
                if self._closed:
                    order.close()
                    raise Unavailable("the pool is closed")
                self._open[order.descriptor] = order
                order.told.register(order.descriptor, select.EPOLLIN)
            self._feeder.add(order)
            with self._sending:
                order.number = next(self._numbers)
                order.send(self._queue)
        except BlockingIOError:
            self._end(order)
            raise QueueFull("orders of others are waiting already") from None
        except OSError as error:
            self._end(order)
            raise Unavailable(f"no process can take it: {error.strerror}") from error
        if ABSENT in self._board.states():
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
        """Without an answer; whether it was still under way."""
        if not self._claim(order):
            return False
        self._feeder.forget(order)
        order.close()
        return True

    def cancel(self, order: Answer) -> None:
        """Nobody wants this answer: takes it from the queue, or kills the process that is busy with it."""
        if order.cancel() or order.done() or not isinstance(order, Submitted):
            return
        self._stop(order, WorkCancelled("no request waits for this"))

    def _stop(self, order: Submitted, error: FrameCodecError) -> None:
        """Claims the order first: the death of its process is then no answer to it."""
        if self._claim(order):
            self._kill(order)
            self._feeder.forget(order)
            order.close()
            _fail(order, error)

    def _fail(self, order: Submitted, error: FrameCodecError) -> None:
        if self._end(order):
            _fail(order, error)

    def _kill(self, order: Submitted) -> None:
        if not order.kill():
            self._ask(RENEW)  # one of the processes hides from the kernel's lock, and nothing says which

    # Answers

    def receive(self) -> None:
        """Whatever has come to `arrivals`; returns at once."""
        for descriptor, _ in self.arrivals.poll(0):
            self._receive(descriptor)

    def _receive(self, descriptor: int) -> None:
        order = self._open.get(descriptor)
        if order is None:
            return
        try:
            if (results := order.received()) is None:
                return
            tell = partial(order.set_result, results)
        except EOFError:
            if self._claim(order):
                self._send_anew(order)
            return
        except FrameCodecError as error:
            tell = partial(order.set_exception, error)
        if not self._claim(order):
            return
        self._latest_begun = max(self._latest_begun, order.number)
        with contextlib.suppress(InvalidStateError):  # it was cancelled after it was claimed
            tell()
        self._feeder.forget(order)
        order.close()  # its callers have gone on
        self._tell_idle()

    def _send_anew(self, order: Submitted) -> None:
        """A process that was about to end had taken it."""
        try:
            order.connect_anew()
            self._send(order)
        except PoolError as error:
            _fail(order, error)

    def _serve(self) -> None:
        """The thread. It sleeps when nothing has happened for a while and nobody waits."""
        looked = time.monotonic()
        while not self._closed:
            came = self._answers.poll(None if self._asleep else TICK)
            for descriptor, _ in came:
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                    self._asleep = False
                elif descriptor in self._feeder:
                    if (failed := self._feeder.feed(descriptor)) is not None:
                        self._fail(*failed)
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
        now, board = time.monotonic(), self._board.states()
        if IDLE in board or BUSY in board:
            self._last_there = now
        elif self._waiting():
            self._ask(LATE)
        for order in list(self._open.values()):
            if order.begun() is not None:
                self._latest_begun = max(self._latest_begun, order.number)
            if (error := order.overdue(now, self._latest_begun, self._last_there, self.limits)) is not None:
                self._stop(order, error)
        self._grow()

    def wait_until_ready(self, seconds: float = 60.0) -> bool:
        """Whether all processes, also those that nobody needed so far, have started within that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self._board.states().strip(IDLE + BUSY):
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
        self._queue.close()
        self._answers.close()
        self.arrivals.close()
        self._board.close()
        os.close(self._asking)
        os.close(self._wake)


def _fail(order: Submitted, error: FrameCodecError) -> None:
    with contextlib.suppress(InvalidStateError):  # it was cancelled after it was claimed
        order.set_exception(error)
