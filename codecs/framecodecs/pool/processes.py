"""The processes of a pool: at most `most`, started when one is asked for, replaced when they die.

    pools  --orders-->  one queue, kept by the kernel  --the next one-->  whichever process is idle

Whoever owns them (Processes) starts and replaces them, and takes no part in orders. Pools, in this process or
in others, know them by an Entrance: descriptors that a child may inherit.
- `orders`: a socket. Whatever is sent into it is received by one process; those that are idle wait at its
  other end, and the kernel wakes one of them. So any idle process takes the next order of any pool.
- `asking`: a pipe. FIRST wants one process, MORE another one; LATE says that nothing starts, RENEW that one
  of the processes hides its work, so all are replaced; END that none is wanted any more.
- `boards`: for each place a memory file with the state of the process there (board.py).

Rules of this file
- Processes are started by executing Python anew, never forked, so they inherit no locks, no index, no
  network connections, no secrets of the environment: only the queue and their own file of the board.
- They end with the queue: when the owner and all pools are gone, whatever has ended them.
- One that could not start is not tried again before PAUSE is over.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from framecodecs.pool.board import ABSENT, STARTING, Board, make_files

FIRST, MORE, LATE, RENEW, END = b"f", b"m", b"l", b"r", b"e"
PAUSE = 1.0  # seconds
QUEUE_BYTES = 1 << 20  # of orders of some bytes each; the kernel counts 800 for one
BUSY_MACHINE = 4  # times its deadline that an order may take where other processes use the cores
INHERITED = ("LD_LIBRARY_PATH", "PYTHONHOME")  # where Python and its libraries are
SETTINGS = {
    # One thread a worker: numpy would start its own.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc gives freed frames back to the kernel and faults them in again: half the time of a small frame.
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
}


@dataclass(frozen=True)
class PoolLimits:
    """`waiting` orders of one pool may queue; `deadline` is seconds that an order may take, unless it brings
    its own, which is processor time; `memory` is bytes a process may take beyond what its libraries need (a
    2 GB frame is not decoded in a process of 1 GiB); `starting` is seconds that an order waits while no
    process can be started; `lifetime` is orders before a process is replaced, so that leaks end; `nice`
    lowers the priority of the processes (setpriority(2)); `modules` hold functions that do work, beside
    framecodecs.pool.work."""

    waiting: int = 64
    deadline: float = 20.0
    memory: int = 2 * 2**30
    starting: float = 60.0
    lifetime: int = 20_000
    nice: int = 0
    modules: tuple[str, ...] = ()

    def times(self, deadline: float | None) -> tuple[float, float]:
        """Seconds of processor time, and seconds that may pass meanwhile."""
        if deadline is None:
            return self.deadline, self.deadline
        return deadline, max(deadline, min(deadline * BUSY_MACHINE, self.deadline))


class Entrance(NamedTuple):
    """Descriptors: the queue of orders, the requests for processes, and the state of each process."""

    orders: int
    asking: int
    boards: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> Entrance:
        """As `text` wrote it, for a command line."""
        orders, asking, *boards = map(int, text.split(","))
        return cls(orders, asking, tuple(boards))

    @property
    def text(self) -> str:
        return ",".join(map(str, self.descriptors))

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self.orders, self.asking, *self.boards


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    place: int
    started: float


class Processes:
    """`selector` tells what happens to them: `data` of its events is a function to call. Who has no loop of
    its own calls `serve` in a thread. `ended` is told the process id and exit code of each that ended
    otherwise than by itself. One thread uses it, but for `close` while another one serves."""

    def __init__(
        self,
        most: int,
        limits: PoolLimits | None = None,
        selector: selectors.BaseSelector | None = None,
        ended: Callable[[int, int], None] = lambda pid, code: None,
    ) -> None:
        self.most = most
        self._limits = limits or PoolLimits()
        self._ended = ended
        self._is_served = selector is None
        self._selector = selector or selectors.DefaultSelector()
        self._running: dict[int, _Running] = {}
        self._due = 0.0
        self._closed = False
        sending, self._receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)
        self._receiving.shutdown(socket.SHUT_WR)  # nobody can say anything to a pool through it
        self._asked, asking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        boards = make_files(most)
        self._board = Board(boards)
        self.entrance = Entrance(sending.detach(), asking, boards)
        self._selector.register(self._asked, selectors.EVENT_READ, self._hear)

    def start(self, count: int = 1) -> None:
        """As many more, if there may be more. One that cannot be started now is tried again when it is asked
        for."""
        for _ in range(count):
            free = set(range(self.most)) - {one.place for one in self._running.values()}
            if not free or self._closed or time.monotonic() < self._due:
                return
            place = min(free)
            try:
                self._start(place)
            except OSError:
                self._board[place] = ABSENT
                self._due = time.monotonic() + PAUSE

    def _start(self, place: int) -> None:
        self._board[place] = STARTING
        queue, board, limits = self._receiving.fileno(), self.entrance.boards[place], self._limits
        process = _started(queue, board, limits.memory, limits.lifetime, *limits.modules)
        try:
            if self._limits.nice:
                os.setpriority(os.PRIO_PROCESS, process.pid, self._limits.nice)
            ending = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise
        self._running[ending] = _Running(process, place, time.monotonic())
        self._selector.register(ending, selectors.EVENT_READ, partial(self._died, ending))

    def _hear(self) -> None:
        asked = os.read(self._asked, 1 << 16)
        if END in asked:
            self.close()
            return
        if LATE in asked:
            self._end_those_that_never_start()
        if RENEW in asked:
            for ending in self._running:
                signal.pidfd_send_signal(ending, signal.SIGKILL)
        self.start(asked.count(MORE) or (FIRST in asked and not self._running))

    def _end_those_that_never_start(self) -> None:
        latest = time.monotonic() - self._limits.starting
        for ending, one in self._running.items():
            if self._board[one.place] == STARTING and one.started < latest:
                signal.pidfd_send_signal(ending, signal.SIGKILL)

    def _died(self, ending: int) -> None:
        process, place, _ = self._forget(ending)
        code = process.wait()
        had_started = self._board[place] != STARTING
        self._board[place] = ABSENT
        if code:
            self._ended(process.pid, code)
        if had_started:
            self.start()
        else:
            self._due = time.monotonic() + PAUSE

    def _forget(self, ending: int) -> _Running:
        self._selector.unregister(ending)
        os.close(ending)
        return self._running.pop(ending)

    def serve(self) -> None:
        """Until it is closed, or told to by END in the pipe."""
        while not self._closed:
            for key, _ in self._selector.select():
                if not self._closed:
                    key.data()

    def close(self) -> None:
        """Ends all processes at once, whatever they are doing."""
        if self._closed:
            return
        self._closed = True
        for ending in list(self._running):
            process = self._forget(ending).process
            process.kill()
            process.wait()
        self._selector.unregister(self._asked)
        if self._is_served:
            self._selector.close()
        self._receiving.close()
        self._board.close()
        for descriptor in (self._asked, *self.entrance.descriptors):
            os.close(descriptor)


def _started(queue: int, board: int, *others: int | str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "framecodecs.pool.worker", *map(str, (queue, board, *others))],
        pass_fds=(queue, board),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    """Nothing that a secret may stand in. Modules are found where the pool's are found."""
    package = str(Path(__file__).parent.parent)
    path = os.pathsep.join([package, *(entry for entry in sys.path if entry)])
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return inherited | SETTINGS | {"PYTHONPATH": path}
