"""The process that decodes foreign bytes: `python -m framecodecs.worker QUEUE BOARD PLACE MEMORY LIFETIME
[MODULE ...]`.

It loads all libraries and the modules (preparation.py), and then gives up everything that decoding does not
need (confinement.py). Only then it takes orders from the queue, one at a time, until the queue ends or it has
done LIFETIME of them. The kernel stops C code that hangs or grows: a timer ends the process at each deadline,
and its address space is limited to the size at the start plus MEMORY bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import signal
import socket
import sys
import time
from array import array
from collections.abc import Iterator, Sequence

from framecodecs import cores
from framecodecs.confinement import confine
from framecodecs.errors import FrameCodecError, MemoryExceeded
from framecodecs.preparation import prepare
from framecodecs.processes import BUSY, IDLE
from framecodecs.wireform import (
    LONGEST_MESSAGE,
    STORED_FILES,
    Begun,
    Order,
    Place,
    Result,
    answer_of,
    answer_of_error,
    get_frames,
    get_said,
    order_in,
    put_begun,
    put_frames,
    put_said,
)

DESCRIPTORS = 2  # with an order: its pipe, its file
ROOM_FOR_DESCRIPTORS = socket.CMSG_SPACE((DESCRIPTORS + STORED_FILES) * array("i").itemsize)


class Taken:
    """An order that this process has taken: the pipe for its answer, the memory file, and the files that
    its frames are stored in."""

    def __init__(self, message: bytes, descriptors: Sequence[int]) -> None:
        self.message = message
        self._pipe, *self.files = descriptors
        self.file = self.files[0]
        self._leaving = select.poll()
        self._leaving.register(self._pipe, 0)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not self._leaving.poll(0)

    def answer(self, message: bytes) -> None:
        """Whoever wants this process killed for its order has the file locked, and does so before it can take
        another one."""
        fcntl.lockf(self.file, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):  # nobody waits for it any more
            os.write(self._pipe, message)

    def close(self) -> None:
        for descriptor in (self._pipe, *self.files):
            os.close(descriptor)


class Queue:
    """Orders of all pools. Of those who wait for the next one, one gets it."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)

    def take(self) -> Taken | None:
        """None at the end."""
        message, handed, _, _ = self._socket.recvmsg(LONGEST_MESSAGE, ROOM_FOR_DESCRIPTORS)
        descriptors = array("i", handed[0][2]) if handed else ()
        return Taken(message, descriptors) if len(descriptors) >= DESCRIPTORS else None

    def __iter__(self) -> Iterator[Taken]:
        return iter(self.take, None)


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


def answered(order: Order, files: Sequence[int]) -> bytes:
    """The message with the answer, or that tells of it; frames are in the memory file by then."""
    places: tuple[Place, ...] = ()
    try:
        results = perform(order, get_frames(files, order.places))
        places, _ = put_frames(files[0], [frame for frame, _ in results])
        text = answer_of(results)
    except FrameCodecError as error:
        places, text = (), answer_of_error(error)
    except MemoryError:
        places, text = (), answer_of_error(MemoryExceeded("out of memory"))
    return put_said(files[0], text, places)


def serve(taken: Taken) -> bytes:
    order = order_in(get_said(taken.file, taken.message))
    signal.setitimer(signal.ITIMER_REAL, order.deadline)
    cores.allow(order.cores)
    message = answered(order, taken.files)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return message


def main(arguments: Sequence[str]) -> None:
    descriptor, file, place, memory, lifetime = map(int, arguments[:5])
    for asked in (signal.SIGINT, signal.SIGTERM):  # these reach the whole group; the queue says when we end
        signal.signal(asked, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    prepare(arguments[5:])
    board = mmap.mmap(file, 0)
    os.close(file)
    queue, pid = Queue(descriptor), os.getpid()
    fall_silent()
    confine(memory)
    board[place] = IDLE[0]
    for number, taken in enumerate(queue):
        put_begun(taken.file, Begun(pid, time.monotonic()))
        board[place] = BUSY[0]  # after that: nobody is to take it for an order of somebody else
        message = serve(taken) if taken.is_wanted else b""
        if number + 1 < lifetime:
            board[place] = IDLE[0]  # before anybody knows that it is
        taken.answer(message)
        taken.close()
        if number + 1 >= lifetime:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # libraries' own exit handlers have been seen to hang; there is nothing left to write
