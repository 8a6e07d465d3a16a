"""One order of a pool that was sent: what will come of it, with a memory file and a pipe of its own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import time
from array import array
from collections.abc import Callable, Sequence

from framecodecs.errors import DeadlineExceeded, PoolError, Unavailable, WorkerCrashed
from framecodecs.outcomes import Outcome
from framecodecs.wireform import (
    LONGEST_MESSAGE,
    Begun,
    Order,
    Result,
    get_begun,
    put_said,
    text_of,
)

TIMES = 3
NONE = -1  # no descriptor
EARLY = 0.05  # seconds by which a timer of the kernel may seem to be early
PIPE = os.O_CLOEXEC | os.O_NONBLOCK
SOCKET, RIGHTS, AT_ONCE = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS), int(socket.MSG_DONTWAIT)


class Submitted(Outcome[list[Result]]):
    """`cancel` takes it back as long as no process has begun it, and calls `taken_back`. `told` waits for its
    answer; `in_advance` says that nobody does so far. `stored` are descriptors of the files that it reads
    from."""

    # Its lock is held while the descriptors are looked at, too.
    descriptor = _theirs = NONE
    _closed = False
    _sent_times = 1
    _stored: Sequence[int] = ()

    def __init__(
        self,
        file: int,
        order: Order,
        told: select.epoll,
        taken_back: Callable[[Submitted], object],
        in_advance: bool,
        stored: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.file = file
        self.told = told
        self.in_advance = in_advance
        self.deadline = order.deadline
        self.sent = time.monotonic()
        self._taken_back = taken_back
        self._message = put_said(file, text_of(order), order.places)
        self.descriptor, self._theirs = os.pipe2(PIPE)
        if stored:
            self._keep(stored)

    def _keep(self, stored: Sequence[int]) -> None:
        """Whoever has opened them may close them as soon as the order is sent; it may be sent anew."""
        kept = self._stored = list[int]()
        try:
            for descriptor in stored:
                kept.append(os.dup(descriptor))
        except OSError:
            self.close()
            raise

    def may_be_sent_anew(self) -> bool:
        """Whether the process that had taken it has ended before it had begun it, which is not its fault."""
        return self._sent_times < TIMES and self.begun() is None

    def connect_anew(self) -> None:
        """Nobody has the other end any more. It can be sent once more then. Raises Unavailable, closed."""
        with self._lock:
            os.close(self.descriptor)
            self.descriptor = NONE
        try:
            self.descriptor, self._theirs = os.pipe2(PIPE)
            self._sent_times += 1
        except OSError as error:
            os.close(self.close())
            raise Unavailable(f"there is no pipe for it: {error.strerror}") from error

    def send(self, queue: socket.socket) -> None:
        """Raises OSError; BlockingIOError if there is no room."""
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "it was taken back")
            theirs, self._theirs = self._theirs, NONE  # the answer may be there before it is closed here
            rights = array("i", (theirs, self.file, *self._stored))
        try:
            queue.sendmsg((self._message,), ((SOCKET, RIGHTS, rights),), AT_ONCE)
        finally:
            os.close(theirs)

    def begun(self) -> Begun | None:
        """By whom and when; None if by nobody, or if it has been answered."""
        with self._lock:
            return None if self._closed else self._begun()

    def _begun(self) -> Begun | None:
        """What the file says of a time before this was sent was said of the order that had it before."""
        begun = get_begun(self.file)
        return begun if begun.pid and begun.at >= self.sent else None

    def running(self) -> bool:
        return self.begun() is not None and not self.done()

    def cancel(self) -> bool:
        if self.running() or not super().cancel():
            return False
        self._taken_back(self)
        return True

    def received(self) -> bytes | None:
        """What has come from the process, which is nothing at its end; None if nothing has come so far."""
        with self._lock:
            if self._closed:
                return None
            try:
                return os.read(self.descriptor, LONGEST_MESSAGE + 1)
            except BlockingIOError:
                return None
            except OSError:
                return b""

    def why_not(self) -> PoolError:
        """Nobody has the other end any more, and nothing has come."""
        begun = self._begun()
        if begun is None:
            return Unavailable("the processes ended before one of them had begun this")
        if time.monotonic() - begun.at > self.deadline - EARLY:
            return self.too_late()
        return WorkerCrashed("the process that worked on it died")

    def too_late(self) -> PoolError:
        return DeadlineExceeded(f"it took more than {self.deadline:g} s")

    def kill(self) -> None:
        """Ends the process that works on it. One that is about to answer has locked the file (worker.py), so
        it is never one that works for somebody else by now."""
        with self._lock, contextlib.suppress(OSError):
            if self._closed:
                return
            begun = self._begun()
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                if begun is not None and self._is_unanswered():
                    _kill(begun.pid, self._is_unanswered)
            finally:
                fcntl.lockf(self.file, fcntl.LOCK_UN)

    def _is_unanswered(self) -> bool:
        answer = select.poll()
        answer.register(self.descriptor, select.POLLIN)
        return not answer.poll(0)

    def close(self) -> int:
        """The file is the caller's from now on."""
        with self._lock:
            self._closed = True
            if self._theirs != NONE:  # it was not sent
                os.close(self._theirs)
            if self.descriptor != NONE:
                os.close(self.descriptor)
            for descriptor in self._stored:
                os.close(descriptor)
            self._theirs, self._stored = NONE, ()
        return self.file


def _kill(pid: int, is_there: Callable[[], bool]) -> None:
    process = os.pidfd_open(pid)
    try:
        if is_there():  # still, so it is the one that was opened
            signal.pidfd_send_signal(process, signal.SIGKILL)
    finally:
        os.close(process)
