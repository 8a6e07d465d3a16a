"""The process that decodes foreign bytes: `python -m framecodecs.pool.worker QUEUE BOARD MEMORY LIFETIME
[MODULE ...]`.

It loads all libraries and the modules (preparation.py), and then gives up everything that decoding does not
need (confinement.py). Only then it takes orders from the queue, one at a time, until the queue ends or it has
done LIFETIME of them. The kernel stops C code that hangs or grows: two timers, of processor time and of time,
end the process at each deadline. Its address space is limited to the size at the start plus MEMORY bytes.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress

from framecodecs.errors import FrameCodecError, MemoryExceeded
from framecodecs.pool import cores
from framecodecs.pool.board import BUSY, IDLE, Board
from framecodecs.pool.confinement import confine
from framecodecs.pool.pipes import MOST_ROOM, PipeWriter, make_room, receive_whole
from framecodecs.pool.preparation import prepare
from framecodecs.pool.wireform import (
    ANSWERING,
    HEAD,
    WORKING,
    Order,
    Result,
    answer_of,
    answer_of_error,
    order_in,
)

DESCRIPTORS = 2  # with an order: the read end of IN, the write end of OUT
MOST_LENT = 2  # answers of which some may be unread


class Taken:
    """An order that this process has taken."""

    pieces: Sequence[bytes] = ()  # of the answer, which stay as they are until the pool has read them

    def __init__(self, message: bytes, descriptors: Sequence[int]) -> None:
        (self._length,) = HEAD.unpack(message)
        self._input, self.output = descriptors
        self._leaving = select.poll()
        self._leaving.register(self.output, 0)

    @property
    def is_wanted(self) -> bool:
        """Whether the pool still waits for the answer, and has not read it."""
        return not self._leaving.poll(0)

    def read(self) -> tuple[Order, list[bytes]]:
        """The order and its frames. Raises EOFError if it is taken back meanwhile."""
        fcntl.lockf(self.output, fcntl.LOCK_EX, 1, WORKING)
        order = order_in(receive_whole(self._input, self._length))
        if order.deadline < order.patience:
            signal.setitimer(signal.ITIMER_PROF, order.deadline)
        signal.setitimer(signal.ITIMER_REAL, order.patience)
        return order, [receive_whole(self._input, length) for length in order.lengths]

    def answer(self, text: bytes, frames: Sequence[bytes]) -> None:
        """The pool kills this process for an order only while it can lock ANSWERING, and WORKING is locked
        here: never when the process may have another order."""
        self.pieces = HEAD.pack(len(text)), text, *frames
        make_room(self.output, self.size)
        fcntl.lockf(self.output, fcntl.LOCK_EX, 1, ANSWERING)
        outgoing = PipeWriter(self.pieces, may_lend=True)
        with suppress(OSError):  # nothing waits for it any more
            while not outgoing.send(self.output):
                pass
        if not outgoing.lends:
            self.pieces = ()
        fcntl.lockf(self.output, fcntl.LOCK_UN, 2, WORKING)

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))

    def wait_until_read(self) -> None:
        self._leaving.poll()

    def close_input(self) -> None:
        os.close(self._input)

    def close(self) -> None:
        os.close(self.output)


class Lent:
    """Answers whose memory is in pipes until the pool has read it."""

    def __init__(self) -> None:
        self._held: deque[Taken] = deque()

    def add(self, taken: Taken) -> None:
        if not taken.pieces:
            taken.close()
            return
        self._held.append(taken)
        if len(self._held) > MOST_LENT or taken.size > MOST_ROOM:
            self._held[-1 if taken.size > MOST_ROOM else 0].wait_until_read()
        while self._held and not self._held[0].is_wanted:
            self._held.popleft().close()


class Queue:
    """Orders of all pools. Of the processes that wait for the next one, one gets it."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._room = socket.CMSG_SPACE(DESCRIPTORS * array("i").itemsize)

    def take(self) -> Taken | None:
        """None at the end."""
        message, handed, _, _ = self._socket.recvmsg(HEAD.size, self._room)
        descriptors = array("i", handed[0][2]) if handed else ()
        return Taken(message, descriptors) if len(descriptors) == DESCRIPTORS else None

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


def answered(taken: Taken) -> tuple[bytes, list[bytes]]:
    """The text of the answer, and its frames. Raises EOFError if it is not wanted any more."""
    try:
        order, frames = taken.read()
        cores.allow(order.cores)
        results = perform(order, frames)
        return answer_of(results), [bytes(frame) for frame, _ in results]
    except FrameCodecError as error:
        return answer_of_error(error), []
    except MemoryError:
        return answer_of_error(MemoryExceeded("out of memory")), []
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)


def main(arguments: Sequence[str]) -> None:
    descriptor, file, memory, lifetime = map(int, arguments[:4])
    for asked in (signal.SIGINT, signal.SIGTERM):  # these reach the whole group; the queue says when we end
        signal.signal(asked, signal.SIG_IGN)
    for ended_by in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(ended_by, signal.SIG_DFL)
    prepare(arguments[4:])
    board, queue, lent = Board([file]), Queue(descriptor), Lent()
    os.close(file)
    fall_silent()
    confine(memory)
    board[0] = IDLE
    for number, taken in enumerate(queue, 1):
        board[0] = BUSY
        serve(taken, board, number < lifetime)
        lent.add(taken)
        if number >= lifetime:
            return


def serve(taken: Taken, board: Board, goes_on: bool) -> None:
    text, frames = None, list[bytes]()
    with suppress(EOFError):
        if taken.is_wanted:
            text, frames = answered(taken)
    taken.close_input()
    if goes_on:
        board[0] = IDLE  # before the pool knows that it is
    if text is not None:
        taken.answer(text, frames)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # libraries' own exit handlers have been seen to hang; there is nothing left to write
