"""One worker process of the pool: started, given an order, killed.

Whoever uses it has it alone; `kill` alone may be called from any thread. Frames go through its memory file,
orders and answers through a socket pair (wireform).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from framecodecs.errors import DeadlineExceeded, WorkerCrashed
from framecodecs.wireform import Order, Result, Work, put_frames, read_answer

HALF_A_MESSAGE = 10  # seconds; a worker that stops in the middle of a message is as good as dead
LONGEST_ANSWER = 2**24  # bytes of JSON; some thousand frames an order
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
    """`waiting` orders may queue; `deadline` is seconds of work an order, unless it brings its own; `memory`
    is bytes a worker may take beyond what its libraries need (a 2 GB frame is not decoded in a worker of 1
    GiB); `starting` is seconds for a new process to import them; `lifetime` is orders before a worker is
    replaced, so that leaks end."""

    waiting: int = 64
    deadline: float = 20.0
    memory: int = 2 * 2**30
    starting: float = 60.0
    lifetime: int = 20_000


class WorkerProcess:
    """A process with its socket and memory file."""

    def __init__(self, limits: PoolLimits) -> None:
        with contextlib.ExitStack() as undone:  # where no process can be started
            ours, theirs = socket.socketpair()
            undone.enter_context(ours)
            with theirs:
                for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                    ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", HALF_A_MESSAGE, 0))
                self.file = os.memfd_create("frames")
                undone.callback(os.close, self.file)
                self.process = _started(theirs.fileno(), self.file, limits.memory)
            undone.pop_all()
        self.connection = Connection(ours.detach())
        self._arrival = select.poll()
        self._arrival.register(self.connection.fileno(), select.POLLIN)
        self.ready = False
        self.orders = 0

    def wait_until_ready(self, seconds: float) -> None:
        if not self.ready:
            self._receive(seconds, "start")
            self.ready = True

    def _receive(self, seconds: float, what: str) -> bytes:
        try:
            if not self._arrival.poll(seconds * 1000):
                raise DeadlineExceeded(f"the worker took more than {seconds:g} s to {what}")
            return self.connection.recv_bytes(LONGEST_ANSWER)
        except (EOFError, OSError) as error:
            raise self._died() from error

    def _died(self) -> WorkerCrashed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        code = self.process.poll()
        return WorkerCrashed(f"the worker ended with {code}", code)

    def send(
        self,
        work: Work,
        frames: Sequence[bytes | memoryview],
        arguments: tuple[Any, ...],
        deadline: float,
        cores: int,
    ) -> None:
        """An order; its answer has to be received before the next one."""
        self.orders += 1
        order = Order(work, arguments, put_frames(self.file, frames), deadline, cores)
        try:
            self.connection.send_bytes(pickle.dumps(order, pickle.HIGHEST_PROTOCOL))
        except OSError as error:
            raise self._died() from error

    def receive(self, deadline: float) -> list[Result]:
        """Waits for the answer, `deadline` seconds at most."""
        return read_answer(self._receive(deadline, "answer"), self.file)

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


def _started(*arguments: int) -> subprocess.Popen[bytes]:
    """Of a socket, a memory file and a limit."""
    return subprocess.Popen(
        [sys.executable, "-m", "framecodecs.worker", *map(str, arguments)],
        pass_fds=arguments[:2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    """Modules are found where the pool's are found."""
    package = str(Path(__file__).parent.parent)
    path = os.pathsep.join([package, *(entry for entry in sys.path if entry)])
    return os.environ | SETTINGS | {"PYTHONPATH": path}
