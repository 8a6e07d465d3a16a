"""The process that touches foreign bytes: `python -m framecodecs.worker SOCKET FILE MEMORY`.

It takes one order at a time until the socket ends. The libraries, a third of its start, are imported while
no order is there; one that is needed earlier is imported by need. Limits are the kernel's, so that C code
that hangs or grows is stopped too: address space (what the process has before its first order, plus MEMORY
bytes) and an alarm a little after each deadline, in case the pool that should have killed it is gone. No core
is ever dumped: it would hold pixels.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from framecodecs import cores
from framecodecs.errors import FrameCodecError, MemoryExceeded
from framecodecs.libraries import LIBRARIES, available
from framecodecs.wireform import Order, Result, answer_of, answer_of_error, get_frames, put_frames

READY = b"ready"
ALARM_GRACE = 5  # seconds that the pool has to notice a deadline first


def preload(wanted: Callable[[], bool]) -> None:
    """Imports the libraries one by one, until somebody wants something."""
    for package, library in LIBRARIES.items():
        if wanted():
            return
        if available(package):
            with contextlib.suppress(ImportError):  # said again, in words, to whoever needs it
                importlib.import_module(library.module)


def limit_memory(extra: int) -> None:
    with open("/proc/self/statm", "rb") as statm:
        have = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (have + extra, have + extra))
    resource.setrlimit(resource.RLIMIT_FSIZE, (extra, extra))  # the memory file is memory too
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def fall_silent() -> None:
    """Libraries write what they think of broken codestreams to stderr."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def perform(order: Order, frames: Sequence[bytes]) -> Sequence[Result]:
    """Runs the order's work; whatever it raises becomes an error that can be told."""
    try:
        return order.work(frames, *order.arguments)
    except FrameCodecError:
        raise
    except MemoryError as error:
        raise MemoryExceeded("out of memory") from error
    except Exception as error:
        raise FrameCodecError(f"{type(error).__name__}: {str(error)[:200]}") from error


def answered(order: Order, file: int) -> bytes:
    """The answer to one order, its frames put into the memory file."""
    try:
        results = perform(order, get_frames(file, order.sizes))
        return answer_of(results, put_frames(file, [frame for frame, _ in results]))
    except FrameCodecError as error:
        return answer_of_error(error)
    except MemoryError:
        return answer_of_error(MemoryExceeded("out of memory"))


def serve(connection: Connection, file: int) -> None:
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        order = pickle.loads(message)
        signal.alarm(math.ceil(order.deadline) + ALARM_GRACE)
        cores.allow(order.cores)
        answer = answered(order, file)
        signal.alarm(0)
        connection.send_bytes(answer)


def main(arguments: Sequence[str]) -> None:
    socket, file, memory = (int(argument) for argument in arguments)
    for asked in (signal.SIGINT, signal.SIGTERM):  # these reach the whole group; the pool says when we end
        signal.signal(asked, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    importlib.import_module("framecodecs.work")  # what every order asks for
    connection = Connection(socket)
    fall_silent()
    connection.send_bytes(READY)
    preload(connection.poll)
    limit_memory(memory)
    serve(connection, file)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # libraries' own exit handlers have been seen to hang; there is nothing left to write
