"""Pixel processes: they are started on request, and replaced when they die.

    pools  --tasks-->  one queue, kept by the kernel  --the next task-->  a process that is idle

The owner (PixelProcesses) starts and replaces them, and takes no part in tasks. Pools, in this process or in
others, reach them by PoolEndpoints: descriptors that a child may inherit.
- `tasks`: a socket. Idle processes wait at its other end, and the kernel wakes one of them for each message.
  So any idle process takes the next task of any pool.
- `requests`: a pipe. FIRST requests one process, MORE another one. LATE says that nothing starts. RENEW says
  that a process hides its work, so all are replaced. END ends all.
- `status_pages`: for each process a memory file with its state.

Rules of this file
- Processes start by exec, never by fork. They inherit no locks, index, connections or secrets of the
  environment, but only the queue and their own status page.
- A process can write to its own status page only. So a process that was taken over can lie about itself
  alone. The files are sealed: to cut a mapped file short would kill the processes that read it.
- They end with the queue, which ends with its owner and all pools.
- After a process that could not start, the next attempt comes PAUSE seconds later.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

ABSENT, STARTING, IDLE, BUSY = b"\0", b"s", b"i", b"b"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make_files(count: int) -> tuple[int, ...]:
    """Returns descriptors, which the caller closes."""
    files = list[int]()
    for _ in range(count):
        file = os.memfd_create("status", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        files.append(file)
        os.truncate(file, 1)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
    return tuple(files)


class StatusPages:
    """The pages of some processes, in the order of their files. They are hints: a process may have died."""

    def __init__(self, files: Sequence[int]) -> None:
        self._pages = [mmap.mmap(file, 1) for file in files]

    def __len__(self) -> int:
        return len(self._pages)

    def states(self) -> bytes:
        return b"".join([page[:] for page in self._pages])

    def __getitem__(self, index: int) -> bytes:
        return self._pages[index][:]

    def __setitem__(self, index: int, state: bytes) -> None:
        self._pages[index][:] = state

    def close(self) -> None:
        for page in self._pages:
            page.close()


FIRST, MORE, LATE, RENEW, END = b"f", b"m", b"l", b"r", b"e"
PAUSE = 1.0  # seconds
# The argument before the fonts.
FONTS = "--fonts"
QUEUE_BYTES = 1 << 20  # the kernel counts 800 bytes for each task
BUSY_MACHINE = 4  # times its deadline that a task may take while other processes use the cores
INHERITED = ("LD_LIBRARY_PATH", "PYTHONHOME")
SETTINGS = {
    # numpy would start threads of its own.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # Else glibc returns freed frames to the kernel and faults them in again: half the time of a small frame.
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
}


@dataclass(frozen=True)
class PoolLimits:
    """`waiting` is the number of tasks of one pool that may queue. `deadline` is seconds for a task that has
    no deadline of its own; that would be processor time. `memory` is bytes of a process beyond the size of
    its libraries: 1 GiB is too little for a frame of 2 GB. `starting` is seconds that a task waits while no
    process can start. `lifetime` is tasks before a process is replaced, which ends leaks. `nice` lowers the
    priority of the processes (setpriority(2)). `modules` hold further functions that do work. `fonts` are
    those of annotations (rendering/fonts.py)."""

    waiting: int = 64
    deadline: float = 20.0
    memory: int = 2 * 2**30
    starting: float = 60.0
    lifetime: int = 20_000
    nice: int = 0
    modules: tuple[str, ...] = ()
    fonts: tuple[str, ...] = ()

    def times(self, deadline: float | None) -> tuple[float, float]:
        """Returns seconds of processor time, and seconds of patience."""
        if deadline is None:
            return self.deadline, self.deadline
        return deadline, max(deadline, min(deadline * BUSY_MACHINE, self.deadline))


class PoolEndpoints(NamedTuple):
    """Descriptors: the queue of tasks, the pipe of requests, and the status page of each process."""

    tasks: int
    requests: int
    status_pages: tuple[int, ...]

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self.tasks, self.requests, *self.status_pages


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    slot: int  # the number of its status page
    started: float


class PixelProcesses:
    """At most `most` processes. The caller waits for `selector` and calls the `data` of its events, or calls
    `serve` in a thread. `ended` gets the process id and exit code of each process that ended with an error.
    One thread uses this, apart from `close`, which another one may call."""

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
        self._receiving.shutdown(socket.SHUT_WR)  # no process can send to a pool through it
        self._requested, requests = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        pages = make_files(most)
        self._status = StatusPages(pages)
        self.endpoints = PoolEndpoints(sending.detach(), requests, pages)
        self._selector.register(self._requested, selectors.EVENT_READ, self._read_requests)

    def start(self, count: int = 1) -> None:
        """Starts `count` more, if there may be more. A failure is tried again with the next request."""
        for _ in range(count):
            free = set(range(self.most)) - {one.slot for one in self._running.values()}
            if not free or self._closed or time.monotonic() < self._due:
                return
            slot = min(free)
            try:
                self._start(slot)
            except OSError:
                self._status[slot] = ABSENT
                self._due = time.monotonic() + PAUSE

    def _start(self, slot: int) -> None:
        self._status[slot] = STARTING
        queue, page, limits = self._receiving.fileno(), self.endpoints.status_pages[slot], self._limits
        more = (*limits.modules, FONTS, *limits.fonts)
        process = _started(queue, page, limits.memory, limits.lifetime, *more)
        try:
            if self._limits.nice:
                os.setpriority(os.PRIO_PROCESS, process.pid, self._limits.nice)
            ending = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise
        self._running[ending] = _Running(process, slot, time.monotonic())
        self._selector.register(ending, selectors.EVENT_READ, partial(self._died, ending))

    def _read_requests(self) -> None:
        requests = os.read(self._requested, 1 << 16)
        if END in requests:
            self.close()
            return
        latest = time.monotonic() - self._limits.starting
        for ending, one in self._running.items():
            never_starts = self._status[one.slot] == STARTING and one.started < latest
            if RENEW in requests or (LATE in requests and never_starts):
                signal.pidfd_send_signal(ending, signal.SIGKILL)
        self.start(requests.count(MORE) or (FIRST in requests and not self._running))

    def _died(self, ending: int) -> None:
        process, slot, _ = self._forget(ending)
        code = process.wait()
        had_started = self._status[slot] != STARTING
        self._status[slot] = ABSENT
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
        """Runs until `close`, or END in the pipe."""
        while not self._closed:
            for key, _ in self._selector.select():
                if not self._closed:
                    key.data()

    def close(self) -> None:
        """Kills all processes."""
        if self._closed:
            return
        self._closed = True
        for ending in list(self._running):
            process = self._forget(ending).process
            process.kill()
            process.wait()
        self._selector.unregister(self._requested)
        if self._is_served:
            self._selector.close()
        self._receiving.close()
        self._status.close()
        for descriptor in (self._requested, *self.endpoints.descriptors):
            os.close(descriptor)


def _started(queue: int, page: int, *others: int | str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "framecodecs.pool.worker", *map(str, (queue, page, *others))],
        pass_fds=(queue, page),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    """Returns variables without secrets. The process finds modules where its parent finds them."""
    package = str(Path(__file__).parent.parent)
    path = os.pathsep.join([package, *(entry for entry in sys.path if entry)])
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return inherited | SETTINGS | {"PYTHONPATH": path}
